"""Norms, reductions, products and element-wise chains of every shape, for every vector length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import Machine, machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types
from eecompile.targets.lowering.schedules import dense
from eecompile.targets.lowering.schedules.matmul_panels import Panels
from eecompile.text import parse_graph
from tests.lowering.calling import compile_plain, worst_error

FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
TOLERANCE = 2e-5
LANES = st.sampled_from([16, 8, 4])
COLUMNS = st.sampled_from([1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 100, 130])


def narrow(lanes: int) -> Machine:
    host = machine("host")
    return replace(host, lanes=min(lanes, host.lanes), registers=16 if lanes < 16 else 32)


def graph_of(
    kind: str,
    shape: tuple[int, ...],
    attributes: dict[str, Attribute],
    weights: tuple[tuple[int, ...], ...] = (),
    ending: bool = True,
) -> Graph:
    """One operator, and a sigmoid in the same kernel."""
    rng = np.random.default_rng(len(shape))
    constants = {f"w{i}": rng.standard_normal(w).astype("f4") for i, w in enumerate(weights)}
    types = {"x": TensorType("float32", shape)}
    types |= {name: TensorType.of(array) for name, array in constants.items()}
    op = Op("p", kind, ("x", *constants), ("p",), attributes)
    (types["p"],) = infer_types(op, [types[name] for name in op.inputs])
    types["y"] = types["p"]
    if not ending:
        return Graph("rows", ("x",), ("p",), (op,), constants, types)
    ops = (op, Op("y", "Sigmoid", ("p",), ("y",), {}))
    return Graph("rows", ("x",), ("y",), ops, constants, types)


@FEW
@given(st.sampled_from(["Softmax", "LogSoftmax"]), st.integers(1, 5), COLUMNS, LANES)
def test_any_softmax_equals_the_reference(kind: str, rows: int, columns: int, lanes: int) -> None:
    graph = graph_of(kind, (1, rows, columns), {"axis": 2}, ending=False)
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@FEW
@given(st.booleans(), st.integers(1, 5), COLUMNS, LANES, st.booleans())
def test_any_norm_equals_the_reference(
    instance: bool, rows: int, columns: int, lanes: int, wide: bool
) -> None:
    if instance:
        shape: tuple[int, ...] = (1, rows, columns, 3) if wide else (1, rows, columns)
        graph = graph_of("InstanceNormalization", shape, {"epsilon": 1e-3}, ((rows,), (rows,)))
    else:
        shape = (1, rows, columns)
        axis, scale = (1, (rows, columns)) if wide else (2, (columns,))
        attributes: dict[str, Attribute] = {"axis": axis, "epsilon": 1e-3, "stash_type": 1}
        graph = graph_of("LayerNormalization", shape, attributes, (scale, scale))
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@FEW
@given(
    st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"]),
    st.sampled_from([((2,), 3), ((1, 2), 3), ((1,), 3), ((1, 2), 4), ((0, 1, 2), 3)]),
    st.sampled_from([1, 3, 64, 320, 515]),
    COLUMNS,
    LANES,
    st.booleans(),
)
def test_any_reduction_equals_the_reference(
    kind: str,
    axes: tuple[tuple[int, ...], int],
    length: int,
    columns: int,
    lanes: int,
    keepdims: bool,
) -> None:
    over, rank = axes
    shape = (1, length, columns) if rank == 3 else (1, length, 2, columns)
    graph = graph_of(kind, shape, {"axes": over, "keepdims": int(keepdims)})
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@FEW
@given(
    st.sampled_from([1, 2, 5, 13, 49]),
    st.sampled_from([1, 3, 16, 30, 64]),
    st.sampled_from([1, 5, 8, 24, 33, 40, 100, 136]),
    st.booleans(),
    st.sampled_from([(), (3,)]),
    LANES,
)
def test_any_product_equals_the_reference(
    rows: int, deep: int, columns: int, constant: bool, batch: tuple[int, ...], lanes: int
) -> None:
    rng = np.random.default_rng(rows)
    w = rng.standard_normal((deep, columns)).astype("float32")
    result = TensorType("float32", (*batch, rows, columns))
    types = {
        "a": TensorType("float32", (*batch, rows, deep)),
        "b": TensorType.of(w) if constant else TensorType("float32", (*batch, deep, columns)),
        "r": result,
        "p": result,
        "s": result,
        "y": result,
    }
    ops = (
        Op("p", "MatMul", ("a", "b"), ("p",)),
        Op("s", "Add", ("p", "r"), ("s",)),
        Op("y", "Gelu", ("s",), ("y",), {"approximate": "none"}),
    )
    inputs = ("a", "r") if constant else ("a", "b", "r")
    graph = Graph("product", inputs, ("y",), ops, {"b": w} if constant else {}, types)
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@FEW
@given(
    st.sampled_from([(1, 3, 5, 7), (2, 1, 17), (1, 5000), (1, 16, 33), (1, 1, 1)]),
    st.integers(0, 15),
    LANES,
)
def test_any_broadcast_equals_the_reference(shape: tuple[int, ...], ones: int, lanes: int) -> None:
    other = tuple(1 if ones >> axis & 1 else extent for axis, extent in enumerate(shape))
    types = {name: TensorType("float32", shape) for name in ("x", "p", "y")}
    types["z"] = TensorType("float32", other)
    ops = (Op("p", "Mul", ("x", "z"), ("p",)), Op("y", "Tanh", ("p",), ("y",)))
    graph = Graph("chain", ("x", "z"), ("y",), ops, {}, types)
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@FEW
@given(st.permutations([0, 1, 2]), COLUMNS, st.integers(1, 20), LANES)
def test_any_transpose_equals_the_reference(
    perm: list[int], columns: int, rows: int, lanes: int
) -> None:
    graph = graph_of("Transpose", (rows, 3, columns), {"perm": tuple(perm)})
    assert worst_error(graph, compile_plain(graph, narrow(lanes))) < TOLERANCE


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9), st.sampled_from([4, 8, 16]))
def test_panels_hold_every_weight_once(columns: int, inputs: int, blocks: int, lanes: int) -> None:
    panels = Panels(columns, inputs, blocks, lanes)
    vectors = [vector for index in range(panels.count) for vector in panels.of(index)]
    assert vectors == panels.vectors
    assert sum(vector.used for vector in vectors) == columns
    assert all(vector.used <= vector.width <= lanes for vector in vectors)
    assert len(vectors) * lanes * inputs == panels.size


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([(16, 32), (8, 16), (4, 32), (4, 16)]),
)
def test_tiles_fit_the_registers(
    rows: int, columns: int, inputs: int, vectors: tuple[int, int]
) -> None:
    lanes, registers = vectors
    board = Machine("m", "x86_64-linux-gnu", lanes=lanes, registers=registers)
    for tile in dense.candidates(rows, columns, inputs, board):
        used = dense.splits(tile.rows, tile.blocks, inputs, board)
        assert tile.rows * tile.blocks * used + tile.blocks + 1 <= registers


def test_what_a_phase_of_one_unit_allocates_is_its_own() -> None:
    """Two phases with registers each, the second of one unit, and one array handed between them."""
    graph = parse_graph(
        """graph net(x: float32[512, 16]) -> (y: float32[16]) {
    y: float32[16] = ReduceSum(x; axes=(0,), keepdims=0)
}"""
    )
    compiled = compile_plain(graph)
    (use,) = compiled.functions[0].kernels
    assert [phase.units for phase in use.call.phases] == [2, 1]
    assert [a.base for a in use.call.arguments] == ["in0", "workspace", "out0"]
    assert worst_error(graph, compiled) < 1e-6
