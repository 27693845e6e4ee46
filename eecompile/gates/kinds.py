"""The kinds of gates: which parameters each has, how they start, and what it computes of them.

Every kind looks at its feature averaged over all but the channels, but for the convolution. All
start with keeping everything: the last bias is `KEPT`, and what is added to it stays below that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eecompile.heads.graphs import GraphBuilder

if TYPE_CHECKING:
    from eecompile.gates.plan import Gate

__all__ = [
    "KEPT",
    "KINDS",
    "LEFT_OUT",
    "ConvolutionGate",
    "FeedforwardGate",
    "FittedGate",
    "GateKind",
    "RecurrentGate",
    "Scores",
    "SqueezeGate",
]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
#: A parameter of the gate -> the value that holds it in the graph being built.
Held = Callable[[str], str]

#: Parameter of a fitted gate of channels: what is added for each group that is left out.
LEFT_OUT = "left_out"
#: Score that every gate starts with; a keep probability of 0.88. Far enough from 0 to keep all
#: with the first weights, near enough that the sigmoid passes a gradient on.
KEPT = 2.0


@dataclass(frozen=True)
class Scores:
    """Values that a gate's graph computes, empty where it has none: scores, and its state."""

    keep: str = ""
    channels: str = ""
    hidden: str = ""
    cell: str = ""


