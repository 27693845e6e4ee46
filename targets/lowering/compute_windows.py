"""Tensor expressions of the operators that multiply and accumulate, and of pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from eecompile.ir import Op, TensorType
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.tensors import (
    Expr,
    broadcast_index,
    compute,
    constant,
    limits,
    need_float,
    shape_of,
)

__all__ = ["WINDOWS", "padded"]


def padded(
    x: te.Tensor, begins: Sequence[int], ends: Sequence[int], value: float, name: str
) -> te.Tensor:
    """`x` with `value` around it, cropped where a pad is negative; `x` itself without pads."""
    shape = shape_of(x)
    if not any(begins) and not any(ends):
        return x
    extents = [b + n + e for b, n, e in zip(begins, shape, ends, strict=True)]

    def body(index: Sequence[Expr]) -> Expr:
        inside: list[Expr] = []
        moved: list[Expr] = []
        for i, begin, end, extent in zip(index, begins, ends, shape, strict=True):
            moved.append(i - begin if begin else i)
            if begin > 0:
                inside.append(i >= begin)
            if end > 0:
                inside.append(i < begin + extent)
        if not inside:
            return x(*moved)
        return tirx.if_then_else(tirx.all(*inside), x(*moved), _fill(value, str(x.dtype)))

    return compute(extents, body, name)


def _fill(value: float, dtype: str) -> Expr:
    return tirx.const(bool(value), "bool") if dtype == "bool" else constant(value, dtype)


def _spatial(attribute: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """begin..., end... pads of the spatial dimensions as those of all dimensions."""
    pads = tuple(int(p) for p in attribute)
    return (0, 0, *pads[:rank]), (0, 0, *pads[rank:])


def _with_bias(y: te.Tensor, bias: te.Tensor | None) -> te.Tensor:
    if bias is None:
        return y
    return compute(shape_of(y), lambda i: y(*i) + bias(i[1]), "bias")


def _correlated(
    x: te.Tensor,
    weight: Callable[[Expr, Expr, Sequence[Expr]], Expr],
    kernel: Sequence[int],
    channels: tuple[int, int],
    group: int,
    steps: tuple[Sequence[int], Sequence[int]],
    result: TensorType,
) -> te.Tensor:
    """Grouped correlation of a padded `x`; weight(c_out, c_in of the group, kernel index)."""
    strides, dilations = steps
    taken, given = channels[0] // group, channels[1] // group
    c = te.reduce_axis((0, taken), name="c")
    taps = [te.reduce_axis((0, n), name=f"k{d}") for d, n in enumerate(kernel)]

    def body(index: Sequence[Expr]) -> Expr:
        n, out, *place = index
        channel = c.var if group == 1 else tirx.floordiv(out, given) * taken + c.var
        at = [o * s + t.var * d for o, s, t, d in zip(place, strides, taps, dilations, strict=True)]
        product = x(n, channel, *at) * weight(out, c.var, [t.var for t in taps])
        return te.sum(product, axis=[c, *taps])

    return compute(result.shape, body, "conv")


def _conv(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    x, w, bias = (*inputs, None)[:3]
    rank = len(x.shape) - 2
    attributes: Any = op.attributes
    source = padded(x, *_spatial(attributes["pads"], rank), 0, "padded")
    steps = attributes["strides"], attributes["dilations"]
    y = _correlated(
        source,
        lambda out, c, k: w(out, c, *k),
        shape_of(w)[2:],
        (shape_of(x)[1], result.shape[1]),
        attributes["group"],
        steps,
        result,
    )
    return _with_bias(y, bias)


def _conv_transpose(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    """A convolution with the flipped kernel over `x` spread by the strides."""
    need_float(op, inputs)
    x, w, bias = (*inputs, None)[:3]
    attributes: Any = op.attributes
    group, strides, dilations = (attributes[k] for k in ("group", "strides", "dilations"))
    shape, kernel = shape_of(x), shape_of(w)[2:]
    reach = [(n - 1) * d for n, d in zip(kernel, dilations, strict=True)]
    begins = [r - p for r, p in zip(reach, attributes["pads"], strict=False)]
    extents = [n + r for n, r in zip(result.shape[2:], reach, strict=True)]

    def spread(index: Sequence[Expr]) -> Expr:
        inside: list[Expr] = []
        at: list[Expr] = []
        for i, begin, s, n in zip(index[2:], begins, strides, shape[2:], strict=True):
            inside += [i >= begin, i < begin + (n - 1) * s + 1]
            if s > 1:
                inside.append(tirx.EQ(tirx.floormod(i - begin, s), 0))
            at.append(tirx.floordiv(i - begin, s))
        value = x(*index[:2], *at)
        return tirx.if_then_else(tirx.all(*inside), value, constant(0, "float32"))

    taken, given = shape[1] // group, result.shape[1] // group

    def weight(out: Expr, c: Expr, k: Sequence[Expr]) -> Expr:
        flipped = [n - 1 - i for n, i in zip(kernel, k, strict=True)]
        if group == 1:
            return w(c, out, *flipped)
        first = tirx.floordiv(out, given) * taken
        return w(first + c, tirx.floormod(out, given), *flipped)

    source = compute([*shape[:2], *extents], spread, "spread")
    channels = (shape[1], result.shape[1])
    ones = (1,) * len(kernel)
    y = _correlated(source, weight, kernel, channels, group, (ones, dilations), result)
    return _with_bias(y, bias)


def _matmul(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    a, b = inputs
    if a.dtype != b.dtype or str(a.dtype) == "bool":
        raise UnsupportedOperator(op, f"operands of types {a.dtype} and {b.dtype}")
    a_shape, b_shape = shape_of(a), shape_of(b)
    k = te.reduce_axis((0, a_shape[-1]), name="k")

    def body(index: Sequence[Expr]) -> Expr:
        rest = list(index)
        column = [rest.pop()] if len(b_shape) > 1 else []
        row = [rest.pop()] if len(a_shape) > 1 else []
        left = broadcast_index(a_shape[:-2], rest)
        right = broadcast_index(b_shape[:-2], rest)
        return te.sum(a(*left, *row, k.var) * b(*right, k.var, *column), axis=[k])

    return compute(result.shape, body, "matmul")


def _pooled(
    x: te.Tensor, attributes: Any, reducer: Callable[..., Expr], result: TensorType, name: str
) -> te.Tensor:
    """`reducer` over the windows of an already padded `x`."""
    rank = len(x.shape) - 2
    dilations = attributes.get("dilations") or (1,) * rank
    taps = [te.reduce_axis((0, n), name=f"k{d}") for d, n in enumerate(attributes["kernel_shape"])]

    def body(index: Sequence[Expr]) -> Expr:
        at = [
            o * s + t.var * d
            for o, s, t, d in zip(index[2:], attributes["strides"], taps, dilations, strict=True)
        ]
        return reducer(x(*index[:2], *at), axis=taps)

    return compute(result.shape, body, name)


def _max_pool(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    lowest, _ = limits(str(x.dtype))
    source = padded(x, *_spatial(op.attributes["pads"], len(x.shape) - 2), lowest, "padded")
    return _pooled(source, op.attributes, te.max, result, "max_pool")


def _average_pool(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    (x,) = inputs
    attributes: Any = op.attributes
    rank = len(x.shape) - 2
    begins, ends = _spatial(attributes["pads"], rank)
    extra = (0, 0, *(attributes.get("extra") or (0,) * rank))
    appended = tuple(e + m for e, m in zip(ends, extra, strict=True))
    total = _pooled(padded(x, begins, appended, 0, "padded"), attributes, te.sum, result, "sum")
    counted = bool(attributes["count_include_pad"])
    divisors = [
        _counted_positions(
            d,
            attributes,
            (0 if counted else begins[d + 2], shape_of(x)[d + 2] + begins[d + 2]),
            ends[d + 2] if counted else 0,
            appended[d + 2],
        )
        for d in range(rank)
    ]

    def body(index: Sequence[Expr]) -> Expr:
        count: Expr = 1
        for positions, i in zip(divisors, index[2:], strict=True):
            count = count * (positions(i) if callable(positions) else positions)
        if isinstance(count, int):
            return total(*index) * constant(1 / count, "float32")
        # A window of nothing but padding gives 0.
        return total(*index) / te.max(count, 1).astype("float32")

    return compute(result.shape, body, "average_pool")


def _counted_positions(
    dimension: int, attributes: Any, bounds: tuple[int, int], more: int, appended: int
) -> int | Callable[[Expr], Expr]:
    """How many of a window's positions are divided by: a number, or a function of its index.

    Positions count from the begin of the padding; those in [bounds[0], bounds[1] + more) count.
    """
    kernel, stride = attributes["kernel_shape"][dimension], attributes["strides"][dimension]
    dilation = (attributes.get("dilations") or (1,) * (dimension + 1))[dimension]
    low, high = bounds[0], bounds[1] + more
    if low == 0 and high == bounds[1] + appended:
        return int(kernel)

    def count(i: Expr) -> Expr:
        start = i * stride
        # Taps t with low <= start + t dilation < high.
        first = tirx.floordiv(te.max(low - start, 0) + dilation - 1, dilation)
        last = tirx.floordiv(te.max(high - start, 0) + dilation - 1, dilation)
        return te.max(te.min(last, kernel) - first, 0)

    return count


#: kind -> function(op, inputs, result type) that gives the result's tensor expression.
WINDOWS: dict[str, Callable[[Op, list[te.Tensor], TensorType], te.Tensor]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
}
