"""The loops of a convolution: units that threads share, rows, tiles, taps, products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.emit import (
    Registers,
    in_vectors,
    loop,
    named,
    parallel,
    sequence,
)
from eecompile.targets.lowering.schedules.kept import Kept
from eecompile.targets.lowering.schedules.panels import Panel
from eecompile.targets.lowering.schedules.tiles import Tile
from eecompile.targets.lowering.schedules.windows import Columns, Window, columns

__all__ = ["Convolving", "Input", "Shape", "convolve"]

Expr = Any
Stmt = Any
#: What is done with a row of tiles: (panel, its first channel) -> statement.
Row = Callable[[Panel, Expr], Stmt]

#: Units that are enough for threads to share evenly.
_UNITS = 8


@dataclass(frozen=True)
class Shape:
    """A convolution over rows and columns; one of a single dimension has one row.

    Attributes:
        batch, columns, channels: of the output.
        outer: its places without the columns; together they are its rows.
        inputs: channels that each output sees.
        supers: groups, each with inputs of its own.
        window: over all places.
        rest: columns of one more row behind the others, 0 where there is none.
    """

    batch: int
    outer: tuple[int, ...]
    columns: int
    channels: int
    inputs: int
    supers: int
    window: Window
    rest: int = 0

    @property
    def rows(self) -> int:
        """Rows of columns."""
        return prod(self.outer)

    @property
    def depth(self) -> int:
        """Products per output."""
        return prod(self.window.kernel) * self.inputs


@dataclass(frozen=True)
class Input:
    """Where a convolution's input comes from.

    Attributes:
        read: (batch, position in each dimension but the last, column, channel) -> element.
        pitch: elements from one place to the next of the strip that it is first computed into, 0
            where it is read where it is.
        buffer: rows -> memory of one thread for a strip of so many rows.
    """

    read: Callable[..., Expr]
    pitch: int = 0
    buffer: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Convolving:
    """What the loops of a convolution are made from.

    Attributes:
        shape: its extents.
        tile: positions x vectors in registers.
        panels: its output channels.
        dtype: of its elements.
        input: what it reads.
        weights: index -> element of the packed panels.
        store: (sum, batch, outer places, column, channel) -> what stores the result.
        kept: the groups of output channels that are computed, where there are others; panels are
            parts of them.
        seen: the groups of input channels that are summed over, where there are others.
    """

    shape: Shape
    tile: Tile
    panels: tuple[Panel, ...]
    dtype: str
    input: Input
    weights: Callable[[Expr], Expr]
    store: Callable[..., Stmt]
    kept: Kept | None = None
    seen: Kept | None = None


def convolve(work: Convolving, machine: Machine) -> Stmt:
    """The phase that computes all outputs, in the order that moves the fewest bytes.

    Units that threads share, then what each of them loops over::

        strip of rows      | panel, row, tile       where the weights fit the second cache
        panel and strip    | row, tile              where rather the input does

    A strip's input stays in the first cache, or the second where the weights do not. Where a gate
    keeps some panels only, the others are no units.
    """
    shape = work.shape
    rows = shape.rows + (shape.rest > 0)
    strip, order = _order(work, rows, machine)
    strips = -(-rows // strip)
    extents = {"batch": shape.batch, "strip": strips, "panel": len(work.panels)}
    units = None
    if work.kept is not None and "panel" in order:
        order = ("panel", "batch", "strip")
        units = work.kept.count * _panels_each(work, work.kept)

    def unit(places: Sequence[Expr]) -> Stmt:
        at = dict(zip(order, places, strict=True))
        first = at["strip"] * strip
        count = strip if rows % strip == 0 else tirx.min(strip, rows - first)
        source, before = _prepared(work, at["batch"], first, count, strip, machine.lanes)

        def row(panel: Panel, channel: Expr) -> Stmt:
            return loop(count, lambda i: _row(source, panel, channel, at["batch"], first + i))

        body = _one_panel(work, at["panel"], row) if "panel" in at else _panels(work, row)
        return sequence([*before, body])

    return parallel([extents[name] for name in order], unit, units)


def _order(work: Convolving, rows: int, machine: Machine) -> tuple[int, tuple[str, ...]]:
    """Rows of a strip, and what the units are counted by, the fastest last."""
    shape, panels = work.shape, len(work.panels)
    stride = prod(shape.window.strides)
    row_bytes = 4 * shape.columns * stride * shape.inputs * shape.supers
    weight_bytes = 4 * shape.depth * sum(panel.width for panel in work.panels)
    if weight_bytes <= machine.l2_bytes // 2 or work.input.pitch:
        strip = max(1, min(machine.l1_bytes // 2 // row_bytes, rows // (2 * _UNITS)))
        units = shape.batch * -(-rows // strip)
        alone = units < _UNITS and panels > 1 and not work.input.pitch
        return strip, ("batch", "strip", "panel") if alone else ("batch", "strip")
    strip = max(1, min(rows, machine.l2_bytes // 2 // row_bytes, rows * panels // _UNITS))
    strips = -(-rows // strip)
    if strips == 1 or rows * row_bytes * panels <= weight_bytes * strips:
        return strip, ("panel", "batch", "strip")
    return strip, ("batch", "strip", "panel")


def _prepared(
    work: Convolving, n: Expr, first: Expr, count: Expr, strip: int, lanes: int
) -> tuple[Convolving, list[Stmt]]:
    """The same work on a strip of computed input, and the statements that compute it."""
    pitch, width, shape = work.input.pitch, work.shape.columns, work.shape
    if work.input.buffer is None:
        return work, []
    memory = work.input.buffer(strip)

    places = count * width
    if shape.rest:
        places = tirx.min(places, shape.rows * width + shape.rest - first * width)

    def place(i: Expr) -> Stmt:
        def write(c: Expr) -> Stmt:
            value = work.input.read(n, [first], i, c)
            return tirx.BufferStore(memory, value, [i * pitch + c])

        return in_vectors(shape.inputs, lanes, write)

    def read(n: Expr, at: Sequence[Expr], x: Expr, c: Expr) -> Expr:
        return tirx.BufferLoad(memory, [((at[0] - first) * width + x) * pitch + c])

    return replace(work, input=Input(read)), [loop(places, place)]


# --- Panels ---------------------------------------------------------------------------------------


def _kinds(work: Convolving) -> tuple[Panel, int, Panel | None]:
    """The panel that the first ones are like, how many they are, and the last if it is not."""
    first, last = work.panels[0], work.panels[-1]
    if replace(last, first=first.first) == first:
        return first, len(work.panels), None
    return first, len(work.panels) - 1, last


def _panels(work: Convolving, row: Row) -> Stmt:
    whole, count, last = _kinds(work)
    if (kept := work.kept) is not None:
        each = _panels_each(work, kept)

        def group(_: Expr, index: Expr) -> Stmt:
            first = index * kept.gate.each
            return loop(each, lambda p: row(whole, first + p * whole.width))

        return kept.groups(group)
    statements = [loop(count, lambda p: row(whole, p * whole.width))]
    if last is not None:
        statements.append(row(last, tirx.const(last.first, "int32")))
    return sequence(statements)


def _one_panel(work: Convolving, index: Expr, row: Row) -> Stmt:
    whole, count, last = _kinds(work)
    if work.kept is not None:
        each = _panels_each(work, work.kept)
        place, part = tirx.floordiv(index, each), tirx.floormod(index, each)
        first, bound = named(work.kept.first(place))
        return sequence([bound, row(whole, first + part * whole.width)])
    body = row(whole, index * whole.width)
    if last is None:
        return body
    return tirx.IfThenElse(index < count, body, row(last, tirx.const(last.first, "int32")))


def _panels_each(work: Convolving, kept: Kept) -> int:
    """Panels of a group of output channels."""
    return kept.gate.each // work.panels[0].width


# --- One row of tiles of one panel ----------------------------------------------------------------


def _row(work: Convolving, panel: Panel, channel: Expr, n: Expr, y: Expr) -> Stmt:
    shape = work.shape

    def run_of(tiles: Columns) -> Stmt:
        def tile(i: Expr) -> Stmt:
            return _tile(work, panel, channel, (n, y, i * tiles.width + tiles.first), tiles)

        return loop(tiles.count, tile)

    def tiles(width: int) -> Stmt:
        return sequence(map(run_of, columns(shape.window, width, work.tile.width)))

    if not shape.rest:
        return tiles(shape.columns)
    if not shape.rows:
        return tiles(shape.rest)
    return tirx.IfThenElse(y < shape.rows, tiles(shape.columns), tiles(shape.rest))


@dataclass(frozen=True)
class _File:
    """Accumulators: `count` vectors for each position, of a panel's channels from `first` on."""

    memory: Registers
    count: int
    lanes: int
    first: int

    def index(self, position: Expr, vector: Expr) -> Expr:
        """The first element of a vector."""
        return (position * self.count + vector) * self.lanes


