"""Fitting a policy to a budget on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.calibration_checks import check_record
from eecompile.diagnostics import InternalError
from eecompile.fitted_policy import CONFIDENCE, Calibration, FittedPolicy, isotonic, table_of
from eecompile.heads.logistic import fit_logistic
from eecompile.heads.one_core import one_core
from eecompile.learned import fit_learned
from eecompile.operating_points import Search, Trial, refined
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

#: Halvings of the way from one point of a hull to the next.
_STEPS = 10


def fit_policy(
    rule: Rule | None,
    budget: Budget | None,
    record: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    levels: bool = True,
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
        levels: whether settings for other budgets are wanted, see `Calibration.levels`.

    Raises:
        CompileErrors: the budget cannot be kept (the diagnostic names what can be reached), or
            the data are too few, of one class, or hold no finite scores.
    """
    if not isinstance(record, CalibrateRecord):
        raise InternalError(f"a policy was to be fitted on a {type(record).__name__}")
    calibration = Calibration(record, costs, budget or DEFAULT_BUDGET, confidence)
    with one_core():
        return _fitted(rule, budget, calibration, seed, levels)


def _fitted(
    rule: Rule | None, budget: Budget | None, calibration: Calibration, seed: int, levels: bool
) -> FittedPolicy:
    """See `fit_policy`."""
    record, confidence = calibration.record, calibration.confidence
    if rule is None or not record.exits:
        return _only(NeverPolicy(len(record.exits)), budget, calibration)
    if any(term.kind == "predicted" for term in rule.terms):
        (term,) = rule.terms  # checked with the file
        check_record(record, budget, confidence)
        return fit_predicted(term, calibration, budget is not None, levels)
    if any(term.kind == "learned_score" for term in rule.terms):
        (term,) = rule.terms  # checked with the file
        check_record(record, budget, confidence)
        return fit_learned(term, calibration, seed, levels)
    candidates = families(rule, record)
    if len(candidates) == 1 and candidates[0].given is not None:
        return _only(candidates[0].policy(candidates[0].given), budget, calibration)
    check_record(record, budget, confidence)
    return _solved([_Fitting(family, calibration, seed) for family in candidates], levels)


def _solved(found: Sequence[_Fitting], levels: bool) -> FittedPolicy:
    """The best that any of some families can do, and all that is worth keeping of them."""
    judge = found[0].calibration
    own = [point for fitting in found if (point := fitting.best(judge)) is not None]
    points = [point for fitting in found for point in fitting.course(judge.quantity).points]
    for level in judge.levels() if levels else ():
        made = [point for fitting in found if (point := fitting.best(level)) is not None]
        best = level.best(made)
        points += [] if best is None else [level.made_for(best)]
    best = judge.best([*own, *points])
    if best is None:
        raise judge.infeasible(min(judge.reached(point) for point in points))
    # Points that were made for a budget come first: of equal ones they say what they are for.
    best = judge.made_for(best)
    points = [best, *sorted(points, key=lambda point: point.budget is None)]
    last = found[-1].course(judge.quantity).points[-1]
    return FittedPolicy(best.make(), best, table_of(points, last))


def _only(policy: ExitPolicy, budget: Budget | None, calibration: Calibration) -> FittedPolicy:
    point = calibration.point(policy)
    if budget is not None and not calibration.keeps(point):
        raise calibration.infeasible(calibration.reached(point))
    return FittedPolicy(policy, point, ())


@dataclass(frozen=True)
class _Course:
    """The way from the cheapest setting to the most accurate, by one kind of cost.

    Attributes:
        search: that found it.
        chain: thresholds, cheapest first; the last never leaves.
        points: what each does.
    """

    search: Search
    chain: Sequence[Trial]
    points: Sequence[OperatingPoint]


class _Fitting:
    """One family on one record, for any budget."""

    def __init__(self, family: RuleFamily, calibration: Calibration, seed: int) -> None:
        self.family, self.calibration, self.seed = family, calibration, seed
        self.right: list[Array] = []
        self.chances = self._chances()
        self._courses: dict[str, _Course] = {}

    def course(self, quantity: str) -> _Course:
        """By one of the costs; found once."""
        if quantity not in self._courses:
            search = self._search(quantity)
            chain = [search.never]
            if self.family.given is None:
                chain = [*search.chain(self.seed), search.never]
            points = [self._point(search, trial) for trial in chain]
            self._courses[quantity] = _Course(search, chain, points)
        return self._courses[quantity]

    def _search(self, quantity: str) -> Search:
        cost, tests = self.calibration.costs[quantity], self.family.tests
        return Search(
            [score for _, _, score, _ in tests],
            [exit_ for _, exit_, _, _ in tests],
            self.chances,
            cost.leaving,
            cost.heads,
            {t: test[3] for t, test in enumerate(tests) if test[3] is not None},
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
            self.right.append(right)
        self.right.append(final.argmax(axis=1) == labels)
        return [*chances, _chance([max_softmax(final)], self.right[-1])]

    def _point(self, search: Search, trial: Trial) -> OperatingPoint:
        """What a trial does: the same as its policy, without computing its scores again."""
        left, evaluated = search.followed(trial.thresholds)
        right = np.array(self.right)[left, np.arange(len(left))]
        policy = self.family.policy(trial.thresholds)
        return self.calibration.known_point(policy, left, evaluated, right)

    def best(self, judge: Calibration) -> OperatingPoint | None:
        """The best setting for a budget, None where none keeps it.

        What the hull leaves of the budget is used up on the way to the next point of the hull.
        """
        course = self.course(judge.quantity)
        chain, points = course.chain, course.points
        best = judge.best(points)
        if best is None:
            return None

        def tried(trial: Trial) -> OperatingPoint | None:
            point = self._point(course.search, trial)
            return point if judge.keeps(point) else None

        return refined(
            course.search,
            chain,
            points.index(best),
            best,
            steps=_STEPS,
            kept=lambda place: judge.keeps(points[place]),
            tried=tried,
            better=lambda one, other: judge.best([one, other]) or one,
        )


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
