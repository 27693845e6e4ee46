"""Convolutions of every shape, tile and prologue: compiled code computes what numpy does."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import Machine, machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types
from eecompile.targets.lowering.build import emit_objects, plain_phases, target_of
from eecompile.targets.lowering.link import link_kernels
from eecompile.targets.lowering.schedules.conv import candidates, conv
from eecompile.targets.lowering.schedules.panels import pack_panels, panels_of
from eecompile.targets.lowering.schedules.tiles import Tile, conv_tiles
from eecompile.targets.lowering.spec import (
    KernelSpec,
    Operand,
    Output,
    Packed,
    Passed,
    Step,
)
from tests.lowering.calling import aligned, compile_plain, worst_error

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TOLERANCE = 5e-6


def lanes_of(lanes: int, registers: int = 16) -> Machine:
    """The host with shorter vectors: those of AVX2, or of SSE, which has no fused multiply-add."""
    host = machine("host")
    features = host.features
    if lanes == 4 and host.arch == "x86_64":
        features = tuple(name for name in features if name.startswith(("sse", "ssse")))
    return replace(
        host, lanes=min(lanes, host.lanes), registers=registers, features=features, l2_bytes=1 << 16
    )


def convolution(
    channels: tuple[int, int],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    group: int,
) -> Graph | None:
    """A convolution, a residual sum and an activation; None where it has no outputs."""
    inputs, outputs = (group * count for count in channels)
    rng = np.random.default_rng(inputs)
    constants = {
        "w": rng.standard_normal((outputs, inputs // group, *kernel)).astype("float32"),
        "b": rng.standard_normal(outputs).astype("float32"),
    }
    attributes: dict[str, Attribute] = {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
    }
    ends = zip(size, kernel, dilations, pads, pads[len(size) :], strict=False)
    if any(n + low + high <= (k - 1) * d for n, k, d, low, high in ends):
        return None
    op = Op("c", "Conv", ("x", "w", "b"), ("c",), attributes)
    types = {"x": TensorType("float32", (1, inputs, *size))}
    types |= {name: TensorType.of(array) for name, array in constants.items()}
    (types["c"],) = infer_types(op, [types[name] for name in op.inputs])
    types |= dict.fromkeys(("r", "s", "y"), types["c"])
    ops = (op, Op("s", "Add", ("c", "r"), ("s",)), Op("y", "Relu", ("s",), ("y",)))
    return Graph("convolution", ("x", "r"), ("y",), ops, constants, types)


@st.composite
def convolutions(draw: st.DrawFn) -> Graph:
    """Everything a convolution can have; its rows seldom come out even."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 2, 3]))
    many = st.lists(st.sampled_from([1, 1, 2]), min_size=rank, max_size=rank).map(tuple)
    kernel = draw(st.sampled_from([1, 1, 2, 3, 3, 5]))
    graph = convolution(
        (draw(st.sampled_from([1, 3, 4, 6, 16])), draw(st.sampled_from([1, 5, 8, 16, 24, 40, 56]))),
        tuple(draw(st.integers(1, 21 if rank < 3 else 5)) for _ in range(rank)),
        (kernel,) * rank,
        draw(many),
        draw(many),
        tuple(draw(st.integers(0, kernel if kernel > 1 else 0)) for _ in range(2 * rank)),
        draw(st.sampled_from([1, 1, 1, 2, 3])),
    )
    return draw(convolutions()) if graph is None else graph


@FEW
@given(convolutions(), st.sampled_from([16, 8, 4]), st.sampled_from([16, 32]), st.integers(0, 11))
def test_any_convolution_with_any_tile_equals_the_reference(
    graph: Graph, lanes: int, registers: int, place: int
) -> None:
    def chosen(spec: KernelSpec, target: Machine, count: int = 6) -> tuple[Tile, ...]:
        found = candidates(spec, target, 12)
        return (found[place % len(found)],)

    with mock.patch.dict(conv.__globals__, candidates=chosen):
        compiled = compile_plain(graph, lanes_of(lanes, registers))
    assert worst_error(graph, compiled) < TOLERANCE


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "pad"),
    [((9, 40), 3, 12, 12), ((3, 70), 5, 3, 6), ((20, 20), 7, 1, 3), ((2, 2), 3, 1, 3)],
)
def test_windows_wider_than_a_tile_or_than_the_input_see_zeros_outside(
    size: tuple[int, int], kernel: int, dilation: int, pad: int
) -> None:
    graph = convolution((3, 24), size, (kernel,) * 2, (1, 1), (dilation,) * 2, (pad,) * 4, 1)
    assert graph is not None
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


def test_weights_larger_than_the_second_cache_are_shared_by_panels() -> None:
    graph = convolution((64, 80), (7, 7), (3, 3), (1, 1), (1, 1), (1,) * 4, 1)
    assert graph is not None
    assert worst_error(graph, compile_plain(graph, lanes_of(8))) < TOLERANCE


