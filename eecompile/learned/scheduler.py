"""EENet's scheduler: scoring and assignment functions, fitted in turn (arXiv 2301.07099)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.learned.losses import (
    assignment_loss,
    budget_loss,
    exit_distribution,
    score_loss,
    score_weights,
)

__all__ = ["Assignment", "Schedule", "fit_schedule", "scores_of"]

Array = np.ndarray[Any, Any]

#: Weights of the losses of the assignment. Source: the authors' own setting.
_DIVERGENCE, _BUDGET = 1e-3, 1e-2

#: Pull of weights towards their start, and of the assignment's towards 0.
_PULL, _DECAY = 1e-2, 1e-6

#: Rounds of scoring and assignment, steps of each; hidden units per feature, and at most.
_ROUNDS, _STEPS, _HIDDEN, _MOST_HIDDEN = 3, 15, 0.5, 32

#: The assignment is fitted on so many samples at most.
_SAMPLES = 1000


@dataclass(frozen=True)
class Assignment:
    """h_k of each exit: sigmoid(v . sigmoid(U x + u0) + v0).

    Attributes:
        layers: (U, u0, v, v0) per exit, with shapes (features, hidden), (hidden,), (hidden,), (1,).
    """

    layers: tuple[tuple[Array, Array, Array, Array], ...]

    @classmethod
    def random(cls, sizes: Sequence[int], generator: np.random.Generator) -> Assignment:
        """A start, for exits with these numbers of features."""
        layers = []
        for size in sizes:
            hidden = min(max(1, int(_HIDDEN * size)), _MOST_HIDDEN)
            first = generator.normal(size=(size, hidden)) / size**0.5
            last = generator.normal(size=hidden) / hidden**0.5
            layers.append((first, np.zeros(hidden), last, np.zeros(1)))
        return cls(tuple(layers))

    def packed(self) -> Array:
        """All parameters in one row."""
        return np.concatenate([part.ravel() for layer in self.layers for part in layer])

    def unpacked(self, row: Array) -> Assignment:
        """The assignment of this one's shapes with other parameters."""
        place, layers = 0, []
        for layer in self.layers:
            parts = []
            for part in layer:
                parts.append(row[place : place + part.size].reshape(part.shape))
                place += part.size
            layers.append((parts[0], parts[1], parts[2], parts[3]))
        return Assignment(tuple(layers))

    def raw(self, x: Sequence[Array]) -> tuple[Array, list[Array]]:
        """r~ (n, K), and the hidden units of each exit."""
        hidden = [_sigmoid(own @ u + u0) for own, (u, u0, _, _) in zip(x, self.layers, strict=True)]
        raw = [_sigmoid(h @ v + v0) for h, (_, _, v, v0) in zip(hidden, self.layers, strict=True)]
        return np.stack(raw, 1), hidden

    def shares(self, x: Sequence[Array]) -> Array:
        """The exit distribution r of each sample, (n, K)."""
        return exit_distribution(self.raw(x)[0])

    def loss(
        self, x: Sequence[Array], q: Array, costs: Array, budget: float
    ) -> tuple[float, Array]:
        """alpha_ce L_r + alpha_cost L_B, and its gradient as `packed` orders parameters."""
        raw, hidden = self.raw(x)
        total = raw.sum(1, keepdims=True)
        r = raw / total
        divergence, slope = assignment_loss(r, q)
        over, towards = budget_loss(r, costs, budget)
        slope = _DIVERGENCE * slope + _BUDGET * towards
        slope = (slope - (slope * r).sum(1, keepdims=True)) / total * raw * (1 - raw)
        parts: list[Array] = []
        for k, (own, h, (_, _, v, _)) in enumerate(zip(x, hidden, self.layers, strict=True)):
            back = slope[:, k, None] * v * h * (1 - h)
            parts += [
                (own.T @ back).ravel(),
                back.sum(0),
                h.T @ slope[:, k],
                slope[:, k].sum()[None],
            ]
        return _DIVERGENCE * divergence + _BUDGET * over, np.concatenate(parts)


@dataclass(frozen=True)
class Schedule:
    """A fitted scheduler.

    Attributes:
        weights: per exit, the final one last: (features + earlier exits,).
        quotas: rho, the mean of the exit distribution over samples, (K,).
        loss: what is minimised, in the end.
    """

    weights: tuple[Array, ...]
    quotas: Array
    loss: float


def scores_of(weights: Sequence[Array], seen: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Raw scores (n, K), and what each exit's is made of: features and earlier scores.

    Args:
        weights: per exit.
        seen: features per exit, (n, features).
    """
    found: list[Array] = []
    inputs = []
    for own, features in zip(weights, seen, strict=True):
        before = [np.clip(q, 0.0, 1.0)[:, None] for q in found]
        inputs.append(np.concatenate([features, *before], 1))
        found.append(inputs[-1] @ own)
    return np.stack(found, 1), inputs


def fit_schedule(
    seen: Sequence[Array],
    right: Array,
    costs: Array,
    budget: float,
    starts: Sequence[Array],
    seed: int,
) -> Schedule:
    """Scores and exit distribution for a target mean cost.

    Scoring and assignment are fitted in turn, each to its optimum with the other held, where the
    authors take ten epochs of Adam of each. All samples are used for one or the other alike: what
    generalises is for the caller to find out.

    Args:
        seen: features per exit, the final one last, (n, features).
        right: bool (n, K).
        costs: of leaving at each exit, (K,).
        budget: target of the mean cost.
        starts: weights to start from, and to be pulled to, (features + earlier exits,) per exit.
        seed: of the assignment's start.
    """
    generator = np.random.default_rng(seed)
    q, x = scores_of(starts, seen)
    weights = list(starts)
    assignment = Assignment.random([own.shape[1] for own in x], generator)
    some = generator.permutation(len(right))[:_SAMPLES]
    total = 0.0
    for _ in range(_ROUNDS):
        assignment, assigned = _assigned(assignment, x, q, costs, budget, some)
        counted = score_weights(assignment.shares(x))
        scored = 0.0
        for k, features in enumerate(seen):
            before = np.clip(q[:, :k], 0.0, 1.0)
            own = np.concatenate([features, before], 1)
            weights[k], loss = _scored(own, right[:, k], counted[:, k], weights[k], starts[k])
            q[:, k] = own @ weights[k]
            scored += loss / len(seen)
        q, x = scores_of(weights, seen)
        total = scored + assigned
    return Schedule(tuple(weights), assignment.shares(x).mean(0), total)


def _scored(
    x: Array, right: Array, counted: Array, now: Array, start: Array
) -> tuple[Array, float]:
    """One exit's scoring step."""

    def loss(w: Array) -> tuple[float, Array]:
        value, slope = score_loss(x @ w, right, counted)
        away = w - start
        return value + _PULL / 2 * float(away @ away), x.T @ slope + _PULL * away

    return _minimum(loss, now)


def _assigned(
    assignment: Assignment, x: Sequence[Array], q: Array, costs: Array, budget: float, some: Array
) -> tuple[Assignment, float]:
    """The assignment step, on some of the samples."""
    own, scores = [features[some] for features in x], q[some]

    def loss(row: Array) -> tuple[float, Array]:
        value, slope = assignment.unpacked(row).loss(own, scores, costs, budget)
        return value + _DECAY / 2 * float(row @ row), slope + _DECAY * row

    row, value = _minimum(loss, assignment.packed())
    return assignment.unpacked(row), value


def _minimum(loss: Callable[[Array], tuple[float, Array]], start: Array) -> tuple[Array, float]:
    from scipy.optimize import minimize

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    return found.x, float(found.fun)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))
