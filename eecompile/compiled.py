"""What the runtime executes: compiled functions, in order, and the values they pass on.

A `CompiledGraph` is a `SegmentGraph` after compilation. It holds names, types and sizes only; the
machine code and the weights are a shared library and a blob beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eecompile.cost import graph_macs
from eecompile.ir import Graph, TensorType
from eecompile.segments import Exit, SegmentGraph

__all__ = ["CompiledExit", "CompiledGraph", "Function", "Value", "batch_shape", "sample_shape"]

#: A value by name, with its type.
Value = tuple[str, TensorType]


def batch_shape(type_: TensorType, count: int) -> tuple[int, ...]:
    """Shape of `count` samples of a value: a leading 1 is the place of the batch.

    >>> batch_shape(TensorType("float32", (1, 3, 32, 32)), 8)
    (8, 3, 32, 32)
    >>> batch_shape(TensorType("float32", (2, 128)), 8)
    (8, 2, 128)
    """
    return (count, *sample_shape(type_))


def sample_shape(type_: TensorType) -> tuple[int, ...]:
    """Shape of one sample inside a batch: without a leading 1."""
    return type_.shape[1:] if type_.shape[:1] == (1,) else type_.shape


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the shared library.

    Its C signature is ``int32_t symbol(int64_t n, const void *weights, void *workspace,
    const void *in0, ..., void *out0, ...)``; it handles n samples, every tensor dense, sample
    after sample, and returns 0.

    Attributes:
        symbol: name in the shared library.
        inputs, outputs: values by their names in the network, in the order of the arguments.
        workspace_bytes: scratch memory of a call, whatever n is.
        macs: multiply-accumulates of one sample.
    """

    symbol: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    workspace_bytes: int
    macs: int

    @classmethod
    def of(
        cls,
        graph: Graph,
        symbol: str,
        workspace_bytes: int,
        names: Mapping[str, str] | None = None,
    ) -> Function:
        """The function `graph` was compiled to; `names` renames values of its interface."""
        renamed = names or {}

        def typed(values: tuple[str, ...]) -> tuple[Value, ...]:
            return tuple((renamed.get(value, value), graph.types[value]) for value in values)

        return cls(
            symbol, typed(graph.inputs), typed(graph.outputs), workspace_bytes, graph_macs(graph)
        )


@dataclass(frozen=True, slots=True)
class CompiledExit:
    """An exit's head and comparator; at least one of them. It decides after segment `segment`."""

    name: str
    point: str
    segment: int
    head: Function | None = None
    comparator: Function | None = None

    @property
    def functions(self) -> tuple[Function, ...]:
        """What is called at this exit, head first."""
        return tuple(f for f in (self.head, self.comparator) if f is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of head and comparator, for one sample."""
        return sum(function.macs for function in self.functions)


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """A compiled network cut at its decisions; fields as in `SegmentGraph`.

    Segment k's values are there before exit k's functions run; `output` is the first output of the
    last segment.
    """

    name: str
    inputs: tuple[Value, ...]
    output: str
    classes: int | None
    segments: tuple[Function, ...]
    exits: tuple[CompiledExit, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the untouched backbone, for one sample."""
        return sum(segment.macs for segment in self.segments)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names by exit index; the last is the network's own answer, ``final``."""
        return (*(exit_.name for exit_ in self.exits), "final")

    def functions(self) -> tuple[Function, ...]:
        """Every function in execution order: segment 0, exit 0's, segment 1, ..."""
        found: list[Function] = []
        for index, segment in enumerate(self.segments):
            found.append(segment)
            for exit_ in self.exits[index : index + 1]:
                found.extend(exit_.functions)
        return tuple(found)

    @classmethod
    def of(cls, graph: SegmentGraph, compiled: Mapping[str, tuple[str, int]]) -> CompiledGraph:
        """The network of a segment graph.

        Args:
            graph: what was compiled.
            compiled: name of each of ``graph.graphs()`` -> (symbol, workspace bytes).
        """

        def function(part: Graph, names: Mapping[str, str] | None = None) -> Function:
            symbol, workspace_bytes = compiled[part.name]
            return Function.of(part, symbol, workspace_bytes, names)

        def exit_functions(exit_: Exit) -> CompiledExit:
            parts = [
                # A head's graph may call its one input anything: it reads the exit's feature.
                None if part is None else function(part, {part.inputs[0]: exit_.feature})
                for part in (exit_.head, exit_.comparator)
            ]
            return CompiledExit(exit_.name, exit_.point, exit_.segment, parts[0], parts[1])

        return cls(
            graph.name,
            graph.inputs,
            graph.output,
            graph.classes,
            tuple(function(segment.graph) for segment in graph.segments),
            tuple(exit_functions(exit_) for exit_ in graph.exits),
        )
