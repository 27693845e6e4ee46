"""Fitting a policy to a budget on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.diagnostics import InternalError
from eecompile.fitted_policy import CONFIDENCE, Calibration, FittedPolicy, isotonic
from eecompile.heads.logistic import fit_logistic
from eecompile.operating_points import Search, Trial
from eecompile.outcomes import ExitCosts
from eecompile.policies import ExitPolicy, NeverPolicy
from eecompile.policies.points import OperatingPoint
from eecompile.policies.scores import max_softmax
from eecompile.predicted_fitting import fit_predicted
from eecompile.record import CalibrateRecord
from eecompile.rule_family import RuleFamily, families
from eecompile.spec import Budget, Rule

__all__ = ["DEFAULT_BUDGET", "FittedPolicy", "fit_policy"]

Array = np.ndarray[Any, Any]

#: What a policy without a budget is fitted to: half a percentage point of accuracy.
DEFAULT_BUDGET = Budget("accuracy_drop", 0.005)


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
    calibration = Calibration(record, costs, budget or DEFAULT_BUDGET, confidence)
    if rule is None or not record.exits:
        return _only(NeverPolicy(len(record.exits)), budget, calibration)
    if any(term.kind == "predicted" for term in rule.terms):
        (term,) = rule.terms  # checked with the file
        return fit_predicted(term, calibration, budget is not None)
    candidates = families(rule, record)
    if len(candidates) == 1 and candidates[0].given is not None:
        return _only(candidates[0].policy(candidates[0].given), budget, calibration)
    found = [_Fitting(family, calibration).solve(seed) for family in candidates]
    feasible = [fitted for fitted in found if isinstance(fitted, FittedPolicy)]
    if feasible:
        best = calibration.best([fitted.point for fitted in feasible])
        return next(fitted for fitted in feasible if fitted.point is best)
    raise calibration.infeasible(min(value for value in found if isinstance(value, float)))


def _only(policy: ExitPolicy, budget: Budget | None, calibration: Calibration) -> FittedPolicy:
    point = calibration.point(policy)
    if budget is not None and not calibration.keeps(point):
        raise calibration.infeasible(calibration.reached(point))
    return FittedPolicy(policy, point, ())


class _Fitting:
    """One family, one budget, one record."""

    def __init__(self, family: RuleFamily, calibration: Calibration) -> None:
        self.family, self.calibration = family, calibration
        cost = calibration.costs[calibration.quantity]
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
        record = self.calibration.record
        outputs = record.outputs()
        policy = self.family.policy([0.0] * len(self.family.tests))
        labels, final = record.labels, record.final
        chances = []
        for index, seen in enumerate(outputs):
            scores = [score for _, exit_, score, _ in self.family.tests if exit_ == index]
            right = policy.answer(index, seen).argmax(axis=1) == labels
            chances.append(_chance(scores, right))
        return [*chances, _chance([max_softmax(final)], final.argmax(axis=1) == labels)]

    def point(self, trial: Trial) -> OperatingPoint:
        """What a trial does, replayed by the policy itself."""
        return self.calibration.point(self.family.policy(trial.thresholds))

    def solve(self, seed: int) -> FittedPolicy | float:
        """The best setting within the budget, or the least that can be reached."""
        judge = self.calibration
        if self.family.given is not None:
            point = self.point(self.search.never)
            fitted = FittedPolicy(point.make(), point, ())
            return fitted if judge.keeps(point) else judge.reached(point)
        chain = [*self.search.chain(seed), self.search.never]
        points = [self.point(trial) for trial in chain]
        best = judge.best(points)
        if best is None:
            return min(judge.reached(point) for point in points)
        best = self._refined(chain, points, best)
        return FittedPolicy(best.make(), best, tuple(points))

    def _refined(
        self, chain: Sequence[Trial], points: Sequence[OperatingPoint], best: OperatingPoint
    ) -> OperatingPoint:
        """What the hull leaves of the budget, used up on the way to the next point of the hull."""
        low, judge = points.index(best), self.calibration
        for high in (low - 1, low + 1):
            if not 0 <= high < len(points) or judge.keeps(points[high]):
                continue
            share, step = 0.0, 0.5
            for _ in range(10):
                trial = self.search.between(chain[low], chain[high], share + step)
                point = self.point(trial)
                if judge.keeps(point):
                    share += step
                    best = judge.best([best, point]) or best
                step /= 2
        return best


def _chance(scores: Sequence[Array], right: Array) -> Array:
    """Chance of being right, rising with the score; several are joined by logistic regression."""
    if not scores:
        return np.full(len(right), right.mean())
    if len(scores) == 1:
        return isotonic(scores[0], right)
    # Half a sample at either end keeps the log odds finite.
    bound = 0.5 / len(right)
    chances = np.stack([isotonic(score, right) for score in scores], axis=1)
    chances = np.clip(chances, bound, 1 - bound)
    odds = np.log(chances / (1 - chances)).astype(np.float32)
    linear = fit_logistic(odds, right.astype(np.int64), 2, seed=0, penalties=[1e-4])
    logits = linear(odds)
    return isotonic(logits[:, 1] - logits[:, 0], right)
