"""The segmented network: what runs between two decisions, and what each exit computes.

A `SegmentGraph` is the product of the passes and the input of compilation, recording and the
runtime. Execution order is fixed: segment 0, exit 0's head, decision, segment 1, exit 1's head,
decision, ..., last segment, whose output is the network's own answer (the final exit).
"""

from __future__ import annotations

from dataclasses import dataclass

from eecompile.cost import graph_macs
from eecompile.ir import Graph, TensorType

__all__ = ["SHIFT", "Exit", "Segment", "SegmentGraph", "Step", "score_names", "step_name"]

#: A value float32 (1, 1) that all gates read and subtract from their scores; 0 as fitted. More
#: leaves more out. It is set when a policy is, and is no input of the network.
SHIFT = ("gates.shift", TensorType("float32", (1, 1)))


@dataclass(frozen=True, slots=True)
class Step:
    """Operators of a segment between two decisions of its gates; or what such a gate computes.

    Attributes:
        graph: reads network inputs, values of earlier steps, of gates and, in a gate, `SHIFT`.
        gate: whether this is a gate's: it runs only where decisions are made.
        keep: a gate's score, float32 (1, 1): the step is left out where it is not above 0. Empty:
            it always runs.
        otherwise: what its one output is a copy of where it is left out. Empty: zeros, or whatever
            lies there of values that only steps of the same score read.
        channels: a gate's scores, float32 (1, groups), one of the graph's inputs: of channels whose
            score is not above 0 nothing is computed (``Keep``). Empty: all of them are.
    """

    graph: Graph
    gate: bool = False
    keep: str = ""
    otherwise: str = ""
    channels: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, nothing left out."""
        return graph_macs(self.graph)


@dataclass(frozen=True, slots=True)
class Segment:
    """Operators between two decisions.

    Its graph's inputs are network inputs or values that cross a border; its outputs are every
    value that a later segment or an exit head needs (and the network's output, in the last one).

    Attributes:
        name: identifier.
        graph: all of its operators, gates apart.
        steps: the same, cut where gates decide, with the gates; empty where none do.
    """

    name: str
    graph: Graph
    steps: tuple[Step, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, nothing left out, gates apart."""
        return graph_macs(self.graph)

    @property
    def gates_macs(self) -> int:
        """Multiply-accumulates of its gates."""
        return sum(step.macs for step in self.steps if step.gate)

    def named_steps(self) -> tuple[tuple[str, Step], ...]:
        """Its steps by the names that `step_name` gives."""
        return tuple(
            (step_name(self.name, index, step.graph.outputs[0], step.gate, step.keep), step)
            for index, step in enumerate(self.steps)
        )

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """What is compiled of it, in execution order."""
        return tuple(step.graph for step in self.steps) or (self.graph,)


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
    def gated(self) -> bool:
        """Whether gates may leave something out."""
        return any(segment.steps for segment in self.segments)

    @property
    def shown(self) -> frozenset[str]:
        """Values the outside sees: network inputs and outputs, and what exits give."""
        ends = [self.segments[-1].graph, *(graph for exit_ in self.exits for graph in exit_.graphs)]
        shown = {name for name, _ in self.inputs}.union(*(end.outputs for end in ends))
        steps = [step for part in self.segments for step in part.steps]
        for step in steps:
            if step.gate:
                shown.update((SHIFT[0], *step.graph.outputs))
        # What stands in for a step's result has its layout; from one block to the next.
        pairs = [{step.otherwise, step.graph.outputs[0]} for step in steps if step.otherwise]
        for pair in (*pairs, *reversed(pairs)):
            if not shown.isdisjoint(pair):
                shown |= pair
        return frozenset(shown)

    def graphs(self) -> tuple[Graph, ...]:
        """Every graph to compile: segments and exits in execution order."""
        found: list[Graph] = []
        for index, segment in enumerate(self.segments):
            found.extend(segment.graphs)
            for exit_ in self.exits[index : index + 1]:
                found.extend(exit_.graphs)
        return tuple(found)


def step_name(segment: str, index: int, gives: str, gate: bool, keep: str) -> str:
    """A step's name in tables of costs: ``<block>.gate``, ``<block>`` or ``<segment>.<i>``.

    Args:
        segment: its segment's name.
        index: of the step in it.
        gives: its first output.
        gate: as in `Step`.
        keep: as in `Step`.
    """
    block = (gives if gate else keep).rpartition(".")[0]
    return f"{block}.gate" if gate else block or f"{segment}.{index}"


def score_names(graph: SegmentGraph) -> dict[str, str]:
    """The scores that something is decided by -> that which a gate only gives where it is kept."""
    steps = [step for segment in graph.segments for step in segment.steps]
    asked = dict.fromkeys(name for step in steps for name in (step.keep, step.channels) if name)
    given = {name: step.keep for step in steps if step.gate for name in step.graph.outputs}
    return {name: given[name] for name in asked}
