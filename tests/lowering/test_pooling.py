"""Pools of every shape: compiled code computes what the numpy reference does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types
from tests.lowering.calling import compile_plain, worst_error

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def pooling(
    kind: str,
    x: TensorType,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...] | None = None,
    extra: tuple[int, ...] | None = None,
    counted: bool = False,
) -> Graph:
    """A pool and a ReLU behind it, in one kernel."""
    rank = len(kernel)
    attributes: dict[str, Attribute] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    attributes["dilations"] = dilations or (1,) * rank
    if kind == "AveragePool":
        attributes |= {"count_include_pad": int(counted), "extra": extra or (0,) * rank}
    op = Op("p", kind, ("x",), ("p",), attributes)
    types = {"x": x}
    (types["p"],) = infer_types(op, [x])
    types["y"] = types["p"]
    return Graph("pool", ("x",), ("y",), (op, Op("y", "Relu", ("p",), ("y",), {})), {}, types)


@st.composite
def pools(draw: st.DrawFn) -> Graph:
    """Windows over one to three dimensions that overhang by less than they are wide."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilations = tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(rank))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    size = tuple(r + draw(st.integers(1, 14 if rank < 3 else 4)) for r in reach)
    return pooling(
        draw(st.sampled_from(["MaxPool", "AveragePool"])),
        TensorType("float32", (1, draw(st.sampled_from([2, 7, 16, 24, 40])), *size)),
        kernel,
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        tuple(draw(st.integers(0, max(r, 1) // 2)) for r in reach * 2),
        dilations,
        tuple(draw(st.integers(0, 1)) for _ in range(rank)),
        draw(st.booleans()),
    )


@FEW
@given(pools(), st.sampled_from([16, 8, 4]))
def test_any_pool_equals_the_reference(graph: Graph, lanes: int) -> None:
    host = machine("host")
    narrow = replace(host, lanes=min(lanes, host.lanes), registers=16)
    assert worst_error(graph, compile_plain(graph, narrow)) < 1e-6


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_one_window_over_everything_is_a_reduction(kind: str) -> None:
    x = TensorType("float32", (1, 24, 9, 11))
    graph = pooling(kind, x, (9, 11), (1, 1), (0,) * 4)
    assert worst_error(graph, compile_plain(graph)) < 1e-6


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (4, 5, 4, 5)])
def test_windows_of_many_taps_are_loops(kind: str, pads: tuple[int, ...]) -> None:
    x = TensorType("float32", (1, 24, 13, 17))
    graph = pooling(kind, x, (9, 11), (1, 1), pads)
    assert worst_error(graph, compile_plain(graph)) < 1e-6
