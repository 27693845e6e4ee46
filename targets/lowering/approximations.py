"""Element-wise functions of float32 as short straight-line code, so that loops over them vectorise.

A call into libm stops the vectoriser; these are additions, multiplications, comparisons and one or
two divisions. Every function is within 1e-6 of the exact value, relatively, over all of float32
(`tests/lowering/test_operators.py` measures it), and saturates to the same limits.

Source: polynomials are minimax fits of our own in the weight named beside each, printed by
``benchmarks/fit_polynomials.py`` with the error that the fit leaves before rounding. Splitting ln 2
in two so that n ln 2 is exact: W. Cody, W. Waite, Software Manual for the Elementary Functions,
1980, chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

__all__ = [
    "bounded_exp",
    "erf",
    "exp",
    "expm1_negative",
    "gelu",
    "mish",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]

Expr = Any

_LOG2_E = 1.4426950408889634
#: Added to a float32 below 2^22 it leaves the nearest whole number, plus 127, in the last bits.
_ROUNDER = 1.5 * 2**23 + 127
_LN2_HIGH = 0.693359375  # 355 / 512: nine bits, so n times it is exact
_LN2_LOW = -2.12194440054690583e-4

#: (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative to e^r: 3.1e-9.
_EXP = (0.49999994, 0.166665211, 0.041668389, 0.00836871658, 0.00138145988)
#: The same with one coefficient less: 1.0e-7.
_EXP_SHORT = (0.499992311, 0.166671142, 0.0418901555, 0.00831252057)
#: (tanh(x) / x - 1) / x^2 in x^2, |x| <= 0.625, relative to tanh: 4.1e-9.
_TANH = (-0.333332837, 0.133314908, -0.0537434965, 0.0206505861, -0.0057170447)
#: erf(x) / x in 2 (x / _ERF_END)^2 - 1, |x| <= _ERF_END, relative to erf: 7.7e-8.
_ERF = (
    0.368958026, -0.184114739, 0.136746064, -0.11066056, 0.0908274278, -0.0730819926, 0.0560066998,
    -0.0397713967, 0.0275453236, -0.0197819695, 0.011046459, -0.00315027148, 0.00222959812,
    -0.00316569814, 0.00129283965,
)  # fmt: skip
#: Where erf is 1 but for 6e-8, half the distance from 1 to the float32 below.
_ERF_END = 3.832506856900711
#: (2 atanh(s) / s - 2) / s^2 in s^2, 0 <= s <= 1/3, relative to 2 atanh(s): 4.6e-9.
_LOG1P = (0.666664124, 0.400217712, 0.279978633, 0.280312747)


def exp(x: Expr) -> Expr:
    """e^x, through 2^n e^r with |r| <= ln(2) / 2; infinite and denormal results included."""

    def scaled(r: Expr, n: Expr) -> Expr:
        # 2^n itself need not be representable where the result is: two factors always are.
        half = tirx.shift_right(n, tirx.const(1, "int32"))
        return (r * r * _polynomial(_EXP, r) + r + 1.0) * _power_of_2(half) * _power_of_2(n - half)

    return _split(te.max(te.min(x, _float(89.0)), _float(-104.0)), scaled)


def bounded_exp(x: Expr) -> Expr:
    """e^x for x in [-87, 87], at a half of `exp`'s price; e^-87 below, e^87 above.

    The nearest whole number n to x / ln 2 is found by adding a large constant; its bits then make
    the factor 2^n.
    """

    def scaled(x: Expr, shifted: Expr) -> Expr:
        n = shifted - _float(_ROUNDER)
        power = tirx.reinterpret(
            "float32",
            tirx.shift_left(tirx.reinterpret("int32", shifted), tirx.const(23, "int32")),
        )
        r = _let(n, lambda n: x - n * _LN2_HIGH - n * _LN2_LOW)
        return _let(r, lambda r: _polynomial((1.0, 1.0, *_EXP_SHORT), r)) * power

    bounded = te.max(te.min(x, _float(87.0)), _float(-87.0))
    return _let(bounded, lambda x: _let(x * _LOG2_E + _float(_ROUNDER), lambda t: scaled(x, t)))


def expm1_negative(x: Expr) -> Expr:
    """e^x - 1 where x <= 0, without cancellation near 0; 0 where x > 0."""

    def scaled(r: Expr, n: Expr) -> Expr:
        return _let(_power_of_2(n), lambda p: (r * r * _polynomial(_EXP, r) + r) * p + (p - 1.0))

    return _split(te.max(te.min(x, _float(0.0)), _float(-87.0)), scaled)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x); what is below 2e-38 is 2e-38 or less."""
    return 1.0 / (1.0 + bounded_exp(0.0 - x))


