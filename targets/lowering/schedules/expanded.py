"""A 1x1 convolution that a depthwise one reads, strip by strip: inverted residual blocks.

The wide tensor between the two never reaches memory. For a strip of output rows and a few vectors
of channels a thread computes the rows that the windows read into memory of its own, which fits the
second cache, then slides the window over them. Rows that two strips read are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules import sliding
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    Registers,
    element,
    loop,
    named,
    parallel,
    reader,
    sequence,
)
from eecompile.targets.lowering.schedules.kept import (
    as_kept,
    bias_operands,
    kept_of,
    left_out,
    output_gate,
    suited,
)
from eecompile.targets.lowering.schedules.panels import blocked, by_channel
from eecompile.targets.lowering.schedules.sliding import Sliding, slide_rows
from eecompile.targets.lowering.schedules.tiles import WIDEST
from eecompile.targets.lowering.schedules.windows import Window, window_of
from eecompile.targets.lowering.spec import KernelSpec, Packed, PerThread, Scheduled

__all__ = ["Strips", "candidates", "expanded"]

Expr = Any
Stmt = Any

#: Share of the second cache that a strip of the wide tensor may take. The narrow input, its
#: weights and the output want the rest. Measured: 0.25 to 0.5 are equally fast on an AMD EPYC.
_CACHE_SHARE = 0.3
#: Units that threads are given to share, at least, where rows that are computed twice allow it.
_UNITS = 8
#: Part of the loads' cycles that multiplying does not hide: of strips that are equal otherwise,
#: those of more vectors read the input less often. Fitted on an AMD EPYC (family 25 model 17) to
#: 25 blocks of MobileNetV2, MobileNetV3 and EfficientNet (benchmarks/models.py); 0.02 to 0.05 are
#: equal there.
_LOAD = 0.05


@dataclass(frozen=True)
class Strips:
    """One strip: `rows` output rows x `vectors` vectors of channels.

    `width` positions of the wide tensor, all vectors of the strip, are in registers at a time.
    """

    rows: int
    vectors: int
    width: int


def candidates(spec: KernelSpec, machine: Machine) -> list[Strips]:
    """Strips worth trying, the one with the least estimated work first; none where none fits.

    Channels have to be whole vectors. What a strip costs beside its products: rows that are
    computed twice, and an idle rest where threads cannot share the strips evenly.
    """
    gate = output_gate(spec, machine)
    machine = suited(spec, machine)
    *_, wide, channels = spec.steps[0].type.shape
    if channels % machine.lanes:
        return []
    whole = (gate.each if gate else channels) // machine.lanes
    found = []
    for vectors in (v for v in range(1, 5) if whole % v == 0):
        fits = [w for w in range(1, wide + 1) if _registers(w, vectors) <= machine.tile_registers]
        costs = {w: (_product_cost(w, vectors, wide, machine), -w) for w in fits}
        width = min(costs, key=lambda w: costs[w], default=0)
        if width:
            found += [Strips(r, vectors, width) for r in _heights(spec, vectors, machine)]
    return sorted(found, key=lambda strips: _cost(spec, strips, machine))[:6]


def _registers(width: int, vectors: int) -> int:
    return width * vectors + vectors + 1


def _product_cost(width: int, vectors: int, wide: int, machine: Machine) -> float:
    """Estimated cycles of one step of the sum for a row of the wide tensor."""
    rate = min(machine.fma_per_cycle, WIDEST / machine.lanes)
    loads = width + vectors
    step = max(width * vectors / rate, loads / 2, machine.fma_latency) + _LOAD * loads
    return -(-wide // width) * step


def _heights(spec: KernelSpec, vectors: int, machine: Machine) -> list[int]:
    height = spec.anchor.type.shape[1]
    *_, wide, _ = spec.steps[0].type.shape
    room = _CACHE_SHARE * machine.l2_bytes / (4 * wide * vectors * machine.lanes)
    return [
        rows for rows in range(1, height + 1) if height % rows == 0 and _read(spec, rows) <= room
    ]


def _read(spec: KernelSpec, rows: int) -> int:
    """Rows of the wide tensor that a strip's windows read."""
    window = _window(spec)
    return (rows - 1) * window.strides[0] + (window.kernel[0] - 1) * window.dilations[0] + 1


