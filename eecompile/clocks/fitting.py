"""Fitting clocks on calibration data: where samples begin, and with which setting of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isnan
from typing import Any

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.simulation import Courses, Replayed, Run, Simulation
from eecompile.cost_table import CostTable
from eecompile.diagnostics import InternalError
from eecompile.fitted_policy import drop_at_most
from eecompile.policies import ExitPolicy
from eecompile.record import CalibrateRecord
from eecompile.runtime.scheduler import Scheduler

__all__ = ["FittedClocks", "fit_clocks", "fit_start"]

Array = np.ndarray[Any, Any]

#: Sums that differ by less than this share of them differ by rounding only.
_ALIKE = 1e-9


@dataclass(frozen=True)
class FittedClocks:
    """A setting of a policy and a clock to begin at, and what they do on calibration data.

    Attributes:
        policy: the setting.
        rule: with its start.
        chosen: what both do.
        reference: what the first setting does, begun at the fastest clock.
        drop_at_most: what `chosen` loses in accuracy, forced answers counted, at most, with the
            confidence of budgets.
        kept: whether that is allowed.
        settings: how many were to choose from.
    """

    policy: ExitPolicy
    rule: ClockRule
    chosen: Simulation
    reference: Simulation
    drop_at_most: float
    kept: bool
    settings: int


def fit_start(
    policy: ExitPolicy,
    record: CalibrateRecord,
    table: CostTable,
    rule: ClockRule,
    paid: PaidCosts | None = None,
) -> ClockRule:
    """The rule with the start at which the samples of the record take the least energy.

    As `fit_clocks` for a single setting.
    """
    return fit_clocks([policy], record, table, rule, paid=paid).rule


def fit_clocks(
    settings: Sequence[ExitPolicy],
    record: CalibrateRecord,
    table: CostTable,
    rule: ClockRule,
    drop: float | None = None,
    paid: PaidCosts | None = None,
) -> FittedClocks:
    """The setting and the start with which the samples of the record take the least energy.

    The *reference* is the first setting, begun at the fastest clock. Nothing is chosen with more
    late answers than the reference has, or with more time beyond the deadline in total: energy is
    never saved on answers that are late anyway. What answers forced by the deadline may cost is
    what the accuracy budget allows; without one, no more of them are forced than the reference
    has, and no fewer answers are right. Of equal energies the fastest start is taken.

    Where nothing keeps the accuracy budget, what loses least of those is taken, and `kept` is
    false. Where energies do not decide (another objective, or none known), the rule stays, and the
    setting as well unless it breaks the budget: then latency decides between those that keep it.

    Args:
        settings: of one policy, in each of which it keeps its budget without a deadline.
        record: with every exit's outputs; where gates decide, as with all of the settings.
        table: costs where it will run.
        rule: whose `start` is replaced.
        drop: accuracy that may be lost, as a fraction; None where the budget limits something else.
        paid: what the record's samples pay of the costs, where gates leave something out.
    """
    if not isinstance(record, CalibrateRecord):
        raise InternalError(f"clocks were to be fitted on a {type(record).__name__}")
    return _Search(settings, record, table, rule, drop, paid).solve()


@dataclass(frozen=True)
class _Try:
    """One setting and start, and the little that is looked at first."""

    setting: int
    start: int | None
    cost: float
    late: int
    late_s: float


@dataclass(frozen=True)
class _Judged:
    """The same with its answers."""

    tried: _Try
    run: Run
    drop: float
    right: int

    @property
    def forced(self) -> int:
        return int(self.run.simulation().forced.sum())


class _Search:
    """All settings and starts on one record: costs first, answers only where costs are low."""

    def __init__(
        self,
        settings: Sequence[ExitPolicy],
        record: CalibrateRecord,
        table: CostTable,
        rule: ClockRule,
        drop: float | None,
        paid: PaidCosts | None,
    ) -> None:
        self.record, self.table, self.rule, self.limit = record, table, rule, drop
        outputs = record.outputs()
        self._right = cache(self._rights)
        self.settings = [Replayed(policy, outputs, record.final) for policy in settings]
        scheduler = Scheduler(table, replace(rule, start=None))
        costs = scheduler.costs
        self.by_energy = rule.objective == "lowest_energy" and bool(costs.has_energy.any())
        self.way_s = costs.way_s(-1)
        starts: list[int | None] = [rule.start]
        if self.by_energy:
            # The fastest is compared with also where its energy is not known.
            starts = [*{int(self.way_s.argmin()), *np.flatnonzero(costs.has_energy).tolist()}]
        self.fastest = min(starts, key=lambda k: 0.0 if k is None else float(self.way_s[k]))
        self.courses = {
            start: Courses(Scheduler(table, replace(rule, start=start)), paid) for start in starts
        }

    def solve(self) -> FittedClocks:
        """See `fit_clocks`."""
        reference = self._judged(self._tried(0, self.fastest))
        if not self.by_energy and (len(self.settings) == 1 or self._allowed(reference, reference)):
            return self._fitted(reference, reference)
        return self._fitted(self._best(reference), reference)

    def _best(self, reference: _Judged) -> _Judged:
        late_s = reference.tried.late_s + _ALIKE * len(self.record) * (self.rule.deadline_s or 0.0)
        tries = sorted(
            (
                tried
                for tried in self._tries()
                if tried.late <= reference.tried.late and tried.late_s <= late_s
            ),
            key=lambda tried: tried.cost,
        )
        best = least = None
        for tried in tries:
            if best is not None and tried.cost > best.tried.cost * (1 + _ALIKE):
                break
            found = self._judged(tried)
            if not self._allowed(found, reference):
                if least is None or found.drop < least.drop:
                    least = found
            elif best is None or self._faster(tried, best.tried):
                best = found
        return best or least or reference

    def _tries(self) -> Iterator[_Try]:
        for setting in range(len(self.settings)):
            for start in self.courses:
                yield self._tried(setting, start)

    def _run(self, setting: int, start: int | None) -> Run:
        return self.settings[setting].run(self.courses[start], self.fastest)

    def _rights(self, setting: int) -> Array:
        """Whether each exit's answer is right, the final one last: bool (exits + 1, n)."""
        replayed = self.settings[setting]
        answers = [replayed.policy.answer(k, seen) for k, seen in enumerate(replayed.outputs)]
        return np.stack(
            [a.argmax(axis=1) == self.record.labels for a in (*answers, replayed.final)]
        )

    def _tried(self, setting: int, start: int | None) -> _Try:
        run = self._run(setting, start)
        cost = float((run.energy_j if self.by_energy else run.each("latency_s")).mean())
        late_s = run.late_s
        late = int(np.count_nonzero(late_s))
        return _Try(setting, start, inf if isnan(cost) else cost, late, float(late_s.sum()))

    def _judged(self, tried: _Try) -> _Judged:
        run = self._run(tried.setting, tried.start)
        right = self._right(tried.setting)[run.each("exit"), np.arange(len(self.record))]
        return _Judged(tried, run, drop_at_most(self.record, right), int(right.sum()))

    def _allowed(self, found: _Judged, reference: _Judged) -> bool:
        """Whether the answers are good enough."""
        if self.limit is not None:
            return found.drop <= self.limit
        return found.right >= reference.right and found.forced <= reference.forced

    def _faster(self, tried: _Try, than: _Try) -> bool:
        if tried.start is None or than.start is None:
            return False
        return bool(self.way_s[tried.start] < self.way_s[than.start])

    def _fitted(self, found: _Judged, reference: _Judged) -> FittedClocks:
        return FittedClocks(
            self.settings[found.tried.setting].policy,
            replace(self.rule, start=found.tried.start),
            found.run.simulation(),
            reference.run.simulation(),
            found.drop,
            self.limit is None or found.drop <= self.limit,
            len(self.settings),
        )
