"""Loops over the groups of channels that a gate keeps.

A list of int32 is made once per call from a gate's scores: how many groups are kept, their indices,
then those of the others. Kernels loop over the first part; what others read of the second is
written by a phase of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import tvm
from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.emit import (
    Kernel,
    in_vectors,
    loop,
    named,
    parallel,
    place_in,
    sequence,
)
from eecompile.targets.lowering.spec import KernelSpec, Output, Passed, Scheduled, Step

__all__ = [
    "Gate",
    "Kept",
    "as_kept",
    "bias_operands",
    "gate_lists",
    "input_gate",
    "kept_list",
    "kept_of",
    "left_out",
    "output_gate",
    "suited",
]

Expr = Any
Stmt = Any

#: Units that threads share what is written without products in.
_UNITS = 8


@dataclass(frozen=True)
class Gate:
    """Channels in equal runs, of which a list says which are kept.

    Attributes:
        listed: the operand that is the list.
        groups: how many there are.
        each: channels of one.
    """

    listed: int
    groups: int
    each: int


def _lanes(each: int, machine: Machine) -> int:
    """Lanes of the vectors that a group is whole of; 0 where there are none."""
    return next((v for v in (machine.lanes, machine.short_lanes) if each % v == 0), 0)


# --- What of a kernel is gated --------------------------------------------------------------------


def input_gate(spec: KernelSpec) -> Gate | None:
    """The gate whose other channels the anchor's input lacks."""
    if spec.anchor.kind != "Conv" or len(spec.anchor.inputs) < 4:
        return None
    listed, channels = spec.anchor.inputs[3], spec.operands[spec.anchor.inputs[1]].type.shape[1]
    groups = spec.operands[listed].type.shape[0] - 1
    return Gate(listed, groups, channels // groups)


def bias_operands(step: Step) -> tuple[int, ...]:
    """The operand that is a convolution's bias, if there is one."""
    return step.inputs[2:3]


def gate_lists(spec: KernelSpec) -> set[int]:
    """The operands that are lists of kept groups."""
    found = {step.inputs[3] for step in spec.steps if step.kind == "Conv" and len(step.inputs) > 3}
    return found | {step.inputs[2] for step in spec.steps if _is_gate(step)}


def output_gate(spec: KernelSpec, machine: Machine) -> Gate | None:
    """The gate behind the anchor, where all that is made of it passes the gate in whole vectors."""
    count = len(spec.operands)
    for step in spec.after:
        if not _is_gate(step):
            continue
        listed = step.inputs[2]
        groups, channels = spec.operands[listed].type.shape[0] - 1, spec.result.shape[-1]
        gate = Gate(listed, groups, channels // groups)
        reached = _reached(spec, count + len(spec.steps) - 1, step)
        if _lanes(gate.each, machine) and count + spec.before not in reached:
            return gate
    return None


def _is_gate(step: Step) -> bool:
    return step.kind == "Keep" and len(step.inputs) == 3


def _reached(spec: KernelSpec, value: int, cut: Step) -> set[int]:
    """The values that one is made of, but for those that only `cut` reads."""
    if value < len(spec.operands):
        return {value}
    step = spec.steps[value - len(spec.operands)]
    inputs = () if step is cut else step.inputs
    return {value}.union(*(_reached(spec, i, cut) for i in inputs if i >= 0))


def suited(spec: KernelSpec, machine: Machine) -> Machine:
    """The machine with vectors of which the groups behind the anchor are whole."""
    gate = output_gate(spec, machine)
    return replace(machine, lanes=_lanes(gate.each, machine)) if gate else machine


def as_kept(spec: KernelSpec, gate: Gate | None) -> KernelSpec:
    """The kernel of the channels that a gate keeps."""
    return spec if gate is None else _where(spec, gate, "kept")


def _where(spec: KernelSpec, gate: Gate, where: str) -> KernelSpec:
    def known(step: Step) -> Step:
        if not _is_gate(step) or step.inputs[2] != gate.listed:
            return step
        return replace(step, attributes=(*step.attributes, ("where", where)))

    return replace(spec, steps=tuple(map(known, spec.steps)))


# --- Loops ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A gate's list while loops are written.

    Attributes:
        gate: its extents.
        read: index -> element of the list.
    """

    gate: Gate
    read: Callable[[Expr], Expr]

    @property
    def count(self) -> Expr:
        """How many groups are kept."""
        return self.read(0)

    def first(self, place: Expr) -> Expr:
        """The first channel of the group at a place of the list."""
        return self.read(place + 1) * self.gate.each

    def groups(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """`body(place, index)` for each group that is kept."""

        def one(place: Expr) -> Stmt:
            index, bound = named(self.read(place + 1))
            return sequence([bound, body(place, index)])

        return loop(self.count, one, most=self.gate.groups)


def kept_of(kernel: Kernel, gate: Gate | None) -> Kept | None:
    """The list of a gate that a kernel has."""
    return None if gate is None else Kept(gate, kernel.operand(gate.listed))


def left_out(
    kernel: Kernel, spec: KernelSpec, gate: Gate | None, lanes: int, most: int = _UNITS
) -> list[Stmt]:
    """The phase that writes the channels that a gate leaves out, if anybody reads them.

    Args:
        kernel: being written.
        spec: the whole kernel, not `as_kept`.
        gate: behind its anchor.
        lanes: of a vector.
        most: units, at most.
    """
    last = spec.steps[-1]
    if gate is None or (_is_gate(last) and last.attribute("unread")):
        return []
    write = kernel.writing(_where(spec, gate, "left out"))
    read = kernel.operand(gate.listed)
    *box, _ = spec.result.shape
    places = prod(box)
    part = -(-places // most)

    def unit(at: list[Expr]) -> Stmt:
        first = at[0] * part
        here = part if places % part == 0 else tirx.min(part, places - first)

        def group(place: Expr) -> Stmt:
            index, bound = named(read(gate.groups - place))
            start, begun = named(index * gate.each)

            def one(i: Expr) -> Stmt:
                spot = place_in(box, first + i)
                return in_vectors(gate.each, lanes, lambda c: write([*spot, start + c]))

            return sequence([bound, begun, loop(here, one)])

        return loop(gate.groups - read(0), group, most=0)

    return [parallel([-(-places // part)], unit)]


# --- The list -------------------------------------------------------------------------------------


def kept_list(spec: KernelSpec) -> Scheduled:
    """The list of a gate's groups, those that are left out from its end on.

    Scores above 0 keep; before -> after, of four groups::

        0.5, -1.0, nan, 2.0  ->  2; 0, 3; 2, 1
    """
    groups = spec.result.shape[0] - 1
    scores = tirx.decl_buffer(spec.operands[0].type.shape, "float32", "scores")
    result = tirx.decl_buffer((groups + 1,), "int32", "result")

    def at(index: Expr) -> Expr:
        return tirx.BufferLoad(result, [index])

    def group(g: Expr) -> Stmt:
        count, bound = named(at(0))
        keeps = sequence(
            [
                tirx.BufferStore(result, g, [count + 1]),
                tirx.BufferStore(result, count + 1, [0]),
            ]
        )
        others = tirx.BufferStore(result, g, [groups - g + count])
        above = tirx.BufferLoad(scores, [0, g]) > 0.0
        return sequence([bound, tirx.IfThenElse(above, keeps, others)])

    def whole(_: Sequence[Expr]) -> Stmt:
        none = tirx.BufferStore(result, tirx.const(0, "int32"), [0])
        return sequence([none, loop(groups, group)])

    attributes = tvm.ir.make_node("ir.DictAttrs")
    function = tirx.PrimFunc([scores, result], parallel([1], whole), None, attributes)
    return Scheduled(function, (Passed(0), Output()))
