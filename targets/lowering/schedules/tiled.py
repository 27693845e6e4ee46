"""The register tile of convolutions and matrix products: outputs in registers, sums outermost.

Output channels are the vector lanes. Weights come as [channels / lanes][taps ...][inputs][lanes],
so that the inner loop is ``accumulator[w][b] += broadcast(input[w]) * weight[b]`` with
``width x blocks`` accumulators in registers; what follows the sum (bias, residual, activation)
runs on the tile while it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import s_tir, te, tirx

from eecompile.targets.lowering.schedules.tiles import Tile
from eecompile.targets.lowering.spec import (
    Argument,
    KernelSpec,
    Output,
    Passed,
    Scheduled,
)

__all__ = ["biased", "blocked", "nbytes", "schedule_tile", "vectorize_innermost"]

Expr = Any


def blocked(w: np.ndarray, lanes: int) -> np.ndarray:
    """(O, ...) -> [ceil(O / lanes)][...][lanes], zeros where there is no output."""
    blocks = -(-w.shape[0] // lanes)
    full = np.zeros((blocks * lanes, *w.shape[1:]), w.dtype)
    full[: w.shape[0]] = w
    return np.ascontiguousarray(np.moveaxis(full.reshape(blocks, lanes, *w.shape[1:]), 1, -1))


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
    unread = replaced - {i for step in spec.after for i in step.inputs}
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
