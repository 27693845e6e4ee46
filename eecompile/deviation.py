"""How far values are from those that were expected, by the measure every check of ours uses."""

from __future__ import annotations

import numpy as np

__all__ = ["TOLERANCE", "Deviation"]

#: How far values may be from those of the build, in units of the largest (or 1 if that is less):
#: other machines add in another order.
TOLERANCE = 1e-3


class Deviation:
    """The largest deviation seen, and whether every one was within the tolerance.

    >>> seen = Deviation()
    >>> seen.add(np.array([1.0, 10.0]), np.array([1.0, 10.005]))
    >>> round(seen.largest, 3), seen.within
    (0.005, True)
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.largest, self.within = 0.0, True

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare two arrays of one size."""
        one = np.asarray(found, np.float64).reshape(-1)
        other = np.asarray(expected, np.float64).reshape(-1)
        # Equal infinities do not differ; a NaN differs from everything.
        apart = np.abs(np.subtract(one, other, out=np.zeros_like(one), where=one != other))
        largest = float(apart.max(initial=0.0))
        finite = np.abs(other[np.isfinite(other)]).max(initial=1.0)
        self.within &= bool(largest <= TOLERANCE * finite)
        if not largest <= self.largest:
            self.largest = largest
