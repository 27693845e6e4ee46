"""Which of many exits a network should have: the set with the best accuracy for its cost.

A set is judged by its curve of accuracy over cost. Thresholds are fitted on one half of the
samples and what they do is read off the other, and the other way round, so that a set gains nothing
by fitting noise. Every head that runs is paid for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from eecompile.fitted_policy import isotonic
from eecompile.operating_points import Search, Trial, hull
from eecompile.outcomes import ExitCosts
from eecompile.spec import Budget

__all__ = ["Choice", "ExitScores", "Judge", "Objective", "choose"]

Array = np.ndarray[Any, Any]
Exits = tuple[int, ...]

#: Prices of the whole network's cost, in accuracy, for which thresholds are fitted.
_PRICES = tuple(np.geomspace(0.001, 10, 25).tolist())
#: Prices on either side of the budget's that are tried for every set.
_NEAR = 2
#: Chances of being right at which all of a set's exits let samples go, to begin with.
_CHANCES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
#: Where the curve is read where no budget says where: shares of the whole network's cost.
_SHARES = tuple(percent / 100 for percent in range(40, 101, 5))
#: Up to so many sets, all are judged.
_ALL = 128
#: Up to so many candidates, each may take any other's place; beyond, those so near to it.
_FEW, _REACH = 10, 2


@dataclass(frozen=True)
class ExitScores:
    """What is known of n samples at one exit.

    Attributes:
        score: float32 (n,), how sure the exit is.
        right: bool (n,), whether its answer is right.
    """

    score: Array
    right: Array

    def rows(self, rows: Array) -> ExitScores:
        """Some of the samples."""
        return ExitScores(self.score[rows], self.right[rows])


@dataclass(frozen=True)
class Objective:
    """What the best curve is: at a budget, or from 40 to 100 % of the whole network's cost.

    Attributes:
        budget: the limit; None where no policy has one.
        full_depth: cost of the whole network, in the budget's unit.
        accuracy: of the whole network.
    """

    budget: Budget | None
    full_depth: float
    accuracy: float

    @property
    def is_cost(self) -> bool:
        """Whether a value is a cost: less is better."""
        return self.budget is not None and self.budget.quantity == "accuracy_drop"

    def value(self, curve: Sequence[Trial]) -> float:
        """What a curve is worth: an accuracy, or the least cost for an accuracy.

        >>> curve = [Trial((), 0.0, 0.1), Trial((), 0.5, 0.8), Trial((), 1.0, 0.9)]
        >>> round(Objective(Budget("macs", 0.75), 1.0, 0.9).value(curve), 6)
        0.85
        >>> round(Objective(Budget("accuracy_drop", 0.05), 1.0, 0.9).value(curve), 6)
        0.75
        """
        costs, values = [trial.cost for trial in curve], [trial.value for trial in curve]
        if self.budget is None:
            shares = np.asarray(_SHARES) * self.full_depth
            return float(np.interp(shares, costs, values).mean())
        if self.is_cost:
            return float(np.interp(self.accuracy - self.budget.limit, values, costs))
        return float(np.interp(self.budget.limit, costs, values))

    def score(self, value: float) -> float:
        """The value so that more is better."""
        return -value if self.is_cost else value

    def beyond(self, trial: Trial) -> bool:
        """Whether a setting is on the expensive side of what is limited."""
        if self.is_cost:
            assert self.budget is not None, "it is a cost"
            return trial.value >= self.accuracy - self.budget.limit
        return self.budget is not None and trial.cost >= self.budget.limit


class Judge:
    """Curves of sets of exits, each worked out once."""

    def __init__(
        self,
        exits: Sequence[ExitScores],
        final: ExitScores,
        costs: ExitCosts,
        objective: Objective,
        *,
        guess: float,
        seed: int,
    ) -> None:
        """A judge of sets of `exits`.

        Args:
            exits: all there are, in the order they are reached.
            final: the network's own answers.
            costs: of the pieces between them, and of their heads.
            objective: what a curve is worth.
            guess: accuracy of an answer that costs nothing.
            seed: of the halves.
        """
        self.exits, self.final, self.costs, self.objective = list(exits), final, costs, objective
        self.guess = guess
        mixed = np.random.default_rng(seed).permutation(len(final.right))
        halves = [np.sort(half) for half in np.array_split(mixed, 2)]
        self._folds = [_Fold.of([*exits, final], *halves), _Fold.of([*exits, final], *halves[::-1])]
        self._values: dict[Exits, float] = {}
        self._curves: dict[Exits, list[Trial]] = {}

    @property
    def tried(self) -> int:
        """How many sets were judged."""
        return len(self._values)

    def value(self, chosen: Exits) -> float:
        """What a set is worth by the objective."""
        if chosen not in self._values:
            self._values[chosen] = self.objective.value(self.curve(chosen))
        return self._values[chosen]

    def score(self, chosen: Exits) -> float:
        """The same, so that more is better."""
        return self.objective.score(self.value(chosen))

    def curve(self, chosen: Exits) -> list[Trial]:
        """Accuracy over cost of samples that thresholds were not fitted on, cheapest first.

        It begins with an answer that costs nothing and ends with the whole network's own.
        """
        points = self._points(chosen, self._near)
        sides = {self.objective.beyond(point) for point in points}
        if self.objective.budget is not None and len(sides) < 2:
            points = self._points(chosen, _PRICES)
        return self._hull(points)

    @cached_property
    def _near(self) -> tuple[float, ...]:
        """The prices at which sets are compared: all, or those about the budget's."""
        if self.objective.budget is None:
            return _PRICES[::2]
        points = self._points(tuple(range(len(self.exits))), _PRICES)
        beyond = sum(self.objective.beyond(point) for point in points)
        return _PRICES[max(beyond - 1 - _NEAR, 0) : beyond + 1 + _NEAR]

    def _hull(self, points: Sequence[Trial]) -> list[Trial]:
        whole = Trial((), self.costs.leaving[-1], float(self.final.right.mean()))
        return hull([Trial((), 0.0, self.guess), *points, whole])

    def _points(self, chosen: Exits, prices: Sequence[float]) -> list[Trial]:
        """What thresholds fitted for each price do to the other half, over both halves."""
        if not chosen:
            return []
        leaving = [*(self.costs.leaving[k] for k in chosen), self.costs.leaving[-1]]
        heads = [self.costs.heads[k] for k in chosen]
        scaled = [price / self.objective.full_depth for price in prices]
        found = [fold.points(chosen, leaving, heads, scaled) for fold in self._folds]
        return [
            Trial((), (a.cost + b.cost) / 2, (a.value + b.value) / 2)
            for a, b in zip(*found, strict=True)
        ]


