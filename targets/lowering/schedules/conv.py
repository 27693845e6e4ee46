"""Convolutions: output channels in the vector lanes, positions and vectors of them in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import numpy as np
from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.convolving import Convolving, Input, Shape, convolve
from eecompile.targets.lowering.schedules.emit import Kernel, element, reader
from eecompile.targets.lowering.schedules.kept import (
    as_kept,
    bias_operands,
    input_gate,
    kept_of,
    left_out,
    output_gate,
    suited,
)
from eecompile.targets.lowering.schedules.panels import pack_panels, panels_of
from eecompile.targets.lowering.schedules.tiles import Tile, conv_tiles
from eecompile.targets.lowering.schedules.windows import Window, columns, filled, window_of
from eecompile.targets.lowering.spec import KernelSpec, Packed, PerThread, Scheduled, as_rows

__all__ = ["candidates", "conv", "grouping"]

Expr = Any

#: Kinds of tiles that differ in what their window sees of the input, in one row at most; where
#: there are more the input is copied with its padding first. Each kind is code of its own.
_KINDS = 6


def grouping(groups: int, outputs: int, lanes: int) -> int:
    """How many groups of a grouped convolution are computed as one, with zeros in between.

    The result's channels must fill whole vectors, or all groups become one.

    >>> grouping(32, 4, 16), grouping(2, 32, 16), grouping(3, 5, 16), grouping(1, 10, 16)
    (4, 1, 3, 1)
    """
    for joined in range(1, groups + 1):
        if groups % joined == 0 and (joined * outputs) % lanes == 0:
            return joined
    return groups


def candidates(spec: KernelSpec, machine: Machine, count: int = 6) -> tuple[Tile, ...]:
    """Tiles worth measuring, the one with the fewest estimated cycles first."""
    gate = output_gate(spec, machine)
    machine = suited(spec, machine)
    _, shape = _shape_of(spec, machine)
    vectors = shape.channels // shape.supers // machine.lanes if shape.supers > 1 else 0
    if gate is not None:
        vectors = gcd(vectors, gate.each // machine.lanes)
    rows = shape.batch * shape.rows
    return conv_tiles(rows, shape.columns, shape.channels, shape.depth, machine, count, vectors)


def conv(spec: KernelSpec, machine: Machine, choice: Tile | None = None) -> Scheduled:
    """A convolution: any number of dimensions, stride, dilation, padding and groups.

    With a tile of 14 columns x 2 vectors, for each row and panel of 2 vectors::

        y[row, 0:56, 0:32] = sum(x[row + i, column + j, k] * w[i, j, k, 0:32])
        ->
        for tile in 0..4:
            total[0:14, 0:2] = 0                        # 28 registers
            for i, j, k:                                # taps outside the input are left out
                for column in 0..14:                    # unrolled
                    total[column, 0:2] += x[row + i, 14 * tile + column + j, k] * w[i, j, k, 0:2]
            y[row, 14 * tile : 14 * tile + 14, 0:32] = epilogue(total)

    Nothing is padded: tiles at the left and right border are code of their own without the taps
    that lie outside, and the loop over a tap's rows begins and ends where the input does. The
    columns that a tile leaves over are a narrower tile, the channels that panels leave over a
    narrower panel. A convolution that looks at one place only has all places in one row.

    What stands before the convolution is computed once for each element: for the places of a
    few tiles, in memory that stays in the core's cache, ahead of all their panels.

    Args:
        spec: a `Conv` with channels last, and what stands before and behind it.
        machine: lanes, registers and caches.
        choice: the tile; default: the first of the candidates.
    """
    tile = choice or candidates(spec, machine, 1)[0]
    gate = output_gate(spec, machine)
    machine = suited(spec, machine)
    flat, shape = _shape_of(spec, machine)
    is_flat, spec = flat is not spec, flat
    if is_flat:
        rows, rest = divmod(shape.columns, tile.width)
        shape = replace(shape, outer=(rows,), columns=tile.width, rest=rest)
    w_at = spec.anchor.inputs[1]
    groups = spec.anchor.attribute("group")
    dtype = spec.anchor.type.dtype
    panels = panels_of(shape.channels, tile.blocks, machine.lanes)
    whole, spec = spec, as_kept(spec, gate)
    kernel = Kernel(spec, [w_at])
    pack = _pack(groups, groups // shape.supers, pack_panels(panels))
    size = sum(panel.width for panel in panels) * shape.depth
    weights = reader(kernel.add((size,), dtype, Packed(w_at, pack)))
    single_row = len(spec.anchor.type.shape) == 3
    given, phases = _input(spec, kernel, shape, tile, machine, is_flat)
    if phases:
        shape = replace(shape, window=shape.window.filled((*shape.outer, shape.columns)))
    bias = kernel.bias(bias_operands(spec.anchor))

    def store(value: Expr, n: Expr, y: Sequence[Expr], x: Expr, c: Expr) -> Any:
        value = value + bias(c)
        place = [y[0] * tile.width + x] if is_flat else [n, *y[single_row:], x]
        return kernel.write([*place, c], lambda *_: value)

    kept, seen = kept_of(kernel, gate), kept_of(kernel, input_gate(spec))
    work = Convolving(shape, tile, panels, dtype, given, weights, store, kept, seen)
    others = left_out(kernel, whole, gate, machine.lanes)
    return kernel.finished(*phases, convolve(work, machine), *others)


def _input(
    spec: KernelSpec, kernel: Kernel, shape: Shape, tile: Tile, machine: Machine, is_flat: bool
) -> tuple[Input, list[Any]]:
    """What the loops read, and the phases that write it first."""
    source, dtype = _source(spec, kernel), spec.anchor.type.dtype
    single_row = len(spec.anchor.type.shape) == 3
    if is_flat:
        given = Input(lambda n, y, x, c: source(y[0] * tile.width + x, c))
        if not _computes(spec):
            return given, []
        # Places apart by whole pages would all lie in the same few lines of the first cache.
        pitch = (-(-shape.inputs // machine.lanes) + 1) * machine.lanes

        def strip(rows: int) -> Any:
            size = rows * tile.width * pitch
            return kernel.add((size,), dtype, PerThread(4 * size))

        return replace(given, pitch=pitch, buffer=strip), []
    if not _needs_copy(spec, shape, tile):
        return Input(lambda n, y, x, c: source(n, *y[single_row:], x, c)), []
    _, read, phase = filled(
        kernel,
        shape.window,
        (shape.batch, *shape.outer, shape.columns, shape.inputs * shape.supers),
        lambda n, at, c: source(n, *at[single_row:], c),
        tirx.const(0, dtype),
        machine,
    )
    return Input(lambda n, y, x, c: read(n, *y, x, c)), [phase]


def _source(spec: KernelSpec, kernel: Kernel) -> Callable[..., Expr]:
    """What reads the anchor's input: an operand, or what the steps before the anchor make."""
    if not spec.before:
        return kernel.operand(spec.anchor.inputs[0])
    made = spec.prologue(kernel.tensors)
    return lambda *at: element(made, at, kernel.known)


