"""What a kernel computes, without the names of the values it is called with.

Two groups with equal specs share one kernel: shapes, operators and their wiring count, the values
of constants do not, except those of single numbers, which are written into the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from tvm import te, tirx

from eecompile.ir import Graph, Op, TensorType
from eecompile.targets.lowering import operators
from eecompile.targets.lowering.group import Group
from eecompile.targets.lowering.rewriting import ELEMENTWISE
from eecompile.targets.lowering.views import View, reshaped_strides

__all__ = [
    "Argument",
    "KernelSpec",
    "Operand",
    "Output",
    "Packed",
    "Passed",
    "PerThread",
    "Scheduled",
    "Scratch",
    "Step",
    "as_rows",
    "spec_of",
]

#: Every value a dense tensor of its own.
_NO_VIEWS: Mapping[str, View] = MappingProxyType({})


@dataclass(frozen=True)
class Operand:
    """A tensor from outside.

    Attributes:
        type: element type and shape.
        constant: whether its values are known when building.
        number: its value where it is a constant of one element.
        strides: elements from one index to the next of each axis; None where it is dense.
    """

    type: TensorType
    constant: bool
    number: float | int | bool | None = None
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """An operator; inputs below ``len(operands)`` are operands, then steps, -1 is absent."""

    kind: str
    attributes: tuple[tuple[str, Any], ...]
    inputs: tuple[int, ...]
    type: TensorType

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return dict(self.attributes).get(name, default)


@dataclass(frozen=True)
class KernelSpec:
    """A kernel's operands and operators; the last operator makes the result.

    Schedules are written for dense tensors and may leave all strides to `strides.strided`.

    Attributes:
        operands: what it reads.
        steps: what it computes.
        strides: of the result, as those of an operand.
        before: how many of the steps make the anchor's first input; nobody else reads them.
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    strides: tuple[int, ...] | None = None
    before: int = 0

    @property
    def anchor(self) -> Step:
        """The operator the schedule is chosen by."""
        return self.steps[self.before]

    @property
    def after(self) -> tuple[Step, ...]:
        """The operators behind the anchor."""
        return self.steps[self.before + 1 :]

    @property
    def is_dense(self) -> bool:
        """Whether every operand and the result are dense."""
        return self.strides is None and all(o.strides is None for o in self.operands)

    @property
    def element_by_element(self) -> tuple[int, ...]:
        """Operands like the result, where each of its elements is made of those at its place.

        Schedules read such an element only before, and only for, the one it is part of, and write
        that once: the result may take over the operand's memory.
        """
        if any(step.kind not in ELEMENTWISE for step in self.steps):
            return ()
        size, shape = np.dtype(self.result.dtype).itemsize, self.result.shape
        return tuple(
            index
            for index, operand in enumerate(self.operands)
            if operand.type.shape == shape and np.dtype(operand.type.dtype).itemsize == size
        )

    @property
    def result(self) -> TensorType:
        """Type of what the kernel writes."""
        return self.steps[-1].type

    def tensors(self) -> list[te.Tensor]:
        """A placeholder for each operand, a literal for each number."""
        return [_operand(index, operand) for index, operand in enumerate(self.operands)]

    def epilogue(self, operands: Sequence[te.Tensor], first: te.Tensor) -> te.Tensor:
        """What the steps after the anchor make of the anchor's result."""
        values = [*operands, *[None] * self.before, first]
        for index, step in enumerate(self.after, self.before + 1):
            values.append(self.expression(index, step, values))
        return values[-1]

    def prologue(self, operands: Sequence[te.Tensor]) -> te.Tensor:
        """What the steps before the anchor, each by its definition, make of the operands."""
        values = list(operands)
        for index, step in enumerate(self.steps[: self.before]):
            values.append(self.expression(index, step, values))
        return values[-1]

    def expression(self, index: int, step: Step, values: Sequence[te.Tensor]) -> te.Tensor:
        """One operator by its definition in source order."""
        names = tuple(f"v{i}" if i >= 0 else "" for i in step.inputs)
        op = Op(f"step{index}", step.kind, names, (f"o{index}",), dict(step.attributes))
        inputs = [values[i] if i >= 0 else None for i in step.inputs]
        constants = {
            f"v{i}": np.full(
                self.operands[i].type.shape, self.operands[i].number, self.operands[i].type.dtype
            )
            for i in step.inputs
            if 0 <= i < len(self.operands) and self.operands[i].number is not None
        }
        return operators.compute(op, inputs, {op.outputs[0]: step.type}, constants)[0]

    def flattened(self) -> KernelSpec | None:
        """The same kernel over rows: every dimension but the last of the result made one.

        None where an operand or an operator beside the anchor does not allow it. Strided operands
        of the anchor keep their shape; it can be made rows as well.
        """
        full = self.result.shape
        strides = as_rows(full, self.strides)
        if self.strides is not None and strides is None:
            return None
        given = self.steps[self.before - 1].type.shape if self.before else full
        operands = []
        gates = [step for step in self.steps if step.kind == "Keep"]
        if any(not step.attribute("channels_last") for step in gates):
            return None
        by_group = {index for step in gates for index in step.inputs[1:]}
        for index, operand in enumerate(self.operands):
            shapes = {given for step in self.steps[: self.before] if index in step.inputs}
            shapes |= {full for step in self.after if index in step.inputs}
            if index in by_group:
                operands.append(operand)
                continue
            found = _flat_operand(operand, shapes, index in self.anchor.inputs)
            if found is None:
                return None
            operands.append(found)
        steps = []
        for index, step in enumerate(self.steps):
            type_ = _flat(step.type, given if index < self.before else full)
            if type_ is None or (step is not self.anchor and step.attribute("axis") is not None):
                return None
            steps.append(replace(step, type=type_))
        return replace(self, operands=tuple(operands), steps=tuple(steps), strides=strides)


