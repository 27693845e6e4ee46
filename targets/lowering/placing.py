"""Step 3: values that lie in the memory of others, so that nothing is moved without need.

before::

    a = Conv(...)        # f32[1, 56, 56, 64]
    b = Conv(...)        # f32[1, 56, 56, 32]
    c = Concat(a, b; axis=3)

after: `a` and `b` are written to channels 0 to 63 and 64 to 95 of `c`, and `c` is nobody's work.

1. The inputs of a concatenation are written to their place in it. A concatenation whose inputs
   already lie side by side in a longer one is a part of that: of a block of concatenations that
   each add a piece, only the longest has memory. What cannot be written there is copied.
2. Slices, reshapes and transposes are views of what they read where their readers can take one.
3. Reshapes and transposes that cannot, but whose result keeps the last axis, are written by what
   computes their input.

A value that crosses the graph's border is never a part of another. O(#operators).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from eecompile.ir import Graph, Op
from eecompile.targets.lowering.views import View

__all__ = ["Placed", "place"]

_MOVING = frozenset({"Reshape", "Slice", "Transpose"})


@dataclass(frozen=True)
class Placed:
    """Where the values of a graph lie.

    Attributes:
        graph: the graph, with copies (`Reshape` to the same shape) into concatenations.
        views: value name -> its elements in the dense buffer of some value.
        moved: results of operators that nothing has to compute.
    """

    graph: Graph
    views: Mapping[str, View]
    moved: frozenset[str]


def place(graph: Graph, dense: Collection[str] = ()) -> Placed:
    """Places every value of a laid-out graph.

    Args:
        graph: in memory layouts.
        dense: values that must be dense tensors of their own.
    """
    return _Placing(graph, frozenset(dense)).run()


class _Placing:
    def __init__(self, graph: Graph, dense: frozenset[str]) -> None:
        self.graph = graph
        self.users = graph.users()
        self.made = graph.producer()
        self.outputs = frozenset(graph.outputs)
        self.own = dense
        self.border = self.outputs | frozenset(graph.inputs) | frozenset(graph.constants)
        #: Places that values are given by what reads them.
        self.slots: dict[str, View] = {}
        self.views: dict[str, View] = {
            name: View.of(name, graph.types[name].shape)
            for name in (*graph.inputs, *graph.constants)
        }
        self.moved: set[str] = set()

    def run(self) -> Placed:
        for op in reversed(self.graph.ops):
            if op.kind == "Concat":
                self._give_parts(op)
            elif op.kind in ("Reshape", "Transpose"):
                self._give_back(op)
        ops: list[Op] = []
        types = dict(self.graph.types)
        for source in self.graph.ops:
            *copies, op = self._settle(source)
            types |= {copy.outputs[0]: types[copy.inputs[0]] for copy in copies}
            ops += [*copies, op]
        graph = replace(self.graph, ops=tuple(ops), types=types)
        return Placed(graph, self.views, frozenset(self.moved))

    # -- from readers to writers -----------------------------------------------

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.graph.types[name].shape

    def _free(self, name: str) -> bool:
        """Whether a value may be written to where a reader wants it."""
        return name not in self.border and name not in self.slots and name not in self.own

    def _give_parts(self, op: Op) -> None:
        (out,) = op.outputs
        if self._free(out):
            joint = self._joint(op)
            if joint is not None:
                self.slots[out] = joint
                return
        target = self.slots.get(out) or View.of(out, self._shape(out))
        free = [name for name in dict.fromkeys(op.inputs) if self._free(name)]
        if not free:
            return
        self.slots[out] = target
        for name, part in reversed(list(self._parts(op, target))):
            if self._free(name):
                self.slots[name] = part

    def _parts(self, op: Op, target: View) -> list[tuple[str, View]]:
        axis: Any = op.attributes["axis"]
        parts, start = [], 0
        for name in op.inputs:
            shape = self._shape(name)
            starts = [start if i == axis else 0 for i in range(len(shape))]
            parts.append((name, target.part(starts, shape)))
            start += shape[axis]
        return parts

    def _joint(self, op: Op) -> View | None:
        """The view of inputs that lie side by side as a concatenation would lay them."""
        first = self.slots.get(op.inputs[0])
        if first is None:
            return None
        joint = replace(first, shape=self._shape(op.outputs[0]))
        if any(self.slots.get(name) != part for name, part in self._parts(op, joint)):
            return None
        return joint

    def _give_back(self, op: Op) -> None:
        (name,), (out,) = op.inputs[:1], op.outputs
        if not self._free(name):
            return
        wanted = out in self.slots or out in self.outputs
        target = self.slots.get(out) or View.of(out, self._shape(out))
        if not wanted:
            if out in self.own or op.kind == "Reshape":
                return
            ahead = self._derived(op, View.of(name, self._shape(name)))
            if ahead is not None and self._is_taken(out, ahead, to_the_end=True):
                return
        back = self._undone(op, target)
        if back is None or not back.is_unit:
            return
        self.slots[out] = target
        self.slots[name] = back

    def _undone(self, op: Op, target: View) -> View | None:
        """Where the input of a reshape or transpose lies if its result lies at `target`."""
        if op.kind == "Reshape":
            return target.reshaped(self._shape(op.inputs[0]))
        perm: Any = op.attributes["perm"]
        return target.transposed([perm.index(axis) for axis in range(len(perm))])

    # -- from writers to readers -----------------------------------------------

    def _derived(self, op: Op, view: View) -> View | None:
        """Where the result of an operator that only moves lies if its input lies at `view`."""
        a: Any = op.attributes
        if op.kind == "Reshape":
            return view.reshaped(self._shape(op.outputs[0]))
        if op.kind == "Transpose":
            return view.transposed(a["perm"])
        shape = self._shape(op.outputs[0])
        starts, steps = [0] * len(shape), [1] * len(shape)
        for axis, start, step in zip(a["axes"], a["starts"], a["steps"], strict=True):
            if step < 0:
                return None
            extent = view.shape[axis]
            starts[axis] = min(max(start + extent if start < 0 else start, 0), extent)
            steps[axis] = step
        return view.part(starts, shape, steps)

    def _is_taken(self, name: str, view: View, to_the_end: bool = False) -> bool:
        """Whether everything that reads a value can read it at `view`.

        `to_the_end`: and whether no reshape of it has to be copied.
        """
        if name in self.outputs or name in self.own or 0 in view.shape:
            return False
        for user in self.users.get(name, ()):
            if user.kind == "Concat":
                return False
            if user.kind in _MOVING:
                if user.outputs[0] not in self.slots:
                    further = self._derived(user, view)
                    if further is not None and self._is_taken(user.outputs[0], further, to_the_end):
                        continue
                if not view.is_unit or (to_the_end and user.kind == "Reshape"):
                    return False
            elif not view.is_unit and not self._is_packed(user, name, view):
                return False
        return True

    @staticmethod
    def _is_packed(user: Op, name: str, view: View) -> bool:
        """Whether a reader rearranges the operand in any case, and may find it transposed."""
        if user.kind != "MatMul" or user.inputs[0] == name or len(view.shape) < 2:
            return False
        return view.strides[-2] == 1

    def _settle(self, op: Op) -> list[Op]:
        """Notes where results lie; the operator, behind the copies it needs."""
        out = op.outputs[0]
        if out not in self.slots:
            if op.kind in _MOVING:
                view = self._derived(op, self.views[op.inputs[0]])
                if view is not None and self._is_taken(out, view):
                    self.views[out] = view
                    self.moved.add(out)
                    return [op]
            for name in op.outputs:
                self.views[name] = View.of(name, self._shape(name))
            return [op]
        self.views[out] = self.slots[out]
        if op.kind == "Concat":
            return self._gathered(op)
        if op.kind in ("Reshape", "Transpose"):
            back = self._undone(op, self.slots[out])
            if back is not None and self.views[op.inputs[0]] == back:
                self.moved.add(out)
        return [op]

    def _gathered(self, op: Op) -> list[Op]:
        """A concatenation whose parts are in place, behind copies of those that were not."""
        (out,) = op.outputs
        parts = self._parts(op, self.views[out])
        if all(self.views[name] != part for name, part in parts):
            return [op]
        copies, inputs = [], []
        for index, (name, part) in enumerate(parts):
            if self.views[name] == part:
                inputs.append(name)
                continue
            copy = f"{out}.part{index}"
            shape = self._shape(name)
            copies.append(Op(copy, "Reshape", (name,), (copy,), {"shape": shape}, op.scope))
            self.views[copy] = part
            inputs.append(copy)
        self.moved.add(out)
        return [*copies, replace(op, inputs=tuple(inputs))]
