"""Tensor expressions of the operators that look along axes: reductions, norms, softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import te, tirx

from eecompile.ir import Op, TensorType
from eecompile.targets.lowering import approximations
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.tensors import (
    Expr,
    broadcast_at,
    compute,
    constant,
    limits,
    need_float,
    number,
    reduced,
    shape_of,
)

__all__ = ["AXES"]

Definition = Callable[[Op, list[te.Tensor], TensorType], te.Tensor]


_product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="product")


def _reduction(reducer: Callable[..., Expr]) -> Definition:
    def define(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
        (x,) = inputs
        if str(x.dtype) == "bool":
            raise UnsupportedOperator(op, "not defined on bool")
        axes, keepdims = _axes(op), bool(op.attributes["keepdims"])
        return reduced(shape_of(x), axes, keepdims, lambda i: x(*i), reducer, op.kind.lower())

    return define


def _mean(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    (x,) = inputs
    axes, keepdims = _axes(op), bool(op.attributes["keepdims"])
    count = prod(shape_of(x)[axis] for axis in axes)
    total = reduced(shape_of(x), axes, keepdims, lambda i: x(*i), te.sum, "sum")
    share = constant(1 / count, "float32")
    return compute(result.shape, lambda i: total(*i) * share, "mean")


def _axes(op: Op) -> tuple[int, ...]:
    axes: Any = op.attributes["axes"]
    return tuple(int(axis) for axis in axes)


def _arg(largest: bool) -> Definition:
    def define(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
        (x,) = inputs
        attributes: Any = op.attributes
        axis, last = attributes["axis"], bool(attributes["select_last_index"])
        low, high = limits(str(x.dtype))
        worst = constant(low if largest else high, str(x.dtype))

        def better(a: Expr, b: Expr) -> Expr:
            (i, x), (j, y) = a, b
            earlier = i > j if last else i < j
            wins = x > y if largest else x < y
            wins = tirx.any(wins, tirx.all(tirx.EQ(x, y), earlier))
            return tirx.Select(wins, i, j), tirx.Select(wins, x, y)

        # The identity's index loses every tie, so a row of infinities still answers truly.
        nowhere = tirx.const(-1 if last else shape_of(x)[axis], "int64")
        reducer = te.comm_reducer(better, lambda i_type, x_type: (nowhere, worst), name="arg")
        step = te.reduce_axis((0, shape_of(x)[axis]), name="r")

        def body(index: Sequence[Expr]) -> Expr:
            outer = list(index)
            outer[axis : axis + bool(attributes["keepdims"])] = [step.var]
            return reducer((step.var.astype("int64"), x(*outer)), axis=step)

        pair = te.compute(result.shape, lambda *i: body(i), name=op.kind.lower())
        return pair[0]

    return define


def _cumulative_sum(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    """Each element as its own sum: quadratic in the axis, and every element independent."""
    (x,) = inputs
    attributes: Any = op.attributes
    axis, dtype = attributes["axis"], str(x.dtype)
    step = te.reduce_axis((0, shape_of(x)[axis]), name="r")

    def body(index: Sequence[Expr]) -> Expr:
        i, j = index[axis], step.var
        near, far = (i, j) if attributes["reverse"] else (j, i)
        counts = near < far if attributes["exclusive"] else near <= far
        value = x(*index[:axis], j, *index[axis + 1 :])
        return te.sum(tirx.Select(counts, value, constant(0, dtype)), axis=[step])

    return compute(result.shape, body, "cumsum")


def _below_maximum(x: te.Tensor, axis: int) -> te.Tensor:
    """Distances below the maximum along `axis`: their exponentials cannot overflow."""
    highest = reduced(shape_of(x), [axis], True, lambda i: x(*i), te.max, "highest")
    return compute(shape_of(x), lambda i: x(*i) - broadcast_at(highest, i), "shifted")


def _powers(op: Op, inputs: list[te.Tensor]) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
    """Distances below the maximum, their exponentials, and the sums of those along the axis."""
    need_float(op, inputs)
    axis: Any = op.attributes["axis"]
    shifted = _below_maximum(inputs[0], axis)
    shape = shape_of(shifted)
    powers = compute(shape, lambda i: approximations.exp(shifted(*i)), "powers")
    return shifted, powers, reduced(shape, [axis], True, lambda i: powers(*i), te.sum, "total")


def _softmax(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    _, powers, total = _powers(op, inputs)
    return compute(result.shape, lambda i: powers(*i) / broadcast_at(total, i), "softmax")


def _log_softmax(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    shifted, _, total = _powers(op, inputs)
    log = compute(shape_of(total), lambda i: te.log(total(*i)), "log")
    return compute(result.shape, lambda i: shifted(*i) - broadcast_at(log, i), "log_softmax")


def _batch_norm(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    x, scale, bias, mean, variance = inputs
    epsilon = number(op, "epsilon")
    channels = shape_of(scale)
    factor = compute(channels, lambda c: scale(*c) / te.sqrt(variance(*c) + epsilon), "factor")
    shift = compute(channels, lambda c: bias(*c) - mean(*c) * factor(*c), "shift")
    return compute(result.shape, lambda i: x(*i) * factor(i[1]) + shift(i[1]), "batch_norm")


def _moments(x: te.Tensor, axes: Sequence[int], epsilon: float) -> tuple[te.Tensor, te.Tensor]:
    """Mean and 1 / deviation over `axes`, kept as dimensions of 1; the variance in two passes."""
    shape = shape_of(x)
    share = constant(1 / prod(shape[axis] for axis in axes), "float32")
    total = reduced(shape, axes, True, lambda i: x(*i), te.sum, "sum")
    mean = compute(shape_of(total), lambda i: total(*i) * share, "mean")

    def squared(index: Sequence[Expr]) -> Expr:
        distance = x(*index) - broadcast_at(mean, index)
        return distance * distance

    spread = reduced(shape, axes, True, squared, te.sum, "spread")
    inverse = compute(
        shape_of(spread), lambda i: 1.0 / te.sqrt(spread(*i) * share + epsilon), "inverse"
    )
    return mean, inverse


def _layer_norm(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    x, scale, bias = (*inputs, None)[:3]
    need_float(op, [x, scale])
    rank = len(x.shape)
    axis: Any = op.attributes["axis"]
    mean, inverse = _moments(x, range(axis, rank), number(op, "epsilon"))

    def normal(i: Sequence[Expr]) -> Expr:
        value = (x(*i) - broadcast_at(mean, i)) * broadcast_at(inverse, i)
        value = value * broadcast_at(scale, i)
        return value if bias is None else value + broadcast_at(bias, i)

    return compute(result.shape, normal, "layer_norm")


def _instance_norm(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    x, scale, bias = inputs
    mean, inverse = _moments(x, range(2, len(x.shape)), number(op, "epsilon"))

    def normal(i: Sequence[Expr]) -> Expr:
        value = (x(*i) - broadcast_at(mean, i)) * broadcast_at(inverse, i)
        return value * scale(i[1]) + bias(i[1])

    return compute(result.shape, normal, "instance_norm")


def _group_norm(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    need_float(op, inputs)
    x, scale, bias = inputs
    groups: Any = op.attributes["num_groups"]
    batch, channels, *spatial = result.shape
    members = channels // groups

    def member(i: Sequence[Expr]) -> Expr:
        return x(i[0], i[1] * members + i[2], *i[3:])

    grouped = compute((batch, groups, members, *spatial), member, "grouped")
    axes = range(2, len(result.shape) + 1)
    mean, inverse = _moments(grouped, axes, number(op, "epsilon"))

    def normal(i: Sequence[Expr]) -> Expr:
        at = [i[0], tirx.floordiv(i[1], members), *(0 for _ in axes)]
        return (x(*i) - mean(*at)) * inverse(*at) * scale(i[1]) + bias(i[1])

    return compute(result.shape, normal, "group_norm")


#: kind -> function(op, inputs, result type) that gives the result's tensor expression.
AXES: dict[str, Definition] = {
    "ArgMax": _arg(largest=True),
    "ArgMin": _arg(largest=False),
    "BatchNormalization": _batch_norm,
    "CumSum": _cumulative_sum,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "ReduceMax": _reduction(te.max),
    "ReduceMean": _mean,
    "ReduceMin": _reduction(te.min),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(te.sum),
    "Softmax": _softmax,
}
