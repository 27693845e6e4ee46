"""The register tiles of matrix products, and which of them a shape is computed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eecompile.hardware import Machine

__all__ = ["Tile", "candidates", "choice", "splits", "widths"]

#: Cycles of loop control, address arithmetic and store that a tile costs beside its products.
_OVERHEAD = 16
#: Steps of the sum that are unrolled, and may go to accumulators of their own.
UNROLL = 4
#: Shortest vector, in elements, that the last columns are computed in.
_SHORTEST = 4


@dataclass(frozen=True)
class Tile:
    """`rows` x `blocks` accumulators; a block is a vector of columns."""

    rows: int
    blocks: int


def widths(columns: int, lanes: int) -> list[int]:
    """The vectors that hold a row of columns; the last one is as short as it can be.

    >>> widths(40, 16), widths(24, 8), widths(17, 4), widths(3, 16)
    ([16, 16, 8], [8, 8, 8], [4, 4, 4, 4, 4], [4])
    """
    full, rest = divmod(columns, lanes)
    last = lanes
    while last > _SHORTEST and last // 2 >= rest:
        last //= 2
    return [lanes] * full + ([last] if rest else [])


def splits(rows: int, blocks: int, inputs: int, machine: Machine) -> int:
    """How many sums each element of a small tile is made of, so that none waits for the last.

    >>> machine = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> splits(1, 1, 64, machine), splits(6, 4, 64, machine), splits(1, 4, 63, machine)
    (4, 1, 1)
    """
    needed = machine.fma_latency * machine.fma_per_cycle
    room = (machine.tile_registers - blocks - 1) // (rows * blocks)
    for count in (1, 2, UNROLL):
        if rows * blocks * count >= needed or 2 * count > min(room, UNROLL):
            return count if inputs % UNROLL == 0 else 1
    return 1


def candidates(rows: int, columns: int, inputs: int, machine: Machine) -> list[Tile]:
    """All tiles that fit the registers, the one with the fewest estimated cycles first."""
    ranked = sorted(
        _fitting(rows, columns, machine),
        key=lambda tile: (_cycles(tile, rows, columns, inputs, machine), -tile.rows * tile.blocks),
    )
    return ranked or [Tile(1, 1)]


def choice(rows: int, columns: int, inputs: int, machine: Machine) -> Tile:
    """The tile a product of these dimensions is computed with.

    >>> machine = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> choice(1, 10, 384, machine)
    Tile(rows=1, blocks=1)
    """
    return candidates(rows, columns, inputs, machine)[0]


def _fitting(rows: int, columns: int, machine: Machine) -> Iterator[Tile]:
    blocks = len(widths(columns, machine.lanes))
    for b in range(1, min(blocks, machine.tile_registers) + 1):
        for r in range(1, rows + 1):
            if r * b + b + 1 > machine.tile_registers:
                break
            yield Tile(r, b)


def _cycles(tile: Tile, rows: int, columns: int, inputs: int, machine: Machine) -> float:
    """Cycles of all tiles, those at the lower and right border included.

    A step loads a weight vector for each block and an input for each row, and issues their
    products; it takes as long as the slowest of multiplying, loading and waiting for the previous
    sum in the same accumulator.
    """
    vectors = widths(columns, machine.lanes)
    panels = [(len(vectors) // tile.blocks, vectors[: tile.blocks])]
    rest = len(vectors) % tile.blocks
    if rest:
        panels.append((1, vectors[-rest:]))
    elif vectors[-1] != machine.lanes:
        panels = [(panels[0][0] - 1, vectors[: tile.blocks]), (1, vectors[-tile.blocks :])]
    total = 0.0
    for height, count in ((tile.rows, rows // tile.rows), (rows % tile.rows, 1)):
        for times, inside in panels:
            if not height * times * count:
                continue
            used = splits(height, len(inside), inputs, machine)
            step = max(
                height * sum(inside) / machine.lanes / machine.fma_per_cycle,
                (height + len(inside)) / 2,
                machine.fma_latency / used,
            )
            total += count * times * (step * inputs + _OVERHEAD + height * len(inside))
    if rows == 1 and panels[0][0] < 2 * machine.cores:
        total *= 1.0 + 0.01 * tile.blocks  # Threads share blocks only.
    return total
