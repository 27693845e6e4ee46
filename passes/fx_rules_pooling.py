"""Rules of the FX host for pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from eecompile.passes.fx_builder import (
    Builder,
    Rules,
    Untranslatable,
    Value,
    batched,
    per_dimension,
)

__all__ = ["POOLING_RULES"]

POOLING_RULES = Rules()
on = POOLING_RULES.on


def _missing(
    b: Builder,
    x: Value,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """What ceil_mode adds at the end of each dimension, read off the extents torch gives."""
    sizes = zip(x.shape[2:], b.out.shape[-len(kernel) :], strict=True)
    return tuple(
        max(0, (out - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - size - 2 * pads[i])
        for i, (size, out) in enumerate(sizes)
    )


def _max_pool(rank: int, with_indices: bool) -> Callable[..., Value]:
    def rule(b: Builder, *arguments: Any) -> Value:
        if with_indices:
            index, *arguments = arguments  # type: ignore[assignment]
            if index:
                raise Untranslatable("the positions of the maxima")
        x, kernel, stride, padding, dilation, _ = arguments
        size, dilations = per_dimension(kernel, rank), per_dimension(dilation, rank)
        strides, pads = per_dimension(stride or kernel, rank), per_dimension(padding, rank)
        x = batched(b, x, rank)
        more = _missing(b, x, size, strides, pads, dilations)
        ends = tuple(p + m for p, m in zip(pads, more, strict=True))
        y = b.op(
            "MaxPool",
            x,
            kernel_shape=size,
            strides=strides,
            pads=(*pads, *ends),
            dilations=dilations,
        )
        return b.reshape(y, b.out.shape)

    return rule


for _rank in (1, 2):
    on(f"max_pool{_rank}d.default")(_max_pool(_rank, with_indices=False))
    on(f"max_pool{_rank}d_with_indices.default#")(_max_pool(_rank, with_indices=True))


def _avg_pool(rank: int) -> Callable[..., Value]:
    def rule(
        b: Builder,
        x: Value,
        kernel: Any,
        stride: Any,
        padding: Any,
        ceil: bool,
        count_padding: bool,
        divisor: int | None = None,
    ) -> Value:
        size, pads = per_dimension(kernel, rank), per_dimension(padding, rank)
        strides = per_dimension(stride or kernel, rank)
        x = batched(b, x, rank)
        extra = _missing(b, x, size, strides, pads, (1,) * rank)
        if divisor and (any(extra) or (any(pads) and not count_padding)):
            raise Untranslatable("a divisor where windows overlap uncounted padding")
        y = b.op(
            "AveragePool",
            x,
            kernel_shape=size,
            strides=strides,
            pads=pads * 2,
            count_include_pad=int(count_padding),
            **({"extra": extra} if any(extra) else {}),
        )
        if divisor:
            y = b.binary("Mul", y, prod(size) / divisor, y.dtype)
        return b.reshape(y, b.out.shape)

    return rule


for _rank in (1, 2):
    on(f"avg_pool{_rank}d.default")(_avg_pool(_rank))


def _windows(extent: int, out: int) -> list[tuple[int, int]]:
    """Where torch's adaptive pooling begins and ends each window.

    >>> _windows(7, 3)
    [(0, 3), (2, 5), (4, 7)]
    """
    return [(i * extent // out, -(-(i + 1) * extent // out)) for i in range(out)]


def _even(x: Value, wanted: Sequence[int]) -> bool:
    return all(size % out == 0 for size, out in zip(x.shape[2:], wanted, strict=True))


def _adaptive(rank: int, out: Any, x: Value) -> tuple[int, ...]:
    sizes = per_dimension(out, rank)
    return tuple(x.shape[2 + i] if s is None else s for i, s in enumerate(sizes))


def _adaptive_avg(rank: int) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, out: Any) -> Value:
        x = batched(b, x, rank)
        wanted = _adaptive(rank, out, x)
        if set(wanted) == {1}:
            y = b.reduce("ReduceMean", x, range(2, 2 + rank), True)
        elif _even(x, wanted):
            kernel = tuple(size // o for size, o in zip(x.shape[2:], wanted, strict=True))
            y = b.op(
                "AveragePool",
                x,
                kernel_shape=kernel,
                strides=kernel,
                pads=(0,) * (2 * rank),
                count_include_pad=0,
            )
        else:
            y = _uneven_averages(b, x, wanted)
        return b.reshape(y, b.out.shape)

    return rule


def _uneven_averages(b: Builder, x: Value, wanted: Sequence[int]) -> Value:
    """Windows of different lengths, as one product with a matrix of weights a dimension."""
    for i, out in enumerate(wanted):
        weights = np.zeros((out, x.shape[2 + i]), np.float32)
        for row, (begin, end) in enumerate(_windows(x.shape[2 + i], out)):
            weights[row, begin:end] = 1 / (end - begin)
        last = i == len(wanted) - 1
        x = b.op("MatMul", *((x, b.constant(weights.T)) if last else (b.constant(weights), x)))
    return x


def _adaptive_max(rank: int, with_indices: bool) -> Callable[..., Value]:
    def rule(b: Builder, *arguments: Any) -> Value:
        *index, x, out = arguments
        if with_indices and index[0]:
            raise Untranslatable("the positions of the maxima")
        x = batched(b, x, rank)
        for i, size in enumerate(_adaptive(rank, out, x)):
            axis = 2 + i
            pieces = [
                b.reduce("ReduceMax", b.slice(x, axis, begin, end), [axis], True)
                for begin, end in _windows(x.shape[axis], size)
            ]
            x = pieces[0] if size == 1 else b.op("Concat", *pieces, axis=axis)
        return b.reshape(x, b.out.shape)

    return rule


for _rank in (1, 2):
    on(f"adaptive_avg_pool{_rank}d.default")(_adaptive_avg(_rank))
    on(f"adaptive_max_pool{_rank}d.default#")(_adaptive_max(_rank, with_indices=True))
on("_adaptive_avg_pool2d.default")(_adaptive_avg(2))
