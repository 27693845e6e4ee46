"""A window that slides over channels-last tensors, each channel alone: depthwise and pooling.

Channels are the lanes. `rows x columns` outputs of one vector of channels stay in registers while
the taps pass by: an input that several outputs read is loaded once, for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd, prod
from typing import Any

from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.emit import (
    Registers,
    loop,
    named,
    parallel,
    sequence,
)
from eecompile.targets.lowering.schedules.kept import Kept
from eecompile.targets.lowering.schedules.windows import Columns, Window, columns

__all__ = ["Sliding", "SlidingTile", "candidates", "needs_copy", "planar", "slide", "slide_rows"]

Expr = Any
Stmt = Any

#: Taps up to which they are written out one by one; more are loops.
_UNROLLED_TAPS = 64
#: Different sets of taps that a row's columns may have; with more, the padding is copied.
_STRIPS = 8
#: Cycles of loop control and address arithmetic that a tile costs beside its taps.
_TILE_OVERHEAD = 4
#: Registers that the compiler's order of loads wants beyond those counted, and cycles of a spill.
#: Both fitted to tiles of 3x3 windows, measured on an AMD EPYC (family 25 model 17).
_SLACK = 4
_SPILL = 4
#: The slack where one instruction may fetch two vectors; read from the assembly, not measured.
_SLACK_FETCHED = 6
#: Estimates this close are equal; the tile that leaves most registers free is then the best.
#: Measured there (benchmarks/models.py): 2x4 and 4x2 outputs of a 3x3 window took 0.65 to 0.96 of
#: what 2x6 took, whose estimate is 3 % lower.
_EQUAL = 1.04
#: Vectors of channels that are walked through while the rows they lie in stay in the first cache.
_WALK = 4
#: Units that threads are given to share, at least, where there are as many.
_UNITS = 8


@dataclass(frozen=True)
class SlidingTile:
    """`rows x columns` outputs in registers, `vectors` vectors of channels walked through inside.

    With few vectors the rows that several outputs read stay in the first cache; with all of them
    memory is read in one stream.
    """

    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True)
class Sliding:
    """What is done at each place.

    Attributes:
        window: how places and taps become positions, over two dimensions or more.
        shape: batch, places and channels of the result.
        dtype: of the sums.
        initial: a sum's first value, of the channel.
        combined: (sum, batch, position, taps, channel) -> the sum with one more tap.
        store: (value, batch, place, channel) -> the statement that writes a result.
        kept: the groups of channels that are computed, whole vectors, where there are others.
    """

    window: Window
    shape: tuple[int, ...]
    dtype: str
    initial: Callable[[Expr], Expr]
    combined: Callable[[Expr, Expr, Sequence[Expr], Sequence[Expr], Expr], Expr]
    store: Callable[[Expr, Expr, Sequence[Expr], Expr], Stmt]
    kept: Kept | None = None

    @property
    def is_rolled(self) -> bool:
        """Whether the taps are loops; no window may then leave the input."""
        return prod(self.window.kernel) > _UNROLLED_TAPS


def planar(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Batch, at least two places, channels.

    >>> planar((1, 8, 16)), planar((1, 8, 8, 16))
    ((1, 1, 8, 16), (1, 8, 8, 16))
    """
    return shape if len(shape) > 3 else (shape[0], 1, *shape[1:])


def needs_copy(window: Window, shape: Sequence[int], tile: SlidingTile) -> bool:
    """Whether the input must be copied with its padding before the window can slide over it."""
    if window.is_spread or len(columns(window, shape[-2], tile.columns)) > _STRIPS:
        return True
    overhangs = not window.is_unpadded or shape[-3] % tile.rows > 0
    return prod(window.kernel) > _UNROLLED_TAPS and overhangs


# --- Which tile -----------------------------------------------------------------------------------


