"""Rules of the FX host for element-wise arithmetic, comparisons and reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log
from typing import Any

import numpy as np
import torch

from eecompile.passes.fx_builder import (
    Builder,
    Number,
    Rules,
    Untranslatable,
    Value,
    dtype_name,
)

__all__ = ["MATH_RULES"]

MATH_RULES = Rules()
on = MATH_RULES.on

# --- one tensor -----------------------------------------------------------------------------------

_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "hardswish": "HardSwish",
    "log": "Log",
    "logical_not": "Not",
    "mish": "Mish",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "special_erf": "Erf",
    "tanh": "Tanh",
}


def _unary(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value) -> Value:
        return b.op(kind, b.cast(x, b.out.dtype))

    return rule


for _name, _kind in _UNARY.items():
    on(f"{_name}.default")(_unary(_kind))


@on("bitwise_not.default")
def bitwise_not(b: Builder, x: Value) -> Value:
    """Not, of truth values."""
    if x.dtype != "bool":
        raise Untranslatable("bits of integers")
    return b.op("Not", x)


@on("rsqrt.default")
def rsqrt(b: Builder, x: Value) -> Value:
    """1 / sqrt(x)."""
    return b.op("Reciprocal", b.op("Sqrt", b.cast(x, b.out.dtype)))


@on("square.default")
def square(b: Builder, x: Value) -> Value:
    """X x."""
    return b.op("Mul", x, x)


@on("log1p.default")
def log1p(b: Builder, x: Value) -> Value:
    """log(1 + x)."""
    return b.op("Log", b.binary("Add", x, 1, b.out.dtype))


@on("expm1.default")
def expm1(b: Builder, x: Value) -> Value:
    """e^x - 1."""
    return b.binary("Sub", b.op("Exp", b.cast(x, b.out.dtype)), 1, b.out.dtype)


@on("log2.default")
def log2(b: Builder, x: Value) -> Value:
    """log(x) / log(2)."""
    return b.binary("Mul", b.op("Log", b.cast(x, b.out.dtype)), 1 / log(2), b.out.dtype)


# --- two tensors ----------------------------------------------------------------------------------


def _arithmetic(b: Builder, kind: str, x: Value | Number, y: Value | Number) -> Value:
    if b.out.dtype == "bool":
        kind = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}.get(kind, kind)
    return b.binary(kind, x, y, b.out.dtype)


def _with_alpha(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, y: Value | Number, alpha: Number = 1) -> Value:
        if alpha != 1:
            y = _arithmetic(b, "Mul", y, alpha)
        return _arithmetic(b, kind, x, y)

    return rule


def _plain(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value | Number, y: Value | Number) -> Value:
        return _arithmetic(b, kind, x, y)

    return rule


on("add.Tensor", "add.Scalar")(_with_alpha("Add"))
on("sub.Tensor", "sub.Scalar")(_with_alpha("Sub"))
on("mul.Tensor", "mul.Scalar")(_plain("Mul"))
on("div.Tensor", "div.Scalar", "true_divide.Tensor")(_plain("Div"))
on("maximum.default", "max.other")(_plain("Max"))
on("minimum.default", "min.other")(_plain("Min"))
on("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")(_plain("Pow"))


@on("rsub.Tensor", "rsub.Scalar")
def rsub(b: Builder, x: Value, y: Value | Number, alpha: Number) -> Value:
    """Y - alpha x."""
    if alpha != 1:
        x = _arithmetic(b, "Mul", x, alpha)
    return _arithmetic(b, "Sub", y, x)


@on("div.Tensor_mode", "div.Scalar_mode")
def divide(b: Builder, x: Value, y: Value | Number, rounding_mode: str | None) -> Value:
    """Quotient, rounded down, towards 0 or not at all."""
    dtype = b.out.dtype
    if not dtype.startswith("float"):
        if rounding_mode == "trunc":
            return b.binary("Div", x, y, dtype)
        # Floor: the remainder has the divisor's sign, so what is left divides exactly.
        rest = b.binary("Mod", x, y, dtype)
        return b.binary("Div", b.binary("Sub", x, rest, dtype), y, dtype)
    quotient = b.binary("Div", x, y, dtype)
    if rounding_mode == "floor":
        return b.op("Floor", quotient)
    if rounding_mode == "trunc":
        return b.op("Mul", b.op("Sign", quotient), b.op("Floor", b.op("Abs", quotient)))
    return quotient


@on("floor_divide.default", "floor_divide.Scalar")
def floor_divide(b: Builder, x: Value, y: Value | Number) -> Value:
    """Quotient, rounded down."""
    return divide(b, x, y, "floor")


@on("remainder.Tensor", "remainder.Scalar")
def remainder(b: Builder, x: Value, y: Value | Number) -> Value:
    """X - floor(x / y) y."""
    dtype = b.out.dtype
    if not dtype.startswith("float"):
        return b.binary("Mod", x, y, dtype)
    whole = b.op("Floor", b.binary("Div", x, y, dtype))
    return b.binary("Sub", x, b.binary("Mul", whole, y, dtype), dtype)


@on("fmod.Tensor", "fmod.Scalar")
def fmod(b: Builder, x: Value, y: Value | Number) -> Value:
    """The remainder with the dividend's sign."""
    if not b.out.dtype.startswith("float"):
        raise Untranslatable("remainder of integers with the dividend's sign")
    return b.binary("Mod", x, y, b.out.dtype)


