"""How many accumulators a core keeps in registers: the register tile of a multiply-accumulate."""

from __future__ import annotations

from dataclasses import dataclass

from eecompile.hardware import Machine

__all__ = ["Tile", "choose_tile"]

#: Cycles of loop control, address arithmetic and store that a tile costs beside its products.
_TILE_OVERHEAD = 16


@dataclass(frozen=True)
class Tile:
    """`width` positions x `blocks` vectors of output channels."""

    width: int
    blocks: int


def choose_tile(
    width: int, blocks: int, products: int, machine: Machine, shared_inputs: bool = True
) -> Tile:
    """The tile with the fewest estimated cycles per output.

    A step of the inner loop loads `blocks` weight vectors and `width` inputs and issues their
    products; it takes as long as the slowest of multiplying, loading and waiting for the previous
    sum in the same accumulator. All accumulators, one row of weights and one input stay in
    registers.

    Args:
        width: positions in a row of the output.
        blocks: vectors of output channels.
        products: multiply-accumulates per output.
        machine: registers, latency and throughput.
        shared_inputs: whether all output channels read the same inputs; where they do not
            (depthwise), every product loads an input vector of its own.

    >>> machine = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> choose_tile(32, 1, 144, machine)
    Tile(width=16, blocks=1)
    """
    best, best_cost = Tile(1, 1), float("inf")
    for b in (b for b in range(1, min(blocks, machine.registers) + 1) if blocks % b == 0):
        for w in range(1, width + 1):
            if w * b + b + 1 > machine.registers:
                break
            loads = (w + b) / 2 if shared_inputs else (w * b + b) / 2
            step = max(w * b / machine.fma_per_cycle, loads, machine.fma_latency)
            tiles = -(-width // w)
            overhang = 1.0 if width % w == 0 else 1.1
            cost = tiles * (step * products + _TILE_OVERHEAD) * overhang / (width * b)
            if cost < best_cost - 1e-9 or (cost < best_cost + 1e-9 and w * b > _size(best)):
                best, best_cost = Tile(w, b), min(cost, best_cost)
    return best


def _size(tile: Tile) -> int:
    return tile.width * tile.blocks
