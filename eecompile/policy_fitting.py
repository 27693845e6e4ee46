"""Fitting a policy to a budget on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic, InternalError
from eecompile.heads.logistic import fit_logistic
from eecompile.operating_points import Search, Trial
from eecompile.outcomes import ExitCosts, standard_error
from eecompile.policies import ExitPolicy, NeverPolicy, replay, to_json
from eecompile.policies.points import OperatingPoint, cheapest, most_accurate
from eecompile.policies.scores import max_softmax
from eecompile.record import CalibrateRecord
from eecompile.rule_family import RuleFamily, families
from eecompile.spec import Budget, Rule

__all__ = ["DEFAULT_BUDGET", "FittedPolicy", "fit_policy"]

Array = np.ndarray[Any, Any]

#: What a policy without a budget is fitted to: half a percentage point of accuracy.
DEFAULT_BUDGET = Budget("accuracy_drop", 0.005)

#: With what confidence a budget is to hold for data like the calibration data.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FittedPolicy:
    """A policy that keeps its budget on the calibration data.

    Attributes:
        policy: the rule with its thresholds.
        point: what it does on the calibration data.
        points: settings for other budgets, cheapest first; empty where nothing is left to choose.
    """

    policy: ExitPolicy
    point: OperatingPoint
    points: tuple[OperatingPoint, ...]


def fit_policy(
    rule: Rule | None,
    budget: Budget | None,
    record: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> FittedPolicy:
    """The thresholds that are not given, fitted so that the budget holds.

    A cost budget is used up for accuracy; an accuracy budget for saving the first of `costs`.
    Budgets hold with `confidence` for the mean over data like the calibration data, so that the
    limit is approached from below by about two standard errors. Thresholds a user gave stay.

    Args:
        rule: when to leave; None never leaves.
        budget: the limit; None means `DEFAULT_BUDGET` where there is something to fit.
        record: with every exit's outputs.
        costs: quantity ("macs", "latency", "energy") -> costs, the budget's among them.
        seed: of the random threshold vectors.
        confidence: see above.

    Raises:
        CompileErrors: the budget cannot be kept; the diagnostic names what can be reached.
    """
    if not isinstance(record, CalibrateRecord):
        raise InternalError(f"a policy was to be fitted on a {type(record).__name__}")
    if rule is None or not record.exits:
        return _only(NeverPolicy(len(record.exits)), budget, record, costs, confidence)
    candidates = families(rule, record)
    if len(candidates) == 1 and candidates[0].given is not None:
        return _only(candidates[0].policy(candidates[0].given), budget, record, costs, confidence)
    limit = budget or DEFAULT_BUDGET
    found = [
        _Fitting(family, limit, record, costs, confidence).solve(seed) for family in candidates
    ]
    feasible = [fitted for fitted in found if isinstance(fitted, FittedPolicy)]
    if feasible:
        return max(feasible, key=lambda fitted: _rank(fitted.point, limit, costs))
    reachable = min(value for value in found if isinstance(value, float))
    raise CompileErrors([_infeasible(limit, reachable, record)])


def _rank(point: OperatingPoint, budget: Budget, costs: Mapping[str, ExitCosts]) -> float:
    if budget.quantity == "accuracy_drop":
        return -point.costs[next(iter(costs))]
    return point.accuracy


def _infeasible(budget: Budget, reachable: float, record: CalibrateRecord) -> Diagnostic:
    least = Budget(budget.quantity, reachable, budget.statistic)
    return Diagnostic(
        "infeasible-budget",
        f"No setting of the policy keeps the budget `{budget}`",
        budget.span,
        "cannot be kept",
        notes=(
            f"the strictest that can be kept on {len(record)} calibration samples, with a margin "
            f"for their number, is {str(least).split('<= ')[1]}",
        ),
        help="allow more, or give the model earlier exits",
    )


def _only(
    policy: ExitPolicy,
    budget: Budget | None,
    record: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    confidence: float,
) -> FittedPolicy:
    point = _point(policy, record, costs, confidence)
    if budget is not None:
        reached = _reached(point, budget)
        if reached > budget.limit:
            raise CompileErrors([_infeasible(budget, reached, record)])
    return FittedPolicy(policy, point, ())


def _reached(point: OperatingPoint, budget: Budget) -> float:
    if budget.quantity == "accuracy_drop":
        return point.accuracy_drop
    return point.at_most[budget.quantity]


def _point(
    policy: ExitPolicy,
    record: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    confidence: float,
) -> OperatingPoint:
    """What a setting does on the calibration data."""
    z = NormalDist().inv_cdf(confidence)
    replayed = replay(policy, record.outputs(), record.final)
    right = replayed.correct(record.labels)
    lost = (record.final.argmax(axis=1) == record.labels).astype(float) - right
    paid = {name: cost.of(replayed) for name, cost in costs.items()}
    return OperatingPoint(
        to_json(policy),
        float(right.mean()),
        float(lost.mean()) + z * standard_error(lost),
        {name: float(cost.mean()) for name, cost in paid.items()},
        {name: float(cost.mean()) + z * standard_error(cost) for name, cost in paid.items()},
    )


class _Fitting:
    """One family, one budget, one record."""

    def __init__(
        self,
        family: RuleFamily,
        budget: Budget,
        record: CalibrateRecord,
        costs: Mapping[str, ExitCosts],
        confidence: float,
    ) -> None:
        self.family, self.budget, self.record = family, budget, record
        self.costs, self.confidence = costs, confidence
        self.quantity = next(iter(costs))
        if budget.quantity != "accuracy_drop":
            self.quantity = budget.quantity
        cost = costs[self.quantity]
        given = {t: test[3] for t, test in enumerate(family.tests) if test[3] is not None}
        self.search = Search(
            [score for _, _, score, _ in family.tests],
            [exit_ for _, exit_, _, _ in family.tests],
            self._chances(),
            cost.leaving,
            cost.heads,
            given,
        )

    def _chances(self) -> list[Array]:
        """Chance of each sample to be right at each exit, judged by the scores of its tests."""
        outputs = self.record.outputs()
        policy = self.family.policy([0.0] * len(self.family.tests))
        labels, final = self.record.labels, self.record.final
        chances = []
        for index, seen in enumerate(outputs):
            scores = [score for _, exit_, score, _ in self.family.tests if exit_ == index]
            right = policy.answer(index, seen).argmax(axis=1) == labels
            chances.append(_chance(scores, right))
        return [*chances, _chance([max_softmax(final)], final.argmax(axis=1) == labels)]

    def point(self, trial: Trial) -> OperatingPoint:
        """What a trial does, replayed by the policy itself."""
        policy = self.family.policy(trial.thresholds)
        return _point(policy, self.record, self.costs, self.confidence)

    def keeps(self, point: OperatingPoint) -> bool:
        """Whether the budget holds with the confidence wanted."""
        return _reached(point, self.budget) <= self.budget.limit

    def solve(self, seed: int) -> FittedPolicy | float:
        """The best setting within the budget, or the least that can be reached."""
        if self.family.given is not None:
            point = self.point(self.search.never)
            fitted = FittedPolicy(point.make(), point, ())
            return fitted if self.keeps(point) else _reached(point, self.budget)
        chain = [*self.search.chain(seed), self.search.never]
        points = [self.point(trial) for trial in chain]
        best = self._best(points)
        if best is None:
            return min(_reached(point, self.budget) for point in points)
        best = self._refined(chain, points, best)
        return FittedPolicy(best.make(), best, tuple(points))

    def _best(self, points: Sequence[OperatingPoint]) -> OperatingPoint | None:
        if self.budget.quantity == "accuracy_drop":
            return cheapest(points, self.quantity, self.budget.limit)
        return most_accurate(points, self.quantity, self.budget.limit)

    def _refined(
        self, chain: Sequence[Trial], points: Sequence[OperatingPoint], best: OperatingPoint
    ) -> OperatingPoint:
        """What the hull leaves of the budget, used up on the way to the next point of the hull."""
        low = points.index(best)
        for high in (low - 1, low + 1):
            if not 0 <= high < len(points) or self.keeps(points[high]):
                continue
            share, step = 0.0, 0.5
            for _ in range(10):
                trial = self.search.between(chain[low], chain[high], share + step)
                point = self.point(trial)
                if self.keeps(point):
                    share += step
                    best = self._best([best, point]) or best
                step /= 2
        return best


def _chance(scores: Sequence[Array], right: Array) -> Array:
    """Chance of being right, rising with the score; several are joined by logistic regression."""
    if not scores:
        return np.full(len(right), right.mean())
    if len(scores) == 1:
        return _isotonic(scores[0], right)
    # Half a sample at either end keeps the log odds finite.
    bound = 0.5 / len(right)
    chances = np.stack([_isotonic(score, right) for score in scores], axis=1)
    chances = np.clip(chances, bound, 1 - bound)
    odds = np.log(chances / (1 - chances)).astype(np.float32)
    linear = fit_logistic(odds, right.astype(np.int64), 2, seed=0, penalties=[1e-4])
    logits = linear(odds)
    return _isotonic(logits[:, 1] - logits[:, 0], right)


def _isotonic(score: Array, right: Array) -> Array:
    from scipy.optimize import isotonic_regression

    order = np.argsort(score, kind="stable")
    chance = np.empty(len(score))
    chance[order] = isotonic_regression(right[order].astype(np.float64)).x
    return chance
