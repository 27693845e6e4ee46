"""Winograd convolutions compute what the reference computes, within the errors they promise."""

from __future__ import annotations

import importlib
from dataclasses import replace
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.hardware import Machine, machine
from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.reference import run_graph
from eecompile.targets.lowering import CompiledLibrary, schedules
from eecompile.targets.lowering.schedules.winograd_plan import (
    Plan,
    Problem,
    best_plan,
    direct_cost,
    plan_cost,
    plans,
)
from eecompile.targets.lowering.schedules.winograd_points import TILES, combine, transform
from eecompile.targets.lowering.spec import KernelSpec, Operand, Step
from tests.lowering.calling import Loaded, compile_plain, worst_error

# The package exports the function of the same name.
winograd = importlib.import_module("eecompile.targets.lowering.schedules.winograd")

AVX512 = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32, l2_bytes=2**20)
NEON = Machine("a", "aarch64-linux-gnu", lanes=4, registers=32)
FEW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))

#: Operators behind a convolution `c`; `r` is a residual, `s` has an element for each channel.
ENDINGS: dict[str, list[tuple[str, tuple[str, ...], dict[str, Attribute]]]] = {
    "nothing": [],
    "activation": [("Relu", ("c",), {})],
    "residual": [("Add", ("c", "r"), {}), ("Relu", ("t0",), {})],
    "scaled": [("Mul", ("c", "s"), {}), ("Clip", ("t0",), {"min": 0.0, "max": 6.0})],
    "swish": [("Sigmoid", ("c",), {}), ("Mul", ("c", "t0"), {})],
    # Has no vector form.
    "log": [
        ("Abs", ("c",), {}),
        ("Log", ("t0",), {}),
        ("Clip", ("t1",), {"min": -1.0, "max": 9.0}),
    ],
}


def _graph(
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    ending: str = "nothing",
    biased: bool = True,
) -> Graph:
    rng = np.random.default_rng(inputs + 100 * outputs)
    constants = {
        "w": rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs),
        "b": rng.standard_normal(outputs),
        "s": rng.standard_normal((outputs, 1, 1)),
    }
    height, width = size[0] + pads[0] + pads[2] - 2, size[1] + pads[1] + pads[3] - 2
    given_ = ("x", "w", "b") if biased else ("x", "w")
    attributes: dict[str, Attribute] = {
        "strides": (1, 1),
        "pads": pads,
        "dilations": (1, 1),
        "group": 1,
    }
    ops = [Op("c", "Conv", given_, ("c",), attributes)]
    for index, (kind, names, more) in enumerate(ENDINGS[ending]):
        ops.append(Op(f"t{index}", kind, names, (f"t{index}",), dict(more)))
    result = TensorType("float32", (1, outputs, height, width))
    used = {name for op in ops for name in op.inputs}
    constants = {k: v.astype(np.float32) for k, v in constants.items() if k in used}
    types = {"x": TensorType("float32", (1, inputs, *size)), "r": result}
    types |= {name: TensorType.of(array) for name, array in constants.items()}
    types |= {op.outputs[0]: result for op in ops}
    free = tuple(name for name in ("x", "r") if name in used)
    kept = {name: type_ for name, type_ in types.items() if name != "r" or "r" in used}
    return Graph("conv", free, ops[-1].outputs, tuple(ops), constants, kept)


def _compiled(
    graph: Graph, tile: int, lanes: int = 16, which: int | None = None
) -> CompiledLibrary:
    """The graph with Winograd's kernel, by plan number `which` of all there are."""
    host = machine("host")
    target = replace(host, lanes=min(lanes, host.lanes), registers=32 if lanes == 16 else 16)

    def plan_of(problem: Problem, machine: Machine, tile: int) -> Plan:
        if which is None:
            return best_plan(problem, machine, tile)
        found = list(plans(problem, machine, tile))
        return found[which % len(found)]

    with (
        patch.object(schedules, "chosen", lambda spec, _: tile),
        patch.object(winograd, "best_plan", plan_of),
    ):
        return compile_plain(graph, target)


