"""Forecasts: in how many exits from here a sample will be confident, from one exit's output.

The published engine has nothing learned: convolutions over the classes stand for the layers to
come. Ours is a table of what happened on calibration data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

__all__ = ["ConvolutionForecast", "Forecast", "TableForecast", "convolved_peaks"]

Array = np.ndarray[Any, Any]

#: Up to here one product with all powers of the convolution is faster than one step at a time.
_FEW_CLASSES = 64


class Forecast(ABC):
    """In how many exits a sample will leave; `window` stands for "not before"."""

    window: int
    #: Whether it looks at each class's activation; else at the largest alone.
    per_class = False

    @abstractmethod
    def features(self, seen: Array) -> Array:
        """What the forecast is made from, whatever the thresholds and the exit: float64 (n, ...).

        Args:
            seen: activations float64 (n, classes) where `per_class` is set, else peaks (n,).
        """

    @abstractmethod
    def jumps(self, index: int, features: Array) -> Array:
        """For each sample at exit `index`, 1 .. `window`: int64 (n,)."""


class ConvolutionForecast(Forecast):
    """The first i whose i times convolved activations exceed the threshold of the i-th exit ahead.

        t(i)[j] = t(i-1)[j-1] + t(i-1)[j] + t(i-1)[j+1]       zero beyond the first and last class

    Past the last exit its threshold is meant. Nothing is learned. The result depends on the order
    of the classes unless they are sorted, largest activation first, which is ours.

    Source: Predictive Exit (arXiv 2206.04685).

    Args:
        thresholds: one per exit; infinity where nothing can leave.
        window: convolutions tried; what is not forecast by then is forecast for the last of them.
        ordered: whether classes keep their order.
    """

    per_class = True

    def __init__(self, thresholds: Sequence[float], window: int, ordered: bool = True) -> None:
        self.window, self.ordered = window, ordered
        live = [index for index, threshold in enumerate(thresholds) if threshold < np.inf]
        last = live[-1] if live else len(thresholds) - 1
        self._ahead = []
        for index in range(len(thresholds)):
            ahead = [thresholds[min(index + i, last)] for i in range(1, window + 1)]
            # Whatever has not passed before is forecast for the window's end.
            self._ahead.append(np.array([*ahead[:-1], -np.inf]))

    def features(self, seen: Array) -> Array:
        """The largest activation after each convolution: (n, window)."""
        return convolved_peaks(seen if self.ordered else -np.sort(-seen, axis=1), self.window)

    def jumps(self, index: int, features: Array) -> Array:
        """The first that passes."""
        passing = features > self._ahead[index]
        passing[:, -1] = True  # Also where activations are no numbers.
        first: Array = passing.argmax(1)
        first += 1
        return first


def convolved_peaks(activations: Array, steps: int) -> Array:
    """Largest absolute activation after 1 .. `steps` convolutions, float64 (n, steps).

    >>> t = np.array([[3, -0.5, 0.1, 0.4, 0, 0.3, -0.2, 0.2, 0.1, 0]])
    >>> convolved_peaks(t, 3).round(1).tolist()
    [[2.6, 5.1, 13.3]]
    """
    count, classes = activations.shape
    if classes <= _FEW_CLASSES:
        found = np.vecdot(_powers(classes, steps), activations[:, None])
        peaks: Array = np.maximum.reduce(np.abs(found).reshape(count, steps, classes), 2)
        return peaks
    peaks = np.empty((count, steps))
    for step in range(steps):
        wider = activations.copy()
        wider[:, 1:] += activations[:, :-1]
        wider[:, :-1] += activations[:, 1:]
        activations = wider
        np.maximum.reduce(np.abs(wider), 1, out=peaks[:, step])
    return peaks


@cache
def _powers(classes: int, steps: int) -> Array:
    """The convolution's matrix to the powers 1 .. steps, one below the other."""
    once = np.eye(classes) + np.eye(classes, k=1) + np.eye(classes, k=-1)
    powers = [once]
    for _ in range(steps - 1):
        powers.append(powers[-1] @ once)
    return np.concatenate(powers)


class TableForecast(Forecast):
    """Limits of the peak per exit: above the first the next exit, below the last the window's end.

    Ours: what comes of a peak at an exit is learned from calibration data.

    Args:
        limits: per exit, window - 1 of them, falling; None where nothing is forecast.
        window: the largest forecast.

    Raises:
        ValueError: limits are too few, too many or rise.
    """

    def __init__(self, limits: Sequence[Sequence[float] | None], window: int) -> None:
        self.limits, self.window = [None if own is None else tuple(own) for own in limits], window
        self._rising = []
        for own in self.limits:
            rising = -np.array([-np.inf] * (window - 1) if own is None else own, np.float64)
            if rising.shape != (window - 1,) or (rising[1:] < rising[:-1]).any():
                raise ValueError(f"a forecast needs {window - 1} limits that do not rise")
            self._rising.append(rising)

    def features(self, seen: Array) -> Array:
        """The peaks: (n,)."""
        return seen

    def jumps(self, index: int, features: Array) -> Array:
        """Counts the limits that are not reached."""
        below: Array = self._rising[index].searchsorted(np.negative(features))
        return below + 1