def _flat(type_: TensorType, full: tuple[int, ...]) -> TensorType | None:
    """A type that broadcasts to `full` as one that does to its rows."""
    if type_.shape == full:
        return replace(type_, shape=(prod(full[:-1]), full[-1]))
    if prod(type_.shape) == 1:
        return replace(type_, shape=(1, 1))
    if type_.shape and prod(type_.shape[:-1]) == 1 and type_.shape[-1] == full[-1]:
        return replace(type_, shape=(1, full[-1]))
    return None


def _flat_operand(operand: Operand, shapes: set[tuple[int, ...]], anchored: bool) -> Operand | None:
    """An operand as rows of what its readers make; one of the anchor alone stays as it is."""
    if anchored:
        whole = operand.strides and as_rows(operand.type.shape, operand.strides) is None
        return None if shapes or whole else operand
    if len(shapes) != 1:
        return None
    type_ = _flat(operand.type, next(iter(shapes)))
    if type_ is None:
        return None
    if not operand.strides:
        return replace(operand, type=type_)
    inside = reshaped_strides(operand.type.shape, operand.strides, type_.shape)
    return None if inside is None else replace(operand, type=type_, strides=inside)


def as_rows(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Strides with every axis but the last made one; None for dense ones, or where none are.

    >>> as_rows((1, 8, 8, 16), (4096, 512, 64, 1))
    (64, 1)
    """
    if strides is None or not shape:
        return None
    return reshaped_strides(shape, strides, (prod(shape[:-1]), shape[-1]))


def _operand(index: int, operand: Operand) -> te.Tensor:
    shape, dtype = operand.type.shape, operand.type.dtype
    if operand.number is not None:
        value = tirx.const(operand.number, dtype)
        return te.compute(shape, lambda *_: value, name=f"literal{index}")
    return te.placeholder(shape, dtype, name=f"in{index}")


def spec_of(
    group: Group, graph: Graph, views: Mapping[str, View] = _NO_VIEWS
) -> tuple[KernelSpec, tuple[str, ...]]:
    """A group's kernel, and the values its operands are.

    Args:
        group: operators of one kernel.
        graph: laid out.
        views: where the values that are not dense tensors of their own lie.
    """
    names = group.inputs
    index = {name: i for i, name in enumerate(names)}
    operands = tuple(_described(name, graph, views) for name in names)
    steps = []
    for op in group.ops:
        inputs = tuple(index[name] if name else -1 for name in op.inputs)
        type_ = graph.types[op.outputs[0]]
        steps.append(Step(op.kind, tuple(sorted(op.attributes.items())), inputs, type_))
        index[op.outputs[0]] = len(names) + len(steps) - 1
    strides = _strides(group.output, views)
    return KernelSpec(operands, tuple(steps), strides, group.before), names


def _strides(name: str, views: Mapping[str, View]) -> tuple[int, ...] | None:
    view = views.get(name)
    return None if view is None or view.is_dense else view.strides


def _described(name: str, graph: Graph, views: Mapping[str, View]) -> Operand:
    array = graph.constants.get(name)
    if array is None:
        return Operand(graph.types[name], constant=False, strides=_strides(name, views))
    number = array.reshape(-1)[0].item() if array.size == 1 else None
    return Operand(graph.types[name], constant=True, number=number)


# --- What a kernel is called with -----------------------------------------------------------------


@dataclass(frozen=True)
class Passed:
    """An operand as it is."""

    operand: int


@dataclass(frozen=True)
class Packed:
    """A constant operand, rearranged at build time."""

    operand: int
    pack: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scratch:
    """Memory of the workspace that only this call uses."""

    nbytes: int


@dataclass(frozen=True)
class PerThread:
    """Memory that only this call and only one thread uses; what a thread leaves is undefined."""

    nbytes: int


@dataclass(frozen=True)
class Output:
    """Where the result goes."""


Argument = Passed | Packed | Scratch | PerThread | Output


@dataclass(frozen=True)
class Scheduled:
    """A kernel's code and, for each of its parameters, what to call it with.

    Attributes:
        function: the scheduled code.
        arguments: one for each parameter.
    """

    function: tirx.PrimFunc
    arguments: tuple[Argument, ...]
