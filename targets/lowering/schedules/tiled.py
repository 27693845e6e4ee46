"""Convolutions and matrix products: a register tile of outputs, the sum outermost.

Output channels are the vector lanes. Weights come as [channels / lanes][taps ...][inputs][lanes],
so that the inner loop is ``accumulator[w][b] += broadcast(input[w]) * weight[b]`` with
``width x blocks`` accumulators in registers; what follows the sum (bias, residual, activation)
runs on the tile while it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import s_tir, te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.tiles import Tile, choose_tile
from eecompile.targets.lowering.schedules.windows import window_of, windowed_input
from eecompile.targets.lowering.spec import (
    Argument,
    KernelSpec,
    Output,
    Packed,
    Passed,
    Scheduled,
    Scratch,
)

__all__ = ["biased", "conv", "grouping", "matmul", "nbytes", "schedule_tile", "vectorize_innermost"]

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
        return _blocked(np.moveaxis(wide, 1, -1), lanes)

    return pack


def _blocked(w: np.ndarray, lanes: int) -> np.ndarray:
    """(O, ...) -> [ceil(O / lanes)][...][lanes], zeros where there is no output."""
    blocks = -(-w.shape[0] // lanes)
    full = np.zeros((blocks * lanes, *w.shape[1:]), w.dtype)
    full[: w.shape[0]] = w
    return np.ascontiguousarray(np.moveaxis(full.reshape(blocks, lanes, *w.shape[1:]), 1, -1))


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
        return _blocked(w.reshape(outputs, inputs), machine.lanes)

    rows = spec.anchor.type.shape[0]
    x = replace(spec.operands[x_at].type, shape=(rows, inputs))
    operands = list(spec.operands)
    operands[x_at] = replace(operands[x_at], type=x)
    return _product(replace(spec, operands=tuple(operands)), machine, pack, inputs, bias_at)


def matmul(spec: KernelSpec, machine: Machine) -> Scheduled | None:
    """A matrix product, of constant or computed matrices; None for products with vectors."""
    a_at, b_at = spec.anchor.inputs
    a, b = spec.operands[a_at].type.shape, spec.operands[b_at].type.shape
    if len(a) < 2 or len(b) < 2 or a_at == b_at:
        return None
    if spec.operands[b_at].constant and len(b) == 2 and spec.operands[b_at].number is None:
        flat = spec.flattened()
        if flat is not None:
            operands = list(flat.operands)
            rows = replace(operands[a_at].type, shape=(prod(a[:-1]), a[-1]))
            operands[a_at] = replace(operands[a_at], type=rows)
            spec = replace(flat, operands=tuple(operands))

        def pack(w: np.ndarray) -> np.ndarray:
            return _blocked(w.T, machine.lanes)

        return _product(spec, machine, pack, b[0], ())
    return _product(spec, machine, None, a[-1], ())


def _product(
    spec: KernelSpec,
    machine: Machine,
    pack: Callable[[np.ndarray], np.ndarray] | None,
    inputs: int,
    bias_at: Sequence[int],
) -> Scheduled:
    """Rows times a matrix that is packed when building (`pack`), or else by the kernel."""
    a_at, b_at = spec.anchor.inputs[:2]
    *outer, rows, columns = spec.anchor.type.shape
    lanes = machine.lanes
    blocks = -(-columns // lanes)
    tile = choose_tile(rows, blocks, inputs, machine)
    tensors = spec.tensors()
    wide = -(-rows // tile.width) * tile.width
    dtype = spec.anchor.type.dtype
    if pack is None:
        packed = _packing(tensors[b_at], blocks, lanes)
        given: list[tuple[te.Tensor, Argument]] = [(packed, Scratch(nbytes(packed)))]
    else:
        packed = te.placeholder((blocks, inputs, lanes), dtype, name="weights")
        given = [(packed, Packed(b_at, pack))]
    deep = te.reduce_axis((0, inputs), name="deep")
    a = tensors[a_at]

    def element(*index: Expr) -> Expr:
        *batch, row, c = index
        row = row if wide == rows else tirx.min(row, rows - 1)
        left = a(*_broadcast(a, batch), row, deep)
        right = packed(*_broadcast(packed, batch, 3), c // lanes, deep, c % lanes)
        return te.sum(left * right, axis=[deep])

    total = te.compute((*outer, wide, blocks * lanes), element, name="total")
    result = spec.epilogue(tensors, biased(total, spec, tensors, bias_at))
    unused = {b_at} if pack is not None else set()
    prepared = packed if pack is None else None
    return schedule_tile(spec, tensors, unused, given, result, tile, lanes, prepared)


def _broadcast(x: te.Tensor, batch: Sequence[Expr], own: int = 2) -> list[Expr]:
    """The batch index of an operand that may have fewer or smaller batch dimensions."""
    extents = [int(extent) for extent in x.shape][:-own]
    used = batch[len(batch) - len(extents) :]
    return [0 if extent == 1 else i for extent, i in zip(extents, used, strict=True)]


def _packing(b: te.Tensor, blocks: int, lanes: int) -> te.Tensor:
    """[..., K, N] -> [..., N / lanes, K, lanes], at run time."""
    *outer, deep, columns = (int(extent) for extent in b.shape)

    def element(*index: Expr) -> Expr:
        *batch, block, k, lane = index
        column = block * lanes + lane
        if blocks * lanes == columns:
            return b(*batch, k, column)
        zero = tirx.const(0, str(b.dtype))
        return tirx.if_then_else(column < columns, b(*batch, k, column), zero)

    return te.compute((*outer, blocks, deep, lanes), element, name="prepared")


def biased(
    total: te.Tensor, spec: KernelSpec, tensors: Sequence[te.Tensor], bias_at: Sequence[int]
) -> te.Tensor:
    """The anchor's result in its own shape: the sum without overhang, plus its bias."""
    bias = [tensors[i] for i in bias_at if i >= 0]

    def element(*index: Expr) -> Expr:
        value = total(*index)
        return value + bias[0](index[-1] if int(bias[0].shape[0]) > 1 else 0) if bias else value

    return te.compute(spec.anchor.type.shape, element, name="anchor")