# --- Panels and tiles -----------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from([4, 8, 16]))
def test_panels_cover_every_channel_once_and_waste_less_than_a_half_vector(
    channels: int, vectors: int, lanes: int
) -> None:
    panels = panels_of(channels, vectors, lanes)
    covered = [c for panel in panels for c in range(panel.first, panel.first + panel.channels)]
    assert covered == list(range(channels))
    assert all(0 < panel.vectors <= vectors for panel in panels)
    assert sum(panel.width for panel in panels) - channels < max(lanes // 2, 4)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
def test_packed_weights_lie_in_the_order_they_are_used(
    channels: int, depth: int, vectors: int
) -> None:
    w = np.arange(1, channels * depth + 1, dtype=np.float32).reshape(channels, depth)
    panels = panels_of(channels, vectors, 8)
    row = pack_panels(panels)(w)
    at = 0
    for panel in panels:
        for first, width in ((0, panel.wide * 8), (panel.wide * 8, panel.narrow)):
            part = row[at : at + width * depth].reshape(depth, width)
            for lane in range(width):
                c = first + lane
                expected = w[panel.first + c] if c < panel.channels else np.zeros(depth)
                np.testing.assert_array_equal(part[:, lane], expected)
            at += width * depth
    assert at == row.size


@settings(deadline=None)
@given(st.integers(1, 130), st.integers(1, 700), st.integers(1, 5000), st.sampled_from([4, 8, 16]))
def test_tiles_fit_the_registers_and_the_row(
    columns: int, channels: int, depth: int, lanes: int
) -> None:
    target = lanes_of(lanes, 32 if lanes == 16 else 16)
    tiles = conv_tiles(7, columns, channels, depth, target)
    assert 0 < len(tiles) <= 6
    assert len(set(tiles)) == len(tiles)
    for tile in tiles:
        assert tile.width * tile.blocks + tile.blocks < target.registers
        assert tile.width <= columns


# --- Prologues ------------------------------------------------------------------------------------


def run(spec: KernelSpec, target: Machine, operands: Sequence[np.ndarray]) -> np.ndarray:
    """What a convolution's kernel computes, every phase cut into single units, last one first."""
    scheduled = conv(spec, target)
    phases = plain_phases(scheduled.function, "kernel", target_of(target))
    code = emit_objects({p.symbol: p.function for p in phases}, target_of(target))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        path.write_bytes(link_kernels(code, [p.symbol for p in phases], target))
        library = ctypes.CDLL(str(path))
    memory = []
    for argument in scheduled.arguments:
        match argument:
            case Passed(operand):
                values = operands[operand]
            case Packed(operand, pack):
                values = pack(operands[operand])
            case Output():
                values = np.full(spec.result.shape, 77, np.float32)
            case _:
                values = aligned(argument.nbytes)
        place = aligned(values.nbytes)
        place[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        memory.append(place)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in memory]
    for phase in phases:
        for unit in reversed(range(phase.units)):
            library[phase.symbol](ctypes.c_int32(unit), ctypes.c_int32(unit + 1), *pointers)
    result = memory[scheduled.arguments.index(Output())]
    return result.view(np.float32).reshape(spec.result.shape).copy()


def normalised(size: int, channels: tuple[int, int], kernel: int) -> KernelSpec:
    """Relu(x * scale + shift), then a convolution, then Relu."""
    inputs, outputs = channels
    x = TensorType("float32", (1, size, size, inputs))
    y = TensorType("float32", (1, size, size, outputs))
    each = Operand(TensorType("float32", (1, 1, 1, inputs)), constant=True)
    weights = Operand(TensorType("float32", (outputs, inputs, kernel, kernel)), constant=True)
    attributes = {"strides": (1, 1), "pads": (kernel // 2,) * 4, "dilations": (1, 1), "group": 1}
    convolved = tuple(sorted({**attributes, "channels_last": True}.items()))
    steps = (
        Step("Mul", (), (0, 1), x),
        Step("Add", (), (4, 2), x),
        Step("Relu", (), (5,), x),
        Step("Conv", convolved, (6, 3), y),
        Step("Relu", (), (7,), y),
    )
    return KernelSpec((Operand(x, constant=False), each, each, weights), steps, before=3)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize(("size", "channels"), [(5, (24, 40)), (14, (7, 16)), (1, (33, 5))])
def test_what_stands_before_a_convolution_is_computed_first(
    size: int, channels: tuple[int, int], lanes: int, kernel: int
) -> None:
    spec = normalised(size, channels, kernel)
    rng = np.random.default_rng(size)
    arrays = [rng.standard_normal(o.type.shape).astype(np.float32) for o in spec.operands]
    given_x = np.maximum(arrays[0] * arrays[1] + arrays[2], 0)
    reach = kernel // 2
    padded = np.pad(given_x, ((0, 0), (reach,) * 2, (reach,) * 2, (0, 0))).astype(np.float64)
    expected = np.zeros(spec.result.shape)
    for i in range(kernel):
        for j in range(kernel):
            window = padded[:, i : i + size, j : j + size]
            expected += window @ arrays[3][:, :, i, j].T.astype(np.float64)
    expected = np.maximum(expected, 0)
    found = run(spec, lanes_of(lanes), arrays)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(expected.max(), 1))
