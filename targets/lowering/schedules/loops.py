"""Everything that has no schedule of its own: plain loops, the innermost one in vectors.

A kernel is a chain of stages. Cheap element-wise stages are written into the stage that reads
them; sums and whatever several stages read stay in the workspace between the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, te, tirx

from eecompile.diagnostics import InternalError
from eecompile.hardware import Machine
from eecompile.targets.lowering.layout import ELEMENTWISE
from eecompile.targets.lowering.schedules.tiled import nbytes, vectorize_innermost
from eecompile.targets.lowering.spec import KernelSpec, Output, Passed, Scheduled, Scratch

__all__ = ["loops", "stages"]

Expr = Any


def loops(spec: KernelSpec, machine: Machine) -> Scheduled:
    """A kernel by the definitions of its operators."""
    spec = _one_dimensional(spec)
    tensors = spec.tensors()
    first = spec.expression(0, spec.anchor, tensors)
    return stages(spec, tensors, spec.epilogue(tensors, first), machine)


def _one_dimensional(spec: KernelSpec) -> KernelSpec:
    """Element-wise operators of equal shapes see one long row."""
    shape = spec.result.shape
    if not spec.is_dense or len(shape) < 2:
        return spec
    if any(step.kind not in ELEMENTWISE for step in spec.steps):
        return spec
    if any(step.attribute("axis") is not None for step in spec.steps):
        return spec
    flat = {shape: (prod(shape),)}
    for operand in spec.operands:
        if operand.type.shape not in flat:
            if operand.type.size != 1:
                return spec
            flat[operand.type.shape] = (1,)
    return KernelSpec(
        tuple(replace(o, type=replace(o.type, shape=flat[o.type.shape])) for o in spec.operands),
        tuple(replace(s, type=replace(s.type, shape=flat[shape])) for s in spec.steps),
    )


def stages(
    spec: KernelSpec, tensors: Sequence[te.Tensor], result: te.Tensor, machine: Machine
) -> Scheduled:
    """The chain of stages that ends in `result` as one kernel."""
    order = _topological([result])
    kept = [tensor for tensor in order if tensor is not result and _is_kept(tensor, order)]
    pairs: list[tuple[te.Tensor, Any]] = [
        (tensors[i], Passed(i)) for i, operand in enumerate(spec.operands) if operand.number is None
    ]
    pairs += [(tensor, Scratch(nbytes(tensor))) for tensor in kept]
    pairs.append((result, Output()))
    sch = s_tir.Schedule(te.create_prim_func([tensor for tensor, _ in pairs]))
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    stages = _topological(tensor for tensor, _ in pairs)
    if [name.startswith(t.op.name) for name, t in zip(names, stages, strict=True)].count(False):
        raise InternalError(f"blocks {names} are not the stages {[t.op.name for t in stages]}")
    stays = {tensor.op for tensor in (*kept, result)}
    for name, tensor in zip(names, stages, strict=True):
        if tensor.op not in stays:
            sch.compute_inline(sch.get_sblock(name))
    for name, tensor in zip(names, stages, strict=True):
        if tensor.op in stays:
            block = sch.get_sblock(name)
            if isinstance(tensor.op.body[0], tirx.Reduce):
                _reduction(sch, block, machine)
            elif sch.get_loops(block):
                vectorize_innermost(sch, block, machine.lanes)
    return Scheduled(sch.mod["main"], tuple(argument for _, argument in pairs))


def _topological(roots: Iterable[te.Tensor]) -> list[te.Tensor]:
    """Computed stages in the order `te.create_prim_func` lays them out: each behind its inputs."""
    order: list[te.Tensor] = []
    seen: set[Any] = set()

    def visit(tensor: te.Tensor) -> None:
        if tensor.op in seen:
            return
        seen.add(tensor.op)
        for source in tensor.op.input_tensors:
            visit(source)
        if isinstance(tensor.op, te.ComputeOp):
            order.append(tensor)

    for root in roots:
        visit(root)
    return order


def _is_kept(tensor: te.Tensor, order: Sequence[te.Tensor]) -> bool:
    """Whether a stage must be computed once and remembered."""
    body = tensor.op.body[0]
    if isinstance(body, tirx.Reduce):
        return True
    readers = [t for t in order if any(s.op == tensor.op for s in t.op.input_tensors)]
    if len(readers) <= 1:
        return False
    return prod(int(extent) for extent in tensor.shape) > 1 and _is_costly(body)


def _is_costly(body: Expr) -> bool:
    return _contains(body, lambda node: isinstance(node, tvm.ir.Call | tirx.Let | tirx.Div))


def _contains(expression: Expr, wanted: Callable[[Any], bool]) -> bool:
    """Whether any node of an expression is `wanted`."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if wanted(node):
            found.append(node)

    tvm_ffi.structural_walk(expression, (tvm.ir.Expr, visit), order="post")
    return bool(found)


def _reduction(sch: Any, block: Any, machine: Machine) -> None:
    """Sums outside, vectors of results inside, where neighbours are results; else plain loops."""
    stmt = sch.get(block)
    spatial = [v for v in stmt.iter_vars if v.iter_type == tirx.IterVar.DataPar]
    all_loops = sch.get_loops(block)
    places, sums = all_loops[: len(spatial)], all_loops[len(spatial) :]
    if not sums:
        return
    if places and _reads_along(stmt, spatial[-1].var):
        extent = int(sch.get(places[-1]).extent)
        width = next((w for w in (machine.lanes, 8, 4) if extent % w == 0), 1)
        if width > 1:
            outer, lane = sch.split(places[-1], [None, width])
            sch.reorder(*places[:-1], outer, *sums, lane)
            sch.vectorize(lane)
    sch.decompose_reduction(block, sums[0])


def _reads_along(stmt: Any, var: Any) -> bool:
    """Whether some operand's last index moves with `var`."""
    for region in stmt.reads:
        last = region.region[-1].min if len(region.region) else None
        if last is not None and _contains(last, lambda node: node.same_as(var)):
            return True
    return False
