"""What every kind of fitting shares: calibration data, costs, and a budget to keep on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.outcomes import ExitCosts, standard_error
from eecompile.policies import ExitPolicy, replay, to_json
from eecompile.policies.points import OperatingPoint, cheapest, keeps, most_accurate
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget

__all__ = [
    "CONFIDENCE",
    "Calibration",
    "FittedPolicy",
    "InfeasibleBudget",
    "drop_at_most",
    "isotonic",
    "operating_point",
    "table_of",
]

Array = np.ndarray[Any, Any]

#: With what confidence a budget is to hold for data like the calibration data.
CONFIDENCE = 0.95

#: Budgets that operating points are kept for: shares of what the whole network costs, and losses
#: of accuracy.
_SHARES = tuple(percent / 100 for percent in range(10, 101, 10))
_DROPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True)
class FittedPolicy:
    """A policy that keeps its budget on the calibration data.

    Attributes:
        policy: the rule with its thresholds.
        point: what it does on the calibration data.
        points: settings for other budgets, cheapest first, see `Calibration.levels`; empty where
            nothing is left to choose.
        others: more settings that keep an accuracy budget, at other exits: one of them may take
            less energy where clocks are chosen.
        comparison: with rules that were not taken, where one was to be chosen, as JSON.
    """

    policy: ExitPolicy
    point: OperatingPoint
    points: tuple[OperatingPoint, ...]
    others: tuple[ExitPolicy, ...] = ()
    comparison: Mapping[str, Any] | None = None


class InfeasibleBudget(CompileErrors):
    """No setting of a policy keeps its budget.

    Attributes:
        strictest: the strictest limit that can be kept.
    """

    def __init__(self, diagnostic: Diagnostic, strictest: float) -> None:
        super().__init__([diagnostic])
        self.strictest = strictest


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
    confidence: float = CONFIDENCE

    def levels(self) -> list[Calibration]:
        """One for each budget that an operating point is kept for.

        With a point for each of them, choosing another of these budgets where the artifact runs
        loses nothing against a build for it: every 10 % of what the whole network costs, in each
        quantity that is known, and some losses of accuracy.
        """
        budgets = [
            Budget(quantity, share * cost.full_depth)  # type: ignore[arg-type]
            for quantity, cost in self.costs.items()
            for share in _SHARES
        ]
        budgets += [Budget("accuracy_drop", drop) for drop in _DROPS]
        return [replace(self, budget=budget) for budget in budgets]

    @property
    def quantity(self) -> str:
        """The cost that is limited or saved."""
        if self.budget.quantity == "accuracy_drop":
            return next(iter(self.costs))
        return self.budget.quantity

    def point(self, policy: ExitPolicy) -> OperatingPoint:
        """What a policy does here."""
        replayed = replay(policy, self.record.outputs(), self.record.final)
        right = replayed.correct(self.record.labels)
        return self.known_point(policy, replayed.exit, replayed.evaluated, right)

    def known_point(
        self, policy: ExitPolicy, exit_: Array, evaluated: Array, right: Array
    ) -> OperatingPoint:
        """What a policy does here, where that is known already.

        Args:
            policy: the policy.
            exit_: int64 (n,), where each sample leaves.
            evaluated: bool (n, exits), whose heads run.
            right: bool (n,), whether the answer is right.
        """
        split = self.record.split
        paid = {n: cost.paid(exit_, evaluated, split) for n, cost in self.costs.items()}
        return operating_point(policy, self.record, right, paid, self.confidence)

    def reached(self, point: OperatingPoint) -> float:
        """What the budget limits, at most, with the confidence wanted."""
        if self.budget.quantity == "accuracy_drop":
            return point.accuracy_drop
        return point.at_most[self.budget.quantity]

    def keeps(self, point: OperatingPoint) -> bool:
        """Whether the budget holds with the confidence wanted."""
        return keeps(point, self.budget.quantity, self.budget.limit)

    def made_for(self, point: OperatingPoint) -> OperatingPoint:
        """The point, said to be the best for this budget."""
        return replace(point, budget=str(self.budget))

    def best(self, points: Sequence[OperatingPoint]) -> OperatingPoint | None:
        """The best of the points that keep the budget, None where none does."""
        if self.budget.quantity == "accuracy_drop":
            return cheapest(points, self.quantity, self.budget.limit)
        return most_accurate(points, self.quantity, self.budget.limit)

    def infeasible(self, reachable: float) -> InfeasibleBudget:
        """The error that names the range of budgets which can be kept.

        Args:
            reachable: the strictest of them.
        """
        quantity = self.budget.quantity
        notes = [
            f"the strictest that can be kept on {len(self.record)} calibration samples, with a "
            f"margin for their number, is {self._limit_in_words(reachable)}"
        ]
        if quantity != "accuracy_drop":
            full = self._limit_in_words(self.costs[quantity].full_depth)
            notes.append(f"the whole network costs {full}: what is in between can be asked for")
        diagnostic = Diagnostic(
            "infeasible-budget",
            f"No setting of the policy keeps the budget `{self.budget}`",
            self.budget.span,
            "cannot be kept",
            notes=tuple(notes),
            help="allow more, or give the model earlier exits",
        )
        return InfeasibleBudget(diagnostic, reachable)

    def _limit_in_words(self, value: float) -> str:
        limit = Budget(self.budget.quantity, value, self.budget.statistic)
        return str(limit).split("<= ")[1]


def operating_point(
    policy: ExitPolicy,
    record: CalibrateRecord,
    right: Array,
    paid: Mapping[str, Array],
    confidence: float = CONFIDENCE,
) -> OperatingPoint:
    """A policy with what it did to calibration data.

    Args:
        policy: the policy.
        record: the data.
        right: bool (n,), whether each answer is right.
        paid: quantity -> what each cost, (n,).
        confidence: of what costs and the loss of accuracy are at most.
    """
    z = NormalDist().inv_cdf(confidence)
    return OperatingPoint(
        to_json(policy),
        float(right.mean()),
        drop_at_most(record, right, confidence),
        {name: float(cost.mean()) for name, cost in paid.items()},
        {name: float(cost.mean()) + z * standard_error(cost) for name, cost in paid.items()},
    )


def table_of(points: Iterable[OperatingPoint], last: OperatingPoint) -> tuple[OperatingPoint, ...]:
    """The points that are worth having, cheapest first: no other is as good in every respect.

    Args:
        points: of those that do the same the first is kept.
        last: the most careful of them (it never leaves, where that may be chosen): it is kept, and
            stands at the end whatever it costs.
    """
    found: list[OperatingPoint] = []
    for point in points:
        if any(_as_good(other, point) for other in found):
            continue
        found = [other for other in found if not _as_good(point, other)]
        found.append(point)
    found = [point for point in found if point.policy != last.policy]
    return (*sorted(found, key=lambda point: tuple(point.costs.values())), last)


def _as_good(one: OperatingPoint, other: OperatingPoint) -> bool:
    """Whether no budget there is would take the other."""
    return (
        one.accuracy >= other.accuracy
        and one.accuracy_drop <= other.accuracy_drop
        and all(one.costs[name] <= cost for name, cost in other.costs.items())
        and all(one.at_most[name] <= cost for name, cost in other.at_most.items())
    )


def drop_at_most(record: CalibrateRecord, right: Array, confidence: float = CONFIDENCE) -> float:
    """What answers lose in accuracy against full depth, at most, with that confidence.

    Args:
        record: of which they are.
        right: bool (n,), which of them are right.
        confidence: for the mean over data like these.
    """
    lost = record.right_as_built.astype(float) - right
    return float(lost.mean()) + NormalDist().inv_cdf(confidence) * standard_error(lost)


def isotonic(score: Array, right: Array) -> Array:
    """Chance of being right, rising with the score: float64 (n,).

    >>> isotonic(np.array([0.1, 0.2, 0.3]), np.array([True, False, True])).tolist()
    [0.5, 0.5, 1.0]
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(score, kind="stable")
    chance = np.empty(len(score))
    chance[order] = isotonic_regression(right[order].astype(np.float64)).x
    return chance
