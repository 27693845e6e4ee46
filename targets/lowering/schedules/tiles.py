"""How many accumulators a core keeps in registers: the register tile of a multiply-accumulate."""

from __future__ import annotations

from dataclasses import dataclass

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.panels import Panel, panels_of, vectors_of

__all__ = ["WIDEST", "Tile", "choose_tile", "conv_tiles"]

#: Cycles of loop control, address arithmetic and store that a tile costs beside its products.
_TILE_OVERHEAD = 16

#: What follows was measured on an AMD EPYC (family 25 model 17, 3.65 GHz): tiles of 2 to 30 columns
#: and 1 to 9 vectors on 14 convolutions of ResNet-18, MobileNetV2 and MobileNetV3, one thread.
#: Multiply-adds of floats that begin in a cycle at most: one of 512 bits, or two of 256.
WIDEST = 16
#: Cycles of a vector of results: epilogue and store.
_STORE = 1.5
#: More cycles of 64 bytes of a result that no cache holds, where a panel writes less than so many
#: bytes in one go: the prefetcher then does not follow. 12 at 192 bytes, 2 at 384.
_SCATTERED = 10
_RUN_BYTES = 256
#: Bytes a cycle that weights are read at from the second cache, beside multiplying.
_L2_BYTES_PER_CYCLE = 16
#: Part of the loads' cycles that multiplying does not hide.
_LOAD = 0.1
#: A half vector beside whole ones takes this much of what it takes alone, relative to its lanes.
_MIXED = 1.5


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
    for b in (b for b in range(1, min(blocks, machine.tile_registers) + 1) if blocks % b == 0):
        for w in range(1, width + 1):
            if w * b + b + 1 > machine.tile_registers:
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


# --- Convolutions: panels of vectors, the last of which may be shorter ----------------------------


def conv_tiles(
    rows: int,
    columns: int,
    channels: int,
    depth: int,
    machine: Machine,
    count: int = 6,
    vectors: int = 0,
) -> tuple[Tile, ...]:
    """The best register tiles of a convolution, best first, by estimated cycles.

    Args:
        rows: of the output.
        columns: positions in a row; the last tile of a row may be narrower.
        channels: output channels; the last panel may have fewer vectors, or a shorter one.
        depth: products per output.
        machine: registers, latency, throughput and caches.
        count: how many tiles to give at most.
        vectors: a panel's vectors divide this number; 0 where any number may be.

    >>> machine = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> conv_tiles(7, 7, 512, 4608, machine, 2)
    (Tile(width=7, blocks=3), Tile(width=7, blocks=2))
    """
    wide, narrow = vectors_of(channels, machine.lanes)
    spilled = rows * columns * channels * 4 > machine.l2_bytes
    found = []
    for blocks in range(1, min(wide + (narrow > 0), machine.tile_registers) + 1):
        if vectors and vectors % blocks:
            continue
        for width in range(1, columns + 1):
            if width * blocks + blocks + 1 + 2 * (narrow > 0) > machine.tile_registers:
                break
            tile = Tile(width, blocks)
            cycles = _row_cycles(tile, columns, channels, depth, spilled, machine)
            found.append((cycles, -_size(tile), width, blocks))
    return tuple(Tile(width, blocks) for _, _, width, blocks in sorted(found)[:count])


def _row_cycles(
    tile: Tile, columns: int, channels: int, depth: int, spilled: bool, machine: Machine
) -> float:
    """Estimated cycles of one row of the output."""
    panels = panels_of(channels, tile.blocks, machine.lanes)
    widths = {tile.width: columns // tile.width}
    if columns % tile.width:
        widths[columns % tile.width] = 1
    total = 0.0
    for panel in {(panel.wide, panel.narrow): panel for panel in panels}.values():
        times = sum((p.wide, p.narrow) == (panel.wide, panel.narrow) for p in panels)
        store = _STORE
        if spilled and panel.width * 4 < _RUN_BYTES and len(panels) > 1:
            store += _SCATTERED * machine.lanes / 16
        for width, tiles in widths.items():
            step = _step_cycles(width, panel, depth, machine)
            stores = store * width * panel.vectors
            total += times * tiles * (step * depth + stores + _TILE_OVERHEAD)
    return total


def _step_cycles(width: int, panel: Panel, depth: int, machine: Machine) -> float:
    """Estimated cycles of one product of each accumulator."""
    rate = min(machine.lanes * machine.fma_per_cycle, WIDEST)
    short = max(panel.narrow / rate, 1 / machine.fma_per_cycle) if panel.narrow else 0.0
    if panel.wide:
        short *= _MIXED
    products = width * (panel.wide * machine.lanes / rate + short)
    loads = (width + panel.vectors * max(1, machine.lanes / 8)) / 2
    stream = 0.0
    if depth * panel.width * 4 > machine.l1_bytes // 2:
        stream = panel.width * 4 / _L2_BYTES_PER_CYCLE
    return max(products, loads, stream, machine.fma_latency) + _LOAD * loads
