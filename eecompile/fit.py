"""Fitting a policy to a budget on calibration data, and what it does on data it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.heads.logistic import fit_logistic
from eecompile.operating_points import Search, Trial
from eecompile.policies import (
    ClassMeansPolicy,
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    NeverPolicy,
    PatiencePolicy,
    Replay,
    ThresholdPolicy,
    replay,
    to_json,
)
from eecompile.policies.points import OperatingPoint, cheapest, most_accurate
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.segments import SegmentGraph
from eecompile.spec import Budget, Rule, RuleTerm

__all__ = [
    "DEFAULT_BUDGET",
    "ExitCosts",
    "FittedPolicy",
    "Interval",
    "Report",
    "evaluate",
    "fit_policy",
    "wilson",
]

Array = np.ndarray[Any, Any]

#: What a policy without a budget is fitted to: half a percentage point of accuracy.
DEFAULT_BUDGET = Budget("accuracy_drop", 0.005)

#: With what confidence a budget is to hold for data like the calibration data.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ExitCosts:
    """What a sample pays, in one unit, by where it leaves and which heads it passes.

    Attributes:
        segments: cost of each segment, in order; one more than exits.
        heads: cost of evaluating each exit: head, comparator and decision.
        full_depth: cost of the untouched backbone, which budgets in per cent refer to.
    """

    segments: tuple[float, ...]
    heads: tuple[float, ...]
    full_depth: float

    @classmethod
    def macs(cls, graph: SegmentGraph) -> ExitCosts:
        """Multiply-accumulates as a fraction of the untouched backbone's, heads included."""
        full = graph.macs or 1
        segments = tuple(segment.macs / full for segment in graph.segments)
        return cls(segments, tuple(exit_.macs / full for exit_ in graph.exits), 1.0)

    @property
    def leaving(self) -> tuple[float, ...]:
        """Cost of the backbone up to each exit, the final one last.

        >>> ExitCosts((0.5, 0.25, 0.25), (0.01, 0.01), 1.0).leaving
        (0.5, 0.75, 1.0)
        """
        return tuple(accumulate(self.segments))

    def of(self, replayed: Replay) -> Array:
        """Cost of each sample, float64 (n,)."""
        backbone = np.asarray(self.leaving)[replayed.exit]
        return np.asarray(backbone + replayed.evaluated @ np.asarray(self.heads, np.float64))


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval (95 %)."""

    value: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, samples: Array) -> Interval:
        """Mean of independent samples, by the normal approximation.

        >>> Interval.of_mean(np.array([1.0, 1.0])).high
        1.0
        """
        half = 1.96 * _standard_error(samples)
        mean = float(samples.mean())
        return cls(mean, mean - half, mean + half)


def wilson(successes: int, count: int) -> Interval:
    """A proportion with Wilson's score interval, which also holds near 0 and 1.

    >>> interval = wilson(9, 10)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.596, 0.982)
    """
    z = NormalDist().inv_cdf(0.975)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Report:
    """What a policy does on a record.

    Attributes:
        n: number of samples.
        accuracy: share of right answers, Wilson interval.
        full_depth_accuracy: of the network's own answers.
        accuracy_drop: the loss against them, paired by sample.
        costs: quantity -> mean cost of a sample ("macs" as a fraction of the backbone's).
        exits: per exit, the final one last: (name, share of the samples, their accuracy or None).
    """

    n: int
    accuracy: Interval
    full_depth_accuracy: Interval
    accuracy_drop: Interval
    costs: Mapping[str, Interval]
    exits: tuple[tuple[str, float, float | None], ...]

    def measured(self, budget: Budget) -> Interval | None:
        """What the budget limits, as found here; None where no such cost is known."""
        if budget.quantity == "accuracy_drop":
            return self.accuracy_drop
        return self.costs.get(budget.quantity)

    def missed_by(self, budget: Budget) -> float:
        """How far the mean lies above the budget's limit; 0 where the budget is kept."""
        found = self.measured(budget)
        return max(0.0, found.value - budget.limit) if found else 0.0


def evaluate(
    policy: ExitPolicy, record: TestRecord | CalibrateRecord, costs: Mapping[str, ExitCosts]
) -> Report:
    """What `policy` does to the samples of a record."""
    replayed = replay(policy, record.outputs(), record.final)
    right = replayed.correct(record.labels)
    full = record.final.argmax(axis=1) == record.labels
    exits = []
    for index, name in enumerate((*record.exits, "final")):
        here = replayed.exit == index
        accuracy = float(right[here].mean()) if here.any() else None
        exits.append((name, float(here.mean()), accuracy))
    return Report(
        n=len(record),
        accuracy=wilson(int(right.sum()), len(record)),
        full_depth_accuracy=wilson(int(full.sum()), len(record)),
        accuracy_drop=Interval.of_mean(full.astype(float) - right),
        costs={name: Interval.of_mean(cost.of(replayed)) for name, cost in costs.items()},
        exits=tuple(exits),
    )


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
    if rule is None or not record.exits:
        return _only(NeverPolicy(len(record.exits)), budget, record, costs, confidence)
    families = _families(rule, record)
    if len(families) == 1 and families[0].given is not None:
        return _only(families[0].policy(families[0].given), budget, record, costs, confidence)
    limit = budget or DEFAULT_BUDGET
    found = [_Fitting(family, limit, record, costs, confidence).solve(seed) for family in families]
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
        float(lost.mean()) + z * _standard_error(lost),
        {name: float(cost.mean()) for name, cost in paid.items()},
        {name: float(cost.mean()) + z * _standard_error(cost) for name, cost in paid.items()},
    )


