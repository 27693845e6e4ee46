"""Policies that save by gates alone: how far the gates' scores are shifted for a budget.

What gates leave out changes what later ones see, so a shift cannot be judged by what was recorded
at another one: the calibration data are run through the network at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eecompile.cache import Cache
from eecompile.console import Reporter
from eecompile.datasets import Dataset
from eecompile.fitted_policy import Calibration, FittedPolicy, table_of
from eecompile.outcomes import ExitCosts
from eecompile.policies import NeverPolicy
from eecompile.policies.points import OperatingPoint
from eecompile.policy_fitting import DEFAULT_BUDGET
from eecompile.record import CalibrateRecord, Record
from eecompile.recording import Recorder, Recording
from eecompile.spec import Budget

__all__ = ["Shifted", "Shifts", "fit_shift", "shifts_of"]

Array = np.ndarray[Any, Any]

#: Shares of all scores that the shifts tried first would leave out.
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.75)
#: Shifts tried between the two around a budget.
_HALVINGS = 4
#: Calibration samples whose gates' scores tell which shifts are worth trying.
_SCORED = 512


@dataclass(frozen=True)
class Shifted:
    """What a network does with its gates' scores shifted: its records, and what samples paid."""

    records: Mapping[str, Record]
    costs: Mapping[str, ExitCosts]

    @property
    def calibrate(self) -> CalibrateRecord:
        """What shifts are fitted on."""
        found = self.records["calibrate"]
        assert isinstance(found, CalibrateRecord), "by its split"
        return found


@dataclass
class Shifts:
    """A gated network at any shift of its gates.

    Attributes:
        run: shift, splits -> their records at that shift.
        costs: records -> quantity -> what their samples paid.
        scores: of all gates for calibration data at shift 0, float32 (any,).
        exits: how many the network has.
    """

    run: Callable[[float, tuple[str, ...]], Mapping[str, Record]]
    costs: Callable[[Mapping[str, Record]], Mapping[str, ExitCosts]]
    scores: Callable[[], Array]
    exits: int
    _points: dict[float, OperatingPoint] = field(default_factory=dict)

    def at(self, shift: float, splits: tuple[str, ...] = ("calibrate",)) -> Shifted:
        """What the network does at a shift."""
        records = self.run(shift, splits)
        return Shifted(records, self.costs(records))

    def point(self, shift: float) -> OperatingPoint:
        """What it does to calibration data there."""
        if shift not in self._points:
            found = self.at(shift)
            judge = Calibration(found.calibrate, found.costs, DEFAULT_BUDGET)
            self._points[shift] = judge.point(NeverPolicy(self.exits, shift))
        return self._points[shift]

    def course(self) -> list[float]:
        """Shifts from which the search starts, rising: from everything kept to little."""
        scores = np.sort(self.scores())
        everything = float(scores[0]) - 1.0
        found = [float(np.quantile(scores, share)) for share in _SHARES]
        return sorted({everything, 0.0, *found})


def shifts_of(
    recorder: Recorder | None,
    recordings: Mapping[str, Recording],
    records: Mapping[str, Record],
    splits: Mapping[str, Dataset],
    costs: Callable[[Mapping[str, Record]], Mapping[str, ExitCosts]],
    *,
    threads: int,
    cache: Cache,
    progress: Reporter,
) -> Shifts | None:
    """The network that a build recorded, at any shift; None without gates or calibration data.

    Args:
        recorder: runs it.
        recordings: of its splits.
        records: what was recorded without a shift, with what heads give.
        splits: the data.
        costs: as in `Shifts`.
        threads: that share the samples.
        cache: of records.
        progress: told of samples done.
    """
    if recorder is None or not recorder.scores or "calibrate" not in records:
        return None

    def shifted(shift: float, split: str) -> Record:
        total, what = len(records[split]), f"{split}, gates at {shift:+.2f}"
        return recorder.shifted(
            splits[split],
            records[split],
            shift,
            threads=threads,
            cache=cache,
            key=recordings[split].key,
            progress=lambda done: progress(done, total, what),
        )

    return Shifts(
        lambda shift, wanted: {s: shifted(shift, s) if shift else records[s] for s in wanted},
        costs,
        lambda: recorder.score_sample(splits["calibrate"], _SCORED, threads),
        len(recorder.backbone.exits),
    )


def fit_shift(budget: Budget | None, shifts: Shifts) -> FittedPolicy:
    """The shift for a budget, and the points there are; without a budget that of training, 0.

    A cost budget is used up for accuracy, an accuracy budget for saving MACs. It holds with the
    usual confidence for the mean over data like the calibration data.

    Raises:
        InfeasibleBudget: no shift keeps it; the strictest that one does is named.
    """
    course = shifts.course()
    points = {shift: shifts.point(shift) for shift in course}
    found = shifts.at(0.0)  # Points are judged by what they say of themselves.
    judge = Calibration(found.calibrate, found.costs, budget or DEFAULT_BUDGET)
    if budget is not None:
        points |= _between(judge, points, shifts)
    kept = judge.best(list(points.values())) if budget is not None else points[0.0]
    if kept is None:
        raise judge.infeasible(min(judge.reached(point) for point in points.values()))
    best = kept if budget is None else judge.made_for(kept)
    others = [best, *(points[shift] for shift in sorted(points))]
    return FittedPolicy(best.make(), best, table_of(others, points[min(points)]))


def _between(
    judge: Calibration, points: Mapping[float, OperatingPoint], shifts: Shifts
) -> dict[float, OperatingPoint]:
    """More points around where the budget begins to hold, or ends to."""
    order = sorted(points)
    kept = [judge.keeps(points[shift]) for shift in order]
    edges = [k for k in range(len(order) - 1) if kept[k] != kept[k + 1]]
    found: dict[float, OperatingPoint] = {}
    for edge in edges[:1]:
        low, high = order[edge], order[edge + 1]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found[middle] = shifts.point(middle)
            if judge.keeps(found[middle]) == kept[edge]:
                low = middle
            else:
                high = middle
    return found
