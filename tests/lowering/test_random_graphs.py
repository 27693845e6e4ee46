"""Random networks: layouts, groups, workspace and borders together give the reference's answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Graph, Op, TensorType
from eecompile.reference import run_graph
from eecompile.shapes import infer_types
from eecompile.targets.lowering import compile_functions
from tests.lowering.calling import Loaded, inputs_of


class Builder:
    """Grows a graph of pictures, operator by operator."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.ops: list[Op] = []
        self.constants: dict[str, np.ndarray] = {}
        shape = (1, draw(st.sampled_from([3, 8, 16, 20])), 8, draw(st.sampled_from([6, 8])))
        self.types = {"x": TensorType("float32", shape)}
        self.values = ["x"]

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        scale = max(int(np.prod(shape[1:])), 1) ** -0.5
        self.constants[name] = (self.rng.standard_normal(shape) * scale).astype("float32")
        self.types[name] = TensorType("float32", shape)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.ops)}"
        op = Op(name, kind, inputs, (name,), attributes)
        (self.types[name],) = infer_types(op, [self.types[i] for i in inputs])
        self.ops.append(op)
        self.values.append(name)
        return name

    def step(self) -> None:
        x = self.pick(*self.values[-4:])
        shape = self.types[x].shape
        rank = len(shape)
        kinds = ["unary", "binary", "affine", "concat", "slice", "pad", "transpose", "softmax"]
        kinds += ["backwards", "tile", "gather", "choice"]
        if rank == 4:
            kinds += ["conv", "conv", "conv", "pool", "reduce", "norm", "flatten", "gate"]
            kinds += ["resize", "transposed", "blocks"]
        getattr(self, f"_{self.pick(*kinds)}")(x, shape)

    def _unary(self, x: str, shape: tuple[int, ...]) -> None:
        self.add(self.pick("Relu", "Sigmoid", "Tanh", "Neg", "HardSwish"), x)

    def _binary(self, x: str, shape: tuple[int, ...]) -> None:
        same = [v for v in self.values if self.types[v].shape == shape]
        self.add(self.pick("Add", "Sub", "Max"), x, self.pick(*same))

    def _affine(self, x: str, shape: tuple[int, ...]) -> None:
        full = tuple(n if self.draw(st.booleans()) else 1 for n in shape)
        drop = self.draw(st.integers(0, len(shape)))
        self.add(self.pick("Mul", "Add", "Sub"), x, self.constant(*full[drop:]))

    def _concat(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.draw(st.integers(0, len(shape) - 1))
        fits = [
            v
            for v in self.values
            if len(self.types[v].shape) == len(shape)
            and all(
                a == b or i == axis
                for i, (a, b) in enumerate(zip(self.types[v].shape, shape, strict=True))
            )
        ]
        if shape[axis] <= 24:
            self.add("Concat", x, self.pick(*fits), axis=axis)

    def _slice(self, x: str, shape: tuple[int, ...]) -> None:
        axes = tuple(i for i, n in enumerate(shape) if n > 3 and self.draw(st.booleans()))
        step = self.pick(1, 1, 2)
        if axes:
            ends = tuple(shape[i] for i in axes)
            starts = (1,) * len(axes)
            self.add("Slice", x, starts=starts, ends=ends, axes=axes, steps=(step,) * len(axes))

    def _pad(self, x: str, shape: tuple[int, ...]) -> None:
        pads = tuple(self.draw(st.integers(0, 2)) if i % len(shape) else 0 for i in range(8))
        if len(shape) == 4:
            self.add("Pad", x, pads=pads, mode="constant", value=self.pick(0.0, 0.0, 1.5))

    def _transpose(self, x: str, shape: tuple[int, ...]) -> None:
        perm = self.draw(st.permutations(range(1, len(shape))))
        self.add("Transpose", x, perm=(0, *perm))

    def _softmax(self, x: str, shape: tuple[int, ...]) -> None:
        self.add("Softmax", x, axis=self.draw(st.integers(0, len(shape) - 1)))

    def _conv(self, x: str, shape: tuple[int, ...]) -> None:
        group = self.pick(1, 1, shape[1])
        outputs = shape[1] if group > 1 else self.pick(4, 16, 20)
        k, s = self.pick(1, 3), self.pick(1, 1, 2)
        w = self.constant(outputs, shape[1] // group, k, k)
        attributes = {"strides": (s, s), "pads": (k // 2,) * 4, "dilations": (1, 1)}
        self.add("Conv", x, w, self.constant(outputs), **attributes, group=group)

    def _pool(self, x: str, shape: tuple[int, ...]) -> None:
        common = {"kernel_shape": (2, 2), "strides": (1, 1), "pads": (0, 1, 1, 0)}
        if self.draw(st.booleans()):
            self.add("MaxPool", x, **common, dilations=(1, 1))
        else:
            self.add("AveragePool", x, **common, count_include_pad=0, extra=(0, 0))

    def _reduce(self, x: str, shape: tuple[int, ...]) -> None:
        axes = self.pick((2, 3), (1,), (3,), (1, 2))
        self.add(self.pick("ReduceMean", "ReduceMax"), x, axes=axes, keepdims=self.pick(0, 1))

    def _norm(self, x: str, shape: tuple[int, ...]) -> None:
        names = [self.constant(shape[1]) for _ in range(4)]
        self.constants[names[3]] = np.abs(self.constants[names[3]]) + np.float32(0.5)
        self.add("BatchNormalization", x, *names, epsilon=1e-5)

    def _flatten(self, x: str, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        flat = self.add("Reshape", x, shape=(1, size))
        self.add("MatMul", flat, self.constant(size, self.pick(5, 16)))

    def _gate(self, x: str, shape: tuple[int, ...]) -> None:
        mean = self.add("ReduceMean", x, axes=(2, 3), keepdims=1)
        self.add("Mul", x, self.add("Sigmoid", mean))

    def _backwards(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.draw(st.integers(0, len(shape) - 1))
        kind = self.pick("Slice", "CumSum")
        if kind == "Slice":
            last = shape[axis] - 1
            self.add("Slice", x, starts=(last,), ends=(-1,), axes=(axis,), steps=(-1,))
        else:
            self.add("CumSum", x, axis=axis, exclusive=self.pick(0, 1), reverse=self.pick(0, 1))

    def _tile(self, x: str, shape: tuple[int, ...]) -> None:
        if self.types[x].size < 2000:
            self.add("Tile", x, repeats=(1, *(self.pick(1, 2) for _ in shape[1:])))

    def _gather(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.draw(st.integers(1, len(shape) - 1))
        name = f"w{len(self.constants)}"
        self.constants[name] = self.rng.integers(0, shape[axis], 3)
        self.types[name] = TensorType("int64", (3,))
        self.add("Gather", x, name, axis=axis)

    def _choice(self, x: str, shape: tuple[int, ...]) -> None:
        same = [v for v in self.values if self.types[v].shape == shape]
        limit = self.constant(*(self.pick(1, n) for n in shape[1:]))
        kind = self.pick("PRelu", "Where")
        if kind == "PRelu":
            self.add("PRelu", x, limit)
        else:
            test = self.add("Greater", x, limit)
            self.values.pop()  # a truth value is no picture
            self.add("Where", test, self.pick(*same), self.pick(limit, x))

    def _resize(self, x: str, shape: tuple[int, ...]) -> None:
        scales = (1.0, 1.0, self.pick(1.0, 1.05, 2.0, 0.5), self.pick(1.0, 1.1, 1.5))
        if min(np.multiply(shape, scales)) < 1 or self.types[x].size > 4000:
            return
        mode = self.pick("nearest", "linear")
        how = self.pick("half_pixel", "asymmetric", "align_corners")
        self.add(
            "Resize",
            x,
            mode=mode,
            scales=scales,
            coordinate_transformation_mode=how,
            nearest_mode="floor",
            cubic_coeff_a=-0.75,
        )

    def _transposed(self, x: str, shape: tuple[int, ...]) -> None:
        group = self.pick(1, shape[1])
        k, s = self.pick(1, 2, 3), self.pick(1, 2)
        pads = tuple(self.draw(st.integers(0, 1)) for _ in range(4))
        w = self.constant(shape[1], self.pick(1, 4), k, k)
        attributes = {"strides": (s, s), "pads": pads, "dilations": (1, 1), "group": group}
        if min(shape[2:]) > 3 and self.types[x].size < 4000:
            self.add("ConvTranspose", x, w, output_padding=(s - 1, 0), **attributes)

    def _blocks(self, x: str, shape: tuple[int, ...]) -> None:
        if shape[1] % 4 == 0:
            self.add("DepthToSpace", x, blocksize=2, mode=self.pick("DCR", "CRD"))
        elif shape[2] % 2 == shape[3] % 2 == 0:
            self.add("SpaceToDepth", x, blocksize=2)

    def graph(self, outputs: tuple[str, ...]) -> Graph:
        graph = Graph("random", ("x",), outputs, tuple(self.ops), self.constants, self.types)
        return graph.pruned()


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, str]:
    """A network of at least two outputs, and a value inside to cut it at."""
    builder = Builder(draw)
    for _ in range(draw(st.integers(3, 14))):
        builder.step()
    made = [op.outputs[0] for op in builder.ops] or [builder.add("Relu", "x")]
    extra = draw(st.sampled_from(made))
    outputs = tuple(dict.fromkeys((extra, made[-1])))
    return builder.graph(outputs), draw(st.sampled_from(made))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.booleans())
def test_a_random_network_cut_anywhere_equals_the_reference(
    drawn: tuple[Graph, str], plain_border: bool
) -> None:
    graph, border = drawn
    # Two functions: all up to `border`, and the whole; they share values, weights and kernels.
    first = replace(graph, name="first", outputs=(border,)).pruned()
    graph = replace(graph, outputs=tuple(dict.fromkeys((*graph.outputs, border))))
    if border not in graph.types:
        return  # Nothing needs it.
    plain = {"x", *(name for name in graph.outputs if plain_border or name != border)}
    compiled = compile_functions([first, graph], machine("host"), plain=plain)
    one, other = (function.layouts for function in compiled.functions)
    assert all(one[name] == other[name] for name in set(one) & set(other))
    loaded, inputs = Loaded(compiled), inputs_of(graph)
    for source, function in zip((first, graph), compiled.functions, strict=True):
        expected = run_graph(source, inputs)
        found = loaded(function.symbol, [inputs["x"]])
        for name, result in zip(source.outputs, found, strict=True):
            value = expected[name]
            if function.layouts[name] != "source":
                value = np.moveaxis(value, 1, -1)
            scale = max(float(np.abs(value).max()), 1.0)
            np.testing.assert_allclose(result[0], value, rtol=0, atol=3e-5 * scale)