def _dummy(x: Value | Number) -> Any:
    if not isinstance(x, Value):
        return x
    return torch.empty((1,) * x.ndim, dtype=getattr(torch, x.dtype))


def _comparison(kind: str, negated: bool = False) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, y: Value | Number) -> Value:
        dtype = dtype_name(torch.result_type(_dummy(x), _dummy(y)))
        if dtype == "bool" and kind != "Equal":
            dtype = "int32"
        result = b.binary(kind, x, y, dtype)
        return b.op("Not", result) if negated else result

    return rule


for _name, _kind in {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}.items():
    on(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_kind))
on("ne.Tensor", "ne.Scalar")(_comparison("Equal", negated=True))


def _logical(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, y: Value | Number) -> Value:
        if b.out.dtype != "bool":
            raise Untranslatable("bits of integers")
        return b.binary(kind, x, y, "bool")

    return rule


for _name, _kind in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    _overloads = (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"__{_name}__.Tensor")
    on(f"logical_{_name}.default", *_overloads)(_logical(_kind))


# --- choosing -------------------------------------------------------------------------------------


@on("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(b: Builder, condition: Value, x: Value | Number, y: Value | Number) -> Value:
    """X where the condition holds, else y."""
    dtype = b.out.dtype
    return b.op("Where", b.cast(condition, "bool"), b.value(x, dtype), b.value(y, dtype))


@on("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(b: Builder, x: Value, mask: Value, value: Value | Number) -> Value:
    """The value where the mask holds, else x."""
    return where(b, mask, value, x)


@on("clamp.default")
def clamp(b: Builder, x: Value, low: Number | None = None, high: Number | None = None) -> Value:
    """Clipped."""
    x = b.cast(x, b.out.dtype)
    if x.dtype == "float32":
        low, high = (-inf if low is None else low), (inf if high is None else high)
        return b.op("Clip", x, min=float(low), max=float(high))
    if low is not None:
        x = b.binary("Max", x, low, x.dtype)
    return x if high is None else b.binary("Min", x, high, x.dtype)


@on("clamp_min.default")
def clamp_min(b: Builder, x: Value, low: Number) -> Value:
    """Clipped from below."""
    return clamp(b, x, low)


@on("clamp_max.default")
def clamp_max(b: Builder, x: Value, high: Number) -> Value:
    """Clipped from above."""
    return clamp(b, x, None, high)


@on("clamp.Tensor")
def clamp_tensor(b: Builder, x: Value, low: Value | None, high: Value | None) -> Value:
    """Clipped by tensors."""
    if low is not None:
        x = _arithmetic(b, "Max", x, low)
    return x if high is None else _arithmetic(b, "Min", x, high)


on("clamp_min.Tensor")(_plain("Max"))
on("clamp_max.Tensor")(_plain("Min"))


@on("addcmul.default")
def addcmul(b: Builder, x: Value, y: Value, z: Value, value: Number) -> Value:
    """X + value y z."""
    product = _arithmetic(b, "Mul", y, z)
    return _with_alpha("Add")(b, x, product, value)


@on("addcdiv.default")
def addcdiv(b: Builder, x: Value, y: Value, z: Value, value: Number) -> Value:
    """X + value y / z."""
    return _with_alpha("Add")(b, x, _arithmetic(b, "Div", y, z), value)


@on("lerp.Scalar", "lerp.Tensor")
def lerp(b: Builder, x: Value, y: Value, weight: Value | Number) -> Value:
    """X + weight (y - x)."""
    return _arithmetic(b, "Add", x, _arithmetic(b, "Mul", _arithmetic(b, "Sub", y, x), weight))


# --- reductions -----------------------------------------------------------------------------------


def _axes(x: Value, dim: int | Sequence[int] | None) -> list[int]:
    """The dimensions to reduce: all, where none is given."""
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return list(range(x.ndim))
    return [d % max(1, x.ndim) for d in ([dim] if isinstance(dim, int) else dim)][: x.ndim]


def _reduction(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, dim: Any = None, keepdim: bool = False, *_: Any) -> Value:
        return b.reduce(kind, b.cast(x, b.out.dtype), _axes(x, dim), keepdim)

    return rule


def _total(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, *_: Any) -> Value:
        return b.reduce(kind, b.cast(x, b.out.dtype), range(x.ndim), False)

    return rule


on("mean.dim")(_reduction("ReduceMean"))
on("sum.dim_IntList")(_reduction("ReduceSum"))
on("amax.default")(_reduction("ReduceMax"))
on("amin.default")(_reduction("ReduceMin"))
on("prod.dim_int")(_reduction("ReduceProd"))
on("mean.default")(_total("ReduceMean"))
on("sum.default")(_total("ReduceSum"))
on("prod.default")(_total("ReduceProd"))
on("max.default")(_total("ReduceMax"))
on("min.default")(_total("ReduceMin"))


def _argument(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, dim: int | None, keepdim: bool) -> Value:
        if dim is None:
            if keepdim:
                raise Untranslatable("keepdim without a dimension")
            x, dim = b.reshape(x, (x.type.size,)), 0
        axis = dim % max(1, x.ndim)
        return b.op(kind, x, axis=axis, keepdims=int(keepdim), select_last_index=0)

    return rule


on("argmax.default")(_argument("ArgMax"))
on("argmin.default")(_argument("ArgMin"))


def _extremum(reduction: str, position: str) -> Callable[..., Value]:
    def rule(b: Builder, index: int, x: Value, dim: int, keepdim: bool = False) -> Value:
        if index == 0:
            return b.reduce(reduction, x, _axes(x, dim), keepdim)
        return _argument(position)(b, x, dim, keepdim)

    return rule


on("max.dim#")(_extremum("ReduceMax", "ArgMax"))
on("min.dim#")(_extremum("ReduceMin", "ArgMin"))


def _variance(b: Builder, x: Value, axes: list[int], correction: Number, keepdim: bool) -> Value:
    centred = b.op("Sub", x, b.reduce("ReduceMean", x, axes, True))
    n = int(np.prod([x.shape[axis] for axis in axes]))
    if n - correction <= 0:
        raise Untranslatable("the variance of too few values")
    mean = b.reduce("ReduceMean", b.op("Mul", centred, centred), axes, keepdim)
    return b.binary("Mul", mean, n / (n - correction), x.dtype) if correction else mean


@on("var.correction")
def var(b: Builder, x: Value, dim: Any, correction: Number | None, keepdim: bool) -> Value:
    """Variance."""
    return _variance(b, x, _axes(x, dim), 1 if correction is None else correction, keepdim)


@on("var.dim")
def var_dim(b: Builder, x: Value, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    """Variance, by n - 1 or n."""
    return _variance(b, x, _axes(x, dim), int(unbiased), keepdim)


@on("std.correction")
def std(b: Builder, x: Value, dim: Any, correction: Number | None, keepdim: bool) -> Value:
    """Standard deviation."""
    return b.op("Sqrt", var(b, x, dim, correction, keepdim))


@on("std.dim")
def std_dim(b: Builder, x: Value, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    """Standard deviation, by n - 1 or n."""
    return b.op("Sqrt", var_dim(b, x, dim, unbiased, keepdim))


@on("var_mean.correction#")
def var_mean(
    b: Builder, index: int, x: Value, dim: Any, correction: Number | None, keepdim: bool
) -> Value:
    """Variance and mean."""
    if index == 0:
        return var(b, x, dim, correction, keepdim)
    return b.reduce("ReduceMean", x, _axes(x, dim), keepdim)


@on("linalg_vector_norm.default")
def vector_norm(b: Builder, x: Value, order: Number, dim: Any, keepdim: bool, _: Any) -> Value:
    """Euclidean, absolute or greatest norm."""
    axes = _axes(x, dim)
    if order == 2:
        return b.op("Sqrt", b.reduce("ReduceSum", b.op("Mul", x, x), axes, keepdim))
    if order not in (1, inf):
        raise Untranslatable(f"norm of order {order}")
    return b.reduce("ReduceSum" if order == 1 else "ReduceMax", b.op("Abs", x), axes, keepdim)


@on("norm.ScalarOpt_dim")
def norm(b: Builder, x: Value, order: Number | None, dim: Any, keepdim: bool) -> Value:
    """The older name."""
    return vector_norm(b, x, 2 if order is None else order, dim, keepdim, None)


@on("logsumexp.default")
def logsumexp(b: Builder, x: Value, dim: Any, keepdim: bool) -> Value:
    """The logarithm of the sum of exponentials, by way of the greatest."""
    axes = _axes(x, dim)
    greatest = b.reduce("ReduceMax", x, axes, True)
    total = b.reduce("ReduceSum", b.op("Exp", b.op("Sub", x, greatest)), axes, True)
    return b.reshape(b.op("Add", b.op("Log", total), greatest), b.out.shape)


@on("cumsum.default")
def cumsum(b: Builder, x: Value, dim: int, _: Any) -> Value:
    """Running sum."""
    return b.op("CumSum", b.cast(x, b.out.dtype), axis=dim % x.ndim, exclusive=0, reverse=0)
