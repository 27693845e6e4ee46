"""The logistic bag-of-features head of Predictive Exit: one uniform, small topology everywhere.

Source: Li et al., arXiv 2206.04685 (design by Passalis et al.).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eecompile.heads.base import Array, HeadMismatch
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.pooling import flatten, whole_map
from eecompile.heads.training import GradientHead, array_of
from eecompile.ir import Graph, TensorType

__all__ = ["BagOfFeaturesHead"]


@dataclass(frozen=True)
class BagOfFeaturesHead(GradientHead):
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
    temperature: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {
            "codewords": self.codewords,
            "window": self.window,
            "temperature": self.temperature,
        }

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

    def module(self, torch: Any, shape: tuple[int, ...], classes: int) -> Any:
        """The head as published, one learned number for each of a, c, n1 and n2."""
        nn, codewords = torch.nn, self.codewords
        window = self.window_of(shape)
        windows = (shape[2] // window) * (shape[3] // window)
        bins = windows * codewords

        class Bag(nn.Module):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(shape[1], codewords, 1)
                self.a = nn.Parameter(torch.ones(()))
                self.c = nn.Parameter(torch.zeros(()))
                self.n1 = nn.Parameter(torch.tensor(float(codewords)))
                self.n2 = nn.Parameter(torch.tensor(float(window)))
                self.first = nn.Linear(bins, codewords) if windows == 4 else nn.Identity()
                self.second = nn.Linear(codewords if windows == 4 else bins, classes)

            def forward(self, x: Any) -> Any:
                u = (torch.tanh(self.a * self.conv(x) + self.c) + 1) / 2
                v = self.n1 * u / (u.sum(dim=1, keepdim=True) + 5e-16)
                h = self.n2 * nn.functional.avg_pool2d(v, window)
                return self.second(self.first(h.flatten(1)))

        return Bag()

    def folded(self, net: Any) -> dict[str, Array]:
        """``codebook`` (K, C, 1, 1), ``offset`` (K,), ``weight`` (windows * K, classes), ``bias``.

        With four windows, the two linear layers are one.
        """
        weight, bias = net.second.weight, net.second.bias
        if hasattr(net.first, "weight"):
            weight, bias = weight @ net.first.weight, bias + weight @ net.first.bias
        return {
            "codebook": array_of(net.a * net.conv.weight),
            "offset": array_of(net.a * net.conv.bias + net.c),
            "weight": array_of((net.n1 * net.n2 * weight).T),
            "bias": array_of(bias),
        }

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
        return builder.classifier(flatten(builder, pooled), parameters)