@dataclass(frozen=True)
class _Fold:
    """All exits, the network's own answer last: what is fitted on, and what is read off.

    Attributes:
        scores, chances: of what is fitted on.
        limits: exit -> thresholds that let those pass whose chance is one of `_CHANCES` or more.
        held_scores, held_right: of what is read off.
    """

    scores: tuple[Array, ...]
    chances: tuple[Array, ...]
    limits: tuple[tuple[float, ...], ...]
    held_scores: tuple[Array, ...]
    held_right: tuple[Array, ...]

    @classmethod
    def of(cls, exits: Sequence[ExitScores], rows: Array, held: Array) -> _Fold:
        own = [exit_.rows(rows) for exit_ in exits]
        others = [exit_.rows(held) for exit_ in exits]
        chances = [isotonic(exit_.score, exit_.right) for exit_ in own]
        limits = [
            tuple(float(min(e.score[c >= level], default=np.inf)) for level in _CHANCES)
            for e, c in zip(own, chances, strict=True)
        ]
        return cls(
            tuple(exit_.score for exit_ in own),
            tuple(chances),
            tuple(limits),
            tuple(exit_.score for exit_ in others),
            tuple(exit_.right.astype(np.float64) for exit_ in others),
        )

    def points(
        self,
        chosen: Exits,
        leaving: Sequence[float],
        heads: Sequence[float],
        prices: Sequence[float],
    ) -> list[Trial]:
        """For each price, what the thresholds fitted for it do to the held-out samples."""

        def search(scores: Sequence[Array], chances: Sequence[Array]) -> Search:
            own = [scores[k] for k in chosen]
            ends = [*(chances[k] for k in chosen), chances[-1]]
            return Search(own, range(len(chosen)), ends, leaving, heads)

        fitted = search(self.scores, self.chances)
        held = search(self.held_scores, self.held_right)
        levels = zip(*(self.limits[k] for k in chosen), strict=True)
        known = [*fitted.everyone_trials(), *map(fitted.trial, levels), fitted.never]
        found = []
        for price in prices:
            start = max(known, key=lambda t: t.value - price * t.cost)
            known.append(fitted.improved(start.thresholds, price))
            found.append(held.trial(known[-1].thresholds))
        return found


