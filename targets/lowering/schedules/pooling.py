"""Maximum and average pooling: the channels are the vector lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules import sliding
from eecompile.targets.lowering.schedules.emit import Kernel
from eecompile.targets.lowering.schedules.reductions import reduction
from eecompile.targets.lowering.schedules.sliding import (
    Sliding,
    SlidingTile,
    needs_copy,
    planar,
    slide,
)
from eecompile.targets.lowering.schedules.windows import Window, filled, window_of
from eecompile.targets.lowering.spec import KernelSpec, Scheduled, Step

__all__ = ["candidates", "is_whole", "pool"]

Expr = Any

_REDUCTIONS = {"AveragePool": "ReduceMean", "MaxPool": "ReduceMax"}


def candidates(spec: KernelSpec, machine: Machine) -> list[SlidingTile]:
    """Tiles worth measuring, the one with the fewest estimated cycles first."""
    return sliding.candidates(_window(spec).as_planar, planar(spec.anchor.type.shape), machine)


def is_whole(spec: KernelSpec) -> bool:
    """Whether the only window is all of the input: such a pool is a reduction, without a tile."""
    return _as_reduction(spec) is not None


def pool(spec: KernelSpec, machine: Machine, tile: SlidingTile | None = None) -> Scheduled:
    """Maximum or average pooling of channels-last tensors.

    A window over everything is a reduction. Others slide as `sliding.slide` shows; padding is
    never read. ::

        y[b, y, x, c] = max(ky, kx) x[b, y s + ky - pad, x s + kx - pad, c]
                      = sum(ky, kx) x[b, ...] / elements that count
    """
    whole = _as_reduction(spec)
    if whole is not None and tile is None:
        found = reduction(whole, machine)
        if found is not None:
            return found
    step = spec.anchor
    (x_at,) = step.inputs
    batch, *_, channels = spec.operands[x_at].type.shape
    dtype, rank = step.type.dtype, len(step.type.shape) - 2
    window, shape = _window(spec).as_planar, planar(step.type.shape)
    tile = tile or candidates(spec, machine)[0]
    kernel = Kernel(spec)
    read, flat = kernel.operand(x_at), rank == 1
    first = _first(step)
    phases = []
    if needs_copy(window, shape, tile):
        rows = -(-shape[-3] // tile.rows) * tile.rows
        source = read

        def original(b: Expr, at: Sequence[Expr], c: Expr) -> Expr:
            return source(b, *at[-rank:], c)

        size = (batch, *shape[1:-3], rows, shape[-2], channels)
        window, read, copying = filled(kernel, window, size, original, first, machine)
        phases.append(copying)
        flat = False

    def combined(total: Expr, b: Expr, at: Sequence[Expr], _: Sequence[Expr], c: Expr) -> Expr:
        value = read(b, *at[flat:], c)
        return te.max(total, value) if step.kind == "MaxPool" else total + value

    def store(value: Expr, b: Expr, place: Sequence[Expr], c: Expr) -> Any:
        at = list(place[-rank:])
        return kernel.write([b, *at, c], lambda *_: _finished(value, step, spec, at))

    work = Sliding(window, shape, dtype, lambda c: first, combined, store)
    return kernel.finished(*phases, slide(work, tile, machine.lanes))


def _window(spec: KernelSpec) -> Window:
    step = spec.anchor
    return window_of(step, spec.operands[step.inputs[0]].type.shape, step.attribute("kernel_shape"))


def _first(step: Step) -> Expr:
    """What changes nothing."""
    if step.kind == "AveragePool":
        return tirx.const(0, step.type.dtype)
    if step.type.dtype == "float32":
        return tirx.const(float("-inf"), "float32")
    return tirx.min_value(step.type.dtype)


def _as_reduction(spec: KernelSpec) -> KernelSpec | None:
    """The kernel with a reduction for a pool whose only window is all of the input."""
    window = _window(spec)
    places = spec.anchor.type.shape[1:-1]
    if not window.is_unpadded or set(places) != {1} or window.kernel != window.extent:
        return None
    if any(step > 1 for step in window.dilations):
        return None
    attributes = (("axes", tuple(range(1, 1 + len(places)))), ("keepdims", 1))
    step = replace(spec.anchor, kind=_REDUCTIONS[spec.anchor.kind], attributes=attributes)
    steps = list(spec.steps)
    steps[spec.before] = step
    return replace(spec, steps=tuple(steps))


def _finished(value: Expr, step: Step, spec: KernelSpec, place: Sequence[Expr]) -> Expr:
    """A window's sum divided by the number of elements that count in it; a maximum as it is."""
    if step.kind == "MaxPool":
        return value
    window, n = _window(spec), len(place)
    if window.is_unpadded:
        return value * tirx.const(1 / prod(window.kernel), "float32")
    pads = step.attribute("pads") if step.attribute("count_include_pad") else (0,) * (2 * n)
    count: Expr = tirx.const(1, "int32")
    for i, at in enumerate(place):
        low, high = -pads[i], window.extent[i] + pads[n + i]
        first = at * window.strides[i] - window.begins[i]
        if window.dilations[i] == 1:
            reach = tirx.min(first + window.kernel[i], high) - tirx.max(first, low)
            count *= tirx.max(reach, 0)
            continue
        inside: Expr = tirx.const(0, "int32")
        for tap in range(window.kernel[i]):
            position = first + tap * window.dilations[i]
            inside += tirx.all(position >= low, position < high).astype("int32")
        count *= inside
    # A window in which nothing counts gives 0.
    return value / tirx.max(count, 1).astype("float32")
