"""A small convolutional classifier, trained by gradient descent on recorded features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from eecompile.heads.base import Array, HeadMismatch
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.pooling import flatten, pool, whole_map, windows
from eecompile.heads.training import GradientHead, array_of
from eecompile.ir import Graph, TensorType

__all__ = ["ConvHead"]


@dataclass(frozen=True)
class ConvHead(GradientHead):
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
    temperature: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {
            "channels": self.channels,
            "kernel": self.kernel,
            "layers": self.layers,
            "pool": self.pool,
            "temperature": self.temperature,
        }

    def feature_graph(self, feature: TensorType) -> Graph:
        """The map as it is: float32 (1, C, H, W)."""
        graph, left = whole_map(feature, "conv"), self._sides(feature.shape)
        if min(left) < self.pool:
            sides = " x ".join(map(str, left))
            raise HeadMismatch(f"{self.layers} layers leave {sides} of {feature}")
        return graph

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a map (n, C, H, W) behind the layers: an even kernel takes a pixel each time."""
        return tuple(side - self.layers * (1 - self.kernel % 2) for side in shape[2:])

    def module(self, torch: Any, shape: tuple[int, ...], classes: int) -> Any:
        """The layers in torch's own terms."""
        nn = torch.nn
        layers: list[Any] = []
        channels = shape[1]
        for _ in range(self.layers):
            pad = (self.kernel - 1) // 2
            layers += [
                nn.Conv2d(channels, self.channels, self.kernel, padding=pad, bias=False),
                nn.BatchNorm2d(self.channels),
                nn.ReLU(),
            ]
            channels = self.channels
        strides, extents = windows(self._sides(shape), self.pool)
        layers += [nn.AvgPool2d(extents, strides), nn.Flatten(), nn.LazyLinear(classes)]
        return nn.Sequential(*layers)

    def folded(self, net: Any) -> dict[str, Array]:
        """Weights of each layer with its normalisation folded in, and the classifier's."""
        found: dict[str, Array] = {}
        for layer in range(self.layers):
            conv, norm = net[3 * layer], net[3 * layer + 1]
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            found[f"weight{layer}"] = array_of(conv.weight * scale[:, None, None, None])
            found[f"bias{layer}"] = array_of(norm.bias - norm.running_mean * scale)
        return {**found, "weight": array_of(net[-1].weight.T), "bias": array_of(net[-1].bias)}

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
        return builder.classifier(row, parameters)
