"""Rows that are scaled by what all of them holds: softmax, layer norm, instance norm.

A row stays in the first-level cache while it is read two or three times; rows are independent, so
that threads share them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering import approximations
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    in_vectors,
    named,
    parallel,
    place_in,
    sequence,
)
from eecompile.targets.lowering.schedules.reductions import MAXIMUM, SUM, fold_row
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["normalisation"]

Expr = Any
Stmt = Any
#: Floats of a row that may be kept on the stack between two passes.
_STACK = 4096


def normalisation(spec: KernelSpec, machine: Machine) -> Scheduled | None:
    """A softmax or norm over the innermost axes; None where there is no such form."""
    step = spec.anchor
    shape = step.type.shape
    if step.type.dtype != "float32" or 0 in shape:
        return None
    match step.kind:
        case "Softmax" | "LogSoftmax":
            axis = step.attribute("axis")
            if prod(shape[axis + 1 :]) != 1 or shape[axis] > _STACK:
                return None
            return _softmax(spec, machine, axis)
        case "LayerNormalization":
            return _norm(spec, machine, step.attribute("axis"))
        case "InstanceNormalization" if len(shape) > 2:
            return _norm(spec, machine, 2)
    return None


def _rows(
    spec: KernelSpec,
    machine: Machine,
    axis: int,
    kernel: Kernel,
    row: Callable[[Callable[[Expr], list[Expr]], int], tuple[list[Stmt], Callable[[Expr], Expr]]],
) -> Scheduled:
    """The kernel that does `row` for every row and stores the values it returns."""
    shape = spec.anchor.type.shape
    outer, inner = shape[:axis], shape[axis:]

    def run(at: list[Expr]) -> Stmt:
        def place(c: Expr) -> list[Expr]:
            return [*(at if outer else []), *place_in(inner, c)]

        body, value = row(place, prod(inner))

        def store(c: Expr) -> Stmt:
            return kernel.write(place(c), lambda *_: value(c))

        return sequence([*body, in_vectors(prod(inner), machine.lanes, store)])

    return kernel.finished(parallel(outer or (1,), run))


def _softmax(spec: KernelSpec, machine: Machine, axis: int) -> Scheduled:
    """Softmax of a row that is read twice.

    ::

    m = max(x);  e = exp(x - m);  y = e / sum(e)              # three loops over everything
    ->  for each row: m in vectors; e[row] on the stack in vectors, and its sum; y = e * (1 / s)
    """
    kernel = Kernel(spec)
    x = kernel.operand(spec.anchor.inputs[0])

    def row(
        place: Callable[[Expr], list[Expr]], extent: int
    ) -> tuple[list[Stmt], Callable[[Expr], Expr]]:
        found, maximum = fold_row(extent, lambda c: x(*place(c)), MAXIMUM, machine)
        highest, bind = named(maximum)
        kept = tirx.decl_buffer((extent,), "float32", "kept", scope="local")
        body = [*found, bind, tirx.AllocBuffer(kept)]
        log = spec.anchor.kind == "LogSoftmax"

        def keep(c: Expr) -> Stmt:
            shifted = x(*place(c)) - highest
            return tirx.BufferStore(kept, approximations.exp(shifted), [c])

        body.append(in_vectors(extent, machine.lanes, keep))
        added, total = fold_row(extent, lambda c: tirx.BufferLoad(kept, [c]), SUM, machine)
        scale, bind = named(te.log(total) if log else 1.0 / total)
        body += [*added, bind]
        if log:
            return body, lambda c: x(*place(c)) - highest - scale
        return body, lambda c: tirx.BufferLoad(kept, [c]) * scale

    return _rows(spec, machine, axis, kernel, row)


def _norm(spec: KernelSpec, machine: Machine, axis: int) -> Scheduled:
    """Mean and deviation of a row, each in a pass of its own.

    ::

    mean = sum(x) / n;  v = sum((x - mean)^2) / n;  y = (x - mean) / sqrt(v + e) * w + b
    ->  for each row: both sums in vector accumulators, then y in vectors
    """
    kernel = Kernel(spec)
    step = spec.anchor
    x_at, *parameters = step.inputs
    x = kernel.operand(x_at)
    instance = step.kind == "InstanceNormalization"
    share = tirx.const(1 / prod(step.type.shape[axis:]), "float32")
    epsilon = tirx.const(float(step.attribute("epsilon")), "float32")

    def parameter(number: int, index: list[Expr]) -> Expr | None:
        if number >= len(parameters) or parameters[number] < 0:
            return None
        at = parameters[number]
        if instance:
            return kernel.operand(at)(index[1])
        shape = spec.operands[at].type.shape
        own = index[len(index) - len(shape) :]
        zero = tirx.const(0, "int32")
        return kernel.operand(at)(*(zero if n == 1 else i for n, i in zip(shape, own, strict=True)))

    def row(
        place: Callable[[Expr], list[Expr]], extent: int
    ) -> tuple[list[Stmt], Callable[[Expr], Expr]]:
        added, total = fold_row(extent, lambda c: x(*place(c)), SUM, machine)
        mean, bind_mean = named(total * share)

        def square(c: Expr) -> Expr:
            distance = x(*place(c)) - mean
            return distance * distance

        spread, squares = fold_row(extent, square, SUM, machine)
        inverse, bind_inverse = named(1.0 / te.sqrt(squares * share + epsilon))

        def value(c: Expr) -> Expr:
            index = place(c)
            normal = (x(*index) - mean) * inverse
            scale, bias = parameter(0, index), parameter(1, index)
            normal = normal if scale is None else normal * scale
            return normal if bias is None else normal + bias

        return [*added, bind_mean, *spread, bind_inverse], value

    return _rows(spec, machine, axis, kernel, row)
