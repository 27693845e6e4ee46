"""Step 4: where every value of a graph lives while it runs.

Graph inputs and outputs are the caller's memory, constants lie in the weights, everything else in
one workspace whose bytes are used again as soon as their value is dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Buffer", "Plan", "aligned", "plan_workspace"]

ALIGNMENT = 64


@dataclass(frozen=True)
class Buffer:
    """Memory needed from step `first` to step `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Offset of each buffer in a workspace of `nbytes`."""

    offsets: dict[str, int]
    nbytes: int


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`.

    >>> aligned(0), aligned(1), aligned(64), aligned(65)
    (0, 64, 64, 128)
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan_workspace(buffers: Sequence[Buffer]) -> Plan:
    """Offsets such that buffers needed at the same time never overlap. O(n^2 log n).

    Large buffers first, each at the lowest offset where it fits.

    >>> plan_workspace([Buffer("a", 64, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 64, 2, 3)])
    Plan(offsets={'a': 0, 'b': 64, 'c': 0}, nbytes=128)
    """
    placed: list[tuple[Buffer, int]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.first, b.name)):
        taken = sorted(
            (offset, offset + aligned(other.nbytes))
            for other, offset in placed
            if other.meets(buffer)
        )
        start = 0
        for low, high in taken:
            if start + aligned(buffer.nbytes) <= low:
                break
            start = max(start, high)
        placed.append((buffer, start))
    size = max((offset + aligned(buffer.nbytes) for buffer, offset in placed), default=0)
    return Plan({buffer.name: offset for buffer, offset in placed}, size)
