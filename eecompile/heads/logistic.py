"""Multinomial logistic regression that fits tens of thousands of samples in seconds.

The data stay where they are (a memory-mapped file may be larger than memory): standardisation is
folded into the weights, and rows are visited in blocks that fit a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Linear", "blocks", "fit_logistic", "flat", "mean_nll", "stratified_split"]

Array = np.ndarray[Any, Any]

#: Rows visited at a time: 512 rows of 1,024 float32 features are 2 MiB.
_BLOCK_BYTES = 2 << 20

#: Up to this many features, curvature along every direction is used; beyond, along each feature.
_MOST_CURVATURE_FEATURES = 2048

#: Rows the curvature is estimated from, at most.
_CURVATURE_ROWS = 8192

#: Penalties tried, strongest first, on features of unit variance.
PENALTIES = (1.0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)


@dataclass(frozen=True)
class Linear:
    """Logits are ``x @ weight + bias``: float32 (features, classes) and (classes,)."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Logits float32 (n, classes) of the rows of `x`, which may be memory-mapped."""
        out = np.empty((len(x), len(self.bias)), np.float32)
        for rows in blocks(x):
            out[rows] = flat(x[rows]) @ self.weight + self.bias
        return out


def mean_nll(logits: Array, labels: Array) -> float:
    """Mean negative log likelihood of the labels, in nats.

    >>> round(mean_nll(np.zeros((2, 4), np.float32), np.array([0, 3])), 4)
    1.3863
    """
    top = logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    picked = logits[np.arange(len(labels)), labels]
    return float((normaliser - picked).mean(dtype=np.float64))


def stratified_split(labels: Array, held_out: float, seed: int) -> tuple[Array, Array]:
    """Sorted indices (kept, held out): `held_out` of every class, chosen by `seed`."""
    generator = np.random.default_rng(seed)
    out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        out.append(members[: int(len(members) * held_out)])
    chosen = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True), chosen