@dataclass(frozen=True)
class GateKind(ABC):
    """A kind of gate with its options.

    Attributes:
        kind: name in the language.
        layers, channels: what it can decide about.
        stateful: whether it reads what the gate before it remembers.
        maps_only: whether its feature must be a map (1, C, H, W).
    """

    kind: ClassVar[str]
    layers: ClassVar[bool] = False
    channels: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    maps_only: ClassVar[bool] = False

    @property
    def options(self) -> dict[str, int]:
        """The options with their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def shared(self, gate: Gate) -> dict[str, Shape]:
        """Shapes of the parameters that the gate has in common with others of its kind."""
        return {}

    @abstractmethod
    def own(self, gate: Gate) -> dict[str, Shape]:
        """Shapes of the gate's own parameters."""

    def initial(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        """A parameter as it starts, float32: biases 0, the last one `KEPT`; weights by their size.

        The last weights are so small that they add at most 1 to the score of inputs within [-1, 1],
        or zeros where nothing bounds what they are multiplied with.
        """
        if name in ("keep_bias", "channels_bias"):
            return np.full(shape, KEPT, np.float32)
        if name.endswith("_bias"):
            return np.zeros(shape, np.float32)
        if name in ("keep_weight", "channels_weight"):
            reach = 1 / shape[0] if self.stateful else 0.0
        else:
            # A convolution (C_out, C_in, k...) or a matrix (in, out): uniform as He et al. 2015.
            inputs = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
            reach = (3 / inputs) ** 0.5
        return generator.uniform(-reach, reach, shape).astype(np.float32)

    @abstractmethod
    def build(self, builder: GraphBuilder, gate: Gate, held: Held) -> Scores:
        """Adds what the gate computes from ``x``, perhaps ``before.h`` and ``before.c``."""


def _last(builder: GraphBuilder, row: str, held: Held, what: str) -> str:
    return _linear(builder, row, held(f"{what}_weight"), held(f"{what}_bias"))


def _linear(builder: GraphBuilder, row: str, weight: str, bias: str) -> str:
    return builder.op("Add", builder.op("MatMul", row, weight), bias)


def pooled(builder: GraphBuilder, value: str, axis: int) -> str:
    """The value averaged over all dimensions but the first and `axis`: (1, C)."""
    rank = len(builder.shape(value))
    axes = tuple(i for i in range(1, rank) if i != axis)
    return builder.op("ReduceMean", value, axes=axes, keepdims=0) if axes else value


@dataclass(frozen=True)
class RecurrentGate(GateKind):
    """One LSTM over depth that all gates share, with a projection of each block's feature.

    Layer gates share the weights of their last layer as well, and each has a bias of its own, so
    that they can begin in the order of the harm that leaving out their blocks does; each channel
    gate has a last layer of its own.

    Options: `hidden` size of the LSTM, `embedding` size of what it reads.

    Source: SkipNet (arXiv 1711.09485), section 3; DDI (arXiv 1907.04523) adds the channels.
    """

    kind: ClassVar[str] = "recurrent"
    layers: ClassVar[bool] = True
    channels: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    hidden: int = 10
    embedding: int = 10

    def shared(self, gate: Gate) -> dict[str, Shape]:
        """The LSTM, its four parts in order: input, forget, cell, output; layers' last layer."""
        parts = 4 * self.hidden
        found: dict[str, Shape] = {
            "input_weight": (self.embedding, parts),
            "cell_bias": (parts,),
        }
        if gate.before:
            found["state_weight"] = (self.hidden, parts)
        if gate.block:
            found["keep_weight"] = (self.hidden, 1)
        return found

    def own(self, gate: Gate) -> dict[str, Shape]:
        """The projection, and the last layer of a channel gate."""
        found: dict[str, Shape] = {
            "embedding_weight": (gate.size, self.embedding),
            "embedding_bias": (self.embedding,),
        }
        if gate.block:
            found["keep_bias"] = (1,)
        if gate.groups:
            found["channels_weight"] = (self.hidden, gate.groups)
            found["channels_bias"] = (gate.groups,)
        return found

    def initial(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        """As every kind's; the LSTM uniform within 1 / sqrt(hidden), as is usual."""
        if name in ("input_weight", "state_weight"):
            reach = self.hidden**-0.5
            return generator.uniform(-reach, reach, shape).astype(np.float32)
        return super().initial(name, shape, generator)

    def build(self, builder: GraphBuilder, gate: Gate, held: Held) -> Scores:
        """One step of the LSTM and its scores."""
        row = pooled(builder, "x", gate.axis)
        row = _linear(builder, row, held("embedding_weight"), held("embedding_bias"))
        parts = builder.op("MatMul", row, held("input_weight"))
        if gate.before:
            state = builder.op("MatMul", "before.h", held("state_weight"))
            parts = builder.op("Add", parts, state)
        parts = builder.op("Add", parts, held("cell_bias"))
        take, forget, new, show = (
            builder.op(
                kind,
                builder.op(
                    "Slice",
                    parts,
                    starts=(i * self.hidden,),
                    ends=((i + 1) * self.hidden,),
                    axes=(1,),
                    steps=(1,),
                ),
            )
            for i, kind in enumerate(("Sigmoid", "Sigmoid", "Tanh", "Sigmoid"))
        )
        cell = builder.op("Mul", take, new)
        if gate.before:
            cell = builder.op("Add", builder.op("Mul", forget, "before.c"), cell)
        hidden = builder.op("Mul", show, builder.op("Tanh", cell))
        keep = _last(builder, hidden, held, "keep") if gate.block else ""
        channels = _last(builder, hidden, held, "channels") if gate.groups else ""
        return Scores(keep, channels, hidden, cell)


@dataclass(frozen=True)
class FeedforwardGate(GateKind):
    """Two layers on the pooled feature.

    Option: `hidden` size of the layer between.

    Source: SkipNet (arXiv 1711.09485) compares such gates with the recurrent one.
    """

    kind: ClassVar[str] = "feedforward"
    layers: ClassVar[bool] = True
    hidden: int = 16

    def own(self, gate: Gate) -> dict[str, Shape]:
        """Both layers."""
        what, size = ("channels", gate.groups) if gate.groups else ("keep", 1)
        return {
            "hidden_weight": (gate.size, self.hidden),
            "hidden_bias": (self.hidden,),
            f"{what}_weight": (self.hidden, size),
            f"{what}_bias": (size,),
        }

    def build(self, builder: GraphBuilder, gate: Gate, held: Held) -> Scores:
        """Pooling, the layers with a ReLU between them."""
        row = pooled(builder, "x", gate.axis)
        row = _linear(builder, row, held("hidden_weight"), held("hidden_bias"))
        row = builder.op("Relu", row)
        if gate.groups:
            return Scores(channels=_last(builder, row, held, "channels"))
        return Scores(keep=_last(builder, row, held, "keep"))


@dataclass(frozen=True)
class SqueezeGate(FeedforwardGate):
    """Two layers on the pooled feature, a score for each group of channels.

    Option: `hidden` size of the layer between.
    """

    kind: ClassVar[str] = "squeeze"
    layers: ClassVar[bool] = False
    channels: ClassVar[bool] = True


@dataclass(frozen=True)
class FittedGate(GateKind):
    """A linear score of the pooled feature, fitted without gradients through the network.

    Where one convolution alone reads the channels it decides about, `LEFT_OUT` is added to that
    convolution's result for each group left out: what the group's mean would give there.
    """

    kind: ClassVar[str] = "fitted"
    layers: ClassVar[bool] = True
    channels: ClassVar[bool] = True

    def own(self, gate: Gate) -> dict[str, Shape]:
        """One layer, and what stands in for groups that are left out: (groups, C_out)."""
        what, size = ("channels", gate.groups) if gate.groups else ("keep", 1)
        found: dict[str, Shape] = {f"{what}_weight": (gate.size, size), f"{what}_bias": (size,)}
        if gate.place and gate.place.reader:
            found[LEFT_OUT] = (gate.groups, gate.place.reader.type.shape[1])
        return found

    def initial(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        """As every kind's; nothing stands in for what is left out."""
        if name == LEFT_OUT:
            return np.zeros(shape, np.float32)
        return super().initial(name, shape, generator)

    def build(self, builder: GraphBuilder, gate: Gate, held: Held) -> Scores:
        """Pooling and the layer."""
        row = pooled(builder, "x", gate.axis)
        if gate.groups:
            return Scores(channels=_last(builder, row, held, "channels"))
        return Scores(keep=_last(builder, row, held, "keep"))


@dataclass(frozen=True)
class ConvolutionGate(GateKind):
    """Two convolutions, pooling, one layer: it sees where in the picture something is.

    Option: `width`, channels of the first convolution, which takes every other pixel; the second
    has as many as the gated convolution.

    Source: DDI's gate for DenseNet (arXiv 1907.04523, released code), its batch normalisation left
    to the biases.
    """

    kind: ClassVar[str] = "convolution"
    channels: ClassVar[bool] = True
    maps_only: ClassVar[bool] = True
    width: int = 64

    def own(self, gate: Gate) -> dict[str, Shape]:
        """Both convolutions and the last layer."""
        channels = gate.place.channels if gate.place else 1
        return {
            "first_weight": (self.width, gate.size, 1, 1),
            "first_bias": (self.width,),
            "second_weight": (channels, self.width, 3, 3),
            "second_bias": (channels,),
            "channels_weight": (channels, gate.groups),
            "channels_bias": (gate.groups,),
        }

    def build(self, builder: GraphBuilder, gate: Gate, held: Held) -> Scores:
        """The convolutions, pooling, the layer."""
        two, one = (2, 2), (1, 1)
        first = builder.op(
            "Conv",
            "x",
            held("first_weight"),
            held("first_bias"),
            strides=two,
            pads=(0, 0, 0, 0),
            dilations=one,
            group=1,
        )
        value = builder.conv(
            builder.op("Relu", first), held("second_weight"), held("second_bias"), pads=(1,) * 4
        )
        return Scores(channels=_last(builder, pooled(builder, value, 1), held, "channels"))


#: Name in the language -> gate whose constructor takes the options by name.
KINDS: Mapping[str, type[GateKind]] = {
    kind.kind: kind
    for kind in (RecurrentGate, FeedforwardGate, FittedGate, SqueezeGate, ConvolutionGate)
}
