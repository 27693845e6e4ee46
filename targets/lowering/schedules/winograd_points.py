"""Winograd's matrices: interpolation points, transforms in few operations, error bounds.

F(m x m, 3 x 3) computes an m x m tile of outputs from n x n inputs, n = m + 2, with n * n products
instead of 9 * m * m: ``Y = A^T [(G g G^T) * (B^T d B)] A``, summed over the input channels before
A is applied. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015); the
matrices by Toom and Cook's construction: Barabasz et al., Error Analysis and Improving the Accuracy
of Winograd Convolution for Deep Neural Networks (ACM TOMS 2020), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod, sqrt
from typing import Any

__all__ = ["TILES", "Transform", "combine", "transform"]

Matrix = tuple[tuple[Fraction, ...], ...]

#: Outputs in a row of the kernel.
_TAPS = 3

#: Tile -> finite interpolation points; infinity is the last one. Pairs +p, -p share work. All
#: coefficients are exact in float32. Source of 3/4 and 11/8: of all pairs of eighths up to 3 they
#: have the least `amplification`, 7.8 against 31 of the usual 1 and 2.
_POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(11, 8), Fraction(-11, 8)),
}

#: Tiles there are points for.
TILES = tuple(_POINTS)

_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Transform:
    """The matrices of F(m x m, 3 x 3): `output` (m x n), `kernel` (n x 3), `source` (n x n)."""

    tile: int
    output: Matrix
    kernel: Matrix
    source: Matrix

    @property
    def size(self) -> int:
        """Inputs in a row of a tile."""
        return self.tile + _TAPS - 1

    @property
    def additions(self) -> tuple[int, int]:
        """Operations of one product of a vector with `source`, and of one with `output`.

        >>> transform(2).additions, transform(4).additions
        ((4, 4), (12, 10))
        """
        return _operations(self.source), _operations(self.output)

    @property
    def amplification(self) -> float:
        """How much larger an output's error is than the roundings of its products, in squares.

        With independent inputs and weights of variance 1 an output has variance 9 per channel, and
        a relative rounding error of variance e in each product gives an error of variance
        ``9 * e * amplification ** 2`` at most.

        >>> round(transform(2).amplification, 2), round(transform(4).amplification, 2)
        (1.67, 7.82)
        """
        products = [
            sum(x * x for x in g) * sum(x * x for x in b) / _TAPS
            for g, b in zip(self.kernel, self.source, strict=True)
        ]
        rows = (sum(a * a * p for a, p in zip(row, products, strict=True)) for row in self.output)
        return float(max(rows))

    @property
    def growth(self) -> float:
        """Largest sum of absolute products behind an output, over max |input| * max |weight|.

        >>> round(transform(2).growth), round(transform(4).growth)
        (64, 757)
        """
        products = [
            sum(map(abs, g)) * sum(map(abs, b))
            for g, b in zip(self.kernel, self.source, strict=True)
        ]
        rows = (sum(abs(a) * p for a, p in zip(row, products, strict=True)) for row in self.output)
        return float(max(rows)) ** 2

    def error_bound(self, channels: int) -> float:
        """Largest error over largest output, where inputs and weights are like random ones.

        Roundings are taken as independent: their number grows with the transforms' lengths and
        their sum's with the square root of the channels' number (Higham and Mary, A New Approach
        to Probabilistic Rounding Error Analysis, SISC 2019); twice their standard deviation over
        the outputs' is allowed. The worst case, ``growth * channels * (2n + channels)`` roundings
        over max |input| * max |weight|, is not met by networks.

        >>> transform(2).error_bound(64) < 2e-6 < transform(4).error_bound(512) < 1e-5
        True
        """
        return 2 * _UNIT_ROUNDOFF * self.amplification * sqrt((2 * self.size + channels / 2) / 3)


@cache
def transform(tile: int) -> Transform:
    """The matrices of F(tile x tile, 3 x 3).

    Raises:
        KeyError: no points for such a tile.
    """
    points = _POINTS[tile]
    size = tile + _TAPS - 1
    output = [[p**i for p in points] + [Fraction(i == tile - 1)] for i in range(tile)]
    kernel, source = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = prod((p - q for q in others), start=Fraction(1))
        kernel.append([p**k / scale for k in range(_TAPS)])
        source.append(_padded(_with_roots(others), size))
    kernel.append([Fraction(k == _TAPS - 1) for k in range(_TAPS)])
    source.append(_padded(_with_roots(points), size))
    return Transform(tile, _frozen(output), _frozen(kernel), _frozen(source))


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), constant first.

    >>> [int(c) for c in _with_roots([Fraction(1), Fraction(-1)])]
    [-1, 0, 1]
    """
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        scaled = [*(-root * c for c in polynomial), Fraction(0)]
        polynomial = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return polynomial