def standardisation(x: Array, rows: Array | None = None) -> tuple[Array, Array]:
    """Mean and standard deviation of each feature, float32; 1 where a feature is constant."""
    total = square = 0.0
    for block in blocks(x, rows):
        values = flat(x[block]).astype(np.float64)
        total = total + values.sum(axis=0)
        square = square + np.einsum("ij,ij->j", values, values)
    count = len(x) if rows is None else len(rows)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0.0))
    deviation[deviation < 1e-6 * (1.0 + np.abs(mean))] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def fit_logistic(
    x: Array,
    labels: Array,
    classes: int,
    *,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[str], None] | None = None,
) -> Linear:
    """The regression whose L2 penalty is the best of `penalties` on a fifth of the samples.

    The loss is the mean negative log likelihood plus ``penalty / 2`` times the squared norm of
    the weights of the standardised features; biases are not penalised. The same arguments give the
    same bits.

    Args:
        x: (n, ...) float32, flattened per sample.
        labels: int64 (n,), below `classes`.
        classes: number of classes.
        seed: chooses the held-out fifth.
        penalties: strongest first. A single one is used as it is.
        progress: told about each penalty tried.
    """
    mean, deviation = standardisation(x)
    problem = _Problem(x, labels, classes, mean, deviation)
    start = np.zeros((len(mean) + 1, classes))
    kept, held_out = stratified_split(labels, 0.2, seed)
    if not len(held_out):
        penalties = penalties[len(penalties) // 2 :][:1]  # Too few samples to choose by.
    if len(penalties) > 1:
        inner = _Problem(x, labels, classes, mean, deviation, kept)
        inner.basis = problem.basis

        def attempt(penalty: float, start: Array) -> tuple[float, float, Array]:
            solution = inner.solve(penalty, start, tolerance=1e-4)
            loss = mean_nll(problem.folded(solution)(x[held_out]), labels[held_out])
            if progress is not None:
                progress(f"penalty {penalty:g}: held-out loss {loss:.4f}")
            return loss, penalty, solution

        chosen, start = _best_penalty(penalties, attempt, start)
        penalties = (chosen,)
    return problem.folded(problem.solve(penalties[0], start))


def _best_penalty(
    penalties: Sequence[float],
    attempt: Callable[[float, Array], tuple[float, float, Array]],
    start: Array,
) -> tuple[float, Array]:
    """The penalty of the least held-out loss, and the solution found with it.

    From the middle on to weaker ones while the loss falls, and if it never does, to stronger ones:
    the loss falls, then rises, along the path. Each solution starts the next.
    """
    middle = len(penalties) // 2
    best = first = attempt(penalties[middle], start)
    for side in (penalties[middle + 1 :], penalties[:middle][::-1]):
        for penalty in side:
            found = attempt(penalty, best[2])
            if not found[0] < best[0]:
                break
            best = found
        if best is not first:
            break
    return best[1], best[2]


class _Problem:
    """Loss and gradient over some rows, in the coordinates of the curvature's eigenvectors."""

    def __init__(
        self,
        x: Array,
        labels: Array,
        classes: int,
        mean: Array,
        deviation: Array,
        rows: Array | None = None,
    ) -> None:
        self.x, self.labels, self.classes, self.rows = x, labels, classes, rows
        self.mean, self.deviation = mean, deviation
        self.count = len(x) if rows is None else len(rows)
        self.basis: tuple[Array, Array] | None = None
        if rows is None and len(mean) <= _MOST_CURVATURE_FEATURES:
            self.basis = self._curvature()

    def _curvature(self) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of the standardised features' covariance."""
        step = max(1, -(-len(self.x) // _CURVATURE_ROWS))
        sample = (flat(self.x[::step]) - self.mean) / self.deviation
        values, vectors = np.linalg.eigh((sample.T @ sample) / np.float32(len(sample)))
        return np.maximum(values, 0.0).astype(np.float64), vectors

    def folded(self, solution: Array) -> Linear:
        """The standardisation folded in: weights and bias for features as they are."""
        weight = solution[:-1] / self.deviation[:, None].astype(np.float64)
        bias = solution[-1] - self.mean.astype(np.float64) @ weight
        return Linear(weight.astype(np.float32), bias.astype(np.float32))

    def solve(self, penalty: float, start: Array, tolerance: float = 1e-5) -> Array:
        """The minimum for one penalty: (features + 1, classes), the last row being biases."""
        from scipy.optimize import minimize

        # One step of Newton's method for p = 1 / classes is a step along the gradient in the
        # coordinates `scale`d here, whatever the features' correlations.
        typical = (1 - 1 / self.classes) / self.classes
        scale = np.ones(len(start))
        if self.basis is not None:
            scale[:-1] = 1 / np.sqrt(typical * self.basis[0] + penalty)
            scale[-1] = 1 / np.sqrt(typical)

        def outward(point: Array) -> Array:
            scaled = point.reshape(start.shape) * scale[:, None]
            if self.basis is not None:
                scaled[:-1] = self.basis[1] @ scaled[:-1].astype(np.float32)
            return np.asarray(scaled)

        def loss(point: Array) -> tuple[float, Array]:
            solution = outward(point)
            value, gradient = self._loss(solution)
            value += penalty / 2 * float((solution[:-1] ** 2).sum())
            gradient[:-1] += penalty * solution[:-1]
            if self.basis is not None:
                gradient[:-1] = self.basis[1].T @ gradient[:-1].astype(np.float32)
            return value, (gradient * scale[:, None]).ravel()

        first = start.copy()
        if self.basis is not None:
            first[:-1] = self.basis[1].T @ start[:-1].astype(np.float32)
        found = minimize(
            loss,
            (first / scale[:, None]).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "maxcor": 10, "ftol": tolerance, "gtol": 1e-5},
        )
        return outward(found.x)

    def _loss(self, solution: Array) -> tuple[float, Array]:
        """Mean negative log likelihood of standardised features and its gradient."""
        linear = self.folded(solution)
        value = 0.0
        raw = np.zeros((len(self.mean), self.classes))
        residuals = np.zeros(self.classes)
        for rows in blocks(self.x, self.rows):
            block, labels = flat(self.x[rows]), self.labels[rows]
            logits = block @ linear.weight + linear.bias
            logits -= logits.max(axis=1, keepdims=True)
            picked = np.arange(len(labels))
            value -= float(logits[picked, labels].sum(dtype=np.float64))
            np.exp(logits, out=logits)
            normaliser = logits.sum(axis=1, keepdims=True)
            value += float(np.log(normaliser).sum(dtype=np.float64))
            logits /= normaliser
            logits[picked, labels] -= 1
            raw += block.T @ logits
            residuals += logits.sum(axis=0, dtype=np.float64)
        gradient = np.empty_like(solution)
        gradient[:-1] = (raw - np.outer(self.mean, residuals)) / self.deviation[:, None]
        gradient[-1] = residuals
        return value / self.count, gradient / self.count


def flat(block: Array) -> Array:
    """Samples as float32 rows."""
    return np.asarray(block, np.float32).reshape(len(block), -1)


def blocks(x: Array, rows: Array | None = None) -> list[Any]:
    """Slices (or index arrays out of `rows`) that cover the rows of `x` in cache-sized blocks."""
    width = 4 * max(1, x[:1].size)
    step = max(64, _BLOCK_BYTES // width)
    if rows is not None:
        return [rows[i : i + step] for i in range(0, len(rows), step)]
    return [slice(i, i + step) for i in range(0, len(x), step)]
