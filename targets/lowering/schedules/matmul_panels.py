"""The right side of matrix products: its panels, and how a computed matrix becomes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from eecompile.targets.lowering.schedules.dense import widths
from eecompile.targets.lowering.schedules.emit import (
    Reader,
    in_vectors,
    loop,
    parallel,
    sequence,
)
from eecompile.targets.lowering.schedules.panels import blocked

__all__ = ["Panels", "Vector", "broadcast", "each_vector", "offset", "packing"]

Expr = Any
Stmt = Any


@dataclass(frozen=True)
class Vector:
    """A vector of columns, of which only the first `used` exist."""

    width: int
    used: int


@dataclass(frozen=True)
class Panels:
    """How a matrix of `inputs` rows is packed: panels of `blocks` vectors, row after row in each.

    >>> panels = Panels(columns=40, inputs=3, blocks=2, lanes=16)
    >>> panels.count, panels.size, panels.of(1)
    (2, 144, [Vector(width=8, used=8)])
    """

    columns: int
    inputs: int
    blocks: int
    lanes: int

    @property
    def vectors(self) -> list[Vector]:
        """The vectors of a row."""
        rest = self.columns % self.lanes
        found = [Vector(width, width) for width in widths(self.columns, self.lanes)]
        return [*found[:-1], Vector(found[-1].width, rest)] if rest else found

    @property
    def count(self) -> int:
        """Panels, the last of which may have fewer vectors."""
        return -(-len(self.vectors) // self.blocks)

    @property
    def size(self) -> int:
        """Elements of all panels."""
        return len(self.vectors) * self.lanes * self.inputs

    @property
    def width(self) -> int:
        """Columns of a full panel."""
        return self.blocks * self.lanes

    def of(self, panel: int) -> list[Vector]:
        """The vectors of a panel."""
        return self.vectors[panel * self.blocks : (panel + 1) * self.blocks]

    def pack(self, w: np.ndarray) -> np.ndarray:
        """A constant matrix (inputs, columns) as panels."""
        vectors = blocked(w.T, self.lanes)
        parts = [
            np.moveaxis(vectors[first : first + self.blocks], 0, 1).reshape(-1)
            for first in range(0, len(vectors), self.blocks)
        ]
        return np.concatenate(parts)


# --- A computed matrix ----------------------------------------------------------------------------


def packing(b: Reader, packed: Any, batch: Sequence[int], panels: Panels) -> Stmt:
    """Copies a computed matrix, or each of a batch of them, to panels."""
    lanes, last = panels.lanes, panels.count - 1

    def copied(at: list[Expr], panel: Expr, vectors: list[Vector]) -> Stmt:
        start = offset(at, batch, panels.size) + panel * (panels.width * panels.inputs)

        def row(k: Expr) -> Stmt:
            def one(_: Expr, index: Expr, vector: Vector) -> Stmt:
                column = panel * panels.width + index * lanes
                place = start + (k * len(vectors) + index) * lanes
                return _copied(b, packed, at, k, column, place, vector.used)

            return each_vector(1, vectors, lanes, one)

        return loop(panels.inputs, row)

    def unit(place: list[Expr]) -> Stmt:
        *at, panel = place
        first, ending = panels.of(0), panels.of(last)
        if first == ending:
            return copied(at, panel, first)
        rest = copied(at, tirx.const(last, "int32"), ending)
        return tirx.IfThenElse(panel < last, copied(at, panel, first), rest)

    return parallel((*batch, panels.count), unit)


def _copied(
    b: Reader, packed: Any, at: Sequence[Expr], k: Expr, column: Expr, place: Expr, width: int
) -> Stmt:
    def one(c: Expr) -> Stmt:
        return tirx.BufferStore(packed, b(*at, k, column + c), [place + c])

    return in_vectors(width, 1 << (width.bit_length() - 1), one)


def broadcast(batch: Sequence[Expr], extents: Sequence[int]) -> list[Expr]:
    """The place in a batch of fewer or smaller dimensions."""
    used = batch[len(batch) - len(extents) :]
    zero = tirx.const(0, "int32")
    return [zero if extent == 1 else i for extent, i in zip(extents, used, strict=True)]


def offset(batch: Sequence[Expr], extents: Sequence[int], size: int) -> Expr:
    """Where the packed matrix of a place of the batch begins."""
    flat: Expr = tirx.const(0, "int32")
    for place, extent in zip(broadcast(batch, extents), extents, strict=True):
        flat = flat * extent + place
    return flat * size


# --- Loops over a panel ---------------------------------------------------------------------------


def each_vector(
    height: int, vectors: list[Vector], lanes: int, body: Callable[[Expr, Expr, Vector], Stmt]
) -> Stmt:
    """``body(row, number, vector)`` for all vectors of a tile, as straight-line code."""
    full = sum(vector.used == lanes for vector in vectors)

    def row(r: Expr) -> Stmt:
        parts = []
        if full:
            parts.append(loop(full, lambda c: body(r, c, vectors[0]), "unrolled"))
        if full < len(vectors):
            parts.append(body(r, tirx.const(full, "int32"), vectors[-1]))
        return sequence(parts)

    return loop(height, row, "unrolled")
