"""Sets of exits that are likely to be good, found exactly for a simpler question.

In the simpler question a sample that was not sure enough at one exit was not at those before it
either, and thresholds are quantiles of the scores. What happens behind an exit then depends on
that exit and its threshold only, so that the best set of every size, its thresholds included, is
the best path through the exits: dynamic programming finds it for one price of cost at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

__all__ = ["Paths", "best_paths"]

Array = np.ndarray[Any, Any]

#: Thresholds tried at each exit.
_LEVELS = 12


@dataclass(frozen=True)
class Paths:
    """What leaving behind one another does, for all pairs of exits and thresholds.

    A state is an exit with one of its thresholds; number 0 is the network's input.

    Attributes:
        exit_of: int64 (states,), the exit of each; -1 for the input.
        value: float64 (states, states), mean chance of being right of what leaves at the second
            after the first, over all samples.
        share: likewise, how many that are.
        arriving: (states,), share of the samples that go on behind a state.
        rest: (states,), mean chance of these to be right at the end, over all samples.
    """

    exit_of: Array
    value: Array
    share: Array
    arriving: Array
    rest: Array

    @classmethod
    def of(cls, scores: Sequence[Array], chances: Sequence[Array]) -> Paths:
        """From the scores (n,) at each exit, and the chances to be right there and at the end."""
        count = len(chances[-1])
        ranks = np.linspace(0, count - 1, _LEVELS + 1).astype(int)[1:]
        passing = [np.zeros((1, count), np.float32)]
        leaving = [np.zeros((1, count), np.float32)]
        for score, chance in zip(scores, chances, strict=False):
            limits = -np.sort(-score)[ranks]
            passed = (score >= limits[:, None]).astype(np.float32)
            passing.append(passed)
            leaving.append(passed * chance.astype(np.float32))
        passes = np.concatenate(passing)
        on = (1 - passes) / np.float32(count)
        owner = np.repeat(np.arange(len(scores)), _LEVELS)
        return cls(
            np.concatenate([[-1], owner]),
            np.asarray(on @ np.concatenate(leaving).T, np.float64),
            np.asarray(on @ passes.T, np.float64),
            on.sum(axis=1, dtype=np.float64),
            np.asarray(on @ chances[-1].astype(np.float32), np.float64),
        )


def best_paths(
    paths: Paths,
    leaving: Sequence[float],
    heads: Sequence[float],
    counted: Sequence[bool],
    needed: Sequence[bool],
    low: int,
    high: int,
    prices: Sequence[float],
) -> set[tuple[int, ...]]:
    """The best exits of every size and for every price, each set once.

    Args:
        paths: of all exits.
        leaving: cost of leaving at each exit without any head, the final one last.
        heads: cost of evaluating each exit.
        counted: whether each exit counts for the size.
        needed: whether each exit has to be there.
        low: the smallest size.
        high: the largest.
        prices: of one unit of cost, in chances of being right.
    """
    allowed = _allowed(paths.exit_of, needed)
    last = max((k for k, need in enumerate(needed) if need), default=-1)
    ends = np.where(paths.exit_of >= last, 0.0, -inf)
    found: set[tuple[int, ...]] = set()
    for price in prices:
        paid = np.asarray([0.0, *leaving[:-1]])[paths.exit_of + 1]
        toll = np.asarray([0.0, *heads])[paths.exit_of + 1]
        gain = paths.value - price * (paths.share * paid + np.outer(paths.arriving, toll)) + allowed
        end = paths.rest - price * leaving[-1] * paths.arriving + ends
        found |= _solve(paths.exit_of, gain, end, counted, low, high)
    return found


def _allowed(exit_of: Array, needed: Sequence[bool]) -> Array:
    """0 where the second state may follow the first, -inf where not: (states, states)."""
    before = np.cumsum([0, *map(int, needed)])  # of the exits before each
    skipped = before[np.maximum(exit_of, 0)][None, :] - before[exit_of + 1][:, None]
    follows = (exit_of[:, None] < exit_of[None, :]) & (skipped == 0)
    return np.where(follows, 0.0, -inf)


def _solve(
    exit_of: Array, gain: Array, end: Array, counted: Sequence[bool], low: int, high: int
) -> set[tuple[int, ...]]:
    """The best path of each size for one price."""
    states = len(exit_of)
    best = np.full((high + 1, states), -inf)
    best[0, 0] = 0.0
    back = np.zeros((high + 1, states), np.int64)
    for exit_, counts in enumerate(counted):
        own = slice(1 + exit_ * _LEVELS, 1 + (exit_ + 1) * _LEVELS)
        ways = best[:, : own.start, None] + gain[None, : own.start, own]
        chosen = ways.argmax(axis=1)
        values = np.take_along_axis(ways, chosen[:, None], axis=1)[:, 0]
        step = int(counts)
        best[step:, own] = values[: high + 1 - step]
        back[step:, own] = chosen[: high + 1 - step]
    found = set()
    for size in range(low, high + 1):
        total = best[size] + end
        state = int(total.argmax())
        if total[state] > -inf:
            found.add(_path(state, size, exit_of, back, counted))
    return found


def _path(
    state: int, size: int, exit_of: Array, back: Array, counted: Sequence[bool]
) -> tuple[int, ...]:
    path: list[int] = []
    while state:
        exit_ = int(exit_of[state])
        path.append(exit_)
        state, size = int(back[size, state]), size - int(counted[exit_])
    return tuple(reversed(path))
