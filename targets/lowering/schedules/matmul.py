"""Matrix products: rows times a matrix that is packed when building, or else by the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules import dense
from eecompile.targets.lowering.schedules.dense import UNROLL, Tile, splits
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    Registers,
    in_vectors,
    loop,
    parallel,
    sequence,
)
from eecompile.targets.lowering.schedules.matmul_panels import (
    Panels,
    Vector,
    broadcast,
    each_vector,
    offset,
    packing,
)
from eecompile.targets.lowering.spec import KernelSpec, Packed, Scheduled

__all__ = ["dimensions", "matmul"]

Expr = Any
Stmt = Any

#: Most rows of tiles for which it pays to fetch the next panel while one is used.
_FEW = 64
_LINE = 64


def matmul(spec: KernelSpec, machine: Machine, tile: Tile | None = None) -> Scheduled | None:
    """A matrix product, with what follows done to each tile while it is stored.

    ::

        for row: for column: for k: y[row, column] += a[row, k] * b[k, column];  y = ending(y)
        ->  parallel panel, row tile:            # or row tile, panel: what reads less from memory
                for k: for r: for c: acc[r][c] += broadcast(a[row + r, k]) * packed[panel][k][c]
                y[row + r, panel + c] = ending(acc[r][c])

    `blocks` vectors of columns are a panel, and `packed` holds panel after panel: a constant matrix
    is packed when building, a computed one by a first phase. Rows and columns that do not fill a
    tile are computed in smaller ones.

    Args:
        spec: a `MatMul` and what stands behind it.
        machine: what to compile for.
        tile: default: the one with the fewest estimated cycles.

    Returns:
        None for products with vectors.
    """
    found = _as_rows(spec)
    if found is None:
        return None
    spec, inputs, packs = found
    a_at, b_at = spec.anchor.inputs
    *outer, rows, columns = spec.anchor.type.shape
    tile = tile or dense.choice(rows, columns, inputs, machine)
    panels = Panels(columns, inputs, tile.blocks, machine.lanes)
    kernel = Kernel(spec, (b_at,) if packs else ())
    phases = []
    a = _batched(kernel, spec, a_at)
    if packs:
        batch: tuple[int, ...] = ()
        packed = kernel.add((panels.size,), spec.anchor.type.dtype, Packed(b_at, panels.pack))
    else:
        batch = spec.operands[b_at].type.shape[:-2]
        packed = kernel.scratch((prod(batch) * panels.size,))
        phases.append(packing(kernel.operand(b_at), packed, batch, panels))
    steps = -(-rows // tile.rows)

    def ended(at: list[Expr], row: Expr, column: Expr, value: Expr) -> Stmt:
        return kernel.write([*at, row, column], lambda *_: value)

    tiles = _Tiles(tile, panels, rows, machine, packed, a, ended, packs)

    def unit(place: list[Expr]) -> Stmt:
        *at, first, second = place
        panel, step = (second, first) if by_rows else (first, second)
        return tiles.tile(at, offset(at, batch, panels.size), panel, step)

    by_rows = _by_rows(rows * inputs * prod(outer), panels, steps, machine)
    order = (steps, panels.count) if by_rows else (panels.count, steps)
    return kernel.finished(*phases, parallel((*outer, *order), unit))


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


def _batched(kernel: Kernel, spec: KernelSpec, index: int) -> Callable[..., Expr]:
    """Reads ``(batch, row, k)`` of an operand that may have fewer or smaller batch dimensions."""
    read, shape = kernel.operand(index), spec.operands[index].type.shape[:-2]

    def at(batch: Sequence[Expr], row: Expr, k: Expr) -> Expr:
        return read(*broadcast(batch, shape), row, k)

    return at


def _by_rows(elements: int, panels: Panels, steps: int, machine: Machine) -> bool:
    """Whether row tiles are the outer loop: which order reads less from beyond the cache."""
    room = machine.l2_bytes // 8  # elements, in half of the cache
    size = panels.size
    by_panels = size + elements * (panels.count if elements > room else 1)
    by_rows = elements + size * (steps if size > room else 1)
    return by_rows < by_panels


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
            return each_vector(parts * height, vectors, lanes, body)

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


def _in_lanes(
    body: Callable[[Expr, Expr, Expr], Stmt],
) -> Callable[[Expr, Expr, Vector], Stmt]:
    """What is done to a vector, from what is done to each of its elements."""
    return lambda r, c, vector: loop(vector.width, lambda lane: body(r, c, lane), "vector")
