"""The clock samples begin at: fitted, and only where that harms nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eecompile.clock_rule import ClockRule
from eecompile.clocks.fitting import fit_start
from eecompile.cost_table import CostTable
from eecompile.diagnostics import InternalError
from eecompile.policies import ThresholdPolicy
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


def record(kind: type[Any], early: int, late: int) -> Any:
    """Samples that leave at the exit, and samples that do not."""
    sure = np.repeat(np.array([[9, 0], [0, 0]], np.float32), [early, late], axis=0)
    labels = np.zeros(early + late, np.int64)
    return kind(("early",), labels, np.zeros_like(sure), logits={"early": sure})


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
