"""Simulation: what a session would do, sample by sample, with modelled times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.clock_rule import ClockRule, Objective
from eecompile.clocks.simulation import Simulation, at_top_clock, simulate
from eecompile.cost_table import CostTable
from eecompile.policies import (
    ExitOutputs,
    NeverPolicy,
    PatiencePolicy,
    PredictedPolicy,
    ThresholdPolicy,
)
from eecompile.runtime.scheduler import Scheduler
from tests.scheduling.stepping import one_by_one
from tests.scheduling.tables import Clock, table_of

MS = 1e-3
CLOCKS: list[Clock] = [("cpu", 1e3, 1.0), ("cpu", 2e3, 3.0), ("cpu", 4e3, 9.0)]
LOW, MID, TOP = range(3)


def small(**more: Any) -> CostTable:
    """Exits after 8, 16 and 24 of 32 cycles, heads of 1: 8 ms at the top clock, 32 at the low."""
    return table_of(CLOCKS, [8, 8, 8, 8], [1, 1, 1], **{"transitions": {"cpu": 0.0}, **more})


def recorded(count: int, exits: int, seed: int = 0) -> tuple[list[ExitOutputs], np.ndarray]:
    """Logits of three classes that grow surer with depth."""
    generator = np.random.default_rng(seed)
    logits = [
        (generator.standard_normal((count, 3)) * (k + 1)).astype(np.float32)
        for k in range(exits + 1)
    ]
    return [ExitOutputs(values) for values in logits[:-1]], logits[-1]


def leaving_at(*exits: int) -> tuple[ThresholdPolicy, list[ExitOutputs], np.ndarray]:
    """A policy and outputs of three exits by which sample n leaves at `exits[n]`."""
    sure, unsure = np.array([9, 0], np.float32), np.zeros(2, np.float32)
    outputs = [
        ExitOutputs(np.array([sure if left == k else unsure for left in exits])) for k in range(3)
    ]
    final = np.full((len(exits), 2), 0, np.float32)
    return ThresholdPolicy("max_softmax", [0.9] * 3), outputs, final


policies = st.sampled_from(
    [
        ThresholdPolicy("max_softmax", [0.7, 0.7, 0.7]),
        ThresholdPolicy("margin", [0.5, np.inf, 0.5]),
        PatiencePolicy(1, 3),
        PredictedPolicy([1.0, 2.0, 3.0], 0, 3),
        NeverPolicy(3),
    ]
)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_simulating_equals_going_sample_by_sample(data: st.DataObject) -> None:
    policy = data.draw(policies)
    deadline = data.draw(st.sampled_from([None, 2 * MS, 7 * MS, 9 * MS, 20 * MS]))
    kind = data.draw(st.sampled_from(["", "safe", "hard"])) if deadline else ""
    objectives: list[Objective] = ["lowest_energy", "race_to_idle", "unchanged"]
    objective = data.draw(st.sampled_from(objectives))
    table = small(
        transitions={"cpu": data.draw(st.sampled_from([0.0, 0.1 * MS, 1 * MS]))},
        idle_w=data.draw(st.sampled_from([None, 0.5])),
    )
    start = data.draw(st.none() | st.integers(0, 2)) if objective == "lowest_energy" else None
    rule = ClockRule(objective, deadline, kind == "safe", kind == "hard", start=start)
    outputs, final = recorded(40, 3, data.draw(st.integers(0, 5)))
    scheduler = Scheduler(table, rule)
    found = simulate(policy, outputs, final, scheduler)
    for sample, wanted in enumerate(one_by_one(policy, outputs, final, scheduler)):
        for name, value in wanted.items():
            np.testing.assert_allclose(getattr(found, name)[sample], value, rtol=1e-12)
    np.testing.assert_allclose(found.seconds_at.sum(axis=1), found.latency_s)


def summed(found: Simulation) -> list[float]:
    return [round(float(value / MS), 9) for value in found.latency_s]


def test_costs_are_those_of_the_pieces_that_ran() -> None:
    policy, outputs, final = leaving_at(0, 1, 3)
    found = at_top_clock(policy, outputs, final, small())
    assert found.exit.tolist() == [0, 1, 3]
    # 9, 18 and 35 cycles at 4 a millisecond and 9 W.
    assert summed(found) == [2.25, 4.5, 8.75]
    assert found.energy_j == pytest.approx([9 * 2.25 * MS, 9 * 4.5 * MS, 9 * 8.75 * MS])
    assert not found.missed.any() and not found.transitions.any() and not found.forced.any()
    assert found.evaluated.tolist() == [[True, False, False], [True, True, False], [True] * 3]
    assert found.mean_energy_j == pytest.approx(float(found.energy_j.mean()))


def test_going_back_to_the_first_clock_is_in_the_next_sample() -> None:
    policy, outputs, final = leaving_at(3, 0, 0)
    rule = ClockRule("lowest_energy", 20 * MS, start=LOW)
    scheduler = Scheduler(small(transitions={"cpu": 0.5 * MS}), rule)
    found = simulate(policy, outputs, final, scheduler)
    # The first: 9 cycles at the low clock, and the rest faster; then back, and there already.
    assert found.transitions.tolist()[0] >= 1
    assert found.transitions.tolist()[1:] == [1, 0]
    assert summed(found)[1:] == [9.5, 9.0]
    assert found.energy_j[1] - found.energy_j[2] > 0
    assert found.seconds_at[2].tolist() == pytest.approx([9 * MS, 0, 0])


def test_misses_are_counted_with_a_deadline_that_is_neither_safe_nor_hard() -> None:
    policy, outputs, final = leaving_at(0, 3)
    found = simulate(policy, outputs, final, Scheduler(small(), ClockRule(deadline_s=8 * MS)))
    assert found.missed.tolist() == [False, True]
    assert found.exit.tolist() == [0, 3] and not found.forced.any()


@pytest.mark.parametrize("kind", ["safe", "hard"])
def test_answers_the_deadline_forces_are_counted_and_given_by_an_exit(kind: str) -> None:
    policy, outputs, final = leaving_at(0, 3)
    outputs[2].logits[1] = [0.1, 0]  # The answer that is forced: no other says class 0.
    rule = ClockRule(deadline_s=8 * MS, safe=kind == "safe", hard=kind == "hard")
    found = simulate(policy, outputs, final, Scheduler(small(), rule))
    assert found.exit.tolist() == [0, 2]
    assert found.forced.tolist() == [False, True] and not found.missed.any()
    assert found.logits[1].tolist() == [np.float32(0.1), 0]


def test_waiting_is_counted_where_deadline_and_idle_power_are_known() -> None:
    policy, outputs, final = leaving_at(0)
    for idle_w, deadline_s, waiting in ((None, 8 * MS, 0), (0.5, None, 0), (0.5, 8 * MS, 5.75)):
        found = at_top_clock(policy, outputs, final, small(idle_w=idle_w), deadline_s)
        assert found.waiting_j[0] == pytest.approx(0.5 * waiting * MS)
        assert found.energy_j[0] == pytest.approx((9 * 2.25 + 0.5 * waiting) * MS)


def test_racing_to_idle_goes_there_after_each_answer() -> None:
    policy, outputs, final = leaving_at(0, 0)
    table = small(transitions={"cpu": 0.5 * MS})
    found = simulate(policy, outputs, final, Scheduler(table, ClockRule("race_to_idle", 0.1)))
    assert summed(found) == [2.25, 2.75]
    assert found.transitions.tolist() == [1, 2]


def test_what_is_not_known_is_no_number() -> None:
    policy, outputs, final = leaving_at(0)
    table = table_of([("cpu", 1e3, None)], [8] * 4, [1] * 3)
    found = simulate(policy, outputs, final, Scheduler(table, ClockRule(deadline_s=1.0)))
    assert np.isnan(found.energy_j).all() and found.mean_energy_j is None


def test_saving_energy_keeps_the_deadline_of_the_full_network() -> None:
    """The rule of the paper: what the forecast leaves of the deadline is spent on a lower clock."""
    table = small()
    outputs, final = recorded(500, 3)
    policy = PredictedPolicy([2.0, 3.0, 4.0], 0, 3)
    rule = ClockRule("lowest_energy", 8 * MS, hard=True)
    found = simulate(policy, outputs, final, Scheduler(table, rule))
    at_top = at_top_clock(policy, outputs, final, table, 8 * MS)
    full = at_top_clock(NeverPolicy(3), outputs, final, table, 8 * MS)
    assert not found.missed.any() and not full.missed.any()
    energies = [run.mean_energy_j or 0 for run in (found, at_top, full)]
    assert energies == sorted(energies) and energies[0] < energies[1] < energies[2]
