"""A head the user brings, as a graph that a host has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from eecompile.heads.base import Array, Head, HeadMismatch, Progress
from eecompile.heads.pooling import as_recorded
from eecompile.ir import Graph, TensorType

__all__ = ["GivenHead"]


@dataclass(frozen=True)
class GivenHead(Head):
    """One input, one output: the feature and a score per class. Its weights stay as they are.

    Its logits over a data set come from the host, with the rest of the network.
    """

    kind: ClassVar[str] = "given"
    given: Graph

    @property
    def options(self) -> dict[str, Any]:
        """None: all is in the graph."""
        return {}

    def feature_graph(self, feature: TensorType) -> Graph:
        """The feature as it is."""
        return as_recorded(feature)

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """Nothing is left to fit."""
        return {}

    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """The given graph under the names a head's graph has.

        Raises:
            HeadMismatch: it has several inputs or outputs, or its input is not the feature.
        """
        graph = self.given
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            count = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise HeadMismatch(f"expected one input and one output, found {count}")
        found = graph.types[graph.inputs[0]]
        if found != feature:
            raise HeadMismatch(f"the head reads {found}, the point gives {feature}")
        return _renamed(graph, {graph.inputs[0]: "feature", graph.outputs[0]: "logits"})


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with some values renamed; a value that had a new name gives way."""
    taken = set(names.values()) - set(names)
    full = {value: f"{value}_" for value in graph.types if value in taken} | dict(names)

    def name(value: str) -> str:
        return full.get(value, value)

    ops = tuple(
        replace(op, inputs=tuple(map(name, op.inputs)), outputs=tuple(map(name, op.outputs)))
        for op in graph.ops
    )
    return replace(
        graph,
        inputs=tuple(map(name, graph.inputs)),
        outputs=tuple(map(name, graph.outputs)),
        ops=ops,
        constants={name(value): array for value, array in graph.constants.items()},
        types={name(value): type_ for value, type_ in graph.types.items()},
    )
