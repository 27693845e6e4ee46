"""Everything that has no schedule of its own: plain loops, the innermost one in vectors.

A kernel is a chain of stages. Cheap element-wise stages are written into the stage that reads
them; sums and whatever several stages read stay in the workspace between the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, te, tirx

from eecompile.diagnostics import InternalError
from eecompile.hardware import Machine
from eecompile.targets.lowering.rewriting import ELEMENTWISE
from eecompile.targets.lowering.schedules.emit import Kernel, element, in_vectors, parallel
from eecompile.targets.lowering.spec import KernelSpec, Output, Passed, Scheduled, Scratch

__all__ = ["loops", "stages"]

Expr = Any
Stmt = Any

#: Operators whose vectors are vectors of their inputs, or single elements of them.
_WHOLE = ELEMENTWISE | {"Expand", "Gather", "Reshape", "Slice", "Transpose"}
#: Elements of a long row that are one unit of work.
_PART = 2048


def loops(spec: KernelSpec, machine: Machine) -> Scheduled:
    """A kernel by the definitions of its operators."""
    spec = _merged(spec)
    tensors = spec.tensors()
    first = spec.expression(0, spec.anchor, tensors)
    result = spec.epilogue(tensors, first)
    order = _topological([result])
    kept = isinstance(result.op.body[0], tirx.Reduce) or any(
        _is_kept(tensor, order) for tensor in order if tensor is not result
    )
    if spec.anchor.kind in _WHOLE and 0 not in spec.result.shape and not kept:
        return _one_pass(spec, machine)
    return stages(spec, tensors, result, machine)


def _one_pass(spec: KernelSpec, machine: Machine) -> Scheduled:
    """Every element by itself, rows in vectors.

    ::

        for i: for j: y[i, j] = f(x[i, j])
        ->  parallel i: for v: y[i, v * L .. + L] = f(x[i, v * L .. + L]);  shorter vectors
    """
    kernel = Kernel(spec)
    first = spec.expression(0, spec.anchor, kernel.tensors)
    *outer, last = spec.result.shape or (1,)
    part = _PART if last > _PART else last
    whole, rest = divmod(last, part)

    def anchor(*at: Expr) -> Expr:
        return element(first, at, kernel.known)

    def over(count: int, start: int, extent: int) -> Stmt:
        def unit(place: list[Expr]) -> Stmt:
            *at, number = place

            def one(c: Expr) -> Stmt:
                index = [*at, number * part + start + c] if spec.result.shape else []
                return kernel.write(index, anchor)

            return in_vectors(extent, machine.lanes, one)

        return parallel((*outer, count), unit)

    phases = [over(whole, 0, part)]
    if rest:
        phases.append(over(1, whole * part, rest))
    return kernel.finished(*phases)


def _merged(spec: KernelSpec) -> KernelSpec:
    """Neighbouring dimensions that every operand has, or has not, become one.

    Before -> after: ``f32[1, 8, 8, 64] + f32[64]``, ``f32[64, 64] + f32[1, 64]``.
    """
    shape = spec.result.shape
    if not spec.is_dense or len(shape) < 2 or 0 in shape:
        return spec
    if any(step.kind not in ELEMENTWISE or step.type.shape != shape for step in spec.steps):
        return spec
    if any(step.kind == "Keep" or step.attribute("axis") is not None for step in spec.steps):
        return spec
    padded = [(1,) * (len(shape) - len(o.type.shape)) + o.type.shape for o in spec.operands]
    runs: list[list[int]] = []
    for axis in (axis for axis, extent in enumerate(shape) if extent != 1):
        has = [own[axis] != 1 for own in padded]
        if runs and [own[runs[-1][-1]] != 1 for own in padded] == has:
            runs[-1].append(axis)
        else:
            runs.append([axis])

    def over(own: Sequence[int]) -> tuple[int, ...]:
        return tuple(prod(own[axis] for axis in run) for run in runs or [[0]])

    return replace(
        spec,
        operands=tuple(
            replace(o, type=replace(o.type, shape=over(own)))
            for o, own in zip(spec.operands, padded, strict=True)
        ),
        steps=tuple(replace(s, type=replace(s.type, shape=over(shape))) for s in spec.steps),
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
    pairs += [(tensor, Scratch(_nbytes(tensor))) for tensor in kept]
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
                _vectorize(sch, block, machine.lanes)
                _share(sch, sch.get_loops(block)[:-1])
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


def _nbytes(x: te.Tensor) -> int:
    """Bytes of a tensor expression's result."""
    return prod(int(extent) for extent in x.shape) * np.dtype(str(x.dtype)).itemsize


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


def _vectorize(sch: Any, block: Any, lanes: int) -> None:
    """Makes vectors of the innermost loop where its extent is a multiple of some vector length."""
    loop = sch.get_loops(block)[-1]
    extent = int(sch.get(loop).extent)
    for width in (lanes, lanes // 2, lanes // 4):
        if width > 1 and extent % width == 0:
            sch.vectorize(sch.split(loop, [None, width])[1])
            return


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
            places[-1] = outer
            sch.reorder(*places, *sums, lane)
            sch.vectorize(lane)
    _share(sch, places)
    sch.decompose_reduction(block, sums[0])


def _share(sch: Any, places: Sequence[Any]) -> None:
    """Gives the iterations of the outer loops to all threads."""
    if places:
        sch.parallel(sch.fuse(*places))


def _reads_along(stmt: Any, var: Any) -> bool:
    """Whether some operand's last index moves with `var`."""
    for region in stmt.reads:
        last = region.region[-1].min if len(region.region) else None
        if last is not None and _contains(last, lambda node: node.same_as(var)):
            return True
    return False
