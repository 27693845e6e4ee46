"""Step 2: channels last wherever convolutions and pools are, at the price of few transposes.

A value has one of two layouts: the source's own, or channels last, its second dimension moved to
the end. The result is again a graph of neutral operators whose types, axes, pads and constants are
those of the memory layout, so that every later step sees plain dense tensors:

1. Convolutions, pools and resizes read and write channels last and carry ``channels_last=True``.
2. Element-wise operators, concatenations, pads, slices, reductions and the like follow their
   inputs: one that is channels last draws the others along.
3. Everything else reads and writes the source's layout.
4. A picture flattened for a product with a constant matrix stays channels last; the matrix's rows
   move instead, when building.
5. A transpose whose result lies in memory already, channels last, is that: a network whose inputs
   are channels last is not turned twice.
6. Channels may be parted into groups, the groups be swapped with their members, and both joined
   again, all of it channels last: a channel shuffle moves elements of the last dimension only.
7. `Transpose` nodes stand where a value is needed in a layout it does not have, each at most once;
   where they would only move dimensions of size 1 they are reshapes, which cost nothing.
8. Plain values cross the graph's border in the source's layout. Others keep what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from eecompile.ir import Graph, Op, TensorType
from eecompile.targets.lowering.rewriting import ELEMENTWISE, GraphEditor, moves_nothing

__all__ = ["CHANNELS_LAST", "SOURCE", "LaidOut", "lay_out", "physical_type"]

SOURCE = "source"
CHANNELS_LAST = "channels-last"
#: Inside a graph only: groups of channels, two dimensions, are the last two.
_GROUPS_LAST = "groups-last"

_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SPATIAL = frozenset({"Conv", "MaxPool", "AveragePool"})
_ALONG_AXES = frozenset(
    [
        "Concat",
        "Pad",
        "Slice",
        "Softmax",
        "LogSoftmax",
        "CumSum",
        "Tile",
        "Resize",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
    ]
)


@dataclass(frozen=True)
class LaidOut:
    """A graph of dense memory layouts, and the layout of each value that crosses its border."""

    graph: Graph
    borders: Mapping[str, str]


def channels_last(rank: int) -> tuple[int, ...]:
    """Source dimension that each physical dimension holds.

    >>> channels_last(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1)


def _groups_last(rank: int) -> tuple[int, ...]:
    """Source dimension of each physical one where dimensions 1 and 2 are channels.

    >>> _groups_last(5)
    (0, 3, 4, 1, 2)
    """
    return (0, *range(3, rank), 1, 2)


def physical_type(type_: TensorType, layout: str) -> TensorType:
    """The dense type a value has in memory."""
    if layout == SOURCE:
        return type_
    order = channels_last(len(type_.shape))
    return replace(type_, shape=tuple(type_.shape[axis] for axis in order))


def lay_out(graph: Graph, plain: Collection[str], known: Mapping[str, str]) -> LaidOut:
    """The graph in memory layouts.

    Args:
        graph: simplified.
        plain: values that must have the source's layout where they cross the border.
        known: layouts of values that other graphs produce.
    """
    return _Layouts(graph, plain, known).run()


