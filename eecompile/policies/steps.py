"""One threshold per exit, and the exits that can be skipped because theirs is out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isinf
from typing import Any

import numpy as np

from eecompile.policies.base import EXIT, ExitPolicy

__all__ = ["Steps", "StepsPolicy", "from_json", "to_json"]


class Steps:
    """Compares scores with one threshold per exit.

    A threshold of infinity means that nothing ever leaves there: the exit's head does not run.
    """

    __slots__ = ("_limits", "_next", "_outcomes", "first", "thresholds")

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = tuple(map(float, thresholds))
        # Arrays, because comparing with a Python number first makes one of it.
        self._limits = [np.array([t], np.float32) for t in self.thresholds]
        live = [k for k, t in enumerate(self.thresholds) if t < inf] + [len(self.thresholds)]
        self.first = live[0]
        self._next = [next(k for k in live if k > i) for i in range(len(self.thresholds))]
        #: Outcomes of the comparison at each exit, indexed by it: go on, leave.
        self._outcomes = [np.array([after, EXIT]) for after in self._next]

    def decide(self, index: int, score: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`EXIT` where the score reaches the exit's threshold, else the next exit to evaluate."""
        return self._outcomes[index].take(score >= self._limits[index])

    def going_on(self, index: int, count: int) -> np.ndarray[Any, Any]:
        """The next exit to evaluate for all of `count` samples."""
        return np.full(count, self._next[index])


class StepsPolicy(ExitPolicy):
    """A policy with one threshold per exit; `decide` compares a score of its own with them."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._steps = Steps(thresholds)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One per exit."""
        return self._steps.thresholds

    def first(self) -> int:
        """The first exit that can be taken."""
        return self._steps.first


def to_json(thresholds: Sequence[float]) -> list[float | None]:
    """Thresholds as JSON, which has no infinity: None.

    >>> to_json([0.5, inf])
    [0.5, None]
    """
    return [None if isinf(t) else t for t in thresholds]


def from_json(thresholds: Sequence[float | None]) -> tuple[float, ...]:
    """The inverse of `to_json`."""
    return tuple(inf if t is None else float(t) for t in thresholds)
