"""How a backbone's tensor becomes the feature vector of a head."""

from __future__ import annotations

from math import prod

from eecompile.heads.base import HeadMismatch
from eecompile.heads.graphs import GraphBuilder
from eecompile.ir import Graph, TensorType

__all__ = [
    "DEFAULT_CELLS",
    "Pool",
    "as_recorded",
    "flatten",
    "pool",
    "pooled_row",
    "whole_map",
    "windows",
]

#: Cells a side for maps; ``raw`` keeps the whole tensor; for token sequences ``mean`` is the mean
#: over tokens and ``first`` the first (class) token.
Pool = int | str | None

#: What a map is pooled to where nothing is said, or less where it is smaller.
DEFAULT_CELLS = 4


def pool(builder: GraphBuilder, value: str, how: Pool) -> str:
    """Average-pool a map (1, C, H, W) to ``how`` cells a side, or take tokens (1, T, D) together.

    Cells have one size and may overlap by a pixel or more where the side is no multiple of their
    number. For tokens None and any number mean ``mean``; vectors (1, D) have nothing to pool.

    Raises:
        HeadMismatch: the map has fewer pixels than cells, or ``first`` was asked of a map.
    """
    shape = builder.shape(value)
    if how == "raw" or len(shape) < 3:
        return value
    if len(shape) == 3:
        if how == "first":
            return builder.op("Slice", value, starts=(0,), ends=(1,), axes=(1,), steps=(1,))
        return builder.op("ReduceMean", value, axes=(1,), keepdims=1)
    if how == "first":
        raise HeadMismatch(f"`first` pooling needs a sequence of tokens, found {list(shape)}")
    cells = 1 if how == "mean" else min(DEFAULT_CELLS, *shape[2:]) if how is None else int(how)
    if cells > min(shape[2:]):
        sides = " x ".join(map(str, shape[2:]))
        raise HeadMismatch(f"pooling to {cells} cells a side needs a larger map than {sides}")
    if cells == 1:
        return builder.op("ReduceMean", value, axes=tuple(range(2, len(shape))), keepdims=1)
    strides, kernel = windows(shape[2:], cells)
    if prod(kernel) == 1:
        return value
    padless = (0,) * (2 * len(kernel))
    return builder.op(
        "AveragePool",
        value,
        kernel_shape=kernel,
        strides=strides,
        pads=padless,
        count_include_pad=0,
    )


def windows(sides: tuple[int, ...], cells: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and extents of `cells` windows a side that cover it exactly.

    >>> windows((8, 7), 4)
    ((2, 1), (2, 4))
    """
    strides = tuple(side // cells for side in sides)
    extents = tuple(side - (cells - 1) * step for side, step in zip(sides, strides, strict=True))
    return strides, extents


def flatten(builder: GraphBuilder, value: str, output: str = "") -> str:
    """Each sample as one row: (1, size)."""
    count, *rest = builder.shape(value)
    return builder.op("Reshape", value, output=output, shape=(count, prod(rest)))


def pooled_row(feature: TensorType, how: Pool) -> Graph:
    """The graph that records a feature pooled, each sample as one row (1, F).

    Raises:
        HeadMismatch: as `pool`.
    """
    builder = GraphBuilder("features", "feature", feature)
    return builder.build(flatten(builder, pool(builder, "feature", how), "recorded"))


def as_recorded(feature: TensorType) -> Graph:
    """The graph that records a feature as it is."""
    builder = GraphBuilder("features", "feature", feature)
    return builder.build(builder.op("Reshape", "feature", output="recorded", shape=feature.shape))


def whole_map(feature: TensorType, kind: str) -> Graph:
    """The graph that records a map (1, C, H, W) as it is.

    Raises:
        HeadMismatch: the feature is no map.
    """
    if len(feature.shape) != 4:
        raise HeadMismatch(f"`{kind}` needs a map [1, C, H, W], found {feature}")
    return as_recorded(feature)
