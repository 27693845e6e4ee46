"""Sums, means, extremes: along rows in several vector accumulators, down columns in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    Registers,
    in_vectors,
    loop,
    parallel,
    place_in,
    sequence,
)
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["MAXIMUM", "SUM", "Folding", "fold_row", "reduction"]

Expr = Any
Stmt = Any

#: Elements of a column that one unit of work adds up; longer columns are added in two phases.
_COLUMN = 256
#: Vectors of neighbouring columns that one unit of work adds up side by side.
_BLOCK = 4


@dataclass(frozen=True)
class Folding:
    """How two elements become one, and what changes nothing."""

    join: Callable[[Expr, Expr], Expr]
    start: float

    def constant(self) -> Expr:
        """What changes nothing."""
        return tirx.const(self.start, "float32")


SUM = Folding(lambda a, b: a + b, 0.0)
MAXIMUM = Folding(te.max, float("-inf"))
_KINDS = {
    "ReduceSum": SUM,
    "ReduceMean": SUM,
    "ReduceMax": MAXIMUM,
    "ReduceMin": Folding(te.min, float("inf")),
    "ReduceProd": Folding(lambda a, b: a * b, 1.0),
}


def fold_row(
    extent: int, read: Callable[[Expr], Expr], folding: Folding, machine: Machine
) -> tuple[list[Stmt], Expr]:
    """Statements that fold ``read(0 .. extent)``, and where the result then is.

    As many vector accumulators as hide the latency, then halves upon halves: the order depends
    on the extent and the machine alone. ::

        for c: total = join(total, x[c])
        ->  for v: for u: acc[u] = join(acc[u], x[(v * U + u) * L .. + L])   # vectors
            acc[0][.. rest] = join(acc[0][.. rest], x[rest])                 # shorter vectors
            acc[0] = join(join(acc[0], acc[1]), join(acc[2], acc[3]))
            acc[0][.. L/2] = join(acc[0][.. L/2], acc[0][L/2 ..]); ...       # down to one
    """
    lanes = machine.lanes
    chunks, rest = divmod(extent, lanes)
    count = max(1, min(chunks, machine.fma_latency))
    acc = _Accumulators(folding, count, lanes)

    def vectors(first: Expr, used: int) -> Stmt:
        return sequence(
            acc.join(u * lanes, lanes, _shifted(read, (first * count + u) * lanes))
            for u in range(used)
        )

    body = [acc.made, acc.start()]
    if chunks // count:
        body.append(loop(chunks // count, lambda v: vectors(v, count)))
    if chunks % count:
        body.append(vectors(tirx.const(chunks // count, "int32"), chunks % count))
    if rest:
        tail = _shifted(read, tirx.const(chunks * lanes, "int32"))
        body.append(in_vectors(rest, lanes // 2, lambda c: acc.joined(c, tail(c))))
    step = 1
    while step < count:
        for u in range(0, count - step, 2 * step):
            body.append(acc.join_own(u * lanes, (u + step) * lanes, lanes))
        step *= 2
    width = lanes // 2
    while width:
        body.append(acc.join_own(0, width, width))
        width //= 2
    return body, acc[tirx.const(0, "int32")]


class _Accumulators(Registers):
    """Registers that elements are folded into."""

    def __init__(self, folding: Folding, count: int, lanes: int) -> None:
        super().__init__(count, lanes)
        self.folding, self.count = folding, count

    def start(self) -> Stmt:
        """Sets all of them to what changes nothing."""
        return in_vectors(
            self.count * self.lanes,
            self.lanes,
            lambda place: self.store(place, self.folding.constant()),
            unroll=self.count,
        )

    def joined(self, place: Expr, value: Expr) -> Stmt:
        """Folds a value into one of them."""
        return self.store(place, self.folding.join(self[place], value))

    def join(self, first: int, width: int, value: Callable[[Expr], Expr]) -> Stmt:
        """Folds a vector of values into those from `first` on."""
        return loop(width, lambda lane: self.joined(lane + first, value(lane)), "vector")

    def join_own(self, first: int, other: int, width: int) -> Stmt:
        """Folds those from `other` on into those from `first` on."""
        return self.join(first, width, lambda lane: self[lane + other])


def _shifted(read: Callable[[Expr], Expr], by: Expr) -> Callable[[Expr], Expr]:
    return lambda c: read(c + by)


def reduction(spec: KernelSpec, machine: Machine) -> Scheduled | None:
    """A reduction over neighbouring axes of float32; None where there is no such form."""
    step = spec.anchor
    folding = _KINDS.get(step.kind)
    if folding is None:
        return None
    (x_at,) = step.inputs
    shape = spec.operands[x_at].type.shape
    axes = step.attribute("axes")
    if step.type.dtype != "float32" or not axes or 0 in shape:
        return None
    if tuple(axes) != tuple(range(axes[0], axes[-1] + 1)) or len(shape) - axes[-1] > 2:
        return None
    share = 1 / prod(shape[axis] for axis in axes) if step.kind == "ReduceMean" else None
    if axes[-1] == len(shape) - 1:
        return _rows(spec, machine, folding, share)
    return _columns(spec, machine, folding, share)


def _place(spec: KernelSpec, outer: Sequence[Expr], inner: Sequence[Expr]) -> list[Expr]:
    """The result's index: what is summed over is 1 or gone."""
    step = spec.anchor
    zero = tirx.const(0, "int32")
    kept = [zero] * len(step.attribute("axes")) if step.attribute("keepdims") else []
    return [*outer, *kept, *inner]


