"""Where a gate can stand: blocks that can be left out, convolutions whose channels can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from eecompile.ir import TensorType

__all__ = ["ChannelPlace", "Found", "LayerBlock", "Reader"]


@dataclass(frozen=True, slots=True)
class LayerBlock:
    """A part of a network that can be left out, and what then stands for its result.

    Attributes:
        name: module path, or a node's name where the host recorded no paths; no two blocks have
            the same.
        aliases: other names of it. Blocks may share one: a transformer layer's module path is an
            alias of both of its halves.
        entry: value the block reads, x; its gate reads it too.
        branch: value of F(x), before it is joined with x: what a mask is multiplied with.
        result: value y that later operators read; of a dense layer the branch itself.
        otherwise: value that y is a copy of where the block is left out; empty: y is zeros.
        type: of `entry`.
        ops: names of the operators that do not run where the block is left out, in order: those
            that only lead from `entry` to `result`, the join included.
        macs: multiply-accumulates of those operators.
    """

    name: str
    aliases: tuple[str, ...]
    entry: str
    branch: str
    result: str
    otherwise: str
    type: TensorType
    ops: tuple[str, ...]
    macs: int


@dataclass(frozen=True, slots=True)
class Reader:
    """The one convolution that reads a value, and sums over all of its channels.

    Attributes:
        value: its result, before anything follows.
        weight: the constant it multiplies with, (C_out, C, k...).
        type: of `value`.
    """

    value: str
    weight: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class ChannelPlace:
    """A convolution some of whose channels can be left out.

    Attributes:
        name: the convolution's module path, or its node's name where there is none.
        aliases: its other names.
        entry: value the convolution reads.
        value: what is masked: its result after batch normalisation and activation.
        channels: of the convolution.
        type: of `entry`.
        op: name of the convolution's operator.
        macs: multiply-accumulates of the convolution.
        read_macs: of the convolutions that read `value` and sum over its channels: they fall with
            the channels kept where nothing but these reads it, else 0.
        reader: the convolution among them, where it is the only operator that reads `value`.
    """

    name: str
    aliases: tuple[str, ...]
    entry: str
    value: str
    channels: int
    type: TensorType
    op: str
    macs: int
    read_macs: int
    reader: Reader | None = None


P = TypeVar("P", bound="LayerBlock | ChannelPlace")


@dataclass(frozen=True, slots=True)
class Found(Generic[P]):
    """What a search gave.

    Attributes:
        places: in the order they are reached.
        refused: name of what looks like such a place and is none -> the reason.
    """

    places: tuple[P, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "refused", MappingProxyType(dict(self.refused)))
