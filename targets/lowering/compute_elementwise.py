"""Tensor expressions of the operators that treat every element alone."""

from __future__ import annotations

import operator
from collections.abc import Callable

from tvm import te, tirx

from eecompile.ir import Op, TensorType
from eecompile.targets.lowering import approximations
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.tensors import (
    Expr,
    Index,
    broadcast_at,
    compute,
    constant,
    limits,
    number,
    shape_of,
)

__all__ = ["ELEMENTWISE", "power_of"]


def _need(op: Op, x: te.Tensor, kinds: str) -> None:
    """Refuses element types outside `kinds`: "f" float32, "i" integers, "b" bool."""
    kind = {"f": "f", "b": "b"}.get(str(x.dtype)[0], "i")
    if kind not in kinds or str(x.dtype) in ("float16", "float64", "bfloat16"):
        raise UnsupportedOperator(op, f"not defined on {x.dtype}")


def _unary(
    kinds: str, function: Callable[[Expr, str], Expr]
) -> Callable[[Op, list[te.Tensor], TensorType], te.Tensor]:
    def define(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
        (x,) = inputs
        _need(op, x, kinds)
        return compute(result.shape, lambda i: function(x(*i), str(x.dtype)), op.kind.lower())

    return define


def _binary(
    kinds: str, function: Callable[[Expr, Expr, str], Expr]
) -> Callable[[Op, list[te.Tensor], TensorType], te.Tensor]:
    def define(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
        a, b = inputs
        _need(op, a, kinds)
        if a.dtype != b.dtype:
            raise UnsupportedOperator(op, f"operands of types {a.dtype} and {b.dtype}")
        return compute(
            result.shape,
            lambda i: function(broadcast_at(a, i), broadcast_at(b, i), str(a.dtype)),
            op.kind.lower(),
        )

    return define


def _of_value(function: Callable[[Expr], Expr]) -> Callable[[Expr, str], Expr]:
    return lambda x, dtype: function(x)


def _abs(x: Expr, dtype: str) -> Expr:
    if dtype == "float32":
        return te.abs(x)
    return x if dtype[0] == "u" else tirx.Select(x < constant(0, dtype), constant(0, dtype) - x, x)


def _sign(x: Expr, dtype: str) -> Expr:
    zero, one = constant(0, dtype), constant(1, dtype)
    negative = zero if dtype[0] == "u" else constant(-1, dtype)
    return tirx.Select(x > zero, one, tirx.Select(x < zero, negative, zero))


def _logic(function: Callable[..., Expr]) -> Callable[[Expr, Expr, str], Expr]:
    return lambda a, b, dtype: function(a, b)


def _comparison(function: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr, str], Expr]:
    def compare(a: Expr, b: Expr, dtype: str) -> Expr:
        if dtype == "bool":
            a, b = a.astype("int32"), b.astype("int32")
        return function(a, b)

    return compare


def _divide(a: Expr, b: Expr, dtype: str) -> Expr:
    return a / b if dtype == "float32" else tirx.truncdiv(a, _divisor(b, dtype))


def _modulo(a: Expr, b: Expr, dtype: str) -> Expr:
    if dtype == "float32":
        # TVM's own fmod has no rule in its LLVM generator; libm's is what every platform links.
        return tirx.call_pure_extern("float32", "fmodf", a, b)
    b = _divisor(b, dtype)
    remainder = tirx.truncmod(a, b)
    if dtype[0] == "u":
        return remainder
    zero = constant(0, dtype)
    # A remainder of 0 has no sign; comparing two comparisons is nothing LLVM's generator accepts.
    below, above = tirx.all(remainder < zero, b > zero), tirx.all(remainder > zero, b < zero)
    other_sign = tirx.any(below, above)
    return tirx.Select(other_sign, remainder + b, remainder)


def _divisor(b: Expr, dtype: str) -> Expr:
    # A division by zero would end the process that runs the kernel.
    return tirx.Select(tirx.EQ(b, constant(0, dtype)), constant(1, dtype), b)


def _multiply(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    """A product; of a value and its own sigmoid, as networks write SiLU, in one formula."""
    for x, gate in (inputs, inputs[::-1]):
        if gate.op.name == "sigmoid" and list(gate.op.input_tensors) == [x]:
            return _silu(x, result)
    return _binary("fi", lambda a, b, dtype: a * b)(op, inputs, result)


def _silu(x: te.Tensor, result: TensorType) -> te.Tensor:
    return compute(result.shape, lambda i: approximations.silu(x(*i)), "silu")


def _power(a: Expr, b: Expr, dtype: str) -> Expr:
    if dtype == "float32":
        return te.power(a, b)
    return te.nearbyint(te.power(a.astype("float64"), b.astype("float64"))).astype(dtype)


def power_of(a: Expr, exponent: float) -> Expr | None:
    """a^exponent without a call into libm, None where there is no short form."""
    match exponent:
        case 0.5:
            return te.sqrt(a)
        case 1.0:
            return a
        case 2.0:
            return a * a
        case 3.0:
            return a * a * a
        case -1.0:
            return 1.0 / a
        case -0.5:
            return 1.0 / te.sqrt(a)
    return None


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    low, high = constant(0, "float32"), constant(1, "float32")
    return te.max(te.min(x * alpha + beta, high), low)


def _parametric(
    function: Callable[[Op, Expr], Expr], kinds: str = "f"
) -> Callable[[Op, list[te.Tensor], TensorType], te.Tensor]:
    def define(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
        (x,) = inputs
        _need(op, x, kinds)
        return compute(result.shape, lambda i: function(op, x(*i)), op.kind.lower())

    return define


def _celu(op: Op, x: Expr) -> Expr:
    alpha = number(op, "alpha")
    if alpha <= 0:
        raise UnsupportedOperator(op, f"alpha = {alpha}, and only positive ones are")
    positive = te.max(x, constant(0, "float32"))
    return positive + alpha * approximations.expm1_negative(x / alpha)


def _elu(op: Op, x: Expr) -> Expr:
    below = number(op, "alpha") * approximations.expm1_negative(x)
    return tirx.Select(x < 0.0, below, x)


def _selu(op: Op, x: Expr) -> Expr:
    alpha, gamma = number(op, "alpha"), number(op, "gamma")
    below = alpha * gamma * approximations.expm1_negative(x)
    return te.max(x, constant(0, "float32")) * gamma + below


def _clip(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    _need(op, x, "fi")
    dtype = str(x.dtype)
    low, high = limits(dtype)
    lower = max(number(op, "min"), low)
    upper = min(number(op, "max"), high)

    def clipped(value: Expr) -> Expr:
        if lower > low:
            value = te.max(value, constant(lower, dtype))
        return te.min(value, constant(upper, dtype)) if upper < high else value

    return compute(result.shape, lambda i: clipped(x(*i)), "clip")


def _cast(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    source, target = str(x.dtype), result.dtype

    def cast(value: Expr) -> Expr:
        if source == target:
            return value
        if target == "bool":
            return value != tirx.const(0, source)
        if source == "bool":
            # There is no instruction from a bit to a float; there is one from int32.
            return value.astype("int32").astype(target)
        return value.astype(target)

    return compute(result.shape, lambda i: cast(x(*i)), "cast")


def _where(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    condition, a, b = inputs

    def chosen(i: Index) -> Expr:
        return tirx.Select(broadcast_at(condition, i), broadcast_at(a, i), broadcast_at(b, i))

    return compute(result.shape, chosen, "where")


def _quantisation(
    op: Op, inputs: list[te.Tensor]
) -> tuple[te.Tensor, Callable[[Index], Expr], Callable[[Index], Expr]]:
    """x, and functions that give the scale and the zero point (int32) of an index."""
    x, scale, zero = (*inputs, None)[:3]
    rank, axis = len(x.shape), int(number(op, "axis"))

    def parameter(values: te.Tensor, i: Index) -> Expr:
        shape = shape_of(values)
        if not shape:
            return values()
        if len(shape) != 1 or (shape[0] != 1 and axis >= rank):
            raise UnsupportedOperator(op, f"scale or zero point of shape {shape}")
        return values(0 if shape[0] == 1 else i[axis])

    def zero_point(i: Index) -> Expr:
        return constant(0, "int32") if zero is None else parameter(zero, i).astype("int32")

    return x, lambda i: parameter(scale, i), zero_point


def _quantize(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    _need(op, inputs[0], "f")
    x, scale, zero_point = _quantisation(op, inputs)
    low, high = limits(result.dtype)

    def quantised(i: Index) -> Expr:
        # Clamped as a float: converting one beyond int32 is not defined.
        shifted = te.nearbyint(x(*i) / scale(i)) + zero_point(i).astype("float32")
        bounded = te.max(te.min(shifted, constant(high, "float32")), constant(low, "float32"))
        return bounded.astype("int32").astype(result.dtype)

    return compute(result.shape, quantised, "quantize")


def _dequantize(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    _need(op, inputs[0], "i")
    x, scale, zero_point = _quantisation(op, inputs)

    def real(i: Index) -> Expr:
        return (x(*i).astype("int32") - zero_point(i)).astype("float32") * scale(i)

    return compute(result.shape, real, "dequantize")


def _keep(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    """Channels whose group's score is above 0, else zeros.

    `where` says that only "kept" ones or those "left out" are asked for, `unread` (see `keeping`)
    that nobody reads the latter: anything may then be there.
    """
    x, scores, *_ = inputs
    where = op.attributes.get("where", "kept" if op.attributes.get("unread") else None)
    if where is not None:
        zero = constant(0, "float32")
        return compute(result.shape, lambda i: x(*i) if where == "kept" else zero, "keep")
    axis = len(result.shape) - 1 if op.attributes.get("channels_last") else 1
    each = result.shape[axis] // shape_of(scores)[1]

    def kept(i: Index) -> Expr:
        score = scores(0, tirx.floordiv(i[axis], each))
        return tirx.Select(score > 0.0, x(*i), constant(0, "float32"))

    return compute(result.shape, kept, "keep")


_MATH: dict[str, Callable[[Expr], Expr]] = {
    "Ceil": te.ceil,
    "Cos": te.cos,
    "Erf": approximations.erf,
    "Exp": approximations.exp,
    "Floor": te.floor,
    "HardSwish": lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "Log": te.log,
    "Mish": approximations.mish,
    "Reciprocal": lambda x: 1.0 / x,
    "Round": te.nearbyint,  # half to even; te.round need not be
    "Sigmoid": approximations.sigmoid,
    "Sin": te.sin,
    "Softplus": approximations.softplus,
    "Softsign": lambda x: x / (1.0 + te.abs(x)),
    "Sqrt": te.sqrt,
    "Tanh": approximations.tanh,
}


#: kind -> function(op, inputs, result type) that gives the result's tensor expression.
ELEMENTWISE: dict[str, Callable[[Op, list[te.Tensor], TensorType], te.Tensor]] = {
    **{kind: _unary("f", _of_value(function)) for kind, function in _MATH.items()},
    "Abs": _unary("fi", _abs),
    "Neg": _unary("fi", lambda x, dtype: constant(0, dtype) - x),
    "Not": _unary("b", lambda x, dtype: tirx.Not(x)),
    "Relu": _unary("fi", lambda x, dtype: te.max(x, constant(0, dtype))),
    "Sign": _unary("fi", _sign),
    "Add": _binary("fi", lambda a, b, dtype: a + b),
    "And": _binary("b", _logic(tirx.And)),
    "Div": _binary("fi", _divide),
    "Equal": _binary("fib", _comparison(tirx.EQ)),
    "Greater": _binary("fi", _comparison(operator.gt)),
    "GreaterOrEqual": _binary("fi", _comparison(operator.ge)),
    "Less": _binary("fi", _comparison(operator.lt)),
    "LessOrEqual": _binary("fi", _comparison(operator.le)),
    "Max": _binary("fi", _logic(te.max)),
    "Min": _binary("fi", _logic(te.min)),
    "Mod": _binary("fi", _modulo),
    "Or": _binary("b", _logic(tirx.Or)),
    "PRelu": _binary("f", lambda a, b, dtype: tirx.Select(a >= 0.0, a, a * b)),
    "Pow": _binary("fi", _power),
    "Sub": _binary("fi", lambda a, b, dtype: a - b),
    "Xor": _binary("b", _comparison(tirx.NE)),
    "Cast": _cast,
    "Celu": _parametric(_celu),
    "Clip": _clip,
    "DequantizeLinear": _dequantize,
    "Elu": _parametric(_elu),
    "Gelu": _parametric(lambda op, x: approximations.gelu(x, str(op.attributes["approximate"]))),
    "HardSigmoid": _parametric(
        lambda op, x: _hard_sigmoid(x, number(op, "alpha"), number(op, "beta"))
    ),
    "Keep": _keep,
    "LeakyRelu": _parametric(lambda op, x: tirx.Select(x < 0.0, x * number(op, "alpha"), x)),
    "QuantizeLinear": _quantize,
    "Selu": _parametric(_selu),
    "ThresholdedRelu": _parametric(
        lambda op, x: tirx.Select(x > number(op, "alpha"), x, constant(0, "float32"))
    ),
    "Mul": _multiply,
    "Where": _where,
}