def _rows(spec: KernelSpec, machine: Machine, folding: Folding, share: float | None) -> Scheduled:
    axes = spec.anchor.attribute("axes")
    kernel = Kernel(spec)
    x = kernel.operand(spec.anchor.inputs[0])
    shape = spec.operands[spec.anchor.inputs[0]].type.shape
    outer, inner = shape[: axes[0]], shape[axes[0] :]

    def row(at: list[Expr]) -> Stmt:
        def read(c: Expr) -> Expr:
            return x(*at, *place_in(inner, c))

        body, total = fold_row(prod(inner), read, folding, machine)
        value = total if share is None else total * tirx.const(share, "float32")
        return sequence([*body, kernel.write(_place(spec, at, ()), lambda *_: value)])

    return kernel.finished(parallel(outer or (1,), lambda at: row(at if outer else [])))


def _columns(
    spec: KernelSpec, machine: Machine, folding: Folding, share: float | None
) -> Scheduled:
    """Sums down columns, in vectors of neighbouring columns, and long ones in parts.

    ::

        for c: for r: y[c] += x[r, c]
        ->  parallel part, block: for r of part: acc[b] += x[r, block + b * L .. + L]
                                  partial[part, block ...] = acc
            parallel block: for part: acc[b] += partial[part, ...];  y[block ...] = ending(acc)
    """
    axes = spec.anchor.attribute("axes")
    kernel = Kernel(spec)
    x = kernel.operand(spec.anchor.inputs[0])
    shape = spec.operands[spec.anchor.inputs[0]].type.shape
    outer, middle, columns = shape[: axes[0]], shape[axes[0] : axes[-1] + 1], shape[-1]
    parts = _parts(prod(middle))
    each = prod(middle) // parts
    sums = _Columns(columns, folding, machine)

    def read(at: list[Expr], r: Expr, c: Expr) -> Expr:
        *place, part = at
        return x(*place, *place_in(middle, part * each + r), c)

    def finish(at: list[Expr], c: Expr, value: Expr) -> Stmt:
        value = value if share is None else value * tirx.const(share, "float32")
        return kernel.write(_place(spec, at[: len(outer)], (c,)), lambda *_: value)

    if parts == 1:
        return kernel.finished(*sums.phases((*outer, 1), each, read, finish))
    partial = kernel.scratch((*outer, parts, columns))

    def keep(at: list[Expr], c: Expr, value: Expr) -> Stmt:
        return tirx.BufferStore(partial, value, [*at, c])

    def kept(at: list[Expr], r: Expr, c: Expr) -> Expr:
        return tirx.BufferLoad(partial, [*at, r, c])

    first = sums.phases((*outer, parts), each, read, keep)
    return kernel.finished(*first, *sums.phases(outer, parts, kept, finish))


def _parts(length: int) -> int:
    """In how many equal parts a column is added up.

    >>> _parts(49), _parts(3136), _parts(12544), _parts(257)
    (1, 14, 49, 1)
    """
    for parts in range(-(-length // _COLUMN), length // 32 + 1):
        if length % parts == 0:
            return parts
    return 1


def _blocks(columns: int, lanes: int) -> list[tuple[int, int, int]]:
    """(first column, blocks, columns of a block): wide blocks, then ever shorter ones.

    >>> _blocks(1280, 16), _blocks(24, 16)
    ([(0, 20, 64)], [(0, 1, 16), (16, 1, 8)])
    """
    found, first, width = [], 0, _BLOCK * lanes
    while first < columns:
        count = (columns - first) // width
        if count:
            found.append((first, count, width))
        first += count * width
        width //= 2
    return found


@dataclass(frozen=True)
class _Columns:
    """Columns that are folded in blocks, each in several accumulators."""

    columns: int
    folding: Folding
    machine: Machine

    def phases(
        self,
        outer: Sequence[int],
        extent: int,
        read: Callable[[list[Expr], Expr, Expr], Expr],
        store: Callable[[list[Expr], Expr, Expr], Stmt],
    ) -> list[Stmt]:
        """``store(at, c, fold of read(at, 0 .. extent, c))`` for all places and columns.

        Blocks of one width are one phase.
        """
        return [
            self._phase((*outer, count), first, width, extent, read, store)
            for first, count, width in _blocks(self.columns, self.machine.lanes)
        ]

    def _phase(
        self,
        box: Sequence[int],
        first: int,
        width: int,
        extent: int,
        read: Callable[[list[Expr], Expr, Expr], Expr],
        store: Callable[[list[Expr], Expr, Expr], Stmt],
    ) -> Stmt:
        def unit(place: list[Expr]) -> Stmt:
            *at, block = place
            start = block * width + first
            return self._block(
                extent,
                width,
                lambda r, c: read(at, r, start + c),
                lambda c, value: store(at, start + c, value),
            )

        return parallel(box, unit)

    def _block(
        self,
        extent: int,
        width: int,
        read: Callable[[Expr, Expr], Expr],
        store: Callable[[Expr, Expr], Stmt],
    ) -> Stmt:
        lanes = min(width, self.machine.lanes)
        vectors = width // lanes
        count = max(1, min(self.machine.fma_latency // vectors, extent))
        acc = _Accumulators(self.folding, count * vectors, lanes)

        def rows(first: Expr, used: int) -> Stmt:
            return sequence(row(first * count + u, u * width) for u in range(used))

        def row(r: Expr, slot: int) -> Stmt:
            def at(c: Expr) -> Stmt:
                return acc.joined(c + slot, read(r, c))

            return in_vectors(width, lanes, at)

        body = [acc.made, acc.start(), loop(extent // count, lambda v: rows(v, count))]
        if extent % count:
            body.append(rows(tirx.const(extent // count, "int32"), extent % count))
        for u in range(1, count):
            for b in range(vectors):
                body.append(acc.join_own(b * lanes, u * width + b * lanes, lanes))
        body.append(in_vectors(width, lanes, lambda c: store(c, acc[c])))
        return sequence(body)
