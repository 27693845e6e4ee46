"""Buffers that are needed at different times share memory: offsets in one block.

Used for the values inside a compiled function, and for what crosses the border of functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ALIGNMENT", "Buffer", "Plan", "aligned", "busiest", "pack"]

#: Bytes every buffer given to compiled code is aligned to: a cache line, the widest vector.
ALIGNMENT = 64

#: Orders tried beside the first four, each with the buffer that ended highest moved to the front,
#: as long as no plan is as small as any can be.
_TRIES = 40


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory needed from step `first` to step `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Plan:
    """Offset of each buffer in a block of `nbytes`."""

    offsets: dict[str, int]
    nbytes: int


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`.

    >>> aligned(0), aligned(1), aligned(64), aligned(65)
    (0, 64, 64, 128)
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def busiest(buffers: Iterable[Buffer]) -> int:
    """Bytes needed at the step that needs most: no plan is smaller.

    >>> busiest([Buffer("a", 64, 0, 1), Buffer("b", 1, 1, 2), Buffer("c", 64, 2, 3)])
    128
    """
    change: dict[int, int] = {}
    for buffer in buffers:
        size = aligned(buffer.nbytes)
        change[buffer.first] = change.get(buffer.first, 0) + size
        change[buffer.last + 1] = change.get(buffer.last + 1, 0) - size
    most = now = 0
    for step in sorted(change):
        now += change[step]
        most = max(most, now)
    return most


def pack(buffers: Sequence[Buffer]) -> Plan:
    """Offset of every buffer, such that those needed at the same time never overlap.

    Several orders are tried; in each, every buffer is put at the lowest offset where it fits. The
    smallest block wins. Equal arguments give equal plans. O(n^2) with a small constant: 1,500
    buffers take less than a second.

    >>> pack([Buffer("a", 64, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 64, 2, 3)])
    Plan(offsets={'a': 0, 'b': 64, 'c': 0}, nbytes=128)
    """
    least = busiest(buffers)
    first, *others = _orders(buffers)
    best, order = _in_order(first), first
    for other in others:
        if best.nbytes == least:
            return best
        plan = _in_order(other)
        if plan.nbytes < best.nbytes:
            best, order = plan, other
    plan = best
    for _ in range(_TRIES if len(buffers) <= 200 else _TRIES // 10):
        if best.nbytes == least:
            break
        ends = {b.name: plan.offsets[b.name] + aligned(b.nbytes) for b in order}
        top = max(order, key=lambda b: ends[b.name])
        order = [top, *(b for b in order if b is not top)]
        plan = _in_order(order)
        best = min(best, plan, key=lambda p: p.nbytes)
    return best


def _orders(buffers: Sequence[Buffer]) -> list[list[Buffer]]:
    """Large first, most bytes times steps first, longest first, as they are needed."""

    def steps(b: Buffer) -> int:
        return b.last - b.first + 1

    return [
        sorted(buffers, key=lambda b: (-b.nbytes, b.first, b.name)),
        sorted(buffers, key=lambda b: (-b.nbytes * steps(b), b.first, b.name)),
        sorted(buffers, key=lambda b: (-steps(b), -b.nbytes, b.first, b.name)),
        sorted(buffers, key=lambda b: (b.first, -b.nbytes, b.name)),
    ]


def _in_order(buffers: Sequence[Buffer]) -> Plan:
    """Each buffer at the lowest offset that those before it leave free."""
    count = len(buffers)
    # Of the buffers placed so far, by offset.
    first, last, low, high = (np.zeros(count, np.int64) for _ in range(4))
    offsets: dict[str, int] = {}
    for done, buffer in enumerate(buffers):
        size = aligned(buffer.nbytes)
        meets = (first[:done] <= buffer.last) & (last[:done] >= buffer.first)
        starts, ends = low[:done][meets], high[:done][meets]
        # Where the space below each of them begins: the end of whatever reaches highest so far.
        floors = np.maximum.accumulate(np.concatenate([[0], ends]))
        fits = np.flatnonzero(starts - floors[:-1] >= size)
        offset = int(floors[fits[0]] if len(fits) else floors[-1])
        offsets[buffer.name] = offset
        at = int(np.searchsorted(low[:done], offset, side="right"))
        for column, value in (
            (first, buffer.first),
            (last, buffer.last),
            (low, offset),
            (high, offset + size),
        ):
            column[at + 1 : done + 1] = column[at:done].copy()
            column[at] = value
    return Plan(offsets, int(high.max()) if count else 0)
