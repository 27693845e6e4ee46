"""Rules of the FX host for products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
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

__all__ = ["NN_RULES"]

NN_RULES = Rules()
on = NN_RULES.on


# --- products -------------------------------------------------------------------------------------


@on("linear.default")
def linear(b: Builder, x: Value, weight: Value, bias: Value | None) -> Value:
    """X W^T + bias."""
    y = b.op("MatMul", x, b.transpose(weight, range(weight.ndim)[::-1]))
    return b.op("Add", y, bias) if bias else y


@on("matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default")
def matmul(b: Builder, x: Value, y: Value) -> Value:
    """numpy.matmul's product."""
    return b.op("MatMul", x, y)


@on("addmm.default", "baddbmm.default")
def addmm(b: Builder, c: Value, x: Value, y: Value, beta: float, alpha: float) -> Value:
    """Beta c + alpha x y."""
    product = b.op("MatMul", x, y)
    if alpha != 1:
        product = b.binary("Mul", product, alpha, product.dtype)
    if beta != 1:
        c = b.binary("Mul", c, beta, product.dtype)
    return b.op("Add", product, c)


@on("einsum.default")
def einsum(b: Builder, equation: str, operands: Sequence[Value], path: Any) -> Value:
    """Contraction of two tensors as one matrix product."""
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not result or "." in equation or any(len({*t}) < len(t) for t in terms):
        raise Untranslatable(f"einsum `{equation}`")
    first, second = terms
    batch = [d for d in result if d in first and d in second]
    rows = [d for d in result if d in first and d not in second]
    columns = [d for d in result if d in second and d not in first]
    inner = [d for d in first if d in second and d not in result]
    if {*first, *second} != {*batch, *rows, *columns, *inner}:
        raise Untranslatable(f"einsum `{equation}`")
    size = dict(zip(first, operands[0].shape, strict=True))
    size |= dict(zip(second, operands[1].shape, strict=True))

    def grouped(x: Value, term: str, *groups: list[str]) -> Value:
        x = b.transpose(x, [term.index(d) for group in groups for d in group])
        return b.reshape(x, [prod(size[d] for d in group) for group in groups])

    product = b.op(
        "MatMul",
        grouped(operands[0], first, batch, rows, inner),
        grouped(operands[1], second, batch, inner, columns),
    )
    order = [*batch, *rows, *columns]
    product = b.reshape(product, [size[d] for d in order])
    return b.transpose(product, [order.index(d) for d in result])


@on("scaled_dot_product_attention.default")
def attention(
    b: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Value:
    """softmax(q k^T scale + mask) v."""
    if dropout or grouped:
        raise Untranslatable("attention with dropout or grouped queries")
    *_, rows, width = query.shape
    columns = key.shape[-2]
    swapped = [*range(key.ndim - 2), key.ndim - 1, key.ndim - 2]
    scores = b.op("MatMul", query, b.transpose(key, swapped))
    scores = b.binary("Mul", scores, 1 / sqrt(width) if scale is None else scale, query.dtype)
    if causal:
        mask = b.constant(np.tri(rows, columns, dtype=bool), "bool")
    if mask is not None and mask.dtype == "bool":
        # The lowest number, not -inf: no NaN in the softmax, and its exponential is 0 all the same.
        mask = b.op("Where", mask, b.constant(0.0), b.constant(np.finfo(np.float32).min))
    if mask is not None:
        scores = b.op("Add", scores, mask)
    return b.op("MatMul", b.op("Softmax", scores, axis=scores.ndim - 1), value)


@on("embedding.default")
def embedding(b: Builder, weight: Value, indices: Value, *_: Any) -> Value:
    """Rows of the weight."""
    return b.op("Gather", weight, indices, axis=0)


# --- convolutions ---------------------------------------------------------------------------------


def _rank_of(weight: Value) -> int:
    rank = weight.ndim - 2
    if rank not in (1, 2):
        raise Untranslatable(f"{rank}-dimensional convolution")
    return rank


@on("conv1d.default", "conv2d.default", "conv1d.padding", "conv2d.padding")
def conv(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    """Convolution; "same" padding puts the odd one at the end."""
    rank = _rank_of(weight)
    dilations = per_dimension(dilation, rank)
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        pads = (*(r // 2 for r in reach), *(r - r // 2 for r in reach))
    else:
        pads = per_dimension(0 if padding == "valid" else padding, rank) * 2
    y = b.op(
        "Conv",
        batched(b, x, rank),
        weight,
        bias,
        strides=per_dimension(stride, rank),
        pads=pads,
        dilations=dilations,
        group=groups,
    )
    return b.reshape(y, b.out.shape)


@on("conv_transpose1d.default", "conv_transpose2d.input")
def conv_transpose(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Value:
    """Transposed convolution."""
    rank = _rank_of(weight)
    y = b.op(
        "ConvTranspose",
        batched(b, x, rank),
        weight,
        bias,
        strides=per_dimension(stride, rank),
        pads=per_dimension(padding, rank) * 2,
        dilations=per_dimension(dilation, rank),
        group=groups,
        output_padding=per_dimension(output_padding, rank),
    )
    return b.reshape(y, b.out.shape)


@on("convolution.default")
def convolution(
    b: Builder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """Either of the two."""
    if transposed:
        return conv_transpose(b, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(b, x, weight, bias, stride, padding, dilation, groups)