@dataclass(frozen=True)
class Choice:
    """The exits chosen, and what else was tried.

    Attributes:
        chosen: the best set, exits that had to be there included.
        sizes: number of exits that were chosen from -> the best set of that size.
        exhaustive: whether every set was judged.
    """

    chosen: Exits
    sizes: Mapping[int, Exits]
    exhaustive: bool


def choose(
    judge: Judge,
    counted: Sequence[bool],
    needed: Sequence[bool],
    low: int,
    high: int,
    exhaustive: int = _ALL,
) -> Choice:
    """The best set of `low` to `high` exits, the smaller of equal ones.

    Where there are few sets, each is judged. Else sets grow by the exit that makes them best, and
    whatever one exit is worth more than another near it takes its place.

    Args:
        judge: of all sets.
        counted: whether each exit counts for the number of exits.
        needed: whether each exit has to be there.
        low: fewest exits that count.
        high: most of them.
        exhaustive: up to how many sets each is judged.
    """
    always = tuple(k for k, need in enumerate(needed) if need)
    free = [k for k, need in enumerate(needed) if not need]
    own = sum(counted[k] for k in always)
    sizes = range(low, min(high, own + len(free)) + 1)
    if sum(comb(len(free), size - own) for size in sizes) <= exhaustive:
        best = {size: max(_sets(always, free, size - own), key=judge.score) for size in sizes}
        return _chosen(judge, best, True)
    found: dict[int, Exits] = {own: always}
    for size in range(own + 1, sizes[-1] + 1):
        starts = [_joined(found[size - 1], k) for k in free if k not in found[size - 1]]
        if size >= low:
            starts.append(_spread(always, free, size - own))
        found[size] = max(starts, key=judge.score)
        if size >= low:
            found[size] = _climbed(judge, found[size], free)
    return _chosen(judge, {size: found[size] for size in sizes}, False)


def _chosen(judge: Judge, sizes: Mapping[int, Exits], exhaustive: bool) -> Choice:
    best = max(sizes, key=lambda size: (round(judge.score(sizes[size]), 9), -size))
    return Choice(sizes[best], dict(sizes), exhaustive)


def _sets(always: Exits, free: Sequence[int], size: int) -> Iterator[Exits]:
    return (tuple(sorted((*always, *some))) for some in combinations(free, size))


def _joined(chosen: Exits, more: int) -> Exits:
    return tuple(sorted((*chosen, more)))


def _spread(always: Exits, free: Sequence[int], size: int) -> Exits:
    """Every so manieth of the candidates."""
    places = [(2 * k + 1) * len(free) // (2 * size) for k in range(size)]
    return tuple(sorted((*always, *(free[place] for place in places))))


def _climbed(judge: Judge, start: Exits, free: Sequence[int]) -> Exits:
    """The set after every exchange of one exit for another that makes it better."""
    best, unchanged = start, False
    while not unchanged:
        unchanged = True
        for other in _exchanges(best, free):
            if judge.score(other) > judge.score(best) + 1e-9:
                best, unchanged = other, False
                break
    return best


def _exchanges(chosen: Exits, free: Sequence[int]) -> Iterator[Exits]:
    """Sets with another exit in the place of one, the nearest first."""
    place = {exit_: k for k, exit_ in enumerate(free)}
    reach = len(free) if len(free) <= _FEW else _REACH
    pairs = [
        (abs(place[out] - place[new]), out, new)
        for out in chosen
        if out in place
        for new in free
        if new not in chosen and abs(place[out] - place[new]) <= reach
    ]
    for _, out, new in sorted(pairs):
        yield tuple(sorted({*chosen, new} - {out}))