def _standard_error(samples: Array) -> float:
    return float(samples.std()) / sqrt(len(samples))


@dataclass(frozen=True)
class _Family:
    """A rule in which all is decided but some thresholds.

    Attributes:
        tests: (term, exit, score (n,), threshold or None) in the order of exits.
        terms: the rule's terms; patience has its count.
        exits: number of exits.
    """

    tests: tuple[tuple[int, int, Array, float | None], ...]
    terms: tuple[RuleTerm, ...]
    exits: int

    @property
    def given(self) -> tuple[float, ...] | None:
        """The thresholds, where all of them are given."""
        values = tuple(threshold for *_, threshold in self.tests if threshold is not None)
        return values if len(values) == len(self.tests) else None

    def policy(self, thresholds: Sequence[float]) -> ExitPolicy:
        """The policy with one threshold per test."""
        per_term = [[inf] * self.exits for _ in self.terms]
        for (term, exit_, _, _), threshold in zip(self.tests, thresholds, strict=True):
            per_term[term][exit_] = threshold
        rules = [
            _policy(term, own, self.exits) for term, own in zip(self.terms, per_term, strict=True)
        ]
        return rules[0] if len(rules) == 1 else EitherPolicy(rules)


def _policy(term: RuleTerm, thresholds: Sequence[float], exits: int) -> ExitPolicy:
    if term.kind == "patience":
        return PatiencePolicy(_count(term), exits)
    if term.measure == "class_means":
        return ClassMeansPolicy(thresholds)
    return ThresholdPolicy(str(term.measure), thresholds)


def _count(patience: RuleTerm) -> int:
    count = patience.options["count"]
    assert isinstance(count, int), "checked with the file"
    return count


def _families(rule: Rule, record: CalibrateRecord) -> list[_Family]:
    """The rule with every possible count where patience has none."""
    counts = [
        [term] if term.kind != "patience" or "count" in term.options else _counted(term, record)
        for term in rule.terms
    ]
    choices: list[tuple[RuleTerm, ...]] = [()]
    for options in counts:
        choices = [(*chosen, option) for chosen in choices for option in options]
    return [_family(terms, record) for terms in choices]


def _counted(term: RuleTerm, record: CalibrateRecord) -> list[RuleTerm]:
    most = max(1, len(record.exits) - 1)
    return [
        RuleTerm(term.kind, term.measure, {**term.options, "count": count}, term.threshold)
        for count in range(1, most + 1)
    ]


def _family(terms: tuple[RuleTerm, ...], record: CalibrateRecord) -> _Family:
    outputs = record.outputs()
    tests: list[tuple[int, int, Array, float | None]] = []
    for number, term in enumerate(terms):
        for index, score in _scores(term, record, outputs):
            threshold = 0.5 if term.kind == "patience" else term.threshold
            tests.append((number, index, score, threshold))
    tests.sort(key=lambda test: (test[1], test[0]))
    return _Family(tuple(tests), terms, len(record.exits))


def _scores(
    term: RuleTerm, record: CalibrateRecord, outputs: Sequence[ExitOutputs]
) -> list[tuple[int, Array]]:
    """The term's score at each exit that has what it looks at."""
    if term.kind == "patience":
        # Whether it fires: a score of 0 or 1 with a given threshold.
        policy = PatiencePolicy(_count(term), len(outputs))
        state = policy.start(len(record))
        fired = [policy.decide(index, seen, state) < 0 for index, seen in enumerate(outputs)]
        return list(enumerate(hit.astype(np.float32) for hit in fired))
    found = []
    for index, (name, seen) in enumerate(zip(record.exits, outputs, strict=True)):
        if term.measure == "class_means":
            if seen.class_means is not None:
                found.append((index, max_softmax(seen.class_means)))
        elif name in record.logits:
            found.append((index, SCORES[str(term.measure)](seen.logits)))
    return found


class _Fitting:
    """One family, one budget, one record."""

    def __init__(
        self,
        family: _Family,
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
