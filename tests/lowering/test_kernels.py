"""Every shape a kernel may have: compiled code computes what the numpy reference computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import Machine, cpu_features_of_this_machine, machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.reference import evaluate, run_graph
from eecompile.shapes import infer_types
from eecompile.targets.lowering import UnsupportedOperator, compile_functions
from eecompile.text import parse_graph
from tests.lowering.calling import Loaded, compile_plain, worst_error
from tests.lowering.operator_cases import CASES, Case

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TOLERANCE = 2e-5


def narrow(lanes: int) -> Machine:
    """The host with shorter vectors, so that other tails and register tiles are met."""
    host = machine("host")
    return replace(host, lanes=min(lanes, host.lanes), registers=16)


def _case_graph(case: Case, constant: bool) -> Graph:
    """The case as a graph; `constant`: all inputs but the first are weights."""
    arrays = {n: x for n, x in zip(case.op.inputs, case.inputs, strict=True) if n and x is not None}
    weights = {n: x for n, x in arrays.items() if constant and n != "x0"}
    types = {n: TensorType.of(x) for n, x in arrays.items()}
    types["y"] = TensorType.of(evaluate(case.op, case.inputs)[0])
    inputs = tuple(n for n in arrays if n not in weights)
    return Graph("case", inputs, ("y",), (case.op,), weights, types)


@pytest.mark.parametrize("constant", [False, True], ids=["computed", "constant"])
def test_every_operator_case_compiles_to_what_the_reference_says(constant: bool) -> None:
    graphs = [replace(_case_graph(case, constant), name=f"case{i}") for i, case in enumerate(CASES)]
    names = {name for graph in graphs for name in (*graph.inputs, *graph.outputs)}
    loaded = None
    wrong = []
    for start in range(0, len(graphs), 64):
        part = graphs[start : start + 64]
        # Names are shared between the cases, which is harmless where all of them are plain.
        compiled = compile_functions(part, machine("host"), plain=names)
        loaded = Loaded(compiled)
        for graph, case, function in zip(
            part, CASES[start : start + 64], compiled.functions, strict=True
        ):
            expected = evaluate(case.op, case.inputs)[0]
            given_arrays = zip(case.op.inputs, case.inputs, strict=True)
            arrays = {name: x for name, x in given_arrays if x is not None}
            (found,) = loaded(function.symbol, [arrays[name] for name in graph.inputs])
            if not np.allclose(found[0], expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                wrong.append(case.label)
    assert loaded is not None
    assert wrong == []


@st.composite
def convolutions(draw: st.DrawFn) -> Graph:
    """Convolutions of one or two dimensions, with everything a convolution can have."""
    n = draw(st.sampled_from([1, 2, 2, 2]))
    group = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 16]))
    inputs = group * draw(st.sampled_from([1, 1, 2, 3, 5]))
    outputs = group * draw(st.sampled_from([1, 1, 2, 4, 7, 16, 24]))
    kernel = [draw(st.integers(1, 4)) for _ in range(n)]
    strides = [draw(st.integers(1, 3)) for _ in range(n)]
    dilations = [draw(st.integers(1, 2)) for _ in range(n)]
    pads = [draw(st.integers(0, 3)) for _ in range(2 * n)]
    size = [
        (k - 1) * d + 1 + draw(st.integers(0, 17)) for k, d in zip(kernel, dilations, strict=True)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    constants = {"w": rng.standard_normal((outputs, inputs // group, *kernel)).astype("float32")}
    if draw(st.booleans()):
        constants["b"] = rng.standard_normal(outputs).astype("float32")
    transposed = draw(st.integers(0, 3)) == 0
    attributes: dict[str, Attribute] = {
        "strides": tuple(strides),
        "pads": tuple(pads),
        "dilations": tuple(dilations),
        "group": group,
    }
    x = TensorType("float32", (1, inputs, *size))
    if transposed:
        attributes["output_padding"] = tuple(draw(st.integers(0, s - 1)) for s in strides)
        attributes["pads"] = tuple(min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True))
        w = constants["w"]
        constants["w"] = rng.standard_normal((inputs, outputs // group, *w.shape[2:])).astype("f4")
    names = ("x", "w", "b") if "b" in constants else ("x", "w")
    op = Op("c", "ConvTranspose" if transposed else "Conv", names, ("c",), attributes)
    types = {"x": x, **{name: TensorType.of(array) for name, array in constants.items()}}
    (types["c"],) = infer_types(op, [types[name] for name in names])
    if min(types["c"].shape) < 1:
        return draw(convolutions())
    ops, inputs_ = [op], ["x"]
    if draw(st.booleans()):
        ops.append(Op("s", "Add", ("c", "r"), ("s",), {}))
        types["r"] = types["s"] = types["c"]
        inputs_.append("r")
    last = ops[-1].outputs[0]
    ops.append(Op("y", "Relu", (last,), ("y",), {}))
    types["y"] = types["c"]
    return Graph("conv", tuple(inputs_), ("y",), tuple(ops), constants, types)


@FEW
@given(convolutions(), st.sampled_from([16, 8, 4]))
def test_any_convolution_equals_the_reference(graph: Graph, lanes: int) -> None:
    compiled = compile_plain(graph, narrow(lanes))
    assert worst_error(graph, compiled) < TOLERANCE


@FEW
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([(), (1,), (3,), (2, 3)]),
    st.booleans(),
)
def test_any_matrix_product_equals_the_reference(
    rows: int, deep: int, columns: int, batch: tuple[int, ...], constant: bool
) -> None:
    rng = np.random.default_rng(rows)
    w = rng.standard_normal((deep, columns)).astype("float32")
    a = TensorType("float32", (*batch, rows, deep))
    b = TensorType("float32", (*batch[-1:], deep, columns))
    types = {"a": a, "b": TensorType.of(w) if constant else b, "bias": TensorType("float32", (1,))}
    types["bias"] = TensorType("float32", (columns,))
    product, total = Op("p", "MatMul", ("a", "b"), ("p",)), Op("y", "Add", ("p", "bias"), ("y",))
    types["p"] = types["y"] = TensorType("float32", (*batch, rows, columns))
    constants = {"bias": rng.standard_normal(columns).astype("float32")}
    if constant:
        constants["b"] = w
    inputs = ("a",) if constant else ("a", "b")
    graph = Graph("product", inputs, ("y",), (product, total), constants, types)
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


@FEW
@given(
    st.sampled_from(["MaxPool", "AveragePool"]),
    st.integers(1, 35),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
)
def test_any_pool_equals_the_reference(
    kind: str,
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    counted: bool,
) -> None:
    pads = tuple(k // 2 for k in (*kernel, *kernel))
    attributes: dict[str, Attribute] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if kind == "AveragePool":
        attributes |= {"count_include_pad": int(counted), "extra": (0, 0)}
    else:
        attributes["dilations"] = (1, 1)
    op = Op("y", kind, ("x",), ("y",), attributes)
    types = {"x": TensorType("float32", (1, channels, 9, 7))}
    (types["y"],) = infer_types(op, [types["x"]])
    graph = Graph("pool", ("x",), ("y",), (op,), {}, types)
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


def test_small_kernels_in_a_row_see_each_others_results() -> None:
    # Inlined into the entry function they once did not: each buffer is an alias class of its own.
    graph = parse_graph(
        """graph chain(x: float32[1, 784]) -> (y: float32[1, 32]) {
            const v: float32[784, 64] = random(0)
            const w: float32[64, 32] = random(1)
            a: float32[1, 64] = MatMul(x, v)
            b: float32[1, 64] = Relu(a)
            y: float32[1, 32] = MatMul(b, w)
        }"""
    )
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


def test_quantised_convolutions_are_exact() -> None:
    # A scale moved into the whole-number weights rounds each product, and quantising again behind
    # it then falls on the other side of ties. (A power of two would not: it must not be one.)
    graph = parse_graph(
        """graph quantised(x: uint8[1, 24, 12, 12]) -> (y: uint8[1, 16, 12, 12]) {
            const one: float32[] = [1.0]
            const zero: uint8[] = [7]
            const w: float32[16, 24, 3, 3] = random(0)
            const whole: float32[] = [40.0]
            const scale: float32[16, 1, 1] = splat(0.0075)
            const half: float32[] = [0.5]
            a: float32[1, 24, 12, 12] = DequantizeLinear(x, one, zero; axis=1)
            large: float32[16, 24, 3, 3] = Mul(w, whole)
            v: float32[16, 24, 3, 3] = Round(large)
            c: float32[1, 16, 12, 12] = Conv(a, v; strides=(1,1), pads=(1,1,1,1),
                dilations=(1,1), group=1)
            s: float32[1, 16, 12, 12] = Mul(c, scale)
            y: uint8[1, 16, 12, 12] = QuantizeLinear(s, half, zero; axis=1)
        }"""
    )
    x = np.random.default_rng(0).integers(0, 16, (1, 24, 12, 12)).astype(np.uint8)
    compiled = compile_plain(graph)
    (found,) = Loaded(compiled)(compiled.functions[0].symbol, [x])
    expected = run_graph(graph, {"x": x})["y"]
    assert len(np.unique(expected)) > 8
    np.testing.assert_array_equal(found[0], expected)


def test_an_operator_without_compiled_form_is_named() -> None:
    graph = parse_graph(
        """graph odd(x: float64[1, 4]) -> (y: float64[1, 4]) {
            y: float64[1, 4] = Relu(x) as activation
        }"""
    )
    with pytest.raises(UnsupportedOperator, match=r"`Relu`.*activation") as raised:
        compile_plain(graph)
    assert raised.value.op == graph.ops[0]


def test_the_host_is_what_the_kernels_were_made_for() -> None:
    assert set(machine("host").features) <= cpu_features_of_this_machine()
    assert machine("host").is_native
