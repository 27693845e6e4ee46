"""Limits of our own forecast of Predictive Exit: which activation foretells which exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

__all__ = ["forecast_limits"]

Array = np.ndarray[Any, Any]


def forecast_limits(
    peaks: Mapping[int, Array], thresholds: Sequence[float], window: int
) -> list[list[float] | None]:
    """Limits of a `TableForecast` with the most right forecasts of these samples.

    Forecasts rise as the peak falls; what comes of the samples that stay at an exit is known, and
    the limits between their forecasts are found exactly.

    Args:
        peaks: exit -> largest activation of each sample (n,), of the exits that can be left.
        thresholds: one per exit.
        window: the largest forecast; it is right for all that leave there or later.
    """
    exits = len(thresholds)
    found: list[list[float] | None] = [None] * exits
    leaves = np.full(len(next(iter(peaks.values()))), exits)
    for k in sorted(peaks, reverse=True):
        staying = np.flatnonzero(peaks[k] < thresholds[k])
        staying = staying[np.argsort(-peaks[k][staying], kind="stable")]
        jumps = np.minimum(leaves[staying] - k, window)
        cuts = _best_cuts(jumps, window)
        found[k] = [_between(peaks[k][staying], cut) for cut in cuts]
        leaves[peaks[k] >= thresholds[k]] = k
    return found


def _between(falling: Array, cut: int) -> float:
    """A limit that the first `cut` values reach, and no others.

    >>> _between(np.array([3.0, 2.0]), 1), _between(np.array([3.0, 2.0]), 2)
    (2.5, 0.0)
    """
    if cut == 0:
        return inf
    return 0.0 if cut == len(falling) else float(falling[cut - 1] + falling[cut]) / 2


def _best_cuts(jumps: Array, window: int) -> list[int]:
    """How many of the samples get a forecast up to 1, up to 2, .. below `window`: most hits.

    O(window n) by dynamic programming over forecasts.

    >>> _best_cuts(np.array([1, 3, 1, 1, 2, 3, 2, 2, 3]), 3)
    [4, 8]
    """
    # hits[k]: of the first k samples with forecasts up to the current one.
    counts = np.zeros((window, len(jumps) + 1), np.int64)
    for jump in range(1, window + 1):
        counts[jump - 1, 1:] = np.cumsum(jumps == jump)
    hits, choices = counts[0], []
    for count in counts[1:]:
        gain = hits - count
        best = np.maximum.accumulate(gain)
        # The last place at which the best so far was reached.
        choices.append(np.maximum.accumulate(np.where(gain == best, np.arange(len(gain)), 0)))
        hits = best + count
    cuts, cut = [], len(jumps)
    for choice in reversed(choices):
        cut = int(choice[cut])
        cuts.append(cut)
    return cuts[::-1]