def _tile(
    work: Convolving, panel: Panel, channel: Expr, place: tuple[Expr, ...], run: Columns
) -> Stmt:
    files = [
        _File(Registers(run.width * count, lanes, dtype=work.dtype), count, lanes, first)
        for count, lanes, first in (
            (panel.wide, panel.lanes, 0),
            (int(panel.narrow > 0), panel.narrow, panel.wide * panel.lanes),
        )
        if count
    ]
    made = [file.memory.made for file in files]
    cleared = [_cleared(file, run.width, tirx.const(0, work.dtype)) for file in files]
    stored = [_stores(work, panel, channel, place, run, file) for file in files]
    return sequence([*made, *cleared, _taps(work, channel, place, run, files), *stored])


def _cleared(file: _File, width: int, zero: Expr) -> Stmt:
    def vector(r: Expr) -> Stmt:
        return loop(
            file.lanes, lambda lane: file.memory.store(r * file.lanes + lane, zero), "vector"
        )

    return loop(width * file.count, vector, "unrolled")


def _taps(
    work: Convolving, channel: Expr, place: tuple[Expr, ...], run: Columns, files: list[_File]
) -> Stmt:
    """All products of a tile: loops over the taps' rows, columns and channels."""
    shape, window = work.shape, work.shape.window
    n, y, x = place
    tops = [
        at * stride - begin
        for at, stride, begin in zip(
            _places(y, shape.outer), window.strides[:-1], window.begins[:-1], strict=True
        )
    ]
    run_length = work.seen.gate.each if work.seen else shape.inputs
    unroll = next(u for u in (4, 3, 2, 5, 7, 1) if run_length % u == 0)
    origin = 0
    if shape.supers > 1:
        origin = tirx.floordiv(channel, shape.channels // shape.supers) * shape.inputs

    def products(rows: Sequence[Expr], j: Expr, low: int, high: int) -> Stmt:
        tap: Expr = 0
        for i, extent in zip((*rows, j), window.kernel, strict=True):
            tap = tap * extent + i
        at = [
            top + i * apart for top, i, apart in zip(tops, rows, window.dilations[:-1], strict=True)
        ]
        left = x * window.strides[-1] + j * window.dilations[-1] - window.begins[-1]

        def step(k: Expr) -> Stmt:
            def position(p: Expr) -> Stmt:
                value = work.input.read(n, at, left + p * window.strides[-1], origin + k)
                depth = tap * shape.inputs + k
                return sequence(_products(work, file, channel, depth, p, value) for file in files)

            return loop(high - low, lambda p: position(p + low), "unrolled")

        def steps(first: Expr) -> Stmt:
            return loop(
                run_length // unroll,
                lambda k: loop(unroll, lambda u: step(first + k * unroll + u), "unrolled"),
            )

        if work.seen is None:
            return steps(0)
        return work.seen.groups(lambda _, index: steps(index * run_length))

    def down(body: Callable[[Sequence[Expr]], Stmt]) -> Stmt:
        return _nest([_seen(axis, top, shape) for axis, top in enumerate(tops)], body)

    def across(body: Callable[[Expr, int, int], Stmt]) -> Stmt:
        if run.taps == tuple((j, 0, run.width) for j in range(window.kernel[-1])):
            return loop(window.kernel[-1], lambda j: body(j, 0, run.width))
        parts = [body(tirx.const(j, "int32"), low, high) for j, low, high in run.taps]
        return sequence(parts) if parts else tirx.Evaluate(tirx.const(0, "int32"))

    if shape.inputs == unroll and work.seen is None:
        # Without a loop over channels nothing keeps the taps of a row apart: what they read in
        # common would stay in the registers that the sums need. The loop over rows does.
        return across(lambda j, low, high: down(lambda i: products(i, j, low, high)))
    return down(lambda i: across(lambda j, low, high: products(i, j, low, high)))


def _places(y: Expr, outer: Sequence[int]) -> list[Expr]:
    """The place in each dimension of a row's number."""
    places: list[Expr] = []
    for extent in outer[:0:-1]:
        places.append(tirx.floormod(y, extent))
        y = tirx.floordiv(y, extent)
    return [y, *places[::-1]]


def _nest(ranges: Sequence[tuple[Expr, Expr]], body: Callable[[Sequence[Expr]], Stmt]) -> Stmt:
    """Loops over (first, extent) each, the last one innermost."""
    if not ranges:
        return body([])
    (first, extent), *inner = ranges
    return loop(extent, lambda i: _nest(inner, lambda rest: body([first + i, *rest])))


def _products(
    work: Convolving, file: _File, channel: Expr, depth: Expr, p: Expr, value: Expr
) -> Stmt:
    """A position's accumulators plus one input times the panel's weights."""
    base = (channel + file.first) * work.shape.depth + depth * (file.count * file.lanes)

    def lane(at: Expr) -> Stmt:
        index = file.index(p, 0) + at
        return file.memory.store(index, file.memory[index] + value * work.weights(base + at))

    def vector(v: Expr) -> Stmt:
        return loop(file.lanes, lambda at: lane(v * file.lanes + at), "vector")

    return loop(file.count, vector, "unrolled")


def _seen(axis: int, top: Expr, shape: Shape) -> tuple[Expr, Expr]:
    """The first tap of an axis that lies in the input, and how many follow each other that do."""
    window = shape.window
    kernel, apart, extent = window.kernel[axis], window.dilations[axis], window.extent[axis]
    begin, places = window.begins[axis], shape.outer[axis]
    last = (places - 1) * window.strides[axis] - begin + (kernel - 1) * apart
    if (kernel == 1 and window.is_unpadded) or (begin <= 0 and last < extent):
        return 0, kernel
    # NOTE: TVM makes a division by a negative number of one whose dividend falls with the row, and
    # compiles that wrongly: what is divided grows with the row, and is never negative.
    ahead, beyond = -(-begin // apart), -(-(begin + extent) // apart)
    first: Expr = 0
    if begin > 0:
        first = tirx.max(0, ahead - tirx.floordiv(top + ahead * apart, apart))
    past = tirx.floordiv(top + (beyond * apart - extent), apart)
    behind = tirx.min(kernel, beyond - past)
    return first, tirx.max(0, behind - first)


def _stores(
    work: Convolving,
    panel: Panel,
    channel: Expr,
    place: tuple[Expr, ...],
    run: Columns,
    file: _File,
) -> Stmt:
    n, y, x = place
    there = min(panel.channels - file.first, file.count * file.lanes)

    def position(p: Expr) -> Stmt:
        def one(c: Expr) -> Stmt:
            value = file.memory[file.index(p, 0) + c]
            at = _places(y, work.shape.outer)
            return work.store(value, n, at, x + p, channel + file.first + c)

        return in_vectors(there, file.lanes, one, unroll=there)

    return loop(run.width, position, "unrolled")
