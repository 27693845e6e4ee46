"""What a network with channel gates multiplies, by how many groups of channels are kept."""

from __future__ import annotations

from typing import Any

from eecompile.cost import graph_macs, op_macs
from eecompile.ir import Graph, Op

__all__ = ["kept_macs"]

#: Operators that treat every channel alone, constants of one element a channel beside.
_BY_CHANNEL = frozenset(
    """Add Sub Mul Div Relu Clip HardSwish HardSigmoid Sigmoid LeakyRelu PRelu Elu Celu Selu Tanh
    Softplus Mish Gelu Abs Neg Sqrt Exp BatchNormalization""".split()
)


def kept_macs(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates that always run, and those for each group of channels that is kept.

    Those of a group are its part of the convolutions before the gate (a depthwise one and the one
    that it reads, too) and of the convolutions that sum over the gate's channels, also behind a
    depthwise one. A convolution between two gates counts as the first one's. Cost of a graph
    whose `Keep`s all have groups of one number: O(#operators).

    Args:
        graph: neutral; its `Keep`s read the same scores.

    Returns:
        (always, each): with k groups kept, always + k * each run; with all of them, all.
    """
    gates = [op for op in graph.ops if op.kind == "Keep"]
    total = graph_macs(graph)
    if not gates:
        return total, 0
    found: dict[str, Op] = {}
    walk = _Walk(graph)
    for gate in gates:
        found |= {op.outputs[0]: op for op in (*walk.before(gate), *walk.behind(gate))}
    gated = sum(op_macs(op, graph) for op in found.values())
    each = gated // graph.types[gates[0].inputs[1]].shape[1]
    return total - gated, each


class _Walk:
    """From gates to the convolutions whose work they decide about."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.users, self.made = graph.users(), graph.producer()

    def before(self, gate: Op) -> list[Op]:
        """The convolution whose result passes the gate, and what a depthwise one reads."""
        first = self._maker(gate.inputs[0])
        if first is None:
            return []
        if not self._is_depthwise(first):
            return [first] if self._is_constant(first) else []
        second = self._maker(first.inputs[0])
        return [first] if second is None or not self._sums(second) else [first, second]

    def behind(self, gate: Op) -> list[Op]:
        """The convolutions that sum over the gate's channels."""
        found = []
        for reader in self.users.get(gate.outputs[0], ()):
            if reader.inputs[0] == gate.outputs[0] and self._sums(reader):
                found.append(reader)
            elif self._is_depthwise(reader) and self._alone(gate.outputs[0]):
                found += self._past(reader)
        return found

    def _past(self, depthwise: Op) -> list[Op]:
        """A depthwise convolution behind a gate with the 1x1 convolution that alone reads it."""
        name = depthwise.outputs[0]
        while self._alone(name):
            (reader,) = self.users[name]
            if self._sums(reader) and self._is_pointwise(reader):
                return [depthwise, reader]
            if not self._is_by_channel(reader) or reader.inputs[0] != name:
                break
            name = reader.outputs[0]
        return []

    def _maker(self, name: str) -> Op | None:
        while self._alone(name) and (op := self.made.get(name)) is not None:
            if op.kind == "Conv":
                return op
            if not self._is_by_channel(op):
                return None
            name = op.inputs[0]
        return None

    def _alone(self, name: str) -> bool:
        return len(self.users.get(name, ())) == 1 and name not in self.graph.outputs

    def _is_by_channel(self, op: Op) -> bool:
        return op.kind in _BY_CHANNEL and self._is_constant(op)

    def _is_constant(self, op: Op) -> bool:
        return all(name in self.graph.constants for name in op.inputs[1:] if name)

    def _sums(self, op: Op) -> bool:
        return op.kind == "Conv" and op.attributes["group"] == 1 and self._is_constant(op)

    def _is_depthwise(self, op: Op) -> bool:
        if op.kind != "Conv" or not self._is_constant(op):
            return False
        outputs, inputs, *_ = self.graph.types[op.inputs[1]].shape
        return inputs == 1 and op.attributes["group"] == outputs > 1

    def _is_pointwise(self, op: Op) -> bool:
        a: Any = op.attributes
        return set(self.graph.types[op.inputs[1]].shape[2:]) == {1} and not any(a["pads"])
