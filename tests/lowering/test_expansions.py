"""Inverted residual blocks: the wide tensor is computed in strips, with the same result."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import Machine, machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types
from eecompile.targets.lowering import expansions
from tests.lowering.calling import compile_plain, worst_error

FEW = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
ONES: dict[str, Attribute] = {"strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4, "group": 1}


def lanes_of(lanes: int) -> Machine:
    """The host with shorter vectors and small caches, so that small maps take several strips."""
    host = machine("host")
    return replace(host, lanes=min(lanes, host.lanes), registers=16, l2_bytes=64 * 1024)


def block(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    pads: tuple[int, int, int, int],
    follower: str = "Relu",
    bias: bool = True,
    dilation: int = 1,
) -> Graph:
    """1x1 convolution, follower, depthwise convolution, follower."""
    narrow, wide = channels
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    weights = {"a": array(wide, narrow, 1, 1), "b": array(wide, 1, kernel, kernel)}
    if bias:
        weights |= {"a0": array(wide), "b0": array(wide)}
    deep = ONES | {
        "strides": (stride, stride),
        "pads": pads,
        "group": wide,
        "dilations": (dilation, dilation),
    }
    ops = (
        Op("one", "Conv", ("x", "a", *(["a0"] if bias else [])), ("u",), ONES),
        Op("two", follower, ("u",), ("v",)),
        Op("three", "Conv", ("v", "b", *(["b0"] if bias else [])), ("w",), deep),
        Op("four", "Relu", ("w",), ("y",)),
    )
    types = {"x": TensorType("float32", (1, narrow, *size))}
    types |= {name: TensorType.of(value) for name, value in weights.items()}
    for op in ops:
        (types[op.outputs[0]],) = infer_types(op, [types[name] for name in op.inputs])
    return Graph("block", ("x",), ("y",), ops, weights, types)


def kernels(graph: Graph, target: Machine) -> list[tuple[str, ...]]:
    """The operators of each kernel; how the input is turned around is another matter."""
    (function,) = compile_plain(graph, target).functions
    words = [tuple(k for k in use.operators if k != "Transpose") for use in function.kernels]
    return [word for word in words if word]


@FEW
@given(
    lanes=st.sampled_from([4, 8, 16]),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    narrow=st.integers(1, 9),
    vectors=st.integers(1, 6),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    follower=st.sampled_from(["Relu", "HardSwish", "Sigmoid"]),
    bias=st.booleans(),
    dilation=st.integers(1, 2),
)
def test_joined_convolutions_compute_what_the_separate_ones_do(
    lanes: int,
    size: tuple[int, int],
    narrow: int,
    vectors: int,
    kernel: int,
    stride: int,
    pads: tuple[int, int, int, int],
    follower: str,
    bias: bool,
    dilation: int,
) -> None:
    target = lanes_of(lanes)
    reach = (kernel - 1) * dilation + 1
    size = (max(size[0], reach), max(size[1], reach))
    channels = (narrow, vectors * target.lanes)
    graph = block(size, channels, kernel, stride, pads, follower, bias, dilation)
    compiled = compile_plain(graph, target)
    joined = [u for u in compiled.functions[0].kernels if u.operators.count("Conv") == 2]
    assert len(joined) == 1
    assert worst_error(graph, compiled) < 2e-5


def test_a_wide_tensor_that_somebody_else_reads_is_written() -> None:
    graph = block((8, 8), (4, 32), 3, 1, (1, 1, 1, 1))
    assert kernels(graph, machine("host")) == [("Conv", "Relu", "Conv", "Relu")]
    shown = replace(graph, outputs=("y", "v"))
    assert kernels(shown, machine("host")) == [("Conv", "Relu"), ("Conv", "Relu")]
    assert worst_error(shown, compile_plain(shown)) < 2e-5


def test_channels_that_are_no_whole_vectors_are_computed_apart() -> None:
    lanes = machine("host").lanes
    graph = block((8, 8), (4, lanes + 1), 3, 1, (1, 1, 1, 1))
    assert kernels(graph, machine("host")) == [("Conv", "Relu"), ("Conv", "Relu")]
    assert worst_error(graph, compile_plain(graph)) < 2e-5


def test_memory_of_a_thread_is_within_its_share_of_the_cache() -> None:
    graph = block((64, 64), (8, 96), 3, 2, (1, 1, 1, 1))
    target = lanes_of(8)
    (function,) = compile_plain(graph, target).functions
    assert 0 < function.private_bytes <= target.l2_bytes // 2


@pytest.mark.parametrize("rows", [1, 7, 11])
def test_strips_of_any_height_are_right(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that no register tile worth trying divides."""
    # The package gives the function of this name, where the module is wanted.
    expanded = import_module("eecompile.targets.lowering.schedules.expanded")
    graph = block((rows * 2, 22), (8, 3 * machine("host").lanes), 3, 1, (1, 1, 1, 1))
    strips = [expanded.Strips(rows, 1, 4)]
    for module in (expanded, expansions):
        monkeypatch.setattr(module, "candidates", lambda *_: strips)
    assert worst_error(graph, compile_plain(graph)) < 2e-5