def _cost(spec: KernelSpec, strips: Strips, machine: Machine) -> float:
    """Work relative to that of the same strips without overlap, shared by few threads."""
    *_, high, wide, channels = spec.steps[0].type.shape
    height = spec.anchor.type.shape[1]
    units = height // strips.rows * (channels // machine.lanes // strips.vectors)
    twice = height // strips.rows * _read(spec, strips.rows) / high
    step = _product_cost(strips.width, strips.vectors, wide, machine) / (wide * strips.vectors)
    shared = -(-units // 4) * 4 / units if units < _UNITS else 1.0
    return max(1.0, twice) * step * shared


def _window(spec: KernelSpec) -> Window:
    kernel = spec.operands[spec.anchor.inputs[1]].type.shape[2:]
    return window_of(spec.anchor, spec.steps[0].type.shape, tuple(kernel))


def expanded(spec: KernelSpec, machine: Machine, strips: Strips | None = None) -> Scheduled:
    """A depthwise convolution whose input a 1x1 convolution makes, with what follows each.

    Before -> after::

        for y, x, c: wide[y, x, c] = f(sum over k of x[y, x, k] * a[k, c])
        for y, x, c: out[y, x, c] = g(sum over taps of wide[...] * b[taps, c])
        ->  parallel for strip of rows, vectors of channels:
              for rows that the strip's windows read, x in steps of `width`:
                width x vectors sums in registers, over k; own[row, x, c] = f(sums)
              slide the window over own (`sliding.slide`); out = g(...)
    """
    return _Expanded(spec, machine, strips or candidates(spec, machine)[0]).scheduled()


class _Expanded:
    def __init__(self, spec: KernelSpec, machine: Machine, strips: Strips) -> None:
        gate = output_gate(spec, machine)
        machine = suited(spec, machine)
        self.whole, spec = spec, as_kept(spec, gate)
        self.spec, self.machine, self.strips = spec, machine, strips
        self.lanes, self.window = machine.lanes, _window(spec)
        first = spec.steps[0]
        self.dtype = first.type.dtype
        _, self.high, self.wide, self.channels = first.type.shape
        self.x_at, self.a_at, *_ = first.inputs
        self.b_at = spec.anchor.inputs[1]
        self.inputs = spec.operands[self.x_at].type.shape[-1]
        self.taps = spec.operands[self.b_at].type.shape[2:]
        kernel = self.kernel = Kernel(spec, [self.a_at, self.b_at])
        blocks = (self.channels // self.lanes, self.inputs, self.lanes)
        self.a = reader(kernel.add(blocks, self.dtype, Packed(self.a_at, self._pack_a)))
        self.b = reader(
            kernel.add((*self.taps, self.channels), self.dtype, Packed(self.b_at, by_channel))
        )
        own = (_read(spec, strips.rows), self.wide, strips.vectors * self.lanes)
        nbytes = prod(own) * np.dtype(self.dtype).itemsize
        self.own = kernel.add(own, self.dtype, PerThread(nbytes))
        self.a_bias = kernel.bias(bias_operands(first))
        self.b_bias = kernel.bias(bias_operands(spec.anchor))
        self.gate, self.kept = gate, kept_of(kernel, gate)
        # What follows the 1x1 convolution, by its definition.
        self.sum = te.placeholder(first.type.shape, self.dtype, name="sum")
        narrow = KernelSpec(spec.operands, spec.steps[: spec.before])
        self.between = narrow.epilogue(kernel.tensors, self.sum)

    def _pack_a(self, w: np.ndarray) -> np.ndarray:
        return blocked(w.reshape(self.channels, self.inputs), self.lanes)

    def scheduled(self) -> Scheduled:
        batch, height = self.spec.anchor.type.shape[:2]
        strips, vectors = height // self.strips.rows, self.strips.vectors
        chunks = self.channels // self.lanes // vectors
        if (kept := self.kept) is None:
            return self.kernel.finished(
                parallel(
                    [batch, chunks, strips], lambda at: self._strip(at[0], at[1] * vectors, at[2])
                )
            )
        whole = kept.gate.each // self.lanes
        each = whole // vectors

        def unit(at: list[Expr]) -> Stmt:
            slot, b, strip = at
            group = kept.read(tirx.floordiv(slot, each) + 1)
            first, bound = named(group * whole + tirx.floormod(slot, each) * vectors)
            return sequence([bound, self._strip(b, first, strip)])

        phase = parallel([chunks, batch, strips], unit, kept.count * each)
        others = left_out(self.kernel, self.whole, self.gate, self.lanes)
        return self.kernel.finished(phase, *others)

    def _strip(self, b: Expr, first: Expr, strip: Expr) -> Stmt:
        """One strip of the vectors of channels from `first` on."""
        row = strip * self.strips.rows
        top = row * self.window.strides[0] - self.window.begins[0]

        def wide_row(y: Expr) -> Stmt:
            full, rest = divmod(self.wide, self.strips.width)
            parts = [
                loop(
                    full,
                    lambda i: self._product(
                        b, first, top, y, i * self.strips.width, self.strips.width
                    ),
                )
            ]
            if rest:
                at = tirx.const(self.wide - rest, "int32")
                parts.append(self._product(b, first, top, y, at, rest))
            inside = tirx.all(top + y >= 0, top + y < self.high)
            return tirx.IfThenElse(inside, sequence(parts), None)

        wide = loop(_read(self.spec, self.strips.rows), wide_row)
        return sequence([wide, self._slide(b, first, top, row)])

    def _product(self, b: Expr, first: Expr, top: Expr, y: Expr, x: Expr, width: int) -> Stmt:
        """`width` positions of the wide tensor, all vectors of the strip."""
        vectors, lanes = self.strips.vectors, self.lanes
        sums = Registers(width * vectors, lanes, dtype=self.dtype)
        read = self.kernel.operand(self.x_at)

        def each(body: Callable[[Expr, Expr, Expr, Expr], Stmt]) -> Stmt:
            """`body(i, j, lane, slot)` for every sum."""

            def vector(i: Expr, j: Expr) -> Stmt:
                slot = (i * vectors + j) * lanes
                return loop(lanes, lambda lane: body(i, j, lane, slot + lane), "vector")

            return loop(
                width, lambda i: loop(vectors, lambda j: vector(i, j), "unrolled"), "unrolled"
            )

        def channel(j: Expr, lane: Expr) -> Expr:
            return (first + j) * lanes + lane

        def start(i: Expr, j: Expr, lane: Expr, slot: Expr) -> Stmt:
            return sums.store(slot, self.a_bias(channel(j, lane)))

        def add(k: Expr) -> Stmt:
            return each(
                lambda i, j, lane, slot: sums.store(
                    slot, sums[slot] + read(b, top + y, x + i, k) * self.a(first + j, k, lane)
                )
            )

        def keep(i: Expr, j: Expr, lane: Expr, slot: Expr) -> Stmt:
            known = {**self.kernel.known, self.sum.op: lambda *_: sums[slot]}
            value = element(self.between, (b, top + y, x + i, channel(j, lane)), known)
            return tirx.BufferStore(self.own, value, [y, x + i, j * lanes + lane])

        unroll = next(u for u in (4, 3, 2, 1) if self.inputs % u == 0)
        steps = loop(
            self.inputs // unroll,
            lambda k: loop(unroll, lambda u: add(k * unroll + u), "unrolled"),
        )
        return sequence([sums.made, each(start), steps, each(keep)])

    def _slide(self, b: Expr, first: Expr, top: Expr, row: Expr) -> Stmt:
        start = first * self.lanes

        def combined(
            total: Expr, _: Expr, at: Sequence[Expr], taps: Sequence[Expr], c: Expr
        ) -> Expr:
            y, x = at
            return total + tirx.BufferLoad(self.own, [y - top, x, c - start]) * self.b(*taps, c)

        def store(value: Expr, b: Expr, place: Sequence[Expr], c: Expr) -> Stmt:
            return self.kernel.write([b, *place, c], lambda *_: value)

        shape = self.spec.anchor.type.shape
        work = Sliding(self.window, shape, self.dtype, self.b_bias, combined, store)
        near = (1, self.strips.rows, *shape[2:-1], self.strips.vectors * self.lanes)
        tiles = sliding.candidates(self.window, near, self.machine)
        # Heights of which no candidate is a part are walked row by row.
        fitting = [tile for tile in tiles if self.strips.rows % tile.rows == 0]
        tile = fitting[0] if fitting else replace(tiles[0], rows=1)
        tile = replace(tile, vectors=self.strips.vectors)
        return slide_rows(work, tile, self.lanes, b, start, row, self.strips.rows)
