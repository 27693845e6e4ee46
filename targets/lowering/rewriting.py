"""Small tools that the graph-to-graph steps of lowering share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.operators import BINARY, UNARY
from eecompile.shapes import infer_types

__all__ = ["ELEMENTWISE", "Chains", "GraphEditor", "Round", "joined_chains", "moves_nothing"]

#: Operators that compute each element of the result from the elements at the same place.
ELEMENTWISE = frozenset(
    [
        *UNARY,
        *BINARY,
        *[
            "Cast",
            "Celu",
            "Clip",
            "Elu",
            "Gelu",
            "HardSigmoid",
            "Keep",
            "LeakyRelu",
            "Selu",
            "ThresholdedRelu",
            "Where",
        ],
        *["QuantizeLinear", "DequantizeLinear"],
    ]
)


def moves_nothing(shape: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Whether a transpose leaves the elements' order alone.

    >>> moves_nothing((1, 64, 1, 1), (0, 2, 3, 1)), moves_nothing((1, 64, 8, 8), (0, 2, 3, 1))
    (True, False)
    """
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept == sorted(kept)


class GraphEditor:
    """A graph being rewritten: operators in order, their types, constants, and what is renamed."""

    def __init__(self, graph: Graph) -> None:
        """Starts from the graph's inputs and constants, without its operators."""
        self.source = graph
        self._ops: dict[str, Op] = {}
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.types: dict[str, TensorType] = {
            name: graph.types[name] for name in graph.inputs if name in graph.types
        }
        self.types |= {name: TensorType.of(array) for name, array in graph.constants.items()}
        self.renamed: dict[str, str] = {}

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operators so far. O(#operators)."""
        return tuple(self._ops.values())

    def makes(self, name: str) -> bool:
        """Whether an operator so far makes this value as its first result."""
        return name in self._ops

    def remove(self, op: Op) -> None:
        """Takes an operator out again; whoever reads its results must go or change."""
        del self._ops[op.outputs[0]]

    def now(self, name: str) -> str:
        """What a value of the source graph is called here."""
        while name in self.renamed:
            name = self.renamed[name]
        return name

    def fresh(self, base: str) -> str:
        """A value name that nothing has yet."""
        name, count = base, 0
        while name in self.types or name in self.source.types or name in self.renamed:
            count += 1
            name = f"{base}.{count}"
        return name

    def constant(self, base: str, array: np.ndarray) -> str:
        """A new constant."""
        name = self.fresh(base)
        self.constants[name] = np.ascontiguousarray(array).reshape(np.shape(array))
        self.types[name] = TensorType.of(array)
        return name

    def append(self, op: Op, types: Iterable[TensorType] | None = None) -> str:
        """Adds an operator, infers types where none are given; its first result's name."""
        if types is None:
            types = infer_types(op, [self.types[name] if name else None for name in op.inputs])
        self.types |= dict(zip(op.outputs, types, strict=True))
        self._ops[op.outputs[0]] = op
        return op.outputs[0]

    def add(
        self,
        kind: str,
        inputs: tuple[str, ...],
        attributes: Mapping[str, Attribute],
        like: Op,
        output: str = "",
    ) -> str:
        """Adds an operator that stands for (a part of) `like`."""
        output = output or self.fresh(f"{like.outputs[0]}.{kind.lower()}")
        op = replace(
            like, name=output, kind=kind, inputs=inputs, outputs=(output,), attributes=attributes
        )
        return self.append(op)

    def finished(self, outputs: tuple[str, ...]) -> Graph:
        """The graph so far, without what `outputs` do not need."""
        graph = replace(
            self.source,
            ops=self.ops,
            constants=self.constants,
            types=self.types,
            outputs=outputs,
        )
        return graph.pruned()


class Round:
    """One pass over a graph's operators; `made` finds the operator that made a value."""

    def __init__(self, graph: Graph, edit: GraphEditor, uses: Counter[str]) -> None:
        """Starts with nothing of `graph` visited; `uses` counts the readers of each value."""
        self.edit, self.uses = edit, uses
        self.outputs = frozenset(graph.outputs)
        self.made: dict[str, Op] = {}

    def _keep(self, op: Op) -> None:
        known = [self.edit.source.types[name] for name in op.outputs]
        self.edit.append(op, known)
        self.made.update(dict.fromkeys(op.outputs, op))

    def _replace(self, old: Op, new: Op) -> None:
        """`new` makes what `old` made and what followed it; `old` goes."""
        self.edit.remove(old)
        for name in old.outputs:
            self.made.pop(name, None)
        self._keep(new)

    def _array(self, name: str) -> np.ndarray | None:
        return self.edit.constants.get(name) if name else None

    def _only(self, name: str) -> Op | None:
        """The operator that made `name`, if nothing but the present operator reads it."""
        if name in self.outputs or self.uses[name] != 1:
            return None
        return self.made.get(name)


class Chains:
    """Looks from an operator back at what it is made of."""

    def __init__(self, graph: Graph) -> None:
        """Over a graph that does not change."""
        self.graph = graph
        self._made = graph.producer()
        self._users = graph.users()
        self._outputs = frozenset(graph.outputs)

    def inside(self, name: str, kind: str, readers: int = 1) -> Op | None:
        """What makes a value, if it is such an operator and so many operators alone read it."""
        op = self._made.get(name)
        if op is None or op.kind != kind or name in self._outputs:
            return None
        return op if len(self._users.get(name, ())) == readers else None

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        array = self.graph.constants.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None


def joined_chains(graph: Graph, joined: Callable[[Op], Op | None]) -> Graph:
    """The graph with one operator for each chain whose last operator `joined` knows."""
    found = {op.outputs[0]: one for op in graph.ops if (one := joined(op)) is not None}
    if not found:
        return graph
    ops = tuple(found.get(op.outputs[0], op) for op in graph.ops)
    return replace(graph, ops=ops).pruned()