def silu(x: Expr) -> Expr:
    """The value times its own sigmoid, x / (1 + e^-x): one division and no product."""
    return _let(x, lambda x: x / (1.0 + bounded_exp(0.0 - x)))


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent: odd polynomial near 0, (1 - e) / (1 + e) with e = e^-2|x| elsewhere."""

    def of(x: Expr) -> Expr:
        near = _let(x * x, lambda z: x + x * z * _polynomial(_TANH, z))
        far = _let(bounded_exp(-2.0 * te.abs(x)), lambda e: (1.0 - e) / (1.0 + e))
        return _chosen(te.abs(x) <= 0.625, near, _signed(far, x))

    return _let(x, of)


def erf(x: Expr) -> Expr:
    """The error function: one odd polynomial up to where it is 1, and its end beyond.

    In a variable that runs from -1 to 1 the polynomial's terms stay small, and nothing cancels.
    """

    def of(x: Expr) -> Expr:
        return x * _let(x * x * (2 / _ERF_END**2) - 1.0, lambda t: _polynomial(_ERF, t))

    return _let(te.max(te.min(x, _float(_ERF_END)), _float(-_ERF_END)), of)


def gelu(x: Expr, approximate: str) -> Expr:
    """The normal distribution's function times x, or its "tanh" approximation.

    Source: D. Hendrycks, K. Gimpel, Gaussian Error Linear Units, 2016, section 2.
    """
    if approximate == "tanh":
        inner = 0.7978845608028654  # sqrt(2 / pi)
        return _let(x, lambda x: 0.5 * x * (1.0 + tanh(inner * (x + 0.044715 * x * x * x))))
    return _let(x, lambda x: 0.5 * x * (1.0 + erf(x * 0.7071067811865476)))


def softplus(x: Expr) -> Expr:
    """log(1 + e^x) as max(x, 0) + log1p(e^-|x|)."""

    def log1p(e: Expr) -> Expr:
        # log(1 + e) = 2 atanh(e / (2 + e)), and e <= 1 keeps the argument below 1/3.
        return _let(
            e / (2.0 + e),
            lambda s: _let(s * s, lambda z: 2.0 * s + s * z * _polynomial(_LOG1P, z)),
        )

    return _let(x, lambda x: te.max(x, _float(0.0)) + _let(exp(0.0 - te.abs(x)), log1p))


def mish(x: Expr) -> Expr:
    """Mish, x tanh(log(1 + e^x)): that is x n / (n + 2) with n = e^x (e^x + 2)."""

    def of(x: Expr) -> Expr:
        # From 20 on the quotient rounds to 1; without the bound n would overflow.
        n = _let(exp(te.min(x, _float(20.0))), lambda e: e * (e + 2.0))
        return _let(n, lambda n: x * (n / (n + 2.0)))

    return _let(x, of)


def _split(x: Expr, scaled: Callable[[Expr, Expr], Expr]) -> Expr:
    """`scaled(r, n)` with x = n ln 2 + r, |r| <= ln(2) / 2 and n an int32."""

    def reduced(x: Expr) -> Expr:
        def remainder(n: Expr) -> Expr:
            return _let(
                x - n * _LN2_HIGH - n * _LN2_LOW,
                lambda r: _let(n.astype("int32"), lambda i: scaled(r, i)),
            )

        return _let(te.floor(x * _LOG2_E + 0.5), remainder)

    return _let(x, reduced)


def _power_of_2(n: Expr) -> Expr:
    """2^n for n in [-126, 127], by writing the exponent field of a float32."""
    bits = tirx.shift_left(n + 127, tirx.const(23, "int32"))
    return tirx.reinterpret("float32", bits)


def _polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's scheme, the constant coefficient first."""
    total = _float(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + _float(coefficient)
    return total


def _signed(magnitude: Expr, x: Expr) -> Expr:
    return _let(magnitude, lambda m: tirx.Select(x < 0.0, 0.0 - m, m))


def _chosen(condition: Expr, a: Expr, b: Expr) -> Expr:
    # NOTE: a Let inside a Select makes TVM unroll the vector into scalars; names before it do not.
    return _let(a, lambda a: _let(b, lambda b: tirx.Select(condition, a, b)))


def _float(value: float) -> Expr:
    return tirx.const(value, "float32")


def _let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body(value)` with the value computed once: expressions are trees, and would copy it."""
    name = tirx.Var("t", value.ty)
    return tirx.Let(name, value, body(name))
