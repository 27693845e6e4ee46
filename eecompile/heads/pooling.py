"""How a backbone's tensor becomes the feature vector of a head."""

from __future__ import annotations

from math import prod

from eecompile.heads.graphs import GraphBuilder

__all__ = ["Pool", "flatten", "pool"]

#: Cells a side for maps; ``raw`` keeps the whole tensor; for token sequences ``mean`` is the mean
#: over tokens and ``first`` the first (class) token.
Pool = int | str


def pool(builder: GraphBuilder, value: str, how: Pool) -> str:
    """Average-pool a map (1, C, H, W) to ``how`` cells a side, or take tokens (1, T, D) together.

    A map smaller than that is taken as it is. Cells have one size and may overlap by a pixel or
    more where the side is no multiple of their number. For tokens any number means ``mean``;
    vectors (1, D) have nothing to pool.

    Raises:
        ValueError: ``mean`` and ``first`` exist for tokens, ``mean`` for maps, neither else.
    """
    shape = builder.shape(value)
    if how == "raw" or len(shape) < 3:
        return value
    if len(shape) == 3:
        if how == "first":
            return builder.op("Slice", value, starts=(0,), ends=(1,), axes=(1,), steps=(1,))
        return builder.op("ReduceMean", value, axes=(1,), keepdims=1)
    cells = 1 if how == "mean" else how
    if not isinstance(cells, int):
        raise ValueError(f"`{how}` pooling needs a sequence of tokens, found shape {list(shape)}")
    if cells == 1:
        return builder.op("ReduceMean", value, axes=tuple(range(2, len(shape))), keepdims=1)
    strides, kernel = _windows(shape[2:], cells)
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


def _windows(sides: tuple[int, ...], cells: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and extents of `cells` windows a side that cover it exactly.

    >>> _windows((8, 7), 4)
    ((2, 1), (2, 4))
    """
    count = [min(side, cells) for side in sides]
    strides = tuple(side // n for side, n in zip(sides, count, strict=True))
    extents = tuple(
        side - (n - 1) * step for side, n, step in zip(sides, count, strides, strict=True)
    )
    return strides, extents


def flatten(builder: GraphBuilder, value: str, output: str = "") -> str:
    """The value as one row: (1, size)."""
    return builder.op("Reshape", value, output=output, shape=(1, prod(builder.shape(value))))
