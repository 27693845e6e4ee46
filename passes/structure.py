"""Questions about a graph's structure that do not depend on the order its operators stand in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import networkx as nx

from eecompile.ir import Graph
from eecompile.text import constant_digest

__all__ = ["Flow", "canonical_keys", "static_values"]


class Flow:
    """Which value leads to which: an edge wherever an operator reads one and produces the other."""

    def __init__(self, graph: Graph) -> None:
        """The flow of `graph`. O(#ops)."""
        self._edges = nx.DiGraph()
        self._edges.add_nodes_from((*graph.inputs, *graph.constants))
        for op in graph.ops:
            self._edges.add_nodes_from(op.outputs)
            self._edges.add_edges_from((i, o) for o in op.outputs for i in op.inputs if i)

    def above(self, value: str) -> set[str]:
        """What the value is computed from, itself left out."""
        return set(nx.ancestors(self._edges, value))

    def below(self, value: str) -> set[str]:
        """What is computed from the value, itself left out."""
        return set(nx.descendants(self._edges, value))

    def gates(self, inputs: Sequence[str], answer: str) -> list[str]:
        """Values that every way from an input to `answer` goes through, in order, ends left out.

        >>> from eecompile.ir import Op
        >>> ops = (Op("n", "Neg", ("x",), ("a",)), Op("e", "Exp", ("a",), ("b",)),
        ...     Op("s", "Add", ("a", "b"), ("c",)), Op("m", "Neg", ("c",), ("y",)))
        >>> Flow(Graph("g", ("x",), ("y",), ops)).gates(["x"], "y")
        ['a', 'c']
        """
        above = self.dominators(inputs)
        found: list[str] = []
        value = above.get(answer)
        while value is not None:
            found.append(value)
            value = above.get(value)
        return [value for value in reversed(found) if value not in inputs]

    def dominators(self, inputs: Sequence[str]) -> dict[str, str]:
        """Value -> the last other value that every way from an input to it goes through.

        Values that no single other value stands before, and what no input leads to, are left out.
        """
        source = ("source",)  # no value's name is a tuple
        edges = self._edges.copy()
        edges.add_edges_from((source, value) for value in inputs)
        above = nx.immediate_dominators(edges, source)
        return {value: before for value, before in above.items() if before not in (source, None)}

    def ordered(self, values: Sequence[str]) -> list[int]:
        """Positions in `values` such that none leads to an earlier one, else in their order.

        >>> from eecompile.ir import Op
        >>> ops = (Op("n", "Neg", ("x",), ("a",)), Op("e", "Exp", ("a",), ("b",)))
        >>> Flow(Graph("g", ("x",), ("b",), ops)).ordered(["b", "x", "a"])
        [1, 2, 0]
        """
        reached = nx.DiGraph()
        reached.add_nodes_from(range(len(values)))
        for index, value in enumerate(values):
            above = self.above(value)
            reached.add_edges_from((i, index) for i, v in enumerate(values) if v in above)
        return list(nx.lexicographical_topological_sort(reached))


def static_values(graph: Graph) -> frozenset[str]:
    """Constants, and what follows from constants alone."""
    static = set(graph.constants)
    for op in graph.ops:
        if all(value in static for value in op.inputs if value):
            static.update(op.outputs)
    return frozenset(static)


def canonical_keys(
    graph: Graph, inputs: Mapping[str, str]
) -> dict[str, tuple[int, str, str, str, int]]:
    """Value -> a sort key that says what it computes, the same for every order of operators.

    Compared are the depth, the type, the operators above the value, then the constants' contents;
    only values that compute the same thing are left to their order in the graph.

    Args:
        graph: the network.
        inputs: the graph's inputs -> names that stand for them in the key.
    """
    depth = dict.fromkeys((*graph.inputs, *graph.constants), 0)
    shape = {value: inputs.get(value, value) for value in graph.inputs}
    content = dict(shape)
    for value, array in graph.constants.items():
        shape[value] = str(graph.types[value])
        content[value] = constant_digest(array)
    for op in graph.ops:
        read = [value for value in op.inputs if value]
        # A reshape counts for nothing: hosts differ in where they flatten and squeeze.
        below = max((depth[value] for value in read), default=0) + (op.kind != "Reshape")
        what = f"{op.kind} {sorted(op.attributes.items())}"
        for index, value in enumerate(op.outputs):
            depth[value] = below
            shape[value] = _digest(what, index, *(shape.get(v, "") for v in op.inputs))
            content[value] = _digest(what, index, *(content.get(v, "") for v in op.inputs))
    return {
        value: (depth[value], str(graph.types[value]), shape[value], content[value], position)
        for position, value in enumerate(depth)
    }


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
