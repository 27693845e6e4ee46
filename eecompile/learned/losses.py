"""The losses of EENet's scheduler, each with its gradient.

Shapes: n samples, K exits, the final one among them. Written q are the scores, r the exit
distribution (rows sum to 1), a whether an exit's answer is right.

Source: EENet (arXiv 2301.07099). Its code takes r as the softmax of sigmoids, which cannot come
near 0 or 1, so that most budgets are out of its reach; here r is r~ / sum(r~).
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["assignment_loss", "budget_loss", "exit_distribution", "score_loss", "score_weights"]

Array = np.ndarray[Any, Any]

#: Scores are kept this far from 0 and 1 in logarithms.
_EDGE = 1e-6

#: The budget's loss is rounded off where it would have a corner, at its minimum.
_CORNER = 1e-3


def exit_distribution(raw: Array) -> Array:
    """Share of each sample that is to leave at each exit, from positive numbers (n, K).

    >>> exit_distribution(np.array([[0.2, 0.2, 0.4]])).tolist()
    [[0.25, 0.25, 0.5]]
    """
    return np.asarray(raw / raw.sum(1, keepdims=True))


def score_weights(r: Array) -> Array:
    """What each sample counts for at each exit: its share, normalised over samples; (n, K)."""
    return np.asarray(r / r.sum(0))


def score_loss(q: Array, right: Array, weights: Array) -> tuple[float, Array]:
    """How badly one exit's scores foretell rightness: weighted cross entropy, and its gradient.

    Scores are kept to the range from 0 to 1; those beyond have no gradient. L_q is the mean of this
    over exits.

    Args:
        q: raw scores (n,).
        right: 0 or 1 (n,).
        weights: (n,), a column of `score_weights`.

    >>> loss, slope = score_loss(np.array([0.5, 2.0]), np.array([1, 1]), np.array([1.0, 1.0]))
    >>> round(loss, 4), slope.tolist()
    (0.6931, [-2.0, 0.0])
    """
    kept = np.clip(q, _EDGE, 1 - _EDGE)
    loss = -(weights * np.where(right, np.log(kept), np.log(1 - kept))).sum()
    slope = weights * (kept - right) / (kept * (1 - kept))
    return float(loss), np.where(kept == q, slope, 0.0)


def assignment_loss(r: Array, q: Array, sharpness: float = 1.0) -> tuple[float, Array]:
    """L_r: mean of the divergence of r from the scores' own distribution; and d L_r / d r.

    The scores' distribution is q ** sharpness, normalised over exits.

    >>> loss, _ = assignment_loss(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))
    >>> loss
    0.0
    """
    wanted = exit_distribution(np.clip(q, _EDGE, 1.0) ** sharpness)
    kept = np.maximum(r, _EDGE)
    loss = (wanted * (np.log(wanted) - np.log(kept))).mean()
    return float(loss), -wanted / kept / r.size


def budget_loss(r: Array, costs: Array, budget: float) -> tuple[float, Array]:
    """L_B: how far the mean cost is from the budget, as a part of it; and d L_B / d r.

    >>> round(budget_loss(np.array([[0.5, 0.5]]), np.array([1.0, 2.0]), 1.0)[0], 3)
    0.5
    """
    off = (float((r @ costs).mean()) - budget) / budget
    loss = float(np.hypot(off, _CORNER))
    slope = off / loss * costs / budget / len(r)
    return loss, np.broadcast_to(slope, r.shape)