def _computes(spec: KernelSpec) -> bool:
    """Whether steps before the anchor do more than say where an element lies."""
    return any(step.kind != "Transpose" for step in spec.steps[: spec.before])


def _needs_copy(spec: KernelSpec, shape: Shape, tile: Tile) -> bool:
    """Whether the input must be written with its padding: computed, spread, many kinds of tiles."""
    kinds = len(columns(shape.window, shape.columns, tile.width))
    return shape.window.is_spread or kinds > _KINDS or _computes(spec)


def _shape_of(spec: KernelSpec, machine: Machine) -> tuple[KernelSpec, Shape]:
    """The convolution's extents; one that looks at one place only is one row of all places."""
    x_at, w_at, *_ = spec.anchor.inputs
    weight = spec.operands[w_at].type.shape
    given = spec.operands[x_at] if x_at < len(spec.operands) else None
    x = given.type.shape if given else spec.steps[spec.before - 1].type.shape
    window = window_of(spec.anchor, x, weight[2:])
    groups = spec.anchor.attribute("group")
    batch, *places, channels = spec.anchor.type.shape
    joined = grouping(groups, channels // groups, machine.lanes)
    inputs, supers = joined * weight[1], groups // joined
    pointwise = window.is_pointwise and groups == 1
    moved = any(step.kind == "Transpose" for step in spec.steps[: spec.before])
    flat = spec.flattened() if pointwise and not moved else None
    if flat is None:
        outer = tuple(places[:-1]) or (1,)
        return spec, Shape(batch, outer, places[-1], channels, inputs, supers, window.as_planar)
    rows = batch * prod(places)
    if given is not None:
        operands = list(flat.operands)
        type_ = replace(given.type, shape=(rows, inputs))
        strides = as_rows(given.type.shape, given.strides)
        operands[x_at] = replace(given, type=type_, strides=strides)
        flat = replace(flat, operands=tuple(operands))
    one, none = (1, 1), (0, 0)
    place = Window((1, rows), one, one, one, none, none, one)
    return flat, Shape(1, (1,), rows, channels, inputs, 1, place)


def _pack(
    groups: int, joined: int, pack: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (O, I / groups, taps...) -> panels of (O, taps..., I of the joined groups)."""

    def packed(w: np.ndarray) -> np.ndarray:
        outputs, inputs = w.shape[0] // groups, w.shape[1]
        wide = np.zeros((w.shape[0], joined, inputs, *w.shape[2:]), w.dtype)
        for channel in range(w.shape[0]):
            wide[channel, channel // outputs % joined] = w[channel]
        wide = wide.reshape(w.shape[0], joined * inputs, *w.shape[2:])
        return pack(np.moveaxis(wide, 1, -1))

    return packed
