"""Print the polynomials of `targets/lowering/approximations.py` and the error each fit leaves.

A fit is minimax in the stated weight, by Lawson's iteration: least squares on Chebyshev points,
re-weighted by the error until its peaks are level. Needs numpy only:

    python benchmarks/fit_polynomials.py

Source: C. Lawson, Contributions to the Theory of Linear Least Maximum Approximation, 1961.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

Function = Callable[[Any], Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])
#: Where erf is 1 but for half the distance to the float32 below.
_ERF_END = 3.832506856900711


def fit(
    function: Function, low: float, high: float, degree: int, weight: Function
) -> tuple[np.ndarray, float]:
    """Coefficients from the constant up, and the largest weighted error."""
    count = 4000
    t = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    x = (low + high) / 2 + (high - low) / 2 * t
    wanted, importance = function(x), weight(x)
    basis = np.polynomial.chebyshev.chebvander(t, degree)
    share = np.full(count, 1 / count)
    best, least = np.zeros(degree + 1), np.inf
    for _ in range(200):
        scale = np.sqrt(share) * importance
        solution = np.linalg.lstsq(basis * scale[:, None], wanted * scale, rcond=None)[0]
        error = np.abs((basis @ solution - wanted) * importance)
        if error.max() < least:
            best, least = solution, float(error.max())
        share = share * error / (share * error).sum()
    powers = Chebyshev(best, domain=[low, high]).convert(kind=Polynomial)
    return np.asarray(powers.coef), least


def _exp_rest(r: Any) -> Any:
    """(e^r - 1 - r) / r^2, by its series where the quotient would cancel."""
    safe = np.where(np.abs(r) < 2e-3, 1.0, r)
    return np.where(np.abs(r) < 2e-3, 0.5 + r / 6 + r * r / 24, (np.expm1(r) - r) / safe**2)


def _in_erf(t: Any) -> Any:
    """The argument of erf whose square t stands for."""
    return _ERF_END * np.sqrt((t + 1) / 2)


def main() -> None:
    half_ln2 = math.log(2) / 2 * 1.0001
    sqrt = np.sqrt
    rows: dict[str, tuple[Function, float, float, int, Function]] = {
        "_EXP": (_exp_rest, -half_ln2, half_ln2, 4, lambda r: r**2 / np.exp(r)),
        "_EXP_SHORT": (_exp_rest, -half_ln2, half_ln2, 3, lambda r: r**2 / np.exp(r)),
        "_TANH": (lambda z: (np.tanh(sqrt(z)) / sqrt(z) - 1) / z, 1e-4, 0.625**2, 4, lambda z: z),
        "_ERF": (
            lambda t: _erf(_in_erf(t)) / _in_erf(t),
            -1 + 1e-8,
            1.0,
            14,
            lambda t: _in_erf(t) / _erf(_in_erf(t)),
        ),
        "_LOG1P": (
            lambda z: (2 * np.arctanh(sqrt(z)) / sqrt(z) - 2) / z,
            1e-6,
            1.001 / 9,
            3,
            lambda z: z / 2,
        ),
    }
    for name, (function, low, high, degree, weight) in rows.items():
        coefficients, error = fit(function, low, high, degree, weight)
        listed = ", ".join(f"{float(np.float32(c)):.9g}" for c in coefficients)
        print(f"{name} = ({listed})  # {error:.1e}")


if __name__ == "__main__":
    main()