def _padded(row: list[Fraction], size: int) -> list[Fraction]:
    return row + [Fraction(0)] * (size - len(row))


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


# --- Products with a small constant matrix, in few operations -------------------------------------

#: Names an intermediate value, so that it is computed once.
Bind = Callable[[Any], Any]


def combine(
    matrix: Matrix, values: Sequence[Any], constant: Callable[[float], Any], bind: Bind
) -> list[Any]:
    """`matrix` times the vector `values`, whose elements need only +, - and *.

    1. Columns that are equal but for signs are added and subtracted first.
    2. Rows that are equal but for signs share their common and their opposite part.

    >>> square = ((Fraction(1), Fraction(1)), (Fraction(1), Fraction(-1)))
    >>> combine(square, [3.0, 2.0], float, lambda x: x)
    [5.0, 1.0]
    """
    matrix, values = _joined_columns(matrix, list(values), bind)
    results: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if results[i] is not None:
            continue
        partner = next(
            (j for j in range(i + 1, len(matrix)) if row != matrix[j] and _alike(row, matrix[j])),
            None,
        )
        if partner is None:
            results[i] = bind(_sum(row, values, constant))
            continue
        other = matrix[partner]
        common = [a if a == b else Fraction(0) for a, b in zip(row, other, strict=True)]
        opposite = [a if a != b else Fraction(0) for a, b in zip(row, other, strict=True)]
        factor = next(abs(x) for x in reversed(opposite) if x)
        even = bind(_sum(common, values, constant))
        odd = bind(_sum([x / factor for x in opposite], values, constant))
        term = odd if factor == 1 else odd * constant(float(factor))
        results[i], results[partner] = bind(even + term), bind(even - term)
    return results


class _Counted:
    """A value whose sums and differences are counted; a factor is part of the sum it goes into."""

    def __init__(self, made: list[None]) -> None:
        self.made = made

    def __add__(self, other: _Counted) -> _Counted:
        self.made.append(None)
        return self

    __sub__ = __add__

    def __mul__(self, factor: float) -> _Counted:
        return self


def _operations(matrix: Matrix) -> int:
    made: list[None] = []
    combine(matrix, [_Counted(made) for _ in matrix[0]], float, lambda x: x)
    return len(made)


def _alike(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    return all(abs(x) == abs(y) for x, y in zip(a, b, strict=True))


def _joined_columns(matrix: Matrix, values: list[Any], bind: Bind) -> tuple[Matrix, list[Any]]:
    columns = list(zip(*matrix, strict=True))
    made: list[tuple[Any, Sequence[Fraction]]] = []
    left = list(range(len(columns)))
    while left:
        j = left.pop(0)
        same = next((k for k in left if _alike(columns[j], columns[k])), None)
        if same is None:
            made.append((values[j], columns[j]))
            continue
        left.remove(same)
        pairs = list(zip(columns[j], columns[same], strict=True))
        equal = [a if a == b else Fraction(0) for a, b in pairs]
        opposite = [a if a != b else Fraction(0) for a, b in pairs]
        if any(equal):
            made.append((bind(values[j] + values[same]), equal))
        if any(opposite):
            made.append((bind(values[j] - values[same]), opposite))
    rows = zip(*(column for _, column in made), strict=True)
    return _frozen(list(rows)), [value for value, _ in made]


def _sum(row: Sequence[Fraction], values: Sequence[Any], constant: Callable[[float], Any]) -> Any:
    """The sum of the products, beginning with a factor of 1 where there is one."""
    terms = [(c, v) for c, v in zip(row, values, strict=True) if c]
    if not terms:
        return constant(0.0)
    terms.sort(key=lambda term: term[0] != 1)
    (first, value), *rest = terms
    total = value if first == 1 else value * constant(float(first))
    for factor, value in rest:
        if factor == 1:
            total = total + value
        elif factor == -1:
            total = total - value
        else:
            total = total + value * constant(float(factor))
    return total