class _Layouts:
    def __init__(self, graph: Graph, plain: Collection[str], known: Mapping[str, str]) -> None:
        self.graph, self.plain, self.known = graph, plain, known
        self.edit = GraphEditor(graph)
        self.users = graph.users()
        #: Matrices that are pictures flattened channels last, and their numbers of channels.
        self.flattened: dict[str, int] = {}
        self.have: dict[str, dict[str, str]] = {
            name: {SOURCE: name} for name in (*graph.inputs, *graph.constants)
        }
        self.borders: dict[str, str] = {}
        for name in graph.inputs:
            layout = SOURCE if name in plain else known.get(name, SOURCE)
            self.borders[name] = layout
            self.have[name] = {layout: name}
            self.edit.types[name] = physical_type(graph.types[name], layout)

    def run(self) -> LaidOut:
        for op in self.graph.ops:
            self._visit(op)
        outputs: list[str] = []
        for name in self.graph.outputs:
            value = self._output(name)
            if value in outputs:
                # Named twice: each of the caller's buffers must be written.
                value = self._reshape(value, self.edit.types[value].shape, name)
            outputs.append(value)
        return LaidOut(self.edit.finished(tuple(outputs)), self.borders)

    # -- values ----------------------------------------------------------------

    def _rank(self, name: str) -> int:
        return len(self.graph.types[name].shape)

    def _is_last(self, name: str) -> bool:
        return bool(name) and CHANNELS_LAST in self.have[name] and self._rank(name) >= 3

    def _get(self, name: str, layout: str, rank: int | None = None) -> str:
        """`name` in a layout, broadcast to `rank` first (for operands of fewer dimensions)."""
        rank = self._rank(name) if rank is None else rank
        key = layout if rank == self._rank(name) else f"{layout}/{rank}"
        if layout == SOURCE and rank != self._rank(name):
            return self._get(name, SOURCE)  # numpy's broadcasting does the rest.
        if key not in self.have[name]:
            self.have[name][key] = self._convert(name, layout, rank)
        return self.have[name][key]

    def _convert(self, name: str, layout: str, rank: int) -> str:
        type_ = self.graph.types[name]
        order = channels_last(rank)
        if layout == SOURCE and _GROUPS_LAST in self.have[name]:
            moved = tuple(int(i) for i in np.argsort(_groups_last(rank)))
            return self._transpose(self.have[name][_GROUPS_LAST], moved, name)
        if layout == SOURCE:
            return self._transpose(
                self.have[name][CHANNELS_LAST], tuple(int(i) for i in np.argsort(order)), name
            )
        shape = (1,) * (rank - len(type_.shape)) + type_.shape
        if name in self.graph.constants:
            array = self.graph.constants[name].reshape(shape).transpose(order)
            return self.edit.constant(f"{name}.last", array)
        current = self._get(name, SOURCE)
        if shape != type_.shape:
            current = self._reshape(current, shape, name)
        return self._transpose(current, order, name)

    def _transpose(self, value: str, perm: tuple[int, ...], base: str, output: str = "") -> str:
        type_ = self.edit.types[value]
        shape = tuple(type_.shape[axis] for axis in perm)
        if moves_nothing(type_.shape, perm):
            return self._reshape(value, shape, base, output)
        output = output or self.edit.fresh(f"{base}.transposed")
        op = Op(output, "Transpose", (value,), (output,), {"perm": perm})
        return self.edit.append(op, [replace(type_, shape=shape)])

    def _reshape(self, value: str, shape: tuple[int, ...], base: str, output: str = "") -> str:
        output = output or self.edit.fresh(f"{base}.reshaped")
        op = Op(output, "Reshape", (value,), (output,), {"shape": shape})
        return self.edit.append(op, [replace(self.edit.types[value], shape=shape)])

    def _output(self, name: str) -> str:
        have = self.have[name]
        # What another graph decided holds; else what its operator wrote, whoever reads it here.
        made = SOURCE if _GROUPS_LAST in have else next(iter(have))
        layout = SOURCE if name in self.plain else self.known.get(name, made)
        self.borders.setdefault(name, layout)
        value = self._get(name, self.borders[name])
        if not self.edit.makes(value):
            # An input or a constant passed on: the caller's buffer must still be written.
            value = self._reshape(value, self.edit.types[value].shape, name)
        return value

    # -- operators -------------------------------------------------------------

    def _visit(self, op: Op) -> None:
        rule = self._rule(op)
        if rule is None or not rule(op):
            self._in_source_layout(op)

    def _rule(self, op: Op) -> Callable[[Op], bool] | None:
        if op.kind in _SPATIAL:
            return self._spatial
        if op.kind == "Keep":
            return self._kept
        if op.kind in ELEMENTWISE:
            return self._elementwise
        if op.kind in _ALONG_AXES:
            return self._along_axes
        rules = {
            "Transpose": self._transposed,
            "Reshape": self._reshaped,
            "MatMul": self._multiplied,
        }
        return rules.get(op.kind)

    def _add(self, op: Op, layout: str) -> bool:
        """Adds `op`, whose inputs and attributes are physical by now."""
        types = []
        outputs = []
        for name in op.outputs:
            value = name if layout == SOURCE else self.edit.fresh(f"{name}.last")
            self.have[name] = {layout: value}
            outputs.append(value)
            types.append(physical_type(self.graph.types[name], layout))
        self.edit.append(replace(op, outputs=tuple(outputs)), types)
        return True

    def _in_source_layout(self, op: Op) -> bool:
        inputs = tuple(self._get(name, SOURCE) if name else "" for name in op.inputs)
        return self._add(replace(op, inputs=inputs), SOURCE)

    def _spatial(self, op: Op) -> bool:
        if any(name and name not in self.graph.constants for name in op.inputs[1:]):
            return False  # Weights that are computed cannot be packed when building.
        inputs = (self._get(op.inputs[0], CHANNELS_LAST), *op.inputs[1:])
        attributes = {**op.attributes, "channels_last": True}
        return self._add(replace(op, inputs=inputs, attributes=attributes), CHANNELS_LAST)

    def _elementwise(self, op: Op) -> bool:
        rank = self._rank(op.outputs[0])
        drawn = [
            name
            for name in op.inputs
            if self._is_last(name) and name not in self.graph.constants and self._rank(name) == rank
        ]
        if not drawn:
            return False
        attributes: dict[str, Any] = dict(op.attributes)
        inputs = []
        for index, name in enumerate(op.inputs):
            if index > 0 and op.kind in _QUANTISING:
                # Scales and zero points stay numbers, or vectors along `axis`.
                inputs.append(self._get(name, SOURCE) if name else "")
            else:
                inputs.append(self._get(name, CHANNELS_LAST, rank) if name else "")
        if "axis" in attributes:
            attributes["axis"] = channels_last(rank).index(attributes["axis"])
        return self._add(replace(op, inputs=tuple(inputs), attributes=attributes), CHANNELS_LAST)

    def _kept(self, op: Op) -> bool:
        x, scores = op.inputs
        if not self._is_last(x):
            return False
        inputs = (self._get(x, CHANNELS_LAST), self._get(scores, SOURCE))
        return self._add(
            replace(op, inputs=inputs, attributes={"channels_last": True}), CHANNELS_LAST
        )

    def _along_axes(self, op: Op) -> bool:
        rank = self._rank(op.inputs[0])
        if not any(self._is_last(name) for name in op.inputs):
            return False
        a: dict[str, Any] = dict(op.attributes)
        order = channels_last(rank)
        layout = CHANNELS_LAST
        if "axis" in a:
            a["axis"] = order.index(a["axis"])
        if "axes" in a:
            if op.kind == "Slice":
                moved = sorted(range(len(a["axes"])), key=lambda i: order.index(a["axes"][i]))
                for key in ("starts", "ends", "steps"):
                    a[key] = tuple(a[key][i] for i in moved)
            elif not a["keepdims"]:
                left = [axis for axis in order if axis not in a["axes"]]
                if left != sorted(left):
                    return False
                layout = SOURCE
            a["axes"] = tuple(sorted(order.index(axis) for axis in a["axes"]))
        for key in ("repeats", "scales", "sizes"):
            if a.get(key):
                a[key] = tuple(a[key][axis] for axis in order)
        if "pads" in a:
            a["pads"] = tuple(a["pads"][side + axis] for side in (0, rank) for axis in order)
        inputs = tuple(self._get(name, CHANNELS_LAST) for name in op.inputs)
        return self._add(replace(op, inputs=inputs, attributes=a), layout)

    def _transposed(self, op: Op) -> bool:
        (name,), (out,) = op.inputs, op.outputs
        perm: Any = op.attributes["perm"]
        grouped = self.have[name].get(_GROUPS_LAST)
        if grouped is not None and perm == (0, 2, 1, *range(3, len(perm))):
            rank = len(perm)
            swapped = (*range(rank - 2), rank - 1, rank - 2)
            self.have[out] = {_GROUPS_LAST: self._transpose(grouped, swapped, out)}
            return True
        order = channels_last(len(perm)) if self._is_last(name) else tuple(range(len(perm)))
        composed = tuple(order.index(axis) for axis in perm)
        if len(perm) >= 3 and out not in self.graph.outputs and name not in self.graph.constants:
            last = tuple(composed[axis] for axis in channels_last(len(perm)))
            if last == tuple(range(len(perm))):
                # What the transpose makes is in memory already, channels last.
                value = self._get(name, CHANNELS_LAST if self._is_last(name) else SOURCE)
                self.have[out] = {CHANNELS_LAST: value}
                return True
        if not self._is_last(name):
            return False
        value = self._get(name, CHANNELS_LAST)
        self.have[out] = {SOURCE: self._transpose(value, composed, out, out)}
        return True

    def _reshaped(self, op: Op) -> bool:
        name = op.inputs[0]
        if _GROUPS_LAST in self.have[name]:
            return self._ungrouped(op)
        if not self._is_last(name) or SOURCE in self.have[name]:
            return False
        value = self._get(name, CHANNELS_LAST)
        op = replace(op, inputs=(value,))
        before, after = self.graph.types[name].shape, self.graph.types[op.outputs[0]].shape
        if moves_nothing(before, channels_last(len(before))):
            return self._add(op, SOURCE)
        if len(after) >= 3 and before[:2] == after[:2]:
            # Only places are renamed.
            shape = physical_type(self.graph.types[op.outputs[0]], CHANNELS_LAST).shape
            return self._add(replace(op, attributes={"shape": shape}), CHANNELS_LAST)
        if len(after) == len(before) + 1 and after[3:] == before[2:] and after[0] == before[0]:
            (out,) = op.outputs
            shape = tuple(after[axis] for axis in _groups_last(len(after)))
            self.have[out] = {_GROUPS_LAST: self._reshape(value, shape, out)}
            return True
        if after == (before[0], prod(before[1:])) and self._only_multiplied(op.outputs[0]):
            self.flattened[op.outputs[0]] = before[1]
            return self._add(op, SOURCE)
        return False

    def _ungrouped(self, op: Op) -> bool:
        """A reshape that makes groups of channels one dimension again."""
        (name,), (out,) = op.inputs, op.outputs
        before, after = self.graph.types[name].shape, self.graph.types[out].shape
        if after != (before[0], before[1] * before[2], *before[3:]):
            return False
        shape = physical_type(self.graph.types[out], CHANNELS_LAST).shape
        grouped = self.have[name][_GROUPS_LAST]
        return self._add(replace(op, inputs=(grouped,), attributes={"shape": shape}), CHANNELS_LAST)

    def _only_multiplied(self, name: str) -> bool:
        """Whether nothing but products with constant matrices read a matrix."""
        return name not in self.graph.outputs and all(
            user.kind == "MatMul" and user.inputs[0] == name and self._is_matrix(user.inputs[1])
            for user in self.users[name]
        )

    def _is_matrix(self, name: str) -> bool:
        return name in self.graph.constants and self._rank(name) == 2

    def _multiplied(self, op: Op) -> bool:
        """A product whose left side is flattened channels last: its weights' rows move instead."""
        channels = self.flattened.get(op.inputs[0])
        if channels is None:
            return False
        w = self.graph.constants[op.inputs[1]]
        rows = w.reshape(channels, -1, w.shape[1]).swapaxes(0, 1).reshape(w.shape)
        weights = self.edit.constant(f"{op.inputs[1]}.last", rows)
        return self._add(replace(op, inputs=(op.inputs[0], weights)), SOURCE)
