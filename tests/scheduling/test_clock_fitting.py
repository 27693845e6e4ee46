"""Where samples begin, and with which setting: fitted, and only where that harms nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.clock_rule import ClockRule
from eecompile.clocks.fitting import FittedClocks, fit_clocks, fit_start
from eecompile.clocks.simulation import Simulation, simulate
from eecompile.cost_table import CostTable
from eecompile.diagnostics import InternalError
from eecompile.fitted_policy import drop_at_most
from eecompile.policies import ExitPolicy, NeverPolicy, PredictedPolicy, ThresholdPolicy
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.runtime.scheduler import Scheduler
from tests.scheduling.tables import Clock, table_of

MS = 1e-3
CLOCKS: list[Clock] = [("cpu", 1e3, 1.0), ("cpu", 2e3, 3.0), ("cpu", 4e3, 9.0)]
LOW, MID, TOP = range(3)
POLICY = ThresholdPolicy("max_softmax", [0.9])


def small(**more: Any) -> CostTable:
    """One exit after 8 of 32 cycles, its head of 1: 8.25 ms at the top clock with both."""
    return table_of(CLOCKS, [8, 24], [1], **{"transitions": {"cpu": 0.0}, **more})


def record(kind: type[Any], early: int, late: int, unsure: float = 0.0) -> Any:
    """Samples that leave at the exit, and samples that do not: it is wrong where `unsure` > 0."""
    sure = np.repeat(np.array([[9, 0], [0, unsure]], np.float32), [early, late], axis=0)
    labels = np.zeros(early + late, np.int64)
    return kind(("early",), labels, np.zeros_like(sure), logits={"early": sure})


def two_exits(count: int, early: int) -> CalibrateRecord:
    """Of `count` samples, `early` are sure at the first exit, all at the second."""
    rows = np.repeat(np.array([[9, 0], [0, 0]], np.float32), [early, count - early], axis=0)
    sure = np.tile(np.array([[9, 0]], np.float32), (count, 1))
    logits = {"first": rows, "second": sure}
    labels = np.zeros(count, np.int64)
    return CalibrateRecord(("first", "second"), labels, np.zeros_like(sure), logits=logits)


@pytest.mark.parametrize(
    ("deadline_s", "start"),
    [(None, LOW), (0.1, LOW), (15 * MS, LOW), (12 * MS, MID), (8.3 * MS, TOP)],
)
def test_the_start_is_the_lowest_clock_that_misses_no_more(
    deadline_s: float | None, start: int
) -> None:
    # 9 cycles to the exit, then 24 more that take 6 ms at the top clock.
    fitted = fit_start(
        POLICY, record(CalibrateRecord, 9, 1), small(), ClockRule(deadline_s=deadline_s)
    )
    assert fitted == ClockRule(deadline_s=deadline_s, start=start)


def test_a_start_that_forces_more_answers_is_not_taken() -> None:
    rule = ClockRule(deadline_s=8.5 * MS, hard=True)
    assert fit_start(POLICY, record(CalibrateRecord, 9, 1), small(), rule).start == TOP
    assert fit_start(POLICY, record(CalibrateRecord, 9, 0), small(), rule).start == MID


def test_changing_clocks_within_every_sample_is_weighed() -> None:
    # Half of the samples go on, for which the low clock is too slow: to MID, and back.
    rule = ClockRule(deadline_s=24 * MS)
    for transition_s, start in ((0.0, LOW), (2.5 * MS, MID)):
        table = small(transitions={"cpu": transition_s})
        assert fit_start(POLICY, record(CalibrateRecord, 5, 5), table, rule).start == start


def test_a_rule_that_energies_do_not_decide_stays() -> None:
    for rule in (ClockRule("lowest_latency"), ClockRule("unchanged", 1.0)):
        assert fit_start(POLICY, record(CalibrateRecord, 1, 1), small(), rule) == rule
    unknown = table_of([(name, hz, None) for name, hz, _ in CLOCKS], [8, 24], [1])
    assert fit_start(POLICY, record(CalibrateRecord, 1, 1), unknown, ClockRule()) == ClockRule()


def test_nothing_is_fitted_on_test_data() -> None:
    with pytest.raises(InternalError, match="TestRecord"):
        fit_start(POLICY, record(TestRecord, 1, 1), small(), ClockRule())


def test_of_clocks_that_cost_the_same_the_fastest_is_taken() -> None:
    # At one voltage energy is that of the cycles, whatever the clock; but for rounding.
    clocks: list[Clock] = [("cpu", hz, hz * 0.1 / 7e3) for hz in (1e3, 1.1e3, 1.3e3)]
    table = table_of([*clocks, ("cpu", 4e3, 9.0)], [8, 24], [1], transitions={"cpu": 0.0})
    assert fit_start(POLICY, record(CalibrateRecord, 9, 1), table, ClockRule()).start == 2
    assert Scheduler(table, ClockRule()).home == 2
    assert Scheduler(table, ClockRule(start=3)).after(0, 1, 0.0, 3).state == 2


def test_energy_is_not_saved_on_answers_that_are_late_anyway() -> None:
    # To the end with the head 8.25 ms at least: late by 0.05 ms, or by more from a lower clock.
    rule = ClockRule(deadline_s=8.2 * MS)
    assert fit_start(POLICY, record(CalibrateRecord, 9, 1), small(), rule).start == TOP
    # Without such answers the middle clock is fast enough for the exit.
    assert fit_start(POLICY, record(CalibrateRecord, 9, 0), small(), rule).start == MID


def test_a_start_with_fewer_right_answers_is_not_taken() -> None:
    # Nobody leaves, and the end is out of reach: by 6.5 ms the second exit, which is right, can be
    # had from the top clock only, by 7 ms from the middle one too.
    known = two_exits(10, 0)
    wrong = np.tile(np.array([[0, 0.1]], np.float32), (10, 1))
    known = replace(known, logits={**known.logits, "first": wrong})
    table = table_of(CLOCKS, [8, 8, 16], [1, 1], transitions={"cpu": 0.0})
    never_sure = ThresholdPolicy("max_softmax", [2.0, 2.0])
    for deadline_s, start in ((6.5 * MS, TOP), (7 * MS, MID)):
        found = fit_clocks([never_sure], known, table, ClockRule(deadline_s=deadline_s, hard=True))
        assert found.rule.start == start
        assert found.chosen.forced.all() and found.reference.forced.all()


def test_an_accuracy_budget_says_what_forced_answers_may_cost() -> None:
    rule, table = ClockRule(deadline_s=8.5 * MS, hard=True), small()
    harmless, harmful = (record(CalibrateRecord, 90, 10, unsure) for unsure in (0.0, 0.1))
    found = fit_clocks([POLICY], harmless, table, rule, 0.01)
    assert (found.rule.start, found.kept, found.drop_at_most) == (MID, True, 0.0)
    assert found.chosen.forced.sum() == 10 and found.reference.forced.sum() == 0
    assert fit_clocks([POLICY], harmful, table, rule, 0.01).rule.start == TOP
    # 10 % and 1.645 standard errors of 3 %.
    assert fit_clocks([POLICY], harmful, table, rule, 0.14).rule.start == TOP
    assert fit_clocks([POLICY], harmful, table, rule, 0.15).rule.start == MID


def test_the_setting_of_least_energy_is_not_that_of_fewest_operations() -> None:
    # First: nine leave after 9 cycles, one after 9 + 24. Second: all after 17.
    first, second = (ThresholdPolicy("max_softmax", t) for t in ([0.9, np.inf], [np.inf, 0.9]))
    table = table_of(CLOCKS, [8, 8, 16], [1, 1], transitions={"cpu": 0.0})
    known = two_exits(10, 9)

    def chosen(deadline_s: float) -> FittedClocks:
        return fit_clocks([first, second], known, table, ClockRule(deadline_s=deadline_s), 0.01)

    tight = chosen(9 * MS)
    assert tight.policy is second and tight.rule.start == MID and tight.settings == 2
    assert tight.reference.mean_energy_j == pytest.approx(11.4 * 9 / 4e3, rel=1e-12)
    assert tight.chosen.mean_energy_j == pytest.approx(17 * 3 / 2e3, rel=1e-12)
    wide = chosen(40 * MS)
    assert wide.policy is first and wide.rule.start == LOW
    assert wide.chosen.mean_energy_j == pytest.approx(11.4 / 1e3, rel=1e-12)


def test_where_no_setting_keeps_the_budget_the_least_loss_is_taken() -> None:
    # 5 ms: the exit in time, the end never.
    rule, known = ClockRule(deadline_s=5 * MS, hard=True), record(CalibrateRecord, 90, 10, 0.1)
    everyone = ThresholdPolicy("max_softmax", [0.0])
    for tried in ([POLICY, everyone], [everyone, POLICY]):
        found = fit_clocks(tried, known, small(), rule, 0.01)
        assert not found.kept and found.policy is tried[0]
        assert found.drop_at_most == drop_at_most(known, np.arange(100) < 90)
        assert found.rule.start == MID and not found.chosen.missed.any()


def test_where_energies_do_not_decide_only_a_broken_budget_changes_the_setting() -> None:
    table, known = small(), record(CalibrateRecord, 90, 10, 0.1)
    never = NeverPolicy(1)
    # Both fit into 8.25 ms; into 8.1 ms only the network without the head.
    for deadline_s, policy in ((8.25 * MS, POLICY), (8.1 * MS, never)):
        for objective in ("lowest_latency", "unchanged"):
            rule = ClockRule(objective, deadline_s, hard=True)
            found = fit_clocks([POLICY, never], known, table, rule, 0.01)
            assert found.policy is policy and found.rule == rule and found.kept
    broken = fit_clocks([POLICY], known, table, rule, 0.01)
    assert broken.policy is POLICY and not broken.kept


KINDS: tuple[dict[str, Any], ...] = ({}, {"hard": True}, {"safe": True})


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(KINDS),
    st.floats(3.0, 30.0),
    st.sampled_from([None, 0.02, 0.1, 0.3]),
    st.sampled_from([0.0, 0.4 * MS]),
)
def test_nothing_better_was_to_be_had(
    seed: int, kind: Any, deadline_ms: float, drop: float | None, transition_s: float
) -> None:
    """All settings and starts simulated, by the criterion as it is documented."""
    generator = np.random.default_rng(seed)
    logits = [generator.standard_normal((60, 3)).astype(np.float32) * (k + 1) for k in range(4)]
    labels = (logits[-1] + generator.standard_normal((60, 3))).argmax(axis=1)
    names = ("a", "b", "c")
    known = CalibrateRecord(
        names, labels, logits[-1], logits=dict(zip(names, logits, strict=False))
    )
    tried = [ThresholdPolicy("max_softmax", [t] * 3) for t in generator.uniform(0.4, 1.0, 3)]
    forecasting = PredictedPolicy([0.9] * 3, 0, 2, activation="probability", forecast="sorted")
    policies = [*tried, forecasting, NeverPolicy(3)]
    table = table_of(CLOCKS, [8, 8, 8, 8], [1, 1, 1], transitions={"cpu": transition_s})
    rule = ClockRule(deadline_s=deadline_ms * MS, **kind)
    found = fit_clocks(policies, known, table, rule, drop)

    def run(policy: ExitPolicy, start: int) -> Simulation:
        scheduler = Scheduler(table, replace(rule, start=start))
        return simulate(policy, known.outputs(), known.final, scheduler, TOP)

    reference = run(policies[0], TOP)
    right = int(reference.correct(labels).sum())

    def allowed(one: Simulation) -> bool:
        if drop is not None:
            return drop_at_most(known, one.correct(labels)) <= drop
        few = one.forced.sum() <= reference.forced.sum()
        return bool(few and one.correct(labels).sum() >= right)

    runs = [run(policy, start) for policy in policies for start in (LOW, MID, TOP)]
    in_time = [
        one
        for one in runs
        if one.missed.sum() <= reference.missed.sum()
        and one.late_s.sum() <= reference.late_s.sum() + 1e-9 * 60 * deadline_ms * MS
    ]
    right_ones = [one for one in in_time if allowed(one)]
    chosen = run(found.policy, found.rule.start or 0)
    assert np.array_equal(chosen.energy_j, found.chosen.energy_j)
    assert np.array_equal(chosen.exit, found.chosen.exit)
    assert np.array_equal(reference.energy_j, found.reference.energy_j)
    assert found.kept == bool(right_ones)
    if right_ones:
        least = min(one.energy_j.mean() for one in right_ones)
        assert allowed(chosen) and chosen.energy_j.mean() == pytest.approx(least, rel=3e-9)
    else:
        drops = [drop_at_most(known, one.correct(labels)) for one in in_time]
        assert found.drop_at_most == min(drops)
    assert chosen.missed.sum() <= reference.missed.sum()