def candidates(
    window: Window, shape: Sequence[int], machine: Machine, each: int = 0
) -> list[SlidingTile]:
    """Tiles worth trying, the one with the fewest estimated cycles first.

    Args:
        window: over two dimensions or more.
        shape: batch, places and channels of the result.
        machine: registers, latency and caches.
        each: vectors of a group of channels, of which a tile's are a part; 0 where any may be.

    >>> window = Window((56, 56), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1))
    >>> machine = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> candidates(window, (1, 56, 56, 144), machine)[0]
    SlidingTile(rows=2, columns=4, vectors=9)
    """
    height, width = shape[-3], shape[-2]
    most = max(1, min(4, height // _UNITS if _is_streamed(window, shape, machine) else height))
    costs = {
        (rows, wide): _cost(window, height, width, rows, wide, machine)
        for rows in range(1, most + 1)
        for wide in range(1, min(width, machine.tile_registers) + 1)
        if rows * wide <= max(1, machine.tile_registers * 3 // 4)
    }
    equal = _EQUAL * min(costs.values())

    def rank(tile: tuple[int, int]) -> tuple[float, int, float, tuple[int, int]]:
        return max(costs[tile], equal), _needed(window, *tile), costs[tile], tile

    best = sorted(costs, key=rank)[:6]
    walks = ((rows, wide, _walk(window, shape, rows, machine)) for rows, wide in best)
    return [SlidingTile(r, w, gcd(walk, each) if each else walk) for r, w, walk in walks]


def _cost(window: Window, height: int, width: int, rows: int, wide: int, machine: Machine) -> float:
    """Estimated cycles of all tiles of one vector of channels.

    A tile takes as long as the slowest of combining, loading and waiting for the previous value in
    the same register; every register it needs and does not have costs a store and a load.
    """
    full, rest = divmod(width, wide)
    cycles = full * _tile_cost(window, rows, wide, machine)
    cycles += _tile_cost(window, rows, rest, machine) if rest else 0
    return -(-height // rows) * cycles


def _line(window: Window, wide: int) -> int:
    """Inputs of one row that `wide` outputs read."""
    across = window.kernel[-1]
    return min(wide * across, (wide - 1) * window.strides[-1] + across)


def _needed(window: Window, rows: int, wide: int) -> int:
    """Registers of sums, a row of inputs and the weights that meet it."""
    down, across = window.kernel[-2:]
    return rows * wide + _line(window, wide) + across * min(rows, down)


def _tile_cost(window: Window, rows: int, wide: int, machine: Machine) -> float:
    taps, (down, across) = prod(window.kernel), window.kernel[-2:]
    line = _line(window, wide)
    lines = min(rows * down, (rows - 1) * window.strides[-2] + down)
    loads = taps // (down * across) * lines * line + taps
    step = max(rows * wide / machine.fma_per_cycle, machine.fma_latency)
    slack = _SLACK_FETCHED if machine.arch == "aarch64" else _SLACK
    spilled = max(0, _needed(window, rows, wide) + slack - machine.tile_registers)
    return max(taps * step, loads / 2) + spilled * _SPILL + _TILE_OVERHEAD


def _is_streamed(window: Window, shape: Sequence[int], machine: Machine) -> bool:
    """Whether input and output together come from beyond the second cache."""
    return 4 * (prod(window.extent) + prod(shape[1:-1])) * shape[-1] > machine.l2_bytes


def _walk(window: Window, shape: Sequence[int], rows: int, machine: Machine) -> int:
    """Vectors of channels walked through at each place."""
    vectors = max(1, shape[-1] // machine.lanes)
    if _is_streamed(window, shape, machine):
        # From there memory comes faster in one stream.
        return vectors
    lines = (rows - 1) * window.strides[-2] + window.kernel[-2]
    row = 4 * machine.lanes * window.extent[-1] * lines
    most = max(1, min(2 * _WALK, 2 * machine.l1_bytes // row))
    fitting = [n for n in range(1, most + 1) if vectors % n == 0]
    return min(fitting, key=lambda n: (abs(n - _WALK), n))


# --- The nest -------------------------------------------------------------------------------------


def slide(work: Sliding, tile: SlidingTile, lanes: int) -> Stmt:
    """The phase that computes all of `work`.

    Channels beyond the last whole vector are one shorter vector. ::

        for b, y, x, c: sum = initial; for ky, kx: sum = combined(sum, ...); store
        ->  parallel for b, channels in blocks of `vectors`, y in steps of `rows`:
              for x in steps of `columns`, borders peeled off:
                for c of the block in steps of `lanes`:
                  rows x columns vectors = initial
                  for each input row that the tile reads, where it is inside:
                    for each (ky, y) that meet in it, each kx, each x that has it:
                      vector(y, x) = combined(vector(y, x), ...)
                  store rows x columns vectors
    """
    batch, *places, channels = work.shape
    *outer, height, width = places
    full, tail = divmod(channels, lanes)
    chunks = full // tile.vectors if full else 1
    strips = columns(work.window, width, tile.columns)

    width_of_chunk = tile.vectors * lanes

    def strip(unit: list[Expr]) -> Stmt:
        b, chunk, *far, y = unit
        row = y * tile.rows

        def at(where: Columns, many: int, lanes: int, first: Expr) -> Stmt:
            def column(x: Expr) -> Stmt:
                place = (*far, row, x * where.width + where.first)

                def vector(c: Expr) -> Stmt:
                    return _Tile(work, tile.rows, where, b, place, first + c * lanes, lanes).run()

                return loop(many, vector)

            return loop(where.count, column)

        parts = []
        for where in strips:
            if full:
                begin = chunk * width_of_chunk if work.kept is None else chunk
                parts.append(at(where, tile.vectors, lanes, begin))
            if tail:
                last = [tirx.EQ(chunk, chunks - 1)] if chunks > 1 else []
                rest = at(where, 1, tail, tirx.const(full * lanes, "int32"))
                parts.append(_guarded(last, rest))
        return sequence(parts)

    rows = -(-height // tile.rows)
    if (kept := work.kept) is None:
        return parallel([batch, chunks, *outer, rows], strip)
    each = kept.gate.each // width_of_chunk

    def kept_strip(unit: list[Expr]) -> Stmt:
        slot, b, *place = unit
        part = tirx.floormod(slot, each) * width_of_chunk
        first, bound = named(kept.first(tirx.floordiv(slot, each)) + part)
        return sequence([bound, strip([b, first, *place])])

    return parallel([chunks, batch, *outer, rows], kept_strip, kept.count * each)


def slide_rows(
    work: Sliding, tile: SlidingTile, lanes: int, b: Expr, c: Expr, row: Expr, rows: int
) -> Stmt:
    """A part of `slide`'s work, inside a phase.

    It is `rows` rows from `row` on, a multiple of the tile's, and `tile.vectors` vectors of
    channels from `c` on.
    """
    width = work.shape[-2]

    def at(y: Expr, where: Columns) -> Stmt:
        def column(x: Expr) -> Stmt:
            place = (row + y * tile.rows, x * where.width + where.first)

            def vector(i: Expr) -> Stmt:
                return _Tile(work, tile.rows, where, b, place, c + i * lanes, lanes).run()

            return loop(tile.vectors, vector)

        return loop(where.count, column)

    strips = columns(work.window, width, tile.columns)
    return loop(rows // tile.rows, lambda y: sequence([at(y, where) for where in strips]))


def _guarded(conditions: Sequence[Expr], body: Stmt) -> Stmt:
    return tirx.IfThenElse(tirx.all(*conditions), body, None) if conditions else body


@dataclass
class _Tile:
    """The code of one register tile at a place, of the channels from `c` on."""

    work: Sliding
    rows: int
    where: Columns
    b: Expr
    place: tuple[Expr, ...]
    c: Expr
    lanes: int

    def run(self) -> Stmt:
        self.sums = Registers(self.rows * self.where.width, self.lanes, dtype=self.work.dtype)
        height = self.work.shape[-3]
        over = [] if height % self.rows == 0 else [height]

        def stored(y: Expr) -> Stmt:
            row = self._across(self.where.width, partial(self._store, y))
            return _guarded([self.place[-2] + y < extent for extent in over], row)

        taps = self._rolled() if self.work.is_rolled else self._unrolled()
        started = loop(
            self.rows,
            lambda y: self._across(self.where.width, partial(self._start, y)),
            "unrolled",
        )
        return sequence([self.sums.made, started, *taps, loop(self.rows, stored, "unrolled")])

    def _across(self, extent: int, body: Callable[[Expr, Expr], Stmt], first: int = 0) -> Stmt:
        """`body(x, lane)` for neighbouring columns, in vectors."""
        return loop(
            extent,
            lambda x: loop(self.lanes, lambda lane: body(x + first, lane), "vector"),
            "unrolled",
        )

    def _slot(self, y: Expr, x: Expr, lane: Expr) -> Expr:
        return (y * self.where.width + x) * self.lanes + lane

    def _start(self, y: Expr, x: Expr, lane: Expr) -> Stmt:
        return self.sums.store(self._slot(y, x, lane), self.work.initial(self.c + lane))

    def _store(self, y: Expr, x: Expr, lane: Expr) -> Stmt:
        *far, row, column = self.place
        value = self.sums[self._slot(y, x, lane)]
        return self.work.store(value, self.b, [*far, row + y, column + x], self.c + lane)

    def _add(
        self, y: Expr, positions: Sequence[Expr], taps: Sequence[Expr], x: Expr, lane: Expr
    ) -> Stmt:
        """One tap of one output; `positions` of all dimensions but the last."""
        window, slot = self.work.window, self._slot(y, x, lane)
        across = (self.place[-1] + x) * window.strides[-1] + taps[-1] * window.dilations[-1]
        at = [*positions, across - window.begins[-1]]
        total = self.work.combined(self.sums[slot], self.b, at, taps, self.c + lane)
        return self.sums.store(slot, total)

    def _unrolled(self) -> list[Stmt]:
        """One statement for each input row the tile reads."""
        window = self.work.window
        *outer, down, _ = window.kernel
        met: dict[int, list[tuple[int, int]]] = {}
        for y, tap in product(range(self.rows), range(down)):
            shift = y * window.strides[-2] + tap * window.dilations[-2]
            met.setdefault(shift, []).append((y, tap))
        statements = []
        for far in product(*map(range, outer)):
            shifts = [tap * d for tap, d in zip(far, window.dilations, strict=False)]
            for shift, pairs in sorted(met.items()):
                positions, inside = self._positions([*shifts, shift])
                row = [
                    self._across(
                        high - low, partial(self._add, y, positions, (*far, tap, across)), low
                    )
                    for y, tap in pairs
                    for across, low, high in self.where.taps
                ]
                if row:
                    statements.append(_guarded(inside, sequence(row)))
        return statements

    def _positions(self, shifts: Sequence[int]) -> tuple[list[Expr], list[Expr]]:
        """Where the tile's place moved by `shifts` reads, and what must hold to be inside."""
        window, positions, inside = self.work.window, [], []
        for axis, shift in enumerate(shifts):
            last = self.work.shape[1 + axis] - 1
            if axis == len(shifts) - 1:
                last = last // self.rows * self.rows
            moved = shift - window.begins[axis]
            position = self.place[axis] * window.strides[axis] + moved
            positions.append(position)
            if moved < 0:
                inside.append(position >= 0)
            if last * window.strides[axis] + moved >= window.extent[axis]:
                inside.append(position < window.extent[axis])
        return positions, inside

    def _rolled(self) -> list[Stmt]:
        """Loops over the taps around the tile, which never leaves the input."""
        window = self.work.window

        def nest(taps: tuple[Expr, ...]) -> Stmt:
            if len(taps) < len(window.kernel):
                return loop(window.kernel[len(taps)], lambda tap: nest((*taps, tap)))

            def row(y: Expr) -> Stmt:
                place = [*self.place[:-2], self.place[-2] + y]
                positions = [
                    p * s + t * d
                    for p, s, t, d in zip(
                        place, window.strides, taps, window.dilations, strict=False
                    )
                ]
                return self._across(self.where.width, partial(self._add, y, positions, taps))

            return loop(self.rows, row, "unrolled")

        return [nest(())]
