"""Convolutions in which every channel is alone: the channels are the vector lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules import sliding
from eecompile.targets.lowering.schedules.emit import Kernel, reader
from eecompile.targets.lowering.schedules.kept import (
    as_kept,
    bias_operands,
    kept_of,
    left_out,
    output_gate,
    suited,
)
from eecompile.targets.lowering.schedules.panels import by_channel
from eecompile.targets.lowering.schedules.sliding import (
    Sliding,
    SlidingTile,
    needs_copy,
    planar,
    slide,
)
from eecompile.targets.lowering.schedules.windows import Window, filled, window_of
from eecompile.targets.lowering.spec import KernelSpec, Packed, Scheduled

__all__ = ["candidates", "depthwise"]

Expr = Any


def candidates(spec: KernelSpec, machine: Machine) -> list[SlidingTile]:
    """Tiles worth measuring, the one with the fewest estimated cycles first."""
    gate = output_gate(spec, machine)
    machine = suited(spec, machine)
    each = gate.each // machine.lanes if gate else 0
    shape = planar(spec.anchor.type.shape)
    return sliding.candidates(_window(spec).as_planar, shape, machine, each)


def depthwise(spec: KernelSpec, machine: Machine, tile: SlidingTile | None = None) -> Scheduled:
    """A convolution with as many groups as input channels, any number of outputs for each.

    Padding is never stored: rows outside the input are skipped, and the columns of the borders
    have code of their own without the taps that are outside. `sliding.slide` shows the loops. ::

        y[b, y, x, c] = bias[c] + sum(ky, kx) x[b, y s + ky - pad, x s + kx - pad, c] w[ky, kx, c]

    Only windows of more taps than are written out, inputs with zeros in between (transposed
    convolutions) and several outputs for one channel go through a copy of the input.
    """
    x_at, w_at, *_ = spec.anchor.inputs
    outputs, _, *taps = spec.operands[w_at].type.shape
    batch, *_, inputs = spec.operands[x_at].type.shape
    window, shape = _window(spec).as_planar, planar(spec.anchor.type.shape)
    tile = tile or candidates(spec, machine)[0]
    gate = output_gate(spec, machine)
    machine = suited(spec, machine)
    whole, spec = spec, as_kept(spec, gate)
    flat = len(taps) == 1
    dtype = spec.anchor.type.dtype
    kernel = Kernel(spec, [w_at])
    weights = reader(kernel.add((*taps, outputs), dtype, Packed(w_at, by_channel)))
    read = kernel.operand(x_at)
    phases = []
    if outputs > inputs or needs_copy(window, shape, tile):
        rows = -(-shape[-3] // tile.rows) * tile.rows
        source, repeat = read, outputs // inputs

        def original(b: Expr, at: Sequence[Expr], c: Expr) -> Expr:
            return source(b, *at[flat:], tirx.floordiv(c, repeat) if repeat > 1 else c)

        size = (batch, *shape[1:-3], rows, shape[-2], outputs)
        fill = tirx.const(0, dtype)
        window, read, copying = filled(kernel, window, size, original, fill, machine)
        phases.append(copying)
        flat = False

    def combined(total: Expr, b: Expr, at: Sequence[Expr], tap: Sequence[Expr], c: Expr) -> Expr:
        return total + read(b, *at[flat:], c) * weights(*tap[len(tap) - len(taps) :], c)

    def store(value: Expr, b: Expr, place: Sequence[Expr], c: Expr) -> Any:
        return kernel.write([b, *place[len(place) - len(taps) :], c], lambda *_: value)

    bias, kept = kernel.bias(bias_operands(spec.anchor)), kept_of(kernel, gate)
    work = Sliding(window, shape, dtype, bias, combined, store, kept)
    others = left_out(kernel, whole, gate, machine.lanes)
    return kernel.finished(*phases, slide(work, tile, machine.lanes), *others)


def _window(spec: KernelSpec) -> Window:
    x_at, w_at, *_ = spec.anchor.inputs
    kernel = spec.operands[w_at].type.shape[2:]
    return window_of(spec.anchor, spec.operands[x_at].type.shape, kernel)
