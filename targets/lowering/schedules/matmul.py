"""Matrix products: rows times a matrix that is packed when building, or else by the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules import dense
from eecompile.targets.lowering.schedules.dense import UNROLL, Tile, splits, widths
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    Reader,
    Registers,
    in_vectors,
    loop,
    parallel,
    sequence,
)
from eecompile.targets.lowering.schedules.panels import blocked
from eecompile.targets.lowering.spec import KernelSpec, Packed, Scheduled

__all__ = ["dimensions", "matmul", "product"]

Expr = Any
Stmt = Any

#: Most rows of tiles for which it pays to fetch the next panel while one is used.
_FEW = 64
_LINE = 64


def matmul(spec: KernelSpec, machine: Machine, tile: Tile | None = None) -> Scheduled | None:
    """A matrix product, of constant or computed matrices; None for products with vectors.

    Args:
        spec: a `MatMul` and what stands behind it.
        machine: what to compile for.
        tile: default: the one with the fewest estimated cycles.
    """
    found = _as_rows(spec)
    if found is None:
        return None
    spec, inputs, packs = found

    def pack(w: np.ndarray) -> np.ndarray:
        return blocked(w.T, machine.lanes)

    return product(spec, machine, pack if packs else None, inputs, (), tile)


def dimensions(spec: KernelSpec) -> tuple[int, int, int] | None:
    """Rows, columns and length of the sums that the tile is chosen by; None as for `matmul`."""
    found = _as_rows(spec)
    if found is None:
        return None
    *_, rows, columns = found[0].anchor.type.shape
    return rows, columns, found[1]


def _as_rows(spec: KernelSpec) -> tuple[KernelSpec, int, bool] | None:
    """The product over rows where it can be, length of its sums, whether building packs."""
    a_at, b_at = spec.anchor.inputs
    a, b = spec.operands[a_at].type.shape, spec.operands[b_at].type.shape
    if len(a) < 2 or len(b) < 2 or a_at == b_at or 0 in (*a, *b):
        return None
    if not spec.operands[b_at].constant or len(b) != 2 or spec.operands[b_at].number is not None:
        return spec, a[-1], False
    flat = spec.flattened()
    if flat is None:
        return spec, b[0], True
    operands = list(flat.operands)
    rows = replace(operands[a_at].type, shape=(prod(a[:-1]), a[-1]))
    operands[a_at] = replace(operands[a_at], type=rows)
    return replace(flat, operands=tuple(operands)), b[0], True


def product(
    spec: KernelSpec,
    machine: Machine,
    pack: Callable[[np.ndarray], np.ndarray] | None,
    inputs: int,
    bias_at: Sequence[int],
    tile: Tile | None = None,
) -> Scheduled:
    """Rows times a matrix, with what follows done to each tile while it is stored.

    ::

        for row: for column: for k: y[row, column] += a[row, k] * b[k, column];  y = ending(y)
        ->  parallel panel, row tile:            # or row tile, panel: what reads less from memory
                for k: for r: for c: acc[r][c] += broadcast(a[row + r, k]) * packed[panel][k][c]
                y[row + r, panel + c] = ending(acc[r][c])

    `blocks` vectors of columns are a panel, and `packed` holds panel after panel. Rows and columns
    that do not fill a tile are computed in smaller ones.

    Args:
        spec: the kernel; its anchor multiplies the first operand's rows.
        machine: what to compile for.
        pack: from the constant second operand to [blocks][inputs][lanes], None where it is
            computed: then a first phase packs it.
        inputs: length of the sums.
        bias_at: operand that is added to every row, if any.
        tile: default: the one with the fewest estimated cycles.
    """
    a_at, b_at = spec.anchor.inputs[:2]
    *outer, rows, columns = spec.anchor.type.shape
    tile = tile or dense.choice(rows, columns, inputs, machine)
    panels = Panels(columns, inputs, tile.blocks, machine.lanes)
    kernel = Kernel(spec, () if pack is None else (b_at,))
    phases = []
    a = _batched(kernel, spec, a_at)
    if pack is None:
        batch = spec.operands[b_at].type.shape[:-2]
        packed = kernel.scratch((prod(batch) * panels.size,))
        phases.append(_packing(kernel.operand(b_at), packed, batch, panels))
    else:
        batch = ()
        packed = kernel.add(
            (panels.size,), spec.anchor.type.dtype, Packed(b_at, panels.joined(pack))
        )
    bias = next((kernel.operand(i) for i in bias_at if i >= 0), None)
    long = bias is not None and spec.operands[bias_at[0]].type.shape[0] > 1
    steps = -(-rows // tile.rows)

    def ended(at: list[Expr], row: Expr, column: Expr, value: Expr) -> Stmt:
        if bias is not None:
            value = value + bias(column if long else tirx.const(0, "int32"))
        return kernel.write([*at, row, column], lambda *_: value)

    tiles = _Tiles(tile, panels, rows, machine, packed, a, ended, pack is not None)

    def unit(place: list[Expr]) -> Stmt:
        *at, first, second = place
        panel, step = (second, first) if by_rows else (first, second)
        return tiles.tile(at, _offset(at, batch, panels.size), panel, step)

    by_rows = _by_rows(rows * inputs * prod(outer), panels, steps, machine)
    order = (steps, panels.count) if by_rows else (panels.count, steps)
    return kernel.finished(*phases, parallel((*outer, *order), unit))


def _batched(kernel: Kernel, spec: KernelSpec, index: int) -> Callable[..., Expr]:
    """Reads ``(batch, row, k)`` of an operand that may have fewer or smaller batch dimensions."""
    read, shape = kernel.operand(index), spec.operands[index].type.shape[:-2]

    def at(batch: Sequence[Expr], row: Expr, k: Expr) -> Expr:
        return read(*_broadcast(batch, shape), row, k)

    return at


def _broadcast(batch: Sequence[Expr], extents: Sequence[int]) -> list[Expr]:
    used = batch[len(batch) - len(extents) :]
    zero = tirx.const(0, "int32")
    return [zero if extent == 1 else i for extent, i in zip(extents, used, strict=True)]


def _offset(batch: Sequence[Expr], extents: Sequence[int], size: int) -> Expr:
    """Where the packed matrix of a place of the batch begins."""
    flat: Expr = tirx.const(0, "int32")
    for place, extent in zip(_broadcast(batch, extents), extents, strict=True):
        flat = flat * extent + place
    return flat * size


def _by_rows(elements: int, panels: Panels, steps: int, machine: Machine) -> bool:
    """Whether row tiles are the outer loop: which order reads less from beyond the cache."""
    room = machine.l2_bytes // 8  # elements, in half of the cache
    size = panels.size
    by_panels = size + elements * (panels.count if elements > room else 1)
    by_rows = elements + size * (steps if size > room else 1)
    return by_rows < by_panels


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

    def joined(
        self, pack: Callable[[np.ndarray], np.ndarray]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """From a constant to panels, if `pack` makes [vectors][inputs][lanes] of it."""

        def packed(w: np.ndarray) -> np.ndarray:
            vectors = pack(w)
            parts = [
                np.moveaxis(vectors[first : first + self.blocks], 0, 1).reshape(-1)
                for first in range(0, len(vectors), self.blocks)
            ]
            return np.concatenate(parts)

        return packed


def _packing(b: Reader, packed: Any, batch: Sequence[int], panels: Panels) -> Stmt:
    """Copies a computed matrix, or each of a batch of them, to panels."""
    lanes, last = panels.lanes, panels.count - 1

    def copied(at: list[Expr], panel: Expr, vectors: list[Vector]) -> Stmt:
        start = _offset(at, batch, panels.size) + panel * (panels.width * panels.inputs)

        def row(k: Expr) -> Stmt:
            def one(_: Expr, index: Expr, vector: Vector) -> Stmt:
                column = panel * panels.width + index * lanes
                place = start + (k * len(vectors) + index) * lanes
                return _copied(b, packed, at, k, column, place, vector.used)

            return _each(1, vectors, lanes, one)

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


@dataclass(frozen=True)
class _Tiles:
    """The tiles of a product, in up to four sizes: full ones, and those at either border."""

    shape: Tile
    panels: Panels
    rows: int
    machine: Machine
    packed: Any
    a: Callable[..., Expr]
    ended: Callable[[list[Expr], Expr, Expr, Expr], Stmt]
    constant: bool

    def tile(self, at: list[Expr], start: Expr, panel: Expr, step: Expr) -> Stmt:
        """One tile, whichever size it has at this place."""
        full, rest = divmod(self.rows, self.shape.rows)
        last = self.panels.count - 1

        def over_rows(vectors: list[Vector]) -> Stmt:
            def of(height: int) -> Stmt:
                return self._tile(at, start, panel, step, height, vectors)

            if not rest:
                return of(self.shape.rows)
            if not full:
                return of(rest)
            return tirx.IfThenElse(step < full, of(self.shape.rows), of(rest))

        first, ending = self.panels.of(0), self.panels.of(last)
        if first == ending:
            return over_rows(first)
        return tirx.IfThenElse(panel < last, over_rows(first), over_rows(ending))

    def _tile(
        self,
        at: list[Expr],
        start: Expr,
        panel: Expr,
        step: Expr,
        height: int,
        vectors: list[Vector],
    ) -> Stmt:
        lanes, inputs, count = self.panels.lanes, self.panels.inputs, len(vectors)
        used = splits(height, count, inputs, self.machine)
        acc = Registers(used * height * count, lanes)
        row = step * self.shape.rows
        column = panel * self.panels.width
        weights = start + panel * (self.panels.width * inputs)

        def each(body: Callable[[Expr, Expr, Vector], Stmt], parts: int = 1) -> Stmt:
            return _each(parts * height, vectors, lanes, body)

        def slot(r: Expr, c: Expr, lane: Expr) -> Expr:
            return (r * count + c) * lanes + lane

        def zeroed(r: Expr, c: Expr, lane: Expr) -> Stmt:
            return acc.store(slot(r, c, lane), tirx.const(0.0, "float32"))

        def multiplied(k: Expr, part: Expr) -> Stmt:
            def one(r: Expr, c: Expr, lane: Expr) -> Stmt:
                weight = tirx.BufferLoad(self.packed, [weights + (k * count + c) * lanes + lane])
                place = slot(part * height + r, c, lane)
                return acc.store(place, acc[place] + self.a(at, row + r, k) * weight)

            return each(_in_lanes(one))

        unroll = next(u for u in (UNROLL, 3, 2, 1) if inputs % u == 0)

        def summed(outer: Expr) -> Stmt:
            fetched = self._fetched(panel, step, outer, unroll) if self.constant else None

            def inner(u: Expr) -> Stmt:
                return multiplied(outer * unroll + u, tirx.floormod(u, used) if used > 1 else 0)

            return sequence([fetched, loop(unroll, inner, "unrolled")])

        def joined(part: int) -> Stmt:
            def one(r: Expr, c: Expr, lane: Expr) -> Stmt:
                place = slot(r, c, lane)
                return acc.store(place, acc[place] + acc[place + part * height * count * lanes])

            return each(_in_lanes(one))

        def stored(r: Expr, c: Expr, vector: Vector) -> Stmt:
            def one(lane: Expr) -> Stmt:
                value = acc[slot(r, c, lane)]
                return self.ended(at, row + r, column + c * lanes + lane, value)

            return in_vectors(vector.used, vector.width, one)

        return sequence(
            [
                acc.made,
                each(_in_lanes(zeroed), used),
                loop(inputs // unroll, summed),
                *(joined(part) for part in range(1, used)),
                each(stored),
            ]
        )

    def _fetched(self, panel: Expr, step: Expr, k: Expr, unroll: int) -> Stmt | None:
        """Asks for a line of the next panel, so that no tile waits for memory."""
        steps = -(-self.rows // self.shape.rows)
        size = self.panels.width * self.panels.inputs
        lines = -(-size * 4 // _LINE)
        each = -(-lines // steps)
        turns = self.panels.inputs // unroll
        often = -(-each // turns)
        large = self.panels.size * 4 > self.machine.l2_bytes // 2
        if not large or steps > _FEW or often > 4 or self.panels.count == 1:
            return None
        per_line = _LINE // 4
        first = (panel + 1) * size + (step * each + k * often) * per_line
        # NOTE: what lies behind the last panel is asked for too; that is allowed.
        return sequence(
            tirx.Evaluate(
                tirx.call_intrin(
                    "void",
                    "tirx.prefetch",
                    tirx.address_of(tirx.BufferLoad(self.packed, [first + i * per_line])),
                    0,
                    2,
                    1,
                )
            )
            for i in range(often)
        )


def _each(
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


def _in_lanes(
    body: Callable[[Expr, Expr, Expr], Stmt],
) -> Callable[[Expr, Expr, Vector], Stmt]:
    """What is done to a vector, from what is done to each of its elements."""
    return lambda r, c, vector: loop(vector.width, lambda lane: body(r, c, lane), "vector")
