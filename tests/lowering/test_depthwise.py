"""Depthwise convolutions of every shape: compiled code computes what the numpy reference does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types
from eecompile.targets.lowering.schedules.depthwise import candidates, depthwise
from eecompile.targets.lowering.schedules.sliding import SlidingTile
from eecompile.targets.lowering.schedules.windows import Window, columns
from eecompile.targets.lowering.spec import KernelSpec, Operand, Step
from tests.lowering.calling import compile_plain, worst_error

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TOLERANCE = 2e-6

#: Activations as the operators they are imported as, each reading what is named before it.
ACTIVATIONS: dict[str, list[tuple[str, tuple[str, ...], dict[str, float]]]] = {
    "relu6": [("Clip", ("c",), {"min": 0.0, "max": 6.0})],
    "hard-swish": [("HardSwish", ("c",), {})],
    "hard-sigmoid": [("HardSigmoid", ("c",), {"alpha": 1 / 6, "beta": 0.5})],
    "silu": [("Sigmoid", ("c",), {}), ("Mul", ("c", "e0"), {})],
    "residual": [("Add", ("c", "r"), {}), ("Relu", ("e0",), {})],
}


def convolution(
    channels: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    activation: str,
) -> Graph | None:
    """A depthwise convolution and its activation; None where it has no outputs."""
    rng = np.random.default_rng(channels)
    constants = {
        "w": rng.standard_normal((channels, 1, *kernel)).astype("float32"),
        "b": rng.standard_normal(channels).astype("float32"),
    }
    attributes: dict[str, Attribute] = {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": channels,
    }
    op = Op("c", "Conv", ("x", "w", "b"), ("c",), attributes)
    types = {"x": TensorType("float32", (1, channels, *size))}
    types |= {name: TensorType.of(array) for name, array in constants.items()}
    ends = zip(size, kernel, dilations, pads, pads[len(size) :], strict=False)
    if any(n + low + high <= (k - 1) * d for n, k, d, low, high in ends):
        return None
    (types["c"],) = infer_types(op, [types[name] for name in op.inputs])
    types["r"] = types["c"]
    ops = [op]
    for index, (kind, names, values) in enumerate(ACTIVATIONS[activation]):
        ops.append(Op(f"e{index}", kind, names, (f"e{index}",), values))
        types[f"e{index}"] = types["c"]
    inputs = ("x", "r") if activation == "residual" else ("x",)
    return Graph("depthwise", inputs, (ops[-1].outputs[0],), tuple(ops), constants, types)


@st.composite
def depthwises(draw: st.DrawFn) -> Graph:
    """Windows that overhang on any side, by less or more than they are wide."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 2, 3]))
    many = st.lists(st.integers(1, 2), min_size=rank, max_size=rank).map(tuple)
    kernel = draw(st.lists(st.sampled_from([1, 2, 3, 3, 5]), min_size=rank, max_size=rank))
    graph = convolution(
        draw(st.sampled_from([2, 3, 8, 16, 24, 40, 72, 88])),
        tuple(draw(st.integers(1, 19 if rank < 3 else 5)) for _ in range(rank)),
        tuple(kernel),
        draw(many),
        draw(many),
        tuple(draw(st.integers(0, 6)) for _ in range(2 * rank)),
        draw(st.sampled_from(sorted(ACTIVATIONS))),
    )
    return draw(depthwises()) if graph is None else graph


@FEW
@given(depthwises(), st.sampled_from([16, 8, 4]))
def test_any_depthwise_convolution_equals_the_reference(graph: Graph, lanes: int) -> None:
    host = machine("host")
    narrow = replace(host, lanes=min(lanes, host.lanes), registers=16)
    assert worst_error(graph, compile_plain(graph, narrow)) < TOLERANCE


@pytest.mark.parametrize("kernel", [(9, 9), (1, 70)])
def test_windows_of_many_taps_are_loops_over_a_padded_copy(kernel: tuple[int, int]) -> None:
    pads = (kernel[0] // 2, kernel[1] // 2) * 2
    graph = convolution(24, (5, 9), kernel, (1, 1), (1, 1), pads, "relu6")
    assert graph is not None
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


@pytest.mark.parametrize("width", [40, 9])
def test_dilated_windows_wider_than_their_input_have_padding_on_both_sides(width: int) -> None:
    graph = convolution(16, (7, width), (3, 3), (1, 1), (12, 12), (12,) * 4, "relu6")
    assert graph is not None
    assert worst_error(graph, compile_plain(graph)) < TOLERANCE


def _spec(size: int, channels: int, kernel: int, stride: int) -> KernelSpec:
    pad, out = kernel // 2, (size - 1) // stride + 1
    window = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1), "group": channels}
    weights = TensorType("float32", (channels, 1, kernel, kernel))
    return KernelSpec(
        (
            Operand(TensorType("float32", (1, size, size, channels)), constant=False),
            Operand(weights, constant=True),
        ),
        (
            Step(
                "Conv",
                tuple(sorted({**window, "channels_last": True}.items())),
                (0, 1),
                TensorType("float32", (1, out, out, channels)),
            ),
        ),
    )


@pytest.mark.parametrize("lanes", [16, 8, 4])
def test_tiles_fit_the_registers_and_cover_the_channels(lanes: int) -> None:
    described = replace(machine("host"), lanes=lanes, registers=16 if lanes == 8 else 32)
    for size, channels, kernel, stride in [(112, 96, 3, 2), (14, 672, 5, 1), (7, 960, 3, 1)]:
        found = candidates(_spec(size, channels, kernel, stride), described)
        assert 1 < len(found) == len(set(found))
        for tile in found:
            assert tile.rows * tile.columns < described.registers
            assert channels // lanes % tile.vectors == 0


def test_no_candidate_copies_its_input() -> None:
    spec = _spec(14, 40, 3, 1)
    for tile in [*candidates(spec, machine("host")), SlidingTile(3, 5, 1)]:
        scheduled = depthwise(spec, machine("host"), tile)
        assert [type(argument).__name__ for argument in scheduled.arguments] == [
            "Passed",
            "Packed",
            "Output",
        ]


@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 7), st.integers(1, 8),
)  # fmt: skip
def test_strips_have_exactly_the_taps_inside(
    extent: int, kernel: int, stride: int, dilation: int, pad: int, wide: int
) -> None:
    one = (1,)
    window = Window((extent,), (kernel,), (stride,), (dilation,), (pad,), (pad,), one)
    places = max(0, extent + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1
    found = set()
    for strip in columns(window, places, wide):
        for tile in range(strip.count):
            first = strip.first + tile * strip.width
            for tap, low, high in strip.taps:
                found |= {(first + x, tap) for x in range(low, high)}
    assert found == {
        (x, tap)
        for x in range(places)
        for tap in range(kernel)
        if 0 <= x * stride + tap * dilation - pad < extent
    }
