"""Matrix products: rows times a matrix that is packed when building, or else by the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.tiled import biased, blocked, nbytes, schedule_tile
from eecompile.targets.lowering.schedules.tiles import choose_tile
from eecompile.targets.lowering.spec import Argument, KernelSpec, Packed, Scheduled, Scratch

__all__ = ["matmul", "product"]

Expr = Any


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
            return blocked(w.T, machine.lanes)

        return product(spec, machine, pack, b[0], ())
    return product(spec, machine, None, a[-1], ())


def product(
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
