"""Fitting a learned score: which one, and the thresholds, so that a budget holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from eecompile.fitted_policy import Calibration, FittedPolicy, isotonic, table_of
from eecompile.learned.candidates import Candidate, candidates, schedule_candidate, shifted
from eecompile.learned.scores import Seen
from eecompile.operating_points import Search, Trial, quota_thresholds, refined
from eecompile.outcomes import ExitCosts, standard_error
from eecompile.policies import LearnedScorePolicy
from eecompile.policies.points import OperatingPoint
from eecompile.policies.scores import max_softmax
from eecompile.spec import RuleTerm

__all__ = ["DEFAULT_RESTARTS", "DEFAULT_THRESHOLDS", "fit_learned"]

Array = np.ndarray[Any, Any]

#: Where the file does not say.
DEFAULT_RESTARTS, DEFAULT_THRESHOLDS = 3, "search"

#: The score that is taken unless another is better, by how many standard errors of the difference.
#: Measured on ten other halves than the benchmarks report, of images and of texts: with this one no
#: more than 0.09 points below the best measure at any budget; always the best 0.09, with 1 0.15.
_USUAL, _AHEAD = "gain", 0.5

#: Chances are means over a window of this part of the samples before they are made to rise.
_WINDOW = 0.04

#: A threshold no score reaches, of an exit whose head runs all the same.
_OUT_OF_REACH = 1e30

#: Of the search, for each score: there are several.
_PRICES, _SAMPLES = 32, 100

#: Halvings of a step towards a limit; how far quotas are shifted at most.
_STEPS, _MOST_SHIFT = 12, 60.0


def fit_learned(term: RuleTerm, calibration: Calibration, seed: int, levels: bool) -> FittedPolicy:
    """A score and its thresholds, fitted so that the budget holds.

    What a setting is right about is told by scores of samples their weights had no part in. The
    thresholds come from the search behind all budgets, for each of several scores, and for each
    budget the best is taken; or, with ``thresholds: quota``, as published: EENet's score, the
    quotas of its exit distribution, shifted until the budget holds.

    Args:
        term: the rule's only term.
        calibration: data, costs and budget.
        seed: of everything random.
        levels: whether settings for other budgets are wanted, see `Calibration.levels`.

    Raises:
        CompileErrors: the budget cannot be kept.

    Source: EENet (arXiv 2301.07099); other scores than its own and their choice are ours.
    """
    restarts = term.options.get("restarts", DEFAULT_RESTARTS)
    assert isinstance(restarts, int), "checked with the file"
    quota = str(term.options.get("thresholds", DEFAULT_THRESHOLDS)) == "quota"
    seen = Seen.of(calibration.record)
    plain = [_Fitting(one, seen, calibration, seed) for one in candidates(seen, seed)]
    made = [choice for own in plain if (choice := own.best(calibration)) is not None]
    if not made:
        raise calibration.infeasible(min(own.least(calibration) for own in plain))
    known = _preferred(made, calibration).point
    # The exits that are of use for this budget: those its scheduler is fitted to.
    limits = known.policy["thresholds"]
    used = tuple(k for k in seen.trained if limits[k] is not None) or seen.trained
    seen, cost = replace(seen, trained=used), calibration.costs[calibration.quantity]
    target = known.costs[calibration.quantity]
    published = schedule_candidate(seen, _arriving(cost, seen), target, restarts, seed)
    own = _Fitting(published, seen, calibration, seed, quota)
    return _solved([own] if quota else [*plain, own], calibration, levels)


def _arriving(cost: ExitCosts, seen: Seen) -> Array:
    """Cost of leaving at each exit with a head when all heads before it run, the final one last."""
    heads = np.cumsum([cost.heads[k] for k in seen.trained])
    leaving = np.array([cost.leaving[k] for k in (*seen.trained, -1)])
    return np.asarray(leaving + np.append(heads, heads[-1]))


def _solved(fittings: Sequence[_Fitting], judge: Calibration, levels: bool) -> FittedPolicy:
    """For each budget the best of all scores."""
    points: list[OperatingPoint] = []
    for level in [judge, *(judge.levels() if levels else ())]:
        made = [choice for own in fittings if (choice := own.best(level)) is not None]
        if made:
            points.append(level.made_for(_preferred(made, level).point))
        elif level is judge:
            raise judge.infeasible(min(own.least(judge) for own in fittings))
    best, last = points[0], fittings[-1].never
    return FittedPolicy(best.make(), best, table_of(points, last))


@dataclass(frozen=True)
class _Choice:
    """A setting.

    Attributes:
        score: name of its score.
        point: what it does.
        value: mean chance of its answers to be right.
        right: bool (n,), which are, told by weights the sample had no part in.
    """

    score: str
    point: OperatingPoint
    value: float
    right: Array


def _better(choices: Sequence[_Choice], judge: Calibration) -> _Choice:
    """Of one score: by chances of being right, less of an accident than how many were.

    Scores are not compared so: how far chances deceive, because they are those of all samples and
    not of those that come so far, differs between them.
    """
    if judge.budget.quantity == "accuracy_drop":
        return min(choices, key=lambda choice: choice.point.costs[judge.quantity])
    return max(choices, key=lambda choice: choice.value)


def _preferred(choices: Sequence[_Choice], judge: Calibration) -> _Choice:
    """Of several scores' choices: the gain's, unless another is better beyond an accident.

    Scores are nearly as good as each other on most networks: taking the one that happens to do
    best on the samples would add their noise.
    """
    if judge.budget.quantity == "accuracy_drop":
        return _better(choices, judge)
    best = max(choices, key=lambda choice: choice.point.accuracy)
    usual = next((choice for choice in choices if choice.score == _USUAL), best)
    ahead = best.right.astype(np.float64) - usual.right
    return best if ahead.mean() > _AHEAD * standard_error(ahead) else usual


class _Fitting:
    """One score on one record, for any budget."""

    def __init__(
        self, score: Candidate, seen: Seen, judge: Calibration, seed: int, quota: bool = False
    ) -> None:
        self.score, self.seen, self.judge, self.seed = score, seen, judge, seed
        self.quota = quota
        self._courses: dict[str, list[tuple[Trial, _Choice]]] = {}
        self._searches: dict[str, Search] = {}

    def best(self, judge: Calibration) -> _Choice | None:
        """The best setting for a budget, None where none keeps it."""
        if self.quota:
            return self._quota(judge)
        course = self._course(judge.quantity)
        kept = [place for place, (_, choice) in enumerate(course) if self._keeps(choice, judge)]
        if not kept:
            return None
        found = _better([course[place][1] for place in kept], judge)
        low = next(place for place in kept if course[place][1] is found)
        search = self._search(judge.quantity)

        def tried(trial: Trial) -> _Choice | None:
            choice = self._choice(search, trial)
            return choice if self._keeps(choice, judge) else None

        return refined(
            search,
            [trial for trial, _ in course],
            low,
            found,
            steps=_STEPS,
            kept=kept.__contains__,
            tried=tried,
            better=lambda one, other: _better([one, other], judge),
        )

    def least(self, judge: Calibration) -> float:
        """The strictest limit that can be kept."""
        course = self._course(judge.quantity)
        return min(judge.reached(choice.point) for _, choice in course)

    @cached_property
    def never(self) -> OperatingPoint:
        """Nothing leaves early."""
        search = self._search(self.judge.quantity)
        return self._choice(search, search.never).point

    def _quota(self, judge: Calibration) -> _Choice | None:
        """EENet's quotas, shifted until the budget holds and is used up."""
        assert self.score.quotas is not None, "only its scheduler is used so"
        dear = judge.budget.quantity == "accuracy_drop"
        search = self._search(judge.quantity)
        costs = _arriving(judge.costs[judge.quantity], self.seen)
        # From the end that spares what is limited, as far as may be.
        shift, step = (-_MOST_SHIFT, _MOST_SHIFT) if dear else (_MOST_SHIFT, -_MOST_SHIFT)
        ends = [self._choice(search, search.never)] if dear else []
        ends.append(self._choice(search, self._at_quotas(search, costs, shift)))
        found = next((choice for choice in ends if self._keeps(choice, judge)), None)
        for _ in range(2 * _STEPS):
            choice = self._choice(search, self._at_quotas(search, costs, shift + step))
            if self._keeps(choice, judge):
                shift += step
                found = choice if found is None else _better([found, choice], judge)
            step /= 2
        return found

    def _at_quotas(self, search: Search, costs: Array, shift: float) -> Trial:
        assert self.score.quotas is not None
        shares = shifted(self.score.quotas, costs.tolist(), shift)
        own = [self.score.scores[k] for k in self.seen.trained]
        return search.trial(quota_thresholds(own, shares[:-1].tolist()))

    def _keeps(self, choice: _Choice, judge: Calibration) -> bool:
        """Whether the budget holds; one of accuracy, by the chances too."""
        if not judge.keeps(choice.point):
            return False
        if judge.budget.quantity != "accuracy_drop":
            return True
        lucky = choice.point.accuracy - choice.value
        return choice.point.accuracy_drop + max(lucky, 0.0) <= judge.budget.limit

    def _course(self, quantity: str) -> list[tuple[Trial, _Choice]]:
        """From the cheapest setting to the most accurate, by one of the costs; found once."""
        if quantity not in self._courses:
            search = self._search(quantity)
            chain = [*search.chain(self.seed, _PRICES, _SAMPLES), search.never]
            self._courses[quantity] = [(trial, self._choice(search, trial)) for trial in chain]
        return self._courses[quantity]

    def _search(self, quantity: str) -> Search:
        if quantity not in self._searches:
            cost, live = self.judge.costs[quantity], self.seen.trained
            scores = [self.score.scores[k] for k in live]
            self._searches[quantity] = Search(
                scores, live, self._chances, cost.leaving, cost.heads, {}
            )
        return self._searches[quantity]

    @cached_property
    def _chances(self) -> list[Array]:
        """Chance of each sample to be right at each exit, by what its score told of others."""
        record, right = self.judge.record, self.seen.right
        found = [np.full(len(record), own.mean()) for own in right.T]
        for k in self.seen.trained:
            found[k] = _chance(self.score.judged[k], right[:, k], self.score.scores[k])
        sure = max_softmax(record.final)
        found[-1] = _chance(sure, right[:, -1], sure)
        return found

    @cached_property
    def _judge_search(self) -> Search:
        """By scores of samples their weights had no part in."""
        cost, live = self.judge.costs[self.judge.quantity], self.seen.trained
        judged = [self.score.judged[k] for k in live]
        return Search(judged, live, self._chances, cost.leaving, cost.heads, {})

    def _choice(self, search: Search, trial: Trial) -> _Choice:
        """What a setting does: its costs are its own, what it is right about is judged apart."""
        limits = self._running(trial.thresholds)
        left, evaluated = search.followed(limits)
        apart, _ = self._judge_search.followed(limits)
        right = self.seen.right[np.arange(len(apart)), apart]
        thresholds = [inf] * len(self.seen.outputs)
        for k, limit in zip(self.seen.trained, limits, strict=True):
            thresholds[k] = limit
        weights = [
            own if limit < inf else None
            for own, limit in zip(self.score.weights, thresholds, strict=True)
        ]
        policy = LearnedScorePolicy(weights, thresholds)
        point = self.judge.known_point(policy, left, evaluated, right)
        return _Choice(self.score.name, point, trial.value, right)

    def _running(self, limits: Sequence[float]) -> list[float]:
        """The thresholds; out of reach, but not infinite, where a later score looks at this one."""
        exits, found = len(self.seen.outputs), list(limits)
        for t, k in enumerate(self.seen.trained):
            if found[t] < inf:
                continue
            later = [j for j, limit in zip(self.seen.trained, limits, strict=True) if limit < inf]
            rows = [own for j in later if j > k and (own := self.score.weights[j]) is not None]
            if any(own[k - exits] for own in rows):
                found[t] = _OUT_OF_REACH
        return found


def _chance(judged: Array, right: Array, score: Array) -> Array:
    """Chance of being right, rising with the score: learned from `judged`, asked of `score`.

    Args:
        judged: a score of each sample (n,), by weights it had no part in.
        right: bool (n,).
        score: what chances are wanted for (n,).
    """
    order = np.argsort(judged, kind="stable")
    chance = isotonic(np.arange(len(order)), _smoothed(right[order].astype(np.float64)))
    ranked = judged[order]
    first = np.concatenate([[True], ranked[1:] > ranked[:-1]])
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(order)))
    return np.interp(score, ranked[starts], np.add.reduceat(chance, starts) / counts)


def _smoothed(values: Array) -> Array:
    """Means over a window that ends are mirrored into.

    >>> _smoothed(np.array([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    half = int(len(values) * _WINDOW / 2)
    if half == 0:
        return values
    padded = np.concatenate([values[half - 1 :: -1], values, values[: -half - 1 : -1]])
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), "valid")
