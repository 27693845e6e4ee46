"""Border tensors in whole steps: how large a step, and where its range lies."""

from __future__ import annotations

import numpy as np

__all__ = ["int8_steps"]


def int8_steps(values: np.ndarray) -> tuple[float, int]:
    """Scale and zero of the 256 steps that reach from the least to the greatest of `values`.

    A value is ``scale * (sent - zero)`` for a whole number `sent` from -128 to 127. 0 is a step,
    so that what a network pads or clips stays exact.

    >>> int8_steps(np.array([0.0, 1.0, 255.0]))
    (1.0, -128)
    >>> int8_steps(np.zeros(3))
    (1.0, 0)
    """
    low, high = float(np.min(values, initial=0.0)), float(np.max(values, initial=0.0))
    scale = float(np.float32((high - low) / 255))
    if not scale >= np.finfo(np.float32).tiny:  # Below, steps would not be even.
        return 1.0, 0
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))