def nbytes(x: te.Tensor) -> int:
    """Bytes of a tensor expression's result."""
    return prod(int(extent) for extent in x.shape) * np.dtype(str(x.dtype)).itemsize


def schedule_tile(
    spec: KernelSpec,
    tensors: Sequence[te.Tensor],
    replaced: set[int],
    given: list[tuple[te.Tensor, Argument]],
    result: te.Tensor,
    tile: Tile,
    lanes: int,
    prepared: te.Tensor | None,
) -> Scheduled:
    """Schedules a stage named "total" and what follows it, after the stage `prepared`.

    Args:
        spec: the kernel.
        tensors: its operands.
        replaced: operands that the anchor reads in another form; they are passed as they are only
            where a later step reads them too.
        given: further parameters.
        result: the last stage.
        tile: what stays in registers.
        lanes: elements of a vector.
        prepared: a copy of an input that is made first, in the workspace.
    """
    unread = replaced - {i for step in spec.steps[1:] for i in step.inputs}
    pairs: list[tuple[te.Tensor, Argument]] = [
        (tensors[i], Passed(i))
        for i, operand in enumerate(spec.operands)
        if i not in unread and operand.number is None
    ]
    pairs = [*pairs, *given, (result, Output())]
    sch = s_tir.Schedule(te.create_prim_func([tensor for tensor, _ in pairs]))
    blocks = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    out_name = blocks[-1]
    kept = {"total", out_name} | ({prepared.op.name} if prepared is not None else set())
    for name in blocks:
        if name not in kept:
            sch.compute_inline(sch.get_sblock(name))
    _tile(sch, sch.get_sblock(out_name), sch.get_sblock("total"), tile, lanes)
    if prepared is not None:
        vectorize_innermost(sch, sch.get_sblock(prepared.op.name), lanes)
    return Scheduled(sch.mod["main"], tuple(argument for _, argument in pairs))


def _tile(sch: Any, out: Any, total: Any, tile: Tile, lanes: int) -> None:
    *outer, z, c = sch.get_loops(out)
    c_outer, c_block, c_lane = sch.split(c, [None, tile.blocks, lanes])
    z_outer, z_tile = sch.split(z, [None, tile.width])
    sch.reorder(c_outer, *outer, z_outer, z_tile, c_block, c_lane)
    sch.vectorize(c_lane)
    sch.unroll(z_tile)
    sch.unroll(c_block)
    sch.compute_at(total, z_outer, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    block = sch.get(total)
    rank = len([v for v in block.iter_vars if v.iter_type == tirx.IterVar.DataPar])
    sums = len(block.iter_vars) - rank
    loops = sch.get_loops(total)[-(rank + sums) :]
    *place, z2, c2 = loops[:rank]
    *taps, deep = loops[rank:]
    c2_block, c2_lane = sch.split(c2, [None, lanes])
    extent = int(sch.get(deep).extent)
    unroll = next(u for u in (4, 3, 2, 1) if extent % u == 0)
    deep_outer, deep_inner = sch.split(deep, [None, unroll])
    sch.reorder(*place, *taps, deep_outer, deep_inner, z2, c2_block, c2_lane)
    sch.vectorize(c2_lane)
    sch.unroll(z2)
    sch.unroll(c2_block)
    sch.unroll(deep_inner)
    sch.decompose_reduction(total, taps[0] if taps else deep_outer)


def vectorize_innermost(sch: Any, block: Any, lanes: int) -> None:
    """Makes vectors of the innermost loop where its extent is a multiple of some vector length."""
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    for width in (lanes, lanes // 2, lanes // 4):
        if width > 1 and extent % width == 0:
            sch.vectorize(sch.split(loop, [None, width])[1])
            return
