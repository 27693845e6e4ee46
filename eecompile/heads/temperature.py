"""The scale of a head's logits at which the confidences that follow from them are honest.

Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599).
"""

from __future__ import annotations

import numpy as np

from eecompile.heads.logistic import mean_nll

__all__ = ["likeliest_scale"]


def likeliest_scale(logits: np.ndarray, labels: np.ndarray, low: float, high: float) -> np.float32:
    """What to multiply logits by so that the labels are likeliest, to a thousandth of it.

    Args:
        logits: float32 (n, classes).
        labels: int64 (n,).
        low: the least factor considered, above 0.
        high: the largest.

    >>> logits = np.float32([[9, 0], [9, 0], [9, 0], [0, 9]])
    >>> scale = likeliest_scale(logits, np.array([0, 0, 1, 1]), 0.01, 100)
    >>> bool(abs(9 * scale - np.log(3)) < 0.01)  # three of four are right
    True
    """
    least, most = np.log(low), np.log(high)
    while most - least > 1e-3:  # The loss is convex in the factor, so that it has one minimum.
        third = (most - least) / 3
        losses = [
            mean_nll(logits * np.float32(np.exp(at)), labels)
            for at in (least + third, most - third)
        ]
        least, most = (least, most - third) if losses[0] <= losses[1] else (least + third, most)
    return np.float32(np.exp((least + most) / 2))
