"""What a kernel computes, without the names of the values it is called with.

Two groups with equal specs share one kernel: shapes, operators and their wiring count, the values
of constants do not, except those of single numbers, which are written into the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from eecompile.ir import Graph, Op, TensorType
from eecompile.targets.lowering import operators
from eecompile.targets.lowering.group import Group

__all__ = [
    "Argument",
    "KernelSpec",
    "Operand",
    "Output",
    "Packed",
    "Passed",
    "Scheduled",
    "Scratch",
    "Step",
    "spec_of",
]


@dataclass(frozen=True)
class Operand:
    """A tensor from outside. `number` is its value where it is a constant of one element."""

    type: TensorType
    constant: bool
    number: float | int | bool | None = None


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
    """A kernel's operands and operators; the last operator makes the result."""

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]

    @property
    def anchor(self) -> Step:
        """The operator the schedule is chosen by."""
        return self.steps[0]

    @property
    def result(self) -> TensorType:
        """Type of what the kernel writes."""
        return self.steps[-1].type

    def tensors(self) -> list[te.Tensor]:
        """A placeholder for each operand, a literal for each number."""
        return [_operand(index, operand) for index, operand in enumerate(self.operands)]

    def epilogue(self, operands: Sequence[te.Tensor], first: te.Tensor) -> te.Tensor:
        """What the steps after the anchor make of the anchor's result."""
        values = [*operands, first]
        for index, step in enumerate(self.steps[1:], 1):
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

        None where an operand or an operator after the anchor does not allow it.
        """
        full = self.result.shape
        rows = prod(full[:-1])

        def flat(type_: TensorType) -> TensorType | None:
            if type_.shape == full:
                return replace(type_, shape=(rows, full[-1]))
            if prod(type_.shape) == 1:
                return replace(type_, shape=(1, 1))
            if type_.shape and prod(type_.shape[:-1]) == 1 and type_.shape[-1] == full[-1]:
                return replace(type_, shape=(1, full[-1]))
            return None

        anchored = {i for i in self.anchor.inputs if i >= 0}
        operands = []
        for index, operand in enumerate(self.operands):
            if index in anchored:
                if any(index in step.inputs for step in self.steps[1:]):
                    return None
                operands.append(operand)
                continue
            type_ = flat(operand.type)
            if type_ is None:
                return None
            operands.append(replace(operand, type=type_))
        steps = []
        for step in self.steps:
            type_ = flat(step.type)
            if type_ is None or (step is not self.anchor and step.attribute("axis") is not None):
                return None
            steps.append(replace(step, type=type_))
        return KernelSpec(tuple(operands), tuple(steps))


def _operand(index: int, operand: Operand) -> te.Tensor:
    shape, dtype = operand.type.shape, operand.type.dtype
    if operand.number is not None:
        value = tirx.const(operand.number, dtype)
        return te.compute(shape, lambda *_: value, name=f"literal{index}")
    return te.placeholder(shape, dtype, name=f"in{index}")


def spec_of(group: Group, graph: Graph) -> tuple[KernelSpec, tuple[str, ...]]:
    """A group's kernel, and the values its operands are."""
    names = group.inputs
    index = {name: i for i, name in enumerate(names)}
    operands = tuple(_described(name, graph) for name in names)
    steps = []
    for op in group.ops:
        inputs = tuple(index[name] if name else -1 for name in op.inputs)
        type_ = graph.types[op.outputs[0]]
        steps.append(Step(op.kind, tuple(sorted(op.attributes.items())), inputs, type_))
        index[op.outputs[0]] = len(names) + len(steps) - 1
    return KernelSpec(operands, tuple(steps)), names


def _described(name: str, graph: Graph) -> Operand:
    array = graph.constants.get(name)
    if array is None:
        return Operand(graph.types[name], constant=False)
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
class Output:
    """Where the result goes."""


Argument = Passed | Packed | Scratch | Output


@dataclass(frozen=True)
class Scheduled:
    """A kernel's code and, for each of its parameters, what to call it with."""

    function: tirx.PrimFunc
    arguments: tuple[Argument, ...]
