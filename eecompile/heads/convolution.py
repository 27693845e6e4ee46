"""A small convolutional classifier, trained by gradient descent on recorded features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from eecompile.heads.base import Array, Head, HeadMismatch, Progress
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.pooling import flatten, pool, whole_map
from eecompile.ir import Graph, TensorType

__all__ = ["ConvHead"]


@dataclass(frozen=True)
class ConvHead(Head):
    """Convolutions with batch normalisation and ReLU, average pooling, a linear classifier.

    The usual head of multi-exit networks (EENet's has three layers, arXiv 2301.07099). Batch
    normalisation is folded into the convolutions.

    Options: `channels` of every layer, `kernel` extent (an odd one keeps the map's size), number of
    `layers`, cells a side the map is pooled to.
    """

    kind: ClassVar[str] = "conv"
    channels: int = 32
    kernel: int = 3
    layers: int = 2
    pool: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {
            "channels": self.channels,
            "kernel": self.kernel,
            "layers": self.layers,
            "pool": self.pool,
        }

    def feature_graph(self, feature: TensorType) -> Graph:
        """The map as it is: float32 (1, C, H, W)."""
        self._smallest(feature)
        return whole_map(feature, "conv")

    def _smallest(self, feature: TensorType) -> None:
        """Refuses maps that the layers would shrink to nothing."""
        side = min(feature.shape[2:], default=0)
        left = side - self.layers * (1 - self.kernel % 2)
        if len(feature.shape) == 4 and left < self.pool:
            raise HeadMismatch(f"{self.layers} layers leave {left} x {left} of {feature}")

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """Weights of each layer with its normalisation folded in, and the classifier's.

        Raises:
            ToolError: torch is not installed.
        """
        from eecompile.heads.training import fit_conv

        return fit_conv(self, recorded, labels, classes, seed=seed, progress=progress)

    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """Convolutions, pooling, one matrix product."""
        builder = GraphBuilder("conv", "feature", feature)
        value = "feature"
        for layer in range(self.layers):
            weight = builder.constant(f"weight{layer}", parameters[f"weight{layer}"])
            bias = builder.constant(f"bias{layer}", parameters[f"bias{layer}"])
            pads = ((self.kernel - 1) // 2,) * 4
            value = builder.conv(value, weight, bias, pads=pads)
            value = builder.op("Relu", value)
        row = flatten(builder, pool(builder, value, self.pool))
        product = builder.op("MatMul", row, builder.constant("weight", parameters["weight"]))
        bias = builder.constant("bias", parameters["bias"])
        return builder.build(builder.op("Add", product, bias, output="logits"))
