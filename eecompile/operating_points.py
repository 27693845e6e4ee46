"""The search behind budgets: thresholds that trade accuracy for cost as well as can be.

Everything here works on recorded scores. Three methods feed one another:

* quota vectors (EENet, arXiv 2301.07099): a fixed share of the samples leaves at each exit;
* random vectors in quantiles of the scores, and their convex hull (E2CM, arXiv 2103.01148);
* coordinate ascent: for a price of one unit of cost, each threshold in turn takes its best value,
  which is found exactly by one pass over the sorted scores.

A sample's chance of being right at an exit is the isotonic regression of rightness on the score,
not the 0 or 1 that was observed: fitted to that, thresholds would learn the sample's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, TypeVar

import numpy as np

__all__ = ["Search", "Trial", "hull", "quota_thresholds", "refined"]

Array = np.ndarray[Any, Any]
T = TypeVar("T")

_SWEEPS = 12


@dataclass(frozen=True)
class Trial:
    """A threshold per test and what it does to the samples searched on.

    Attributes:
        thresholds: one per test.
        cost: mean cost of a sample.
        value: mean chance of being right.
    """

    thresholds: tuple[float, ...]
    cost: float
    value: float


def quota_thresholds(scores: Sequence[Array], shares: Sequence[float]) -> tuple[float, ...]:
    """Thresholds at which given shares of the samples leave at each exit, best scores first.

    Where a share is nothing, the threshold is infinity: the exit need not even be evaluated.

    Args:
        scores: of all n samples, per exit (the final one has none).
        shares: of the samples per exit; what they leave of 1 is the final exit's.

    Source: EENet's quota routine (arXiv 2301.07099).

    >>> quota_thresholds([np.float32([0.9, 0.2, 0.8, 0.1])], [0.5])
    (0.800000011920929,)
    """
    remaining = np.arange(len(scores[0]))
    found = []
    for score, share in zip(scores, shares, strict=True):
        quota = min(int(share * len(score) + 1e-9), len(remaining))
        if quota == 0:
            found.append(inf)
            continue
        order = np.argsort(-score[remaining], kind="stable")
        found.append(float(score[remaining[order[quota - 1]]]))
        remaining = np.sort(remaining[order[quota:]])
    return tuple(found)


def hull(trials: Sequence[Trial]) -> list[Trial]:
    """The upper-left chain of the trials' convex hull, cheapest first.

    >>> at = lambda cost, value: Trial((), cost, value)
    >>> [t.cost for t in hull([at(1, .9), at(.5, .6), at(.2, .5), at(.6, .8), at(.9, .7)])]
    [0.2, 0.6, 1]
    """
    chain: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.cost, -t.value)):
        if chain and trial.value <= chain[-1].value:
            continue
        while len(chain) > 1 and _below(chain[-2], chain[-1], trial):
            chain.pop()
        chain.append(trial)
    return chain


def _below(left: Trial, middle: Trial, right: Trial) -> bool:
    rise = (right.value - left.value) * (middle.cost - left.cost)
    return (middle.value - left.value) * (right.cost - left.cost) <= rise


class Search:
    """Threshold vectors evaluated and improved on one set of recorded scores.

    Test t looks at exit ``exit_of[t]``; a sample leaves at the first exit where one of its tests
    passes (score >= threshold). An exit none of whose thresholds is finite is not evaluated.

    Args:
        scores: float32 (n,) of each test, in the order of their exits.
        exit_of: the exit of each test.
        chances: chance of each sample to be right at each exit, the final one last; (n,) each.
        costs: of leaving at each exit without any head, the final one last.
        head_costs: of evaluating each exit.
        fixed: thresholds that are given, by test.
    """

    def __init__(
        self,
        scores: Sequence[Array],
        exit_of: Sequence[int],
        chances: Sequence[Array],
        costs: Sequence[float],
        head_costs: Sequence[float],
        fixed: Mapping[int, float] | None = None,
    ) -> None:
        self.fixed = dict(fixed or {})
        self.scores, self.exit_of = list(scores), list(exit_of)
        self.chances = [np.asarray(c, np.float64) for c in chances]
        self.costs, self.head_costs = list(costs), list(head_costs)
        self.count = len(chances[-1])
        self.exits = len(costs) - 1
        self._tests = [
            [t for t, k in enumerate(exit_of) if k == exit_] for exit_ in range(self.exits)
        ]

    @cached_property
    def _order(self) -> list[Array]:
        return [np.argsort(-score, kind="stable") for score in self.scores]

    def trial(self, thresholds: Sequence[float]) -> Trial:
        """What a threshold vector does; given thresholds stand for those at their places."""
        vector = [self.fixed.get(t, float(value)) for t, value in enumerate(thresholds)]
        here = np.ones(self.count, bool)
        cost = value = 0.0
        for k in range(self.exits):
            live = [t for t in self._tests[k] if vector[t] < inf]
            if not live:
                continue
            cost += self.head_costs[k] * np.count_nonzero(here)
            leaving = here & self._passing(live, vector)
            cost += self.costs[k] * np.count_nonzero(leaving)
            value += float(self.chances[k][leaving].sum())
            here &= ~leaving
        cost += self.costs[-1] * np.count_nonzero(here)
        value += float(self.chances[-1][here].sum())
        return Trial(tuple(vector), float(cost) / self.count, value / self.count)

    def followed(self, thresholds: Sequence[float]) -> tuple[Array, Array]:
        """Where each sample leaves, int64 (n,), and whose heads ran, bool (n, exits)."""
        here = np.ones(self.count, bool)
        left = np.full(self.count, self.exits)
        evaluated = np.zeros((self.count, self.exits), bool)
        for k in range(self.exits):
            live = [t for t in self._tests[k] if thresholds[t] < inf]
            if live:
                evaluated[:, k] = here
                leaving = here & self._passing(live, thresholds)
                left[leaving] = k
                here &= ~leaving
        return left, evaluated

    @property
    def never(self) -> Trial:
        """Nothing leaves early, unless a given threshold says so."""
        return self.trial([inf] * len(self.scores))

    def between(self, low: Trial, high: Trial, share: float) -> Trial:
        """Each threshold lets a number of samples pass that is between those of `low` and `high`.

        Args:
            low: taken for a share of 0.
            high: taken for a share of 1.
            share: from 0 to 1.
        """
        found = []
        for t, score in enumerate(self.scores):
            ends = [np.count_nonzero(score >= trial.thresholds[t]) for trial in (low, high)]
            rank = round(ends[0] + share * (ends[1] - ends[0]))
            found.append(float(score[self._order[t][rank - 1]]) if rank else inf)
        return self.trial(found)

    def _passing(self, tests: Sequence[int], thresholds: Sequence[float]) -> Array:
        passing = np.zeros(self.count, bool)
        for t in tests:
            passing |= self.scores[t] >= thresholds[t]
        return passing

    def improved(self, thresholds: Sequence[float], price: float) -> Trial:
        """Coordinate ascent of ``value - price * cost`` from a threshold vector."""
        best = self.trial(thresholds)
        for _ in range(_SWEEPS):
            trial = self.trial(self._sweep(best.thresholds, price))
            if _worth(trial, price) <= _worth(best, price) + 1e-9:
                break
            best = trial
        return best

    def _sweep(self, thresholds: Sequence[float], price: float) -> list[float]:
        """Each threshold set to its best, last exit first, given all others."""
        found = list(thresholds)
        arriving = [np.ones(self.count, bool)]
        for k in range(self.exits):
            arriving.append(arriving[-1] & ~self._passing(self._tests[k], found))
        ahead = self.chances[-1] - price * self.costs[-1]
        for k in reversed(range(self.exits)):
            leave = self.chances[k] - price * self.costs[k]
            toll = price * self.head_costs[k]
            for t in self._tests[k]:
                if t in self.fixed:
                    continue
                others = [o for o in self._tests[k] if o != t]
                undecided = arriving[k] & ~self._passing(others, found)
                # Where another test looks here anyway, the exit's cost is paid already.
                due = 0.0 if any(found[o] < inf for o in others) else toll
                paid = due * np.count_nonzero(arriving[k])
                # What nobody arrives at keeps its threshold: an earlier one may yet let some pass.
                if undecided.any():
                    found[t] = self._best(t, undecided, leave - ahead, float(paid), found[t])
            if any(found[t] < inf for t in self._tests[k]):
                passing = self._passing(self._tests[k], found)
                ahead = np.where(passing, leave, ahead) - toll
        return found

    def _best(self, test: int, undecided: Array, gain: Array, paid: float, current: float) -> float:
        """The threshold with the largest total gain of the undecided samples it lets leave.

        `current` where none is better: a move to an equal one could undo what makes a later move
        of another threshold worth while, and the ascent would end too early.
        """
        order = self._order[test]
        order = order[undecided[order]]
        score = self.scores[test][order]
        total = np.cumsum(gain[order])
        passing = np.count_nonzero(score >= current)
        reached = (float(total[passing - 1]) if passing else 0.0) - paid * (current < inf)
        # A threshold separates only samples of different scores.
        total[:-1][score[1:] == score[:-1]] = -inf
        best = int(total.argmax())
        if max(float(total[best]) - paid, 0.0) <= reached + 1e-12:
            return current
        return float(score[best]) if total[best] > paid else inf

    def quota_trials(self, ratios: int = 40) -> list[Trial]:
        """Quota vectors whose shares rise or fall geometrically with the exit's index."""
        first = [self.scores[tests[0]] for tests in self._tests if tests]
        trials = []
        for ratio in np.geomspace(0.1, 10, ratios):
            shares = ratio ** np.arange(len(first) + 1)
            shares /= shares.sum()
            found = [inf] * len(self.scores)
            given = iter(quota_thresholds(first, shares[:-1].tolist()))
            for tests in self._tests:
                if tests:
                    found[tests[0]] = next(given)
            trials.append(self.trial(found))
        return trials

    def everyone_trials(self) -> list[Trial]:
        """For each test, the vector with which every sample leaves there: the ends of the range."""
        trials = []
        for t, score in enumerate(self.scores):
            vector = [inf] * len(self.scores)
            vector[t] = min(0.0, float(score.min()))
            trials.append(self.trial(vector))
        return trials

    def random_trials(self, count: int, seed: int) -> list[Trial]:
        """Random vectors, each threshold a quantile of its test's scores.

        Uniform thresholds would hardly ever leave early: scores crowd in a small range.
        """
        generator = np.random.default_rng(seed)
        ranks = (generator.random((count, len(self.scores))) ** 2 * self.count).astype(int)
        sorted_scores = [s[o] for s, o in zip(self.scores, self._order, strict=True)]
        off = generator.random(ranks.shape) < 0.2
        return [
            self.trial(
                [
                    inf if skip else float(s[r])
                    for s, r, skip in zip(sorted_scores, rank, skipped, strict=True)
                ]
            )
            for rank, skipped in zip(ranks, off, strict=True)
        ]

    def chain(self, seed: int, prices: int = 48, samples: int = 300) -> list[Trial]:
        """Operating points from the cheapest to the most accurate, on their convex hull."""
        never = self.never
        sampled = self.random_trials(samples, seed)
        found = hull([*self.everyone_trials(), *self.quota_trials(), *sampled, never])
        span = max(self.costs) or 1.0
        trial = never
        for price in np.geomspace(1e-3, 10, prices) / span:
            near = _best(found, price)
            starts = (trial, near)
            trial = _best([self.improved(start.thresholds, price) for start in starts], price)
            found.append(trial)
        return hull(found)


def refined(
    search: Search,
    chain: Sequence[Trial],
    low: int,
    found: T,
    *,
    steps: int,
    kept: Callable[[int], bool],
    tried: Callable[[Trial], T | None],
    better: Callable[[T, T], T],
) -> T:
    """What a hull leaves of a budget, used up on the way to the hull's next points.

    Args:
        search: the chain is of.
        chain: trials along the hull.
        low: place of the best of them within the budget.
        found: what that one does.
        steps: halvings of the way.
        kept: whether the trial at a place of the chain keeps the budget, too.
        tried: what a trial does; None where it does not keep the budget.
        better: the better of two.
    """
    for high in (low - 1, low + 1):
        if not 0 <= high < len(chain) or kept(high):
            continue
        share, step = 0.0, 0.5
        for _ in range(steps):
            made = tried(search.between(chain[low], chain[high], share + step))
            if made is not None:
                share += step
                found = better(found, made)
            step /= 2
    return found


def _best(trials: Sequence[Trial], price: float) -> Trial:
    return max(trials, key=lambda trial: _worth(trial, price))


def _worth(trial: Trial, price: float) -> float:
    return trial.value - price * trial.cost