@FEW
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(list(ENDINGS)),
    st.booleans(),
    st.sampled_from(TILES),
    st.sampled_from([16, 8, 4]),
    st.one_of(st.none(), st.integers(0, 999)),
)
def test_any_convolution_equals_the_reference(
    channels: tuple[int, int],
    size: tuple[int, int],
    pads: tuple[int, int, int, int],
    ending: str,
    biased: bool,
    tile: int,
    lanes: int,
    which: int | None,
) -> None:
    # A single output is a matrix product.
    size = (max(size[0], 4 - pads[0] - pads[2]), max(size[1], 4 - pads[1] - pads[3]))
    graph = _graph(*channels, size, pads, ending, biased)
    assert worst_error(graph, _compiled(graph, tile, lanes, which)) < 1e-4


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("channels", [16, 96, 384])
def test_errors_stay_within_the_bound(tile: int, channels: int) -> None:
    graph = _graph(channels, 16, (14, 14))
    compiled = _compiled(graph, tile)
    x = np.random.default_rng(3).standard_normal((1, channels, 14, 14)).astype(np.float32)
    precise = replace(
        graph,
        constants={name: array.astype(np.float64) for name, array in graph.constants.items()},
        types={name: replace(type_, dtype="float64") for name, type_ in graph.types.items()},
    )
    expected = run_graph(precise, {"x": x.astype(np.float64)})["c"]
    (found,) = Loaded(compiled)(compiled.functions[0].symbol, [x])
    error = np.abs(found[0] - expected).max() / np.abs(expected).max()
    # A bound far above what is met would say nothing.
    bound = transform(tile).error_bound(channels)
    assert bound / 30 < error < bound


def test_matrices_compute_the_correlation_exactly() -> None:
    for tile in TILES:
        t = transform(tile)
        g = [Fraction(3), Fraction(-1), Fraction(7)]
        d = [Fraction(i * i - 5 * i + 2) for i in range(t.size)]
        u = [sum(a * b for a, b in zip(row, g, strict=True)) for row in t.kernel]
        v = combine(t.source, d, Fraction, lambda x: x)
        y = combine(t.output, [a * b for a, b in zip(u, v, strict=True)], Fraction, lambda x: x)
        assert y == [sum(g[k] * d[i + k] for k in range(3)) for i in range(tile)]


def test_coefficients_are_exact_in_float32() -> None:
    for tile in TILES:
        t = transform(tile)
        for c in (c for matrix in (t.source, t.output) for row in matrix for c in row):
            assert Fraction(float(np.float32(float(c)))) == c


def _spec(
    channels: tuple[int, int], size: int, after: tuple[str, ...] = (), **attributes: object
) -> KernelSpec:
    x = TensorType("float32", (1, size, size, channels[0]))
    w = TensorType("float32", (channels[1], channels[0], 3, 3))
    y = TensorType("float32", (1, size, size, channels[1]))
    given_ = {"pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1), "group": 1}
    given_ |= {"channels_last": 1} | attributes
    steps = [Step("Conv", tuple(sorted(given_.items())), (0, 1), y)]
    steps += [Step(kind, (), (len(steps) + 1,), y) for kind in after]
    return KernelSpec((Operand(x, False), Operand(w, True)), tuple(steps))


def test_kernels_that_round_are_computed_directly() -> None:
    assert winograd.candidates(_spec((64, 64), 14, ("Relu",)), AVX512) == TILES
    assert winograd.candidates(_spec((64, 64), 14, ("Round",)), AVX512) == ()


@pytest.mark.parametrize(
    "attributes", [{"strides": (2, 2)}, {"dilations": (2, 2)}, {"spread": (2, 2)}], ids=str
)
def test_other_windows_are_computed_directly(attributes: dict[str, object]) -> None:
    assert winograd.candidates(_spec((64, 64), 14, (), **attributes), AVX512) == ()


def test_a_tile_is_left_out_where_its_bound_exceeds_what_is_allowed() -> None:
    spec = _spec((64, 64), 14)
    between = (transform(2).error_bound(64) + transform(4).error_bound(64)) / 2
    with patch.object(winograd, "_ALLOWED", between):
        assert winograd.candidates(spec, AVX512) == (2,)
        assert winograd.chosen(spec, AVX512) == 2
    with patch.object(winograd, "_ALLOWED", 0.0):
        assert winograd.chosen(spec, AVX512) is None


def test_wide_layers_are_chosen_and_layers_of_few_channels_are_not() -> None:
    for target in (AVX512, NEON):
        assert winograd.chosen(_spec((64, 64), 56), target) in TILES
    assert winograd.chosen(_spec((3, 16), 32), AVX512) is None


def test_the_best_plan_has_the_least_estimate_and_fits_the_registers() -> None:
    problem = Problem((1, 28, 28, 96), (1, 28, 28, 160), 1, 1)
    for target in (AVX512, NEON):
        for tile in TILES:
            best = best_plan(problem, target, tile)
            costs = [plan_cost(plan, target) for plan in plans(problem, target, tile)]
            assert plan_cost(best, target) == min(costs) < direct_cost(problem, target)
            assert best.blocks * (best.width + 1) < target.registers
