"""The logistic bag-of-features head of Predictive Exit: one uniform, small topology everywhere.

Source: Li et al., arXiv 2206.04685 (design by Passalis et al.).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eecompile.heads.base import Array, Head, HeadMismatch, Progress
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.pooling import flatten, whole_map
from eecompile.ir import Graph, TensorType

__all__ = ["BagOfFeaturesHead"]


@dataclass(frozen=True)
class BagOfFeaturesHead(Head):
    """How often each of `codewords` learned patterns occurs in each window, then a linear layer.

    With ``z`` the 1 x 1 convolution of the map to one channel per codeword:

        u = (tanh(a z + c) + 1) / 2           a, c learned
        v = n1 u / (sum of u over codewords + 5e-16)        n1 learned
        h = n2 average of v over windows of `window` pixels         n2 learned
        logits = W2 h', with h' = W1 h where there are four windows, else h

    There is nothing but scaling between a, c and the convolution, n1, n2, W1 and W2, so the graph
    holds them folded: one convolution and one matrix product. The paper shares these weights among
    exits; here each exit has its own.

    Options: `codewords`; `window`, None for half the map's side, which gives four windows.
    """

    kind: ClassVar[str] = "bag_of_features"
    codewords: int = 64
    window: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {"codewords": self.codewords, "window": self.window}

    def window_of(self, shape: tuple[int, ...]) -> int:
        """Side of a window on a map (..., H, W).

        Raises:
            HeadMismatch: the map is smaller than the window asked for.
        """
        side = min(shape[-2:])
        window = max(1, side // 2) if self.window is None else self.window
        if window > side:
            raise HeadMismatch(f"window {window} is larger than a map of {shape[-2]} x {shape[-1]}")
        return window

    def feature_graph(self, feature: TensorType) -> Graph:
        """The map as it is: float32 (1, C, H, W)."""
        graph = whole_map(feature, "bag_of_features")
        self.window_of(feature.shape)
        return graph

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """``codebook`` (K, C, 1, 1), ``offset`` (K,), ``weight`` (windows * K, classes), ``bias``.

        Raises:
            ToolError: torch is not installed.
        """
        from eecompile.heads.training import fit_bag_of_features

        return fit_bag_of_features(self, recorded, labels, classes, seed=seed, progress=progress)

    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """Convolution, tanh, normalisation over codewords, pooling, one matrix product."""
        builder = GraphBuilder("bag_of_features", "feature", feature)
        codebook = builder.constant("codebook", parameters["codebook"])
        offset = builder.constant("offset", parameters["offset"])
        likeness = builder.op("Tanh", builder.conv("feature", codebook, offset))
        one = builder.constant("one", np.ones(1, np.float32))
        # Twice u: the factor cancels in the quotient.
        doubled = builder.op("Add", likeness, one)
        total = builder.op("ReduceSum", doubled, axes=(1,), keepdims=1)
        guard = builder.constant("guard", np.full(1, 2 * 5e-16, np.float32))
        shares = builder.op("Div", doubled, builder.op("Add", total, guard))
        window = self.window_of(feature.shape)
        pooled = builder.op(
            "AveragePool",
            shares,
            kernel_shape=(window, window),
            strides=(window, window),
            pads=(0, 0, 0, 0),
            count_include_pad=0,
        )
        row = flatten(builder, pooled)
        product = builder.op("MatMul", row, builder.constant("weight", parameters["weight"]))
        bias = builder.constant("bias", parameters["bias"])
        return builder.build(builder.op("Add", product, bias, output="logits"))
