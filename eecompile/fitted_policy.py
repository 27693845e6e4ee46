"""What every kind of fitting shares: calibration data, costs, and a budget to keep on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.outcomes import ExitCosts, standard_error
from eecompile.policies import ExitPolicy, replay, to_json
from eecompile.policies.points import OperatingPoint, cheapest, most_accurate
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget

__all__ = ["CONFIDENCE", "Calibration", "FittedPolicy", "drop_at_most", "isotonic"]

#: With what confidence a budget is to hold for data like the calibration data.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FittedPolicy:
    """A policy that keeps its budget on the calibration data.

    Attributes:
        policy: the rule with its thresholds.
        point: what it does on the calibration data.
        points: settings for other budgets, cheapest first; empty where nothing is left to choose.
        others: more settings that keep an accuracy budget, at other exits: one of them may take
            less energy where clocks are chosen.
    """

    policy: ExitPolicy
    point: OperatingPoint
    points: tuple[OperatingPoint, ...]
    others: tuple[ExitPolicy, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """Judges settings of a policy on the data they are fitted on.

    A cost budget is used up for accuracy; an accuracy budget for saving the first of `costs`.

    Attributes:
        record: with every exit's outputs.
        costs: quantity -> costs, the budget's among them.
        budget: the limit.
        confidence: with which the budget has to hold for the mean over data like these.
    """

    record: CalibrateRecord
    costs: Mapping[str, ExitCosts]
    budget: Budget
    confidence: float

    @property
    def quantity(self) -> str:
        """The cost that is limited or saved."""
        if self.budget.quantity == "accuracy_drop":
            return next(iter(self.costs))
        return self.budget.quantity

    def point(self, policy: ExitPolicy) -> OperatingPoint:
        """What a policy does here."""
        z = NormalDist().inv_cdf(self.confidence)
        record = self.record
        replayed = replay(policy, record.outputs(), record.final)
        right = replayed.correct(record.labels)
        paid = {name: cost.of(replayed) for name, cost in self.costs.items()}
        return OperatingPoint(
            to_json(policy),
            float(right.mean()),
            drop_at_most(record, right, self.confidence),
            {name: float(cost.mean()) for name, cost in paid.items()},
            {name: float(cost.mean()) + z * standard_error(cost) for name, cost in paid.items()},
        )

    def reached(self, point: OperatingPoint) -> float:
        """What the budget limits, at most, with the confidence wanted."""
        if self.budget.quantity == "accuracy_drop":
            return point.accuracy_drop
        return point.at_most[self.budget.quantity]

    def keeps(self, point: OperatingPoint) -> bool:
        """Whether the budget holds with the confidence wanted."""
        return self.reached(point) <= self.budget.limit

    def best(self, points: Sequence[OperatingPoint]) -> OperatingPoint | None:
        """The best of the points that keep the budget, None where none does."""
        if self.budget.quantity == "accuracy_drop":
            return cheapest(points, self.quantity, self.budget.limit)
        return most_accurate(points, self.quantity, self.budget.limit)

    def infeasible(self, reachable: float) -> CompileErrors:
        """The error that names the strictest budget which can be kept."""
        least = Budget(self.budget.quantity, reachable, self.budget.statistic)
        diagnostic = Diagnostic(
            "infeasible-budget",
            f"No setting of the policy keeps the budget `{self.budget}`",
            self.budget.span,
            "cannot be kept",
            notes=(
                f"the strictest that can be kept on {len(self.record)} calibration samples, with a "
                f"margin for their number, is {str(least).split('<= ')[1]}",
            ),
            help="allow more, or give the model earlier exits",
        )
        return CompileErrors([diagnostic])


def drop_at_most(
    record: CalibrateRecord, right: np.ndarray[Any, Any], confidence: float = CONFIDENCE
) -> float:
    """What answers lose in accuracy against full depth, at most, with that confidence.

    Args:
        record: of which they are.
        right: bool (n,), which of them are right.
        confidence: for the mean over data like these.
    """
    lost = (record.final.argmax(axis=1) == record.labels).astype(float) - right
    return float(lost.mean()) + NormalDist().inv_cdf(confidence) * standard_error(lost)


def isotonic(score: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Chance of being right, rising with the score: float64 (n,).

    >>> isotonic(np.array([0.1, 0.2, 0.3]), np.array([True, False, True])).tolist()
    [0.5, 0.5, 1.0]
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(score, kind="stable")
    chance = np.empty(len(score))
    chance[order] = isotonic_regression(right[order].astype(np.float64)).x
    return chance
