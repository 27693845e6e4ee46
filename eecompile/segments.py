"""The segmented network: what runs between two decisions, and what each exit computes.

A `SegmentGraph` is the product of the passes and the input of compilation, recording and the
runtime. Execution order is fixed: segment 0, exit 0's head, decision, segment 1, exit 1's head,
decision, ..., last segment, whose output is the network's own answer (the final exit).
"""

from __future__ import annotations

from dataclasses import dataclass

from eecompile.cost import graph_macs
from eecompile.ir import Graph, TensorType

__all__ = ["Exit", "Segment", "SegmentGraph"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Operators between two decisions.

    Its graph's inputs are network inputs or values that cross a border; its outputs are every
    value that a later segment or an exit head needs (and the network's output, in the last one).
    """

    name: str
    graph: Graph

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return graph_macs(self.graph)


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit point and what is computed there.

    Attributes:
        name: as in the `.ee` file.
        point: the exit point's module path or node name, as resolved.
        feature: value name of the tapped backbone tensor (an output of segment `segment`).
        segment: index of the segment after which this exit decides.
        head: graph from the feature to ``<name>.logits``; None for a comparator only.
        comparator: graph from the feature to ``<name>.class_means``, None where there is none.
            Its output is minus the normalised class-mean distances (times a temperature), so that
            softmax turns it into E2CM's confidence.
    """

    name: str
    point: str
    feature: str
    segment: int
    head: Graph | None = None
    comparator: Graph | None = None

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs computed at this exit, head first."""
        return tuple(graph for graph in (self.head, self.comparator) if graph is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of head and comparator, for one sample."""
        return sum(graph_macs(graph) for graph in self.graphs)


@dataclass(frozen=True, slots=True)
class SegmentGraph:
    """A network cut at its decisions.

    Attributes:
        name: the model's name in the `.ee` file.
        inputs: network inputs by name.
        output: value name of the network's answer (first output of the last segment).
        classes: number of classes, None where the output is no class vector (no exits then).
        segments: in execution order; ``len(exits) + 1`` of them.
        exits: in execution order; exit ``k`` decides after segment ``k``.
    """

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    output: str
    classes: int | None
    segments: tuple[Segment, ...]
    exits: tuple[Exit, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the untouched backbone, for one sample."""
        return sum(segment.macs for segment in self.segments)

    @property
    def shown(self) -> frozenset[str]:
        """Values the outside sees: network inputs and outputs, and what exits give."""
        ends = [self.segments[-1].graph, *(graph for exit_ in self.exits for graph in exit_.graphs)]
        return frozenset(name for name, _ in self.inputs).union(*(end.outputs for end in ends))

    def graphs(self) -> tuple[Graph, ...]:
        """Every graph to compile: segments and exits in execution order."""
        found: list[Graph] = []
        for index, segment in enumerate(self.segments):
            found.append(segment.graph)
            for exit_ in self.exits[index : index + 1]:
                found.extend(exit_.graphs)
        return tuple(found)
