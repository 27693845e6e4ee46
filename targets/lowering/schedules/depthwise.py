"""Convolutions in which every channel is alone: the channels are the vector lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.tiled import biased, nbytes, schedule_tile
from eecompile.targets.lowering.schedules.tiles import choose_tile
from eecompile.targets.lowering.schedules.windows import window_of, windowed_input
from eecompile.targets.lowering.spec import Argument, KernelSpec, Packed, Scheduled, Scratch

__all__ = ["depthwise"]

Expr = Any


def _pack(lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (C, 1, taps...) -> [taps...][C up to whole vectors]."""

    def pack(w: np.ndarray) -> np.ndarray:
        full = np.zeros((-(-w.shape[0] // lanes) * lanes, *w.shape[2:]), w.dtype)
        full[: w.shape[0]] = w[:, 0]
        return np.ascontiguousarray(np.moveaxis(full, 0, -1))

    return pack


def depthwise(spec: KernelSpec, machine: Machine) -> Scheduled:
    """A convolution with as many groups as input channels, any number of outputs for each."""
    x_at, w_at, *bias_at = spec.anchor.inputs
    outputs, _, *kernel = spec.operands[w_at].type.shape
    x = spec.operands[x_at].type.shape
    lanes = machine.lanes
    blocks = -(-outputs // lanes)
    *_, width, _ = spec.anchor.type.shape
    tile = choose_tile(width, blocks, 1, machine, shared_inputs=False)
    wide = -(-width // tile.width) * tile.width
    tensors = spec.tensors()
    window = window_of(spec.anchor, x, tuple(kernel))
    read, copy = windowed_input(
        tensors[x_at],
        window,
        (*spec.anchor.type.shape[1:-2], wide),
        channels=blocks * lanes,
        repeat=outputs // x[-1],
    )
    dtype = spec.anchor.type.dtype
    weights = te.placeholder((*kernel, blocks * lanes), dtype, name="weights")
    taps = [te.reduce_axis((0, k), name=f"tap{i}") for i, k in enumerate(kernel)]

    def element(*index: Expr) -> Expr:
        batch, *place, c = index
        return te.sum(read(batch, place, taps, c) * weights(*taps, c), axis=taps)

    shape = (*spec.anchor.type.shape[:-2], wide, blocks * lanes)
    total = te.compute(shape, element, name="total")
    result = spec.epilogue(tensors, biased(total, spec, tensors, bias_at))
    given: list[tuple[te.Tensor, Argument]] = [(weights, Packed(w_at, _pack(lanes)))]
    if copy is not None:
        given.append((copy, Scratch(nbytes(copy))))
    return schedule_tile(spec, tensors, {w_at}, given, result, tile, lanes, copy)
