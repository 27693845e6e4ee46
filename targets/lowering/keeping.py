"""Behind step 2: channels that a gate leaves out are not computed.

`Keep(x, scores)` behind a convolution says which groups of its channels are zeros. Here::

    c = Conv(x, w, b); r = Relu(c); k = Keep(r, scores); y = Conv(k, v)
    ->
    listed = KeptGroups(scores)
    c = Conv(x, w, b); r = Relu(c); k = Keep(r, scores, listed; unread); y = Conv(k, v, , listed)

1. One list of kept groups for each scores, made when they are known (`schedules.kept_list`).
2. A gate gets the list: the kernel that it is part of then computes kept channels only.
3. A convolution that sums over a gate's channels gets the list, too, and sums over kept ones only.
4. What a depthwise convolution in front of a gate reads is gated as well.
5. Behind a gate a depthwise convolution and what follows it make constants of zeros: the 1x1
   convolution that reads them sums over kept channels and adds what the others come to, a product
   of a constant matrix and the mask.
6. A gate whose other channels nobody reads is `unread`: they are not written.

Only what has channels last is looked at; elsewhere a gate stays an element-wise operator.
O(#operators).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from eecompile.ir import Graph, Op, TensorType
from eecompile.reference import evaluate
from eecompile.targets.lowering.rewriting import ELEMENTWISE, GraphEditor

__all__ = ["with_kept_lists"]


def with_kept_lists(graph: Graph) -> Graph:
    """The laid-out graph with lists of kept groups wherever they save work."""
    if not any(_is_gate(op) and op.inputs[1] not in graph.constants for op in graph.ops):
        return graph
    return _unread(_Listing(graph).run())


def _is_gate(op: Op) -> bool:
    return op.kind == "Keep" and bool(op.attributes.get("channels_last"))


def _is_conv(op: Op, graph: Graph) -> bool:
    return (
        op.kind == "Conv"
        and bool(op.attributes.get("channels_last"))
        and len(op.inputs) <= 3
        and all(name in graph.constants for name in op.inputs[1:] if name)
    )


def _sums(op: Op, graph: Graph) -> bool:
    """Whether an operator is a convolution that sums over all channels."""
    return _is_conv(op, graph) and op.attributes["group"] == 1


def _is_depthwise(op: Op, graph: Graph) -> bool:
    """Whether an operator is a convolution with one output for each channel."""
    if not _is_conv(op, graph):
        return False
    outputs, inputs, *_ = graph.types[op.inputs[1]].shape
    return inputs == 1 and op.attributes["group"] == outputs > 1


def _is_pointwise(op: Op, graph: Graph) -> bool:
    a: Any = op.attributes
    return set(graph.types[op.inputs[1]].shape[2:]) == {1} and not any(a["pads"])


def _is_by_channel(op: Op, graph: Graph) -> bool:
    """Whether each element of the result depends on one of the input and constants."""
    return (
        op.kind in ELEMENTWISE - {"Keep", "QuantizeLinear", "DequantizeLinear", "Cast"}
        and sum(name not in graph.constants for name in op.inputs if name) == 1
        and graph.types[op.outputs[0]].shape
        == next(graph.types[name].shape for name in op.inputs if name not in graph.constants)
        and all(
            graph.types[name].size in (1, (graph.types[name].shape or (1,))[-1])
            for name in op.inputs
            if name in graph.constants
        )
    )


class _Listing:
    """One pass over the operators; what is read is the graph before."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.edit = GraphEditor(graph)
        self.users = graph.users()
        self.made = graph.producer()
        self.place = {op.outputs[0]: index for index, op in enumerate(graph.ops)}
        self.outputs = frozenset(graph.outputs)
        #: Scores -> their list.
        self.lists: dict[str, str] = {}
        #: Gated value -> its gate's scores; other channels are zeros.
        self.gated: dict[str, str] = {}
        #: Values of which only channels that these scores keep are read.
        self.needed = self._needed()
        #: Values whose other channels are known constants: scores, and the constants.
        self.constants: dict[str, tuple[str, np.ndarray]] = {}

    def run(self) -> Graph:
        for op in self.graph.ops:
            self._visit(op)
        return self.edit.finished(self.graph.outputs)

    # -- what is known ---------------------------------------------------------

    def _needed(self) -> dict[str, str]:
        """What depthwise convolutions in front of gates read, and the gates' scores."""
        found: dict[str, str] = {}
        for op in self.graph.ops:
            if not _is_gate(op) or op.inputs[1] in self.graph.constants:
                continue
            wide = self._behind(op.inputs[0])
            if wide is None or not _is_depthwise(wide, self.graph):
                continue
            name, scores = wide.inputs[0], op.inputs[1]
            narrow = self._behind(name)
            if narrow is None or not _sums(narrow, self.graph) or not self._alone(name):
                continue
            scored = self.made.get(scores)
            ready = -1 if scored is None else self.place[scored.outputs[0]]
            if ready < self.place[narrow.outputs[0]]:
                found[name] = scores
        return found

    def _alone(self, name: str) -> bool:
        return len(self.users.get(name, ())) == 1 and name not in self.outputs

    def _behind(self, name: str) -> Op | None:
        """The convolution behind a chain of element-wise operators that nobody else reads."""
        while self._alone(name) and (op := self.made.get(name)) is not None:
            if op.kind == "Conv":
                return op
            if not _is_by_channel(op, self.graph):
                return None
            name = next(i for i in op.inputs if i and i not in self.graph.constants)
        return None

    def _list(self, scores: str) -> str:
        if scores not in self.lists:
            name = self.edit.fresh(f"{scores}.kept")
            groups = self.graph.types[scores].shape[1]
            op = Op(name, "KeptGroups", (scores,), (name,), {})
            self.lists[scores] = self.edit.append(op, [TensorType("int32", (groups + 1,))])
        return self.lists[scores]

    # -- operators -------------------------------------------------------------

    def _visit(self, op: Op) -> None:
        out = op.outputs[0]
        types = [self.graph.types[name] for name in op.outputs]
        if _is_gate(op) and op.inputs[1] not in self.graph.constants:
            self._gate(op)
            return
        source = op.inputs[0] if op.inputs else ""
        if _sums(op, self.graph) and source in self.gated:
            self._summing(op, self.gated[source])
        elif _sums(op, self.graph) and source in self.constants:
            self._completed(op)
        else:
            self._constant(op)
            named = replace(op, inputs=tuple(self.edit.now(name) for name in op.inputs))
            self.edit.append(named, types)
        if out in self.needed:
            self._narrowed(out)

    def _gate(self, op: Op) -> None:
        x, scores = op.inputs
        out = op.outputs[0]
        inputs = (self.edit.now(x), scores, self._list(scores))
        self.edit.append(replace(op, inputs=inputs), [self.graph.types[out]])
        self.gated[out] = scores

    def _narrowed(self, name: str) -> None:
        """A gate on a value of which only kept channels are read."""
        scores = self.needed[name]
        gate = self._gate_on(name, scores)
        self.edit.renamed[name] = gate

    def _gate_on(self, name: str, scores: str) -> str:
        gate = self.edit.fresh(f"{name}.gated")
        inputs = (self.edit.now(name), scores, self._list(scores))
        op = Op(gate, "Keep", inputs, (gate,), {"channels_last": True})
        return self.edit.append(op, [self.graph.types[name]])

    def _summing(self, op: Op, scores: str) -> None:
        x, w, *bias = op.inputs
        inputs = (self.edit.now(x), w, *(bias or ("",)), self._list(scores))
        types = [self.graph.types[name] for name in op.outputs]
        self.edit.append(replace(op, inputs=inputs), types)

    # -- channels that are constants -------------------------------------------

    def _constant(self, op: Op) -> None:
        """Notes the constants that an operator makes of channels that are left out."""
        graph = self.graph
        source = next((name for name in op.inputs if name and name not in graph.constants), "")
        out = op.outputs[0]
        if out in self.needed or not self._alone(out):
            return
        if _is_depthwise(op, graph) and source in self.gated and self._alone(source):
            channels = graph.types[out].shape[-1]
            bias = op.inputs[2] if len(op.inputs) > 2 else ""
            values = graph.constants[bias] if bias else np.zeros(channels, np.float32)
            self.constants[out] = self.gated[source], values.reshape(-1)
        elif source in self.constants and _is_by_channel(op, graph):
            scores, values = self.constants[source]
            shape = (*(1,) * (len(graph.types[out].shape) - 1), -1)
            arrays = [
                graph.constants[name] if name in graph.constants else values.reshape(shape)
                for name in op.inputs
            ]
            (made,) = evaluate(op, arrays)
            self.constants[out] = scores, made.reshape(-1)

    def _completed(self, op: Op) -> None:
        """A convolution of what is kept, and the sum of the constants of what is not."""
        scores, values = self.constants[op.inputs[0]]
        w = self.graph.constants[op.inputs[1]]
        type_ = self.graph.types[op.outputs[0]]
        if not _is_pointwise(op, self.graph) or not np.isfinite(values).all():
            named = replace(op, inputs=tuple(self.edit.now(name) for name in op.inputs))
            self.edit.append(named, [type_])
            return
        gate = self._gate_on(op.inputs[0], scores)
        (out,) = op.outputs
        part = self.edit.fresh(f"{out}.kept")
        inputs = (gate, *op.inputs[1:], *([""] * (3 - len(op.inputs))), self._list(scores))
        self.edit.append(replace(op, inputs=inputs, outputs=(part,)), [type_])
        groups = self.graph.types[scores].shape[1]
        products = w.reshape(w.shape[:2]).astype(np.float64) * values
        sums = products.reshape(len(products), groups, -1).sum(axis=2).T.astype(np.float32)
        more = self._masked(scores, self.edit.constant(f"{out}.left", sums), len(type_.shape))
        self.edit.append(Op(out, "Add", (part, more), (out,), {}, op.scope), [type_])

    def _masked(self, scores: str, sums: str, rank: int) -> str:
        """The sum of the rows of a constant matrix whose group is left out."""
        edit = self.edit

        def made(kind: str, inputs: tuple[str, ...], type_: TensorType, **attributes: Any) -> str:
            name = edit.fresh(f"{sums}.{kind.lower()}")
            return edit.append(Op(name, kind, inputs, (name,), attributes), [type_])

        one_row = self.graph.types[scores]
        zero = edit.constant(f"{sums}.zero", np.zeros((), np.float32))
        one = edit.constant(f"{sums}.one", np.ones((), np.float32))
        above = made("Greater", (scores, zero), replace(one_row, dtype="bool"))
        # NOTE: not `Not(above)`: TVM makes `<= 0` of it, false where a score is no number.
        mask = made("Sub", (one, made("Cast", (above,), one_row, to="float32")), one_row)
        columns = edit.types[sums].shape[1]
        row = made("MatMul", (mask, sums), TensorType("float32", (1, columns)))
        shape = (*(1,) * (rank - 1), columns)
        return made("Reshape", (row,), TensorType("float32", shape), shape=shape)


def _unread(graph: Graph) -> Graph:
    """Marks the gates whose other channels nobody reads."""
    users = graph.users()
    outputs = frozenset(graph.outputs)

    def unneeded(name: str, listed: str) -> bool:
        """Whether of a value only listed channels are read."""
        readers = users.get(name, ())
        return name not in outputs and all(skips(reader, name, listed) for reader in readers)

    def skips(reader: Op, name: str, listed: str) -> bool:
        if reader.kind in ("Conv", "Keep") and listed in reader.inputs:
            return reader.inputs.count(name) == 1 and reader.inputs[0] == name
        apart = _is_depthwise(reader, graph) or _is_by_channel(reader, graph)
        return apart and unneeded(reader.outputs[0], listed)

    ops = tuple(
        replace(op, attributes={**op.attributes, "unread": True})
        if op.kind == "Keep" and len(op.inputs) == 3 and unneeded(op.outputs[0], op.inputs[2])
        else op
        for op in graph.ops
    )
    return replace(graph, ops=ops)
