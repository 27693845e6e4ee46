"""Scheduled kernels with strided operands and results.

Schedules are written for dense tensors. What lies in a larger buffer gets its strides here, behind
the schedule and before the kernel is lowered, where an index still has one part for each axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from eecompile.targets.lowering.spec import KernelSpec, Output, Passed, Scheduled
from eecompile.targets.lowering.views import reshaped_strides

__all__ = ["StridesLost", "strided"]


class StridesLost(Exception):
    """A schedule reshaped a strided tensor in a way that no strides can say.

    Attributes:
        operand: index of the operand, None for the result.
    """

    def __init__(self, operand: int | None) -> None:
        """About an operand, or the result."""
        super().__init__(operand)
        self.operand = operand


def strided(spec: KernelSpec, scheduled: Scheduled) -> Scheduled:
    """The kernel reading and writing where `spec` says.

    before: ``out: Buffer((3136, 32))``, after: ``out: Buffer((3136, 32), strides=(256, 1))``

    Raises:
        StridesLost: an operand or the result must be dense for this schedule.
    """
    function = scheduled.function
    new: dict[Any, Any] = {}
    operand: int | None
    for parameter, argument in zip(function.params, scheduled.arguments, strict=True):
        match argument:
            case Passed(index):
                operand = index
                shape = spec.operands[index].type.shape
                strides = spec.operands[index].strides
            case Output():
                operand, shape, strides = None, spec.result.shape, spec.strides
            case _:
                continue
        if strides is None:
            continue
        extents = [int(extent) for extent in parameter.shape]
        inside = reshaped_strides(shape, strides, extents)
        if inside is None:
            raise StridesLost(operand)
        new[parameter] = tirx.decl_buffer(
            extents, str(parameter.dtype), parameter.name, strides=list(inside), layout=None
        )
    if not new:
        return scheduled
    return replace(scheduled, function=_replaced(function, new))


def _replaced(function: tirx.PrimFunc, new: Mapping[Any, Any]) -> tirx.PrimFunc:
    """The function with other variables."""

    def swap(variable: Any, kind: Any) -> Any:
        return new.get(variable, variable)

    return tvm_ffi.structural_map(function, with_def_region_kind=((tvm.ir.Var, swap),))
