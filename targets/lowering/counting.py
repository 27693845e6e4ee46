"""How many vector instructions a kernel takes, counted in its code before LLVM has it.

The code names every register and every vector (`build.plain_phases`), so that what a processor
executes can be read off it: arithmetic, and loads and stores. What is left out: arithmetic on
single integers (addresses, loops), which runs beside; loads that LLVM finds it need not repeat;
spilled registers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

from eecompile.targets.lowering.build import Phase
from eecompile.targets.lowering.notes import MOST

__all__ = ["Instructions", "count"]

#: Elements of a local array that registers hold; a larger one lies in memory.
_REGISTERS = 32

_BINARY = ("Add", "Sub", "Mul", "Min", "Max", "Mod", "FloorMod", "And", "Or")
_COMPARING = ("EQ", "NE", "LT", "LE", "GT", "GE")
_DIVIDING = ("Div", "FloorDiv")


_INTEGER: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": lambda a, b: a // b if b else 0,
    "FloorMod": lambda a, b: a % b if b else 0,
    "Div": lambda a, b: int(a / b) if b else 0,
    "Min": min,
    "Max": max,
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "And": operator.and_,
    "Or": operator.or_,
}


@dataclass(frozen=True, slots=True)
class Instructions:
    """Vector instructions; one on a single float counts as much.

    Attributes:
        operations: of arithmetic, a multiplication with the addition of its product as one.
        divisions: divisions and square roots, which are in `operations` too.
        accesses: loads and stores; of elements that lie apart, one each.
    """

    operations: float = 0.0
    divisions: float = 0.0
    accesses: float = 0.0

    def __add__(self, other: Instructions) -> Instructions:
        return Instructions(
            self.operations + other.operations,
            self.divisions + other.divisions,
            self.accesses + other.accesses,
        )

    def times(self, factor: float) -> Instructions:
        """So many times over."""
        return Instructions(
            self.operations * factor, self.divisions * factor, self.accesses * factor
        )


_NONE = Instructions()


def count(phases: Sequence[Phase], lanes: int) -> Instructions:
    """What all units of a kernel's phases execute, on vectors of `lanes` float32.

    Where the work depends on a loop's step, that of its middle step counts: borders are short.
    """
    return sum((_Counter(lanes, phase.units).of(phase.function) for phase in phases), _NONE)


class _Counter:
    """Counts in one function, whose loop from `begin` to `end` makes `units` steps."""

    def __init__(self, lanes: int, units: int) -> None:
        self.lanes, self.units = lanes, units
        #: Loop variables at the middle of their range, and what is computed from them.
        self.middle: dict[Any, int] = {}
        #: Loads of the loop body at hand: the same one again is in a register.
        self.loaded: set[int] = set()

    def of(self, function: tirx.PrimFunc) -> Instructions:
        begin, end = function.params[:2]
        self.middle |= {begin: 0, end: self.units}
        return self.statement(function.body)

    def statement(self, statement: Any) -> Instructions:
        match type(statement).__name__:
            case "SeqStmt":
                return sum((self.statement(part) for part in statement.seq), _NONE)
            case "For":
                return self._loop(statement)
            case "IfThenElse":
                return self._branch(statement)
            case "Bind":
                number = self._number(statement.value)
                if number is not None:
                    self.middle[statement.var] = number
                return self.expression(statement.value)
            case "Evaluate":
                return self.expression(statement.value)
            case "BufferStore":
                stored = self._access(statement.buffer, statement.indices, _type(statement.value))
                return stored + self.expression(statement.value)
            case "AttrStmt" | "While":
                return self.statement(statement.body)
        return _NONE

    def _loop(self, loop: tirx.For) -> Instructions:
        start, steps = self._number(loop.min), self._number(loop.extent)
        if MOST in loop.annotations:
            start, steps = None, int(loop.annotations[MOST])
        steps = 1 if steps is None else max(steps, 0)
        if start is not None:
            self.middle[loop.loop_var] = start + steps // 2
        outside, self.loaded = self.loaded, set()
        found = self.statement(loop.body).times(steps)
        self.loaded = outside
        return found

    def _branch(self, choice: tirx.IfThenElse) -> Instructions:
        taken = self._number(choice.condition)
        branches = [part for part in (choice.then_case, choice.else_case) if part is not None]
        if taken is not None:
            branches = branches[:1] if taken else branches[1:]
        counts = [self.statement(branch) for branch in branches]
        longer = max(counts, key=lambda found: found.operations + found.accesses, default=_NONE)
        return self.expression(choice.condition) + longer

    def _number(self, value: Any) -> int | None:
        """An integer expression in the middle of all loops; None where it depends on data."""
        if isinstance(value, tirx.IntImm):
            return int(value)
        if isinstance(value, tirx.Var):
            return self.middle.get(value)
        rule = _INTEGER.get(type(value).__name__)
        if rule is None:
            return None
        a, b = self._number(value.a), self._number(value.b)
        if a is None or b is None:
            return None
        return int(rule(a, b))

    def expression(self, value: Any) -> Instructions:
        kind = type(value).__name__
        if kind in ("Var", "IntImm", "FloatImm", "StringImm", "Ramp"):
            return _NONE
        if isinstance(value, TensorLoad):
            return self._load(value)
        if kind == "Broadcast":
            return self.expression(value.value)
        if kind in _BINARY or kind in _COMPARING or kind in _DIVIDING:
            return self._binary(kind, value)
        if kind in ("Cast", "Not"):
            inner = value.value if kind == "Cast" else value.a
            return self.expression(inner) + self._operation(_type(value))
        if kind == "Select":
            parts = (value.condition, value.true_value, value.false_value)
            return sum(map(self.expression, parts), self._operation(_type(value)))
        if kind == "Let":
            return self.expression(value.value) + self.expression(value.body)
        if kind == "Call":
            return self._call(value)
        if kind == "Shuffle":
            return sum(map(self.expression, value.vectors), self._operation(_type(value)))
        return _NONE

    def _binary(self, kind: str, value: Any) -> Instructions:
        sides = [value.a, value.b]
        found = sum(map(self.expression, sides), _NONE)
        name = _type(value.a if kind in _COMPARING else value)
        own = self._operation(name)
        if kind in ("Add", "Sub") and any(isinstance(side, tirx.Mul) for side in sides):
            return found  # Counted as the product is.
        if kind in _DIVIDING:
            return found + Instructions(own.operations, own.operations)
        return found + own

    def _call(self, value: Any) -> Instructions:
        found = sum(map(self.expression, value.args), self._operation(_type(value)))
        if "sqrt" in str(getattr(value.op, "name", "")):
            return found + Instructions(divisions=self._operation(_type(value)).operations)
        return found

    def _operation(self, name: str) -> Instructions:
        vectors = self._vectors(name)
        is_address = "x" not in name and not name.startswith("float")
        return _NONE if is_address else Instructions(float(vectors))

    def _vectors(self, name: str) -> int:
        """Instructions on a value of that type; narrow integers are widened to be computed with."""
        return ceil(int(name.partition("x")[2] or 1) / self.lanes)

    def _load(self, value: TensorLoad) -> Instructions:
        key = tvm_ffi.structural_hash(value)
        if key in self.loaded:
            return _NONE
        self.loaded.add(key)
        return self._access(value.source, value.indices, _type(value))

    def _access(self, buffer: Any, indices: Sequence[Any], name: str) -> Instructions:
        if buffer.scope() == "local" and _size(buffer) <= _REGISTERS:
            return _NONE
        last = indices[-1]
        if type(last).__name__ == "Ramp" and int(getattr(last.stride, "value", 0)) == 1:
            return Instructions(accesses=float(self._vectors(name)))
        return Instructions(accesses=float(name.partition("x")[2] or 1))


def _size(buffer: Any) -> int:
    size = 1
    for extent in buffer.shape:
        size *= int(extent)
    return size


def _type(value: Any) -> str:
    """Of an expression: "float32x4"."""
    return str(value.ty)
