"""Winograd's transforms of the input and of the sums, a vector of channels at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx import BufferStore, IfThenElse

from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    Reader,
    Registers,
    loop,
    named,
    sequence,
)
from eecompile.targets.lowering.schedules.kept import Kept
from eecompile.targets.lowering.schedules.winograd_plan import Plan
from eecompile.targets.lowering.schedules.winograd_points import combine

__all__ = [
    "Memory",
    "Place",
    "back",
    "choice",
    "for_inputs",
    "for_vectors",
    "forward",
    "lanes",
    "tails",
]

Expr = Any
Stmt = Any
#: Sample, first row of tiles, first column of tiles of a strip.
Place = tuple[Expr, Expr, Expr]


@dataclass(frozen=True)
class Memory:
    """What the code reads and writes.

    Attributes:
        x: reads the input.
        bias: reads what is added to each output channel, where there is something.
        weights: [group][point][channel][block][lane].
        source: transformed input, [strip][point][vector of channels][tile][lane].
        columns: half transformed input of a row of tiles, [row][column][lane].
        sums: [point][tile][block][lane].
        kept: the groups of output channels that are computed, where there are others.
        seen: the groups of input channels that are summed over, where there are others; source
            holds one behind the other.
    """

    kernel: Kernel
    x: Reader
    bias: list[Reader]
    weights: Expr
    source: Expr
    columns: Expr
    sums: Expr
    kept: Kept | None = None
    seen: Kept | None = None


def tails(channels: int, width: int) -> list[tuple[int, int]]:
    """(first channel, width) of the vectors behind the last full one.

    >>> tails(45, 16), tails(32, 16)
    ([(32, 8), (40, 4), (44, 1)], [])
    """
    first, found = channels - channels % width, []
    while first < channels:
        width //= 2
        if channels - first >= width:
            found.append((first, width))
            first += width
    return found


def for_vectors(channels: int, width: int, body: Callable[[Expr, int], Stmt]) -> list[Stmt]:
    """`body(first channel, width)` for all channels."""
    full = [loop(channels // width, lambda v: body(v * width, width))] if channels >= width else []
    return full + [body(first, narrow) for first, narrow in tails(channels, width)]


def for_inputs(plan: Plan, memory: Memory, body: Callable[[Expr, Expr, int], Stmt]) -> list[Stmt]:
    """`body(first channel, its place in source, width)` for all channels that are transformed."""
    channels, width, seen = plan.problem.shape[3], plan.input_lanes, memory.seen
    if seen is None or plan.is_transformed_whole:
        return for_vectors(channels, width, lambda first, narrow: body(first, first, narrow))

    def group(place: Expr, index: Expr) -> Stmt:
        each = plan.problem.seen

        def vector(first: Expr, narrow: int) -> Stmt:
            return body(index * each + first, place * each + first, narrow)

        return sequence(for_vectors(each, width, vector))

    return [seen.groups(group)]


def lanes(width: int, body: Callable[[Expr], Iterator[Stmt]]) -> Stmt:
    """Statements for each lane of a vector."""
    return loop(width, lambda lane: sequence(body(lane)), "vector")


def choice(cases: Sequence[tuple[Expr, Stmt]]) -> Stmt:
    """The first statement whose condition holds; the last one holds where no other does."""
    *others, (_, code) = cases
    for condition, statement in reversed(others):
        code = IfThenElse(condition, statement, code)
    return code


class _Names:
    """Names given to values, in order."""

    def __init__(self) -> None:
        self.statements: list[Stmt] = []

    def __call__(self, value: Expr) -> Expr:
        name, statement = named(value)
        self.statements.append(statement)
        return name


def _float(value: float) -> Expr:
    return tirx.const(value, "float32")


# --- The input ------------------------------------------------------------------------------------


def forward(
    plan: Plan, memory: Memory, place: Place, base: Expr, channels: tuple[Expr, Expr, int]
) -> Stmt:
    """B^T d B of a strip's tiles for some channels, to source[base ...].

    The channels are the first one, its place in source, and how many there are.

    Before -> after, for a row of tiles::

        d[n rows][sliding columns] -> columns[n][sliding columns]   (sums over rows, padding)
                                   -> source[n * n][tiles]          (sums over columns)
    """
    n, ty, tx = place
    first, to, width = channels

    def row(r: Expr) -> Stmt:
        y, bound = named(ty + r)
        down = [
            (condition, _down(plan, memory, (n, y, tx), (first, width), rows))
            for condition, rows in _row_cases(plan, y)
        ]

        def tile(c: Expr) -> Stmt:
            at = base + to * plan.tiles + (r * plan.columns + c) * width
            return _across(plan, memory, at, c * plan.transform.tile, width)

        return sequence([bound, choice(down), loop(plan.columns, tile)])

    return loop(plan.rows, row)


def _row_cases(plan: Plan, y: Expr) -> list[tuple[Expr, tuple[int, int]]]:
    """Conditions on a row of tiles and which rows of its input there are then, most common first.

    The others are padding, or below the last row of an output whose height the tiles overhang.
    """
    m, size = plan.transform.tile, plan.transform.size
    top, height = plan.problem.top, plan.problem.shape[1]
    cases: list[list[int]] = []
    for row in range(plan.strips[1] * plan.rows):
        low = min(max(top - row * m, 0), size)
        high = max(min(height + top - row * m, size), low)
        if cases and cases[-1][2:] == [low, high]:
            cases[-1][1] = row + 1
        else:
            cases.append([row, row + 1, low, high])
    cases.sort(key=lambda case: case[0] - case[1])
    return [(tirx.all(y >= a, y < b), (low, high)) for a, b, low, high in cases]


def _down(
    plan: Plan, memory: Memory, place: Place, channels: tuple[Expr, int], rows: tuple[int, int]
) -> Stmt:
    """Sums over the rows low .. high of a row of tiles, for each column of the input."""
    (n, y, tx), (first, width), (low, high) = place, channels, rows
    t, problem = plan.transform, plan.problem
    taken = tuple(row[low:high] for row in t.source)

    def column(s: Expr) -> Stmt:
        def body(lane: Expr) -> Iterator[Stmt]:
            name = _Names()
            above, left = y * t.tile - problem.top, tx * t.tile - problem.left
            values = [
                name(memory.x(n, above + i, left + s, first + lane)) for i in range(low, high)
            ]
            made = combine(taken, values, _float, name)
            yield from name.statements
            for i, value in enumerate(made):
                yield BufferStore(memory.columns, value, [_column(plan, i, s) + lane])

        return lanes(width, body)

    def nothing(s: Expr) -> Stmt:
        def body(lane: Expr) -> Iterator[Stmt]:
            for i in range(t.size):
                yield BufferStore(memory.columns, _float(0), [_column(plan, i, s) + lane])

        return lanes(width, body)

    if low == high:
        return loop(plan.sliding, nothing)
    shift = 0 if plan.strips[2] == 1 else tx * t.tile
    begin = tirx.min(tirx.max(problem.left - shift, 0), plan.sliding)
    end = tirx.max(tirx.min(problem.left + problem.shape[2] - shift, plan.sliding), begin)
    return sequence(
        [
            loop(begin, nothing),
            loop(end - begin, lambda s: column(begin + s)),
            loop(plan.sliding - end, lambda s: nothing(end + s)),
        ]
    )


def _column(plan: Plan, i: int, s: Expr) -> Expr:
    return (i * plan.sliding + s) * plan.input_lanes


def _across(plan: Plan, memory: Memory, at: Expr, column: Expr, width: int) -> Stmt:
    """Sums over the columns of one tile."""
    t = plan.transform

    def row(i: int) -> Stmt:
        def body(lane: Expr) -> Iterator[Stmt]:
            name = _Names()
            values = [
                name(memory.columns[_column(plan, i, column + j) + lane]) for j in range(t.size)
            ]
            made = combine(t.source, values, _float, name)
            yield from name.statements
            for j, value in enumerate(made):
                point = i * t.size + j
                yield BufferStore(memory.source, value, [at + point * plan.stride + lane])

        return lanes(width, body)

    return sequence(row(i) for i in range(t.size))


# --- The sums -------------------------------------------------------------------------------------


def back(plan: Plan, memory: Memory, place: Place, group: Expr) -> Stmt:
    """A^T M A and the kernel's other steps, for a strip's tiles and a group of outputs."""
    n, ty, tx = place
    outputs, width = plan.problem.result[3], plan.lanes

    def block(b: Expr) -> Stmt:
        def tiles(first: Expr, narrow: int) -> Stmt:
            def tile(r: Expr, c: Expr) -> Stmt:
                at = ((r * plan.columns + c) * plan.blocks + b) * width
                return _tile_back(plan, memory, (n, ty + r, tx + c), at, (first, narrow))

            return loop(plan.rows, lambda r: loop(plan.columns, lambda c: tile(r, c)))

        vector = group * plan.blocks + b
        code = [tiles(first, narrow) for first, narrow in tails(outputs, width)]
        if outputs < width:
            return sequence(code)
        full = tiles(vector * width, width)
        return IfThenElse(vector < outputs // width, full, sequence(code)) if code else full

    return loop(plan.blocks, block)


def _tile_back(
    plan: Plan, memory: Memory, place: Place, at: Expr, channels: tuple[Expr, int]
) -> Stmt:
    """One tile's outputs, in registers, then each through the kernel's other steps."""
    t = plan.transform
    first, width = channels
    skipped = first % plan.lanes if width < plan.lanes else 0
    stride = plan.tiles * plan.blocks * plan.lanes
    tile = Registers(t.tile * t.tile, width)

    def body(lane: Expr) -> Iterator[Stmt]:
        name = _Names()
        down = []
        for j in range(t.size):
            values = [
                name(memory.sums[at + (i * t.size + j) * stride + skipped + lane])
                for i in range(t.size)
            ]
            down.append(combine(t.output, values, _float, name))
        rows = [combine(t.output, [c[i] for c in down], _float, name) for i in range(t.tile)]
        yield from name.statements
        for place, value in enumerate(value for row in rows for value in row):
            yield tile.store(place * width + lane, value)

    stored = [_row_back(plan, memory, place, channels, i, tile) for i in range(t.tile)]
    return sequence([tile.made, lanes(width, body), *stored])


def _row_back(
    plan: Plan,
    memory: Memory,
    place: Place,
    channels: tuple[Expr, int],
    i: int,
    tile: Registers,
) -> Stmt:
    """Row i of a tile's outputs, as far as they exist."""
    (_, height, width, _), m = plan.problem.result, plan.transform.tile
    (n, down, across), (first, narrow) = place, channels
    y, x = down * m + i, across * m

    def store(j: int) -> Stmt:
        # NOTE: no names here: operators that have no vector form become loops over lanes.
        def lane(c: Expr) -> Iterator[Stmt]:
            value = tile[(i * m + j) * narrow + c]
            for bias in memory.bias:
                value = value + bias(first + c)
            yield memory.kernel.write([n, y, x + j, first + c], lambda *_: value)

        return lanes(narrow, lane)

    stores = []
    for j in range(m):
        overhangs = (plan.strips[2] * plan.columns - 1) * m + j >= width
        stores.append(IfThenElse(x + j < width, store(j), None) if overhangs else store(j))
    if (plan.strips[1] * plan.rows - 1) * m + i >= height:
        return IfThenElse(y < height, sequence(stores), None)
    return sequence(stores)
