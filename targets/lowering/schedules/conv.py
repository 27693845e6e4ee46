"""Convolutions: output channels in the vector lanes, positions and channel blocks in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import te

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.matmul import product
from eecompile.targets.lowering.schedules.tiled import biased, blocked, nbytes, schedule_tile
from eecompile.targets.lowering.schedules.tiles import choose_tile
from eecompile.targets.lowering.schedules.windows import window_of, windowed_input
from eecompile.targets.lowering.spec import Argument, KernelSpec, Packed, Scheduled, Scratch

__all__ = ["conv", "grouping"]

Expr = Any


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


def _pack_conv(groups: int, joined: int, lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (O, I / groups, taps...) -> [blocks][taps...][I / (groups / joined)][lanes]."""

    def pack(w: np.ndarray) -> np.ndarray:
        outputs, inputs = w.shape[0] // groups, w.shape[1]
        wide = np.zeros((w.shape[0], joined, inputs, *w.shape[2:]), w.dtype)
        for channel in range(w.shape[0]):
            wide[channel, channel // outputs % joined] = w[channel]
        wide = wide.reshape(w.shape[0], joined * inputs, *w.shape[2:])
        return blocked(np.moveaxis(wide, 1, -1), lanes)

    return pack


def conv(spec: KernelSpec, machine: Machine) -> Scheduled:
    """A convolution of one or two dimensions, any stride, dilation, padding and group."""
    x_at, w_at, *bias_at = spec.anchor.inputs
    weight = spec.operands[w_at].type.shape
    groups = spec.anchor.attribute("group")
    window = window_of(spec.anchor, spec.operands[x_at].type.shape, weight[2:])
    if window.is_pointwise and groups == 1:
        flat = spec.flattened()
        if flat is not None:
            return _pointwise(flat, machine)
    *_, width, channels = spec.anchor.type.shape
    outputs, lanes = channels // groups, machine.lanes
    joined = grouping(groups, outputs, lanes)
    supers, inputs = groups // joined, joined * weight[1]
    blocks = -(-channels // lanes)
    tile = choose_tile(width, blocks // supers if supers > 1 else blocks, prod(weight[1:]), machine)
    tensors = spec.tensors()
    wide = -(-width // tile.width) * tile.width
    source, padded = windowed_input(tensors[x_at], window, (*spec.anchor.type.shape[1:-2], wide))
    packed = te.placeholder(
        (blocks, *weight[2:], inputs, lanes), spec.anchor.type.dtype, name="weights"
    )
    taps = [te.reduce_axis((0, k), name=f"tap{i}") for i, k in enumerate(weight[2:])]
    deep = te.reduce_axis((0, inputs), name="deep")
    per_super = channels // supers

    def element(*index: Expr) -> Expr:
        batch, *place, c = index
        first = (c // per_super) * inputs if supers > 1 else 0
        w = packed(c // lanes, *taps, deep, c % lanes)
        return te.sum(source(batch, place, taps, first + deep) * w, axis=[*taps, deep])

    shape = (*spec.anchor.type.shape[:-2], wide, blocks * lanes)
    total = te.compute(shape, element, name="total")
    first = biased(total, spec, tensors, bias_at)
    result = spec.epilogue(tensors, first)
    arguments: list[tuple[te.Tensor, Argument]] = [
        (packed, Packed(w_at, _pack_conv(groups, joined, lanes)))
    ]
    if padded is not None:
        arguments.append((padded, Scratch(nbytes(padded))))
    return schedule_tile(spec, tensors, {w_at}, arguments, result, tile, lanes, padded)


def _pointwise(spec: KernelSpec, machine: Machine) -> Scheduled:
    """A 1x1 convolution is a matrix product over all positions."""
    x_at, w_at, *bias_at = spec.anchor.inputs
    outputs, inputs = spec.operands[w_at].type.shape[:2]

    def pack(w: np.ndarray) -> np.ndarray:
        return blocked(w.reshape(outputs, inputs), machine.lanes)

    rows = spec.anchor.type.shape[0]
    x = replace(spec.operands[x_at].type, shape=(rows, inputs))
    operands = list(spec.operands)
    operands[x_at] = replace(operands[x_at], type=x)
    return product(replace(spec, operands=tuple(operands)), machine, pack, inputs, bias_at)
