"""Schedules: how a kernel's loops are laid out. One file for each family of operators."""

from __future__ import annotations

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.choices import Choice, choices, scheduled
from eecompile.targets.lowering.schedules.conv import conv
from eecompile.targets.lowering.schedules.depthwise import depthwise
from eecompile.targets.lowering.schedules.expanded import expanded
from eecompile.targets.lowering.schedules.kept import kept_list
from eecompile.targets.lowering.schedules.loops import loops
from eecompile.targets.lowering.schedules.matmul import matmul
from eecompile.targets.lowering.schedules.normalise import normalisation
from eecompile.targets.lowering.schedules.pooling import pool
from eecompile.targets.lowering.schedules.reductions import reduction
from eecompile.targets.lowering.schedules.winograd import chosen, winograd
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["Choice", "choices", "schedule"]


def schedule(spec: KernelSpec, machine: Machine, choice: Choice | None = None) -> Scheduled:
    """The kernel in the best form there is a schedule for.

    Args:
        spec: what the kernel computes.
        machine: what to generate code for.
        choice: one of the kernel's `choices`; default: the first of them, if it has any.

    Raises:
        UnsupportedOperator: an operator has no compiled form; the operator it names is the spec's.
    """
    if choice is not None:
        return scheduled(spec, machine, choice)
    anchor = spec.anchor
    if anchor.kind == "KeptGroups":
        return kept_list(spec)
    if anchor.attribute("channels_last"):
        if anchor.kind in ("MaxPool", "AveragePool"):
            return pool(spec, machine)
        if anchor.kind == "Conv":
            groups = anchor.attribute("group")
            weight = spec.operands[anchor.inputs[1]].type.shape
            if groups > 1 and weight[1] == 1:
                return expanded(spec, machine) if spec.before else depthwise(spec, machine)
            tile = chosen(spec, machine)
            return winograd(spec, machine, tile) if tile else conv(spec, machine)
    if anchor.kind == "MatMul" and anchor.type.dtype == "float32":
        product = matmul(spec, machine)
        if product is not None:
            return product
    for family in (normalisation, reduction):
        found = family(spec, machine)
        if found is not None:
            return found
    return loops(spec, machine)
