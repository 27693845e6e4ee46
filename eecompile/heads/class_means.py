"""E2CM's comparator: how near is a feature to the mean of each class? Nothing is trained.

Source: Gormez, Dasari and Koyuncu, arXiv 2103.01148.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eecompile.heads.base import Array, Head, Progress
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.logistic import blocks, flat
from eecompile.heads.pooling import Pool, flatten, pool, pooled_row
from eecompile.heads.temperature import likeliest_scale
from eecompile.ir import Graph, TensorType

__all__ = ["ClassMeansHead"]


@dataclass(frozen=True)
class ClassMeansHead(Head):
    """Minus the normalised distances to the class means, times a temperature.

    With mean ``c_k`` of class k over the fit data, ``d_k(x) = ||x - c_k||`` and ``m_k`` the mean of
    ``d_k`` over *all* fit data, the output is ``-temperature * d_k / m_k``. Softmax of it at
    temperature 1 is the paper's confidence, which is nearly flat; `calibrate` fits the temperature
    by likelihood, so that a confidence of 0.9 is right nine times out of ten.

    The paper's released code takes the answer from raw and the confidence from normalised
    distances; both are from normalised ones here.

    Options: `pool` as for linear heads, ``raw`` (the paper's choice) for the whole tensor.
    """

    kind: ClassVar[str] = "class_means"
    output: ClassVar[str] = "class_means"
    pool: Pool = "raw"
    metric: str = "euclidean"
    temperature: str = "fitted"

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {"pool": self.pool, "metric": self.metric, "temperature": self.temperature}

    def feature_graph(self, feature: TensorType) -> Graph:
        """The (pooled) features as a row: float32 (1, F)."""
        return pooled_row(feature, self.pool)

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int = 0,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """Two passes over the features: means (classes, F), then distance scales (classes,)."""
        sums = np.zeros((classes, recorded[:1].size))
        counts = np.bincount(labels, minlength=classes)
        for rows in blocks(recorded):
            onehot = np.zeros((classes, len(labels[rows])), np.float32)
            onehot[labels[rows], np.arange(onehot.shape[1])] = 1
            sums += onehot @ flat(recorded[rows])
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        total = np.zeros(classes)
        for rows in blocks(recorded):
            total += _distances(flat(recorded[rows]), means).sum(axis=0, dtype=np.float64)
        scale = total / len(recorded)
        # A feature that is the same for every sample has distance 0 to each mean.
        scale[scale == 0] = 1.0
        return {
            "means": means,
            "scale": scale.astype(np.float32),
            "temperature": np.ones(1, np.float32),
        }

    def calibrate(
        self, parameters: Mapping[str, Array], recorded: Array, labels: Array
    ) -> dict[str, Array]:
        """The temperature that makes the labels likeliest, from 1 to 1,000, or the paper's: 1."""
        unit = {**parameters, "temperature": np.ones(1, np.float32)}
        if self.temperature == "none":
            return unit
        factor = likeliest_scale(self.logits(recorded, unit), labels, 1.0, 1e3)
        return {**unit, "temperature": np.full(1, factor)}

    def logits(self, recorded: Array, parameters: Mapping[str, Array]) -> Array:
        """Minus the scaled distances, in blocks."""
        factor = -parameters["temperature"] / parameters["scale"]
        out = np.empty((len(recorded), len(factor)), np.float32)
        for rows in blocks(recorded):
            out[rows] = _distances(flat(recorded[rows]), parameters["means"]) * factor
        return out

    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """``||x||^2 - 2 x c + ||c||^2`` around the means' centre, as one matrix product.

        Around their centre, the norms are about as large as the distances, so that their difference
        keeps its digits.
        """
        builder = GraphBuilder("class_means", "feature", feature)
        row = flatten(builder, pool(builder, "feature", self.pool))
        centre, centred = _centred(parameters["means"])
        x = builder.op("Sub", row, builder.constant("centre", centre[None]))
        products = builder.op("MatMul", x, builder.constant("means", -2 * centred.T))
        own = builder.op("ReduceSum", builder.op("Mul", x, x), axes=(1,), keepdims=1)
        squares = builder.constant("squares", (centred**2).sum(axis=1, dtype=np.float32)[None])
        squared = builder.op("Add", builder.op("Add", products, squares), own)
        clipped = builder.op("Clip", squared, min=0.0, max=float("inf"))
        factor = (-parameters["temperature"] / parameters["scale"])[None].astype(np.float32)
        distances = builder.op("Sqrt", clipped)
        scaled = builder.op(
            "Mul", distances, builder.constant("factor", factor), output="class_means"
        )
        return builder.build(scaled)


def _centred(means: Array) -> tuple[Array, Array]:
    """The mean of the means, float32 (F,), and the means around it."""
    centre = means.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre, means - centre


def _distances(x: Array, means: Array) -> Array:
    """Euclidean distances float32 (n, classes)."""
    centre, centred = _centred(means)
    x = x - centre
    squared = x @ (-2 * centred.T) + (centred**2).sum(axis=1, dtype=np.float32)
    squared += np.einsum("ij,ij->i", x, x)[:, None]
    distances: Array = np.sqrt(np.maximum(squared, 0.0))
    return distances
