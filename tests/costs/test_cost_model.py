"""The model is what it says: cycles over the clock, memory besides, power times time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.board import Board, Cluster, DvfsState
from eecompile.compiled import CompiledExit, CompiledGraph, Function
from eecompile.cost import WIDE_BYTES, Work
from eecompile.cost_merging import ModelError, fitted_cycles, merged
from eecompile.cost_model import COEFFICIENTS, FEATURES, CostModel, model_table
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.hardware import Machine

MEGA = 1 << 20
UNITS = (1.0, 10.0, 2.0, 4.0, 5.0, 100.0)


def states(name: str, *clocks: float, voltage_v: float | None = 1.0) -> tuple[DvfsState, ...]:
    return tuple(DvfsState(name, clock, voltage_v) for clock in clocks)


BIG = Cluster(
    "big",
    "a-core",
    (4, 5),
    states("big", 1e9, 2e9),
    capacitance_f=500e-12,
    transition_latency_s=1e-4,
    fma_per_cycle=2.0,
    l2_bytes=MEGA,
)
LITTLE = Cluster("little", "b-core", (0, 1, 2, 3), states("little", 5e8), l2_bytes=MEGA // 2)
BOARD = Board("test", Machine("test", "aarch64-linux-gnu"), (BIG, LITTLE), 1e9, idle_power_w=0.5)


def function(symbol: str, work: Work, threads: int = 1) -> Function:
    return Function(symbol, (), (), 0, 0, threads, work)


FIRST = Work(operations=4000, accesses=1000, kernels=2, weight_bytes=3 * MEGA)
SECOND = Work(operations=8000, kernels=1, value_bytes=640, weight_bytes=MEGA)
HEAD = Work(operations=200, kernels=1)
NETWORK = CompiledGraph(
    "net",
    (),
    "y",
    10,
    (function("a", FIRST, 4), function("b", SECOND)),
    (CompiledExit("early", "p", 0, function("h", HEAD), function("c", HEAD)),),
)


def latencies(table: CostTable) -> list[list[float | None]]:
    rows = (*table.segments, *table.exits)
    return [[cost.latency_s if cost else None for cost in row.costs] for row in rows]


def test_cycles_are_a_sum_over_what_a_core_can_do_in_a_cycle() -> None:
    work = Work(100, 0, 0, 40, 3, 12, 2, 6400, 640, (0,) * len(WIDE_BYTES))
    model = CostModel(BIG, None, UNITS)
    assert model.cycles(work) == 1 * 20 + 10 * 3 + 2 * 6 + 4 * 100 + 5 * 10 + 100 * 2
    assert CostModel(LITTLE, None, UNITS).cycles(work) == 40 + 30 + 24 + 400 + 50 + 200


def test_instructions_of_wider_vectors_are_more_of_narrower_ones() -> None:
    narrow = Work(operations=400, divisions=8, accesses=100, kernels=2, value_bytes=640)
    wide = replace(narrow, operations=100, divisions=2, accesses=25, lanes=16)
    for cluster in (BIG, LITTLE):
        assert CostModel(cluster).cycles(wide) == CostModel(cluster).cycles(narrow)
    assert (wide + Work(macs=1)).lanes == 16


def test_only_what_the_last_cache_cannot_hold_comes_from_memory() -> None:
    network = FIRST + SECOND  # 4 MiB of weights and a cache of one: three quarters are missed
    model = CostModel(BIG, 1e9)
    assert model.memory_bytes(FIRST, network) == 0.75 * 3 * MEGA
    assert model.memory_bytes(FIRST, FIRST) == 2 * MEGA
    small = replace(FIRST, weight_bytes=MEGA)
    assert model.memory_bytes(small, small) == 0
    wide = Work(value_bytes=5 * MEGA, wide_bytes=(5 * MEGA,) * 4 + (3 * MEGA,) * 2 + (0,) * 4)
    assert model.memory_bytes(wide, wide) == 3 * MEGA  # of kernels that touch more than 1 MiB
    assert CostModel(LITTLE).memory_bytes(wide, wide) == 5 * MEGA


def test_the_clock_scales_cycles_and_not_memory() -> None:
    table = model_table(NETWORK, BOARD, 1, "a-target")
    memory_s = 0.75 * 3 * MEGA / 1e9
    slow, fast = (cost.latency_s for cost in table.segments[0].costs[:2] if cost)
    assert slow - memory_s == pytest.approx(2 * (fast - memory_s))
    assert fast - memory_s == pytest.approx(CostModel(BIG).cycles(FIRST) / 2e9)


def test_the_table_is_the_boards() -> None:
    table = model_table(NETWORK, BOARD, 1, "a-target")
    assert (table.target, table.board, table.device, table.threads) == ("a-target", "test", None, 1)
    assert table.states == BOARD.states
    assert [row.name for row in table.segments] == ["segment0", "segment1"]
    assert table.exits[0].work == HEAD + HEAD
    assert table.transition_latency_s == {"big": 1e-4}
    assert (table.idle_power_w, table.migration_latency_s) == (0.5, None)
    provenances = {cost.provenance for row in table.segments for cost in row.costs if cost}
    assert provenances == {"modelled"}
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_energy_is_power_times_time_where_the_board_tells_and_named_where_not() -> None:
    table = model_table(NETWORK, BOARD, 1, "a-target")
    for index, power_w in enumerate((0.5, 1.0)):
        cost = table.segments[1].costs[index]
        assert cost is not None and cost.energy_j == pytest.approx(power_w * cost.latency_s)
        assert cost.energy_provenance == "modelled"
    little = table.segments[1].costs[2]
    assert little is not None and (little.energy_j, little.energy_provenance) == (None, None)
    assert "no energies of the cluster little: no source gives the dynamic power coefficient" in (
        table.notes
    )
    assert "energies of the cluster big are without static power: no source gives it" in table.notes


def test_what_is_not_known_is_not_made_up_and_named() -> None:
    blind = replace(
        BOARD, clusters=(replace(BIG, states=(DvfsState("big", None),)),), memory_bandwidth=None
    )
    table = model_table(NETWORK, blind, 1, "a-target")
    assert latencies(table) == [[None], [None], [None]]
    notes = "; ".join(table.notes)
    assert "nothing is modelled for clocks that the machine does not tell" in notes
    assert "3.1 MB a sample from memory is left out: no source gives the bandwidth" in notes
    nothing = model_table(NETWORK, replace(BOARD, clusters=()), 1, "a-target")
    assert (nothing.states, nothing.segments[0].costs) == ((), ())
    assert nothing.notes == ("nothing is modelled: the board file of test gives no clocks",)


def test_threads_share_what_functions_allow_and_all_of_them_draw_power() -> None:
    one, two = (model_table(NETWORK, BOARD, threads, "t") for threads in (1, 2))
    memory_s = 0.75 * 3 * MEGA / 1e9
    alone, shared = one.segments[0].costs[0], two.segments[0].costs[0]
    assert alone and shared and alone.energy_j and shared.energy_j
    assert shared.latency_s - memory_s == pytest.approx((alone.latency_s - memory_s) / 2)
    assert shared.energy_j / shared.latency_s == pytest.approx(2 * 0.5)
    assert latencies(one)[1] == latencies(two)[1]  # a function that one thread runs
    assert any("their real speed-up is lower" in note for note in two.notes)
    four = model_table(NETWORK, BOARD, 4, "t")  # the cluster has two cores
    assert latencies(four)[0][0] == latencies(two)[0][0]


def measured(clocks: dict[float, float], table: CostTable) -> CostTable:
    """Every piece takes that many times what the model says, at some clocks of `big`."""
    indices = [k for k, s in enumerate(table.states) if s.frequency_hz in clocks]
    found = table.restricted(indices)

    def row(given: CostRow) -> CostRow:
        costs = (
            cost and Cost(cost.latency_s * factor, None, "measured")
            for cost, factor in zip(given.costs, scale, strict=True)
        )
        return replace(given, costs=tuple(costs))

    scale = [clocks[state.frequency_hz or 0.0] for state in found.states]
    return replace(
        found,
        device="a machine",
        segments=tuple(map(row, found.segments)),
        exits=tuple(map(row, found.exits)),
        notes=("measured on a rainy day",),
    )


def test_one_measured_clock_scales_its_cluster() -> None:
    modelled = model_table(NETWORK, BOARD, 1, "t")
    table, error = merged(measured({2e9: 3.0}, modelled), modelled)
    assert table.states == BOARD.states
    for ours, theirs in zip(latencies(table), latencies(modelled), strict=True):
        expected = [3.0 * (theirs[0] or 0), 3.0 * (theirs[1] or 0), theirs[2]]
        assert ours == pytest.approx(expected)
    first = [cost.provenance for cost in table.segments[0].costs if cost]
    assert first == ["modelled", "measured", "modelled"]
    # Power is still the board's, at a measured latency too.
    cost = table.segments[0].costs[1]
    assert cost and cost.energy_j == pytest.approx(1.0 * cost.latency_s)
    assert error.pieces == 3
    assert (error.mean or 0) == pytest.approx(2 / 3)
    assert (error.largest or 0) == pytest.approx(2 / 3)
    assert error.full_depth == {("big", 2e9): pytest.approx(-2 / 3)}
    assert (table.device, table.notes[0]) == ("a machine", "measured on a rainy day")
    assert "big: each piece is modelled by measured over modelled at its one measured clock" in (
        table.notes
    )


def test_two_measured_clocks_tell_cycles_from_memory() -> None:
    board = replace(BOARD, clusters=(replace(BIG, states=states("big", 1e9, 1.5e9, 2e9)),))
    modelled = model_table(NETWORK, board, 1, "t")
    table, _ = merged(measured({1e9: 2.0, 2e9: 3.0}, modelled), modelled)
    for ours, theirs in zip(latencies(table), latencies(modelled), strict=True):
        slow, fast = 2.0 * (theirs[0] or 0), 3.0 * (theirs[2] or 0)
        cycles, still_s = fitted_cycles([(1e9, slow), (2e9, fast)])
        assert ours[1] == pytest.approx(cycles / 1.5e9 + still_s)
        assert (ours[0], ours[2]) == (slow, fast)
    assert "big: each piece is modelled by cycles and memory time fitted to its 2" in "; ".join(
        table.notes
    )


def test_a_clock_that_the_board_does_not_know_is_kept() -> None:
    modelled = model_table(NETWORK, BOARD, 1, "t")
    unknown = replace(
        measured({2e9: 3.0}, modelled), states=(DvfsState("cpu", None),), energy_covers="the CPU"
    )
    table, error = merged(unknown, modelled)
    assert table.states == (*BOARD.states, DvfsState("cpu", None))
    assert latencies(table)[0][:3] == latencies(modelled)[0]
    assert latencies(table)[0][3] == latencies(unknown)[0][0]
    assert (error.pieces, error.mean, dict(error.full_depth)) == (0, None, {})
    assert str(error) == "the model was compared with nothing"
    assert json.loads(json.dumps(error.to_json()))["mean"] is None


def test_tables_of_different_networks_are_not_merged() -> None:
    modelled = model_table(NETWORK, BOARD, 1, "t")
    other = replace(modelled, exits=())
    with pytest.raises(ValueError, match="different networks"):
        merged(other, modelled)


@given(
    st.floats(1e3, 1e12),
    st.floats(0, 10),
    st.lists(st.floats(3e8, 3e9), min_size=2, max_size=6, unique=True),
)
def test_cycles_and_memory_time_are_found_again(
    cycles: float, still_s: float, clocks: list[float]
) -> None:
    if max(clocks) < 1.1 * min(clocks):
        return
    points = [(clock, cycles / clock + still_s) for clock in clocks]
    found = fitted_cycles(points)
    assert min(found) >= 0
    for clock, seconds in points:
        np.testing.assert_allclose(found[0] / clock + found[1], seconds, rtol=1e-6)


def test_noise_makes_nothing_negative() -> None:
    # Faster at the lower clock: all of it is taken for memory.
    assert fitted_cycles([(1e9, 1.0), (2e9, 1.1)])[0] == 0.0
    # More than twice as fast at twice the clock: all of it is taken for cycles.
    assert fitted_cycles([(1e9, 2.2), (2e9, 1.0)])[1] == 0.0


def test_close_clocks_count_as_one() -> None:
    board = replace(BOARD, clusters=(replace(BIG, states=states("big", 1e9, 1.9e9, 2e9)),))
    modelled = model_table(NETWORK, board, 1, "t")
    table, _ = merged(measured({1.9e9: 2.0, 2e9: 2.2}, modelled), modelled)
    theirs = latencies(modelled)[0][0]
    assert latencies(table)[0][0] == pytest.approx(2.0 * (theirs or 0))


def test_the_error_in_words_and_for_scripts() -> None:
    error = ModelError(2, 0.5, 0.75, {("big", 1e9): 0.25})
    assert error.to_json() == {
        "pieces": 2,
        "mean": 0.5,
        "largest": 0.75,
        "full_depth": [{"cluster": "big", "frequency_hz": 1e9, "error": 0.25}],
    }


def test_coefficients_are_counts_of_cycles() -> None:
    # No core starts more arithmetic in a cycle than it can.
    assert len(COEFFICIENTS) == len(FEATURES) == len(UNITS)
    assert COEFFICIENTS[0] >= 1 and min(COEFFICIENTS) >= 0
