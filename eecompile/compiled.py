"""What the runtime executes: compiled functions, in order, and the values they pass on.

A `CompiledGraph` is a `SegmentGraph` after compilation. It holds names, types and sizes only; the
machine code and the weights are a shared library and a blob beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eecompile.cost import Work
from eecompile.ir import Graph, TensorType
from eecompile.kept_macs import kept_macs
from eecompile.segments import SegmentGraph, Step, step_name

__all__ = [
    "CompiledExit",
    "CompiledGraph",
    "CompiledSegment",
    "CompiledStep",
    "Function",
    "FunctionLike",
    "Value",
    "batch_shape",
    "sample_shape",
]

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


class FunctionLike(Protocol):
    """What lowering says of a function; the meaning of each is that in `Function`."""

    @property
    def symbol(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[Value, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[Value, ...]: ...  # noqa: D102
    @property
    def workspace_bytes(self) -> int: ...  # noqa: D102
    @property
    def private_bytes(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102
    @property
    def work(self) -> Work: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the shared library.

    Its C signature is ``int32_t symbol(const int64_t *frame, int32_t thread, int32_t threads,
    void *team)``. The frame holds n and the addresses of weights, workspace, inputs and outputs;
    it handles n samples, every tensor dense, sample after sample, and returns 0. One thread alone
    passes 0, 1 and NULL; of a team each thread makes the call, led by ``eecompile_team_run``.

    Attributes:
        symbol: name in the shared library.
        inputs, outputs: values by their names in the network, in the order of the arguments.
        workspace_bytes: scratch memory of a call, whatever n is; it is followed by ...
        private_bytes: ... so much for each thread.
        threads: more threads than this gain nothing.
        work: what it does for one sample.
    """

    symbol: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    workspace_bytes: int
    private_bytes: int
    threads: int
    work: Work

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.work.macs

    # Most segments are one function; what follows is asked of both, see `CompiledSegment`.

    @property
    def gated(self) -> bool:
        """No gate decides inside a function."""
        return False

    @property
    def gates_macs(self) -> int:
        """Nothing."""
        return 0

    @property
    def functions(self) -> tuple[Function, ...]:
        """Itself."""
        return (self,)

    @property
    def backbone(self) -> tuple[Function, ...]:
        """Itself."""
        return (self,)

    @property
    def steps(self) -> tuple[CompiledStep, ...]:
        """Itself, without conditions."""
        return (CompiledStep(self),)

    @classmethod
    def of(cls, compiled: FunctionLike) -> Function:
        """What the runtime has to know of a function that lowering made."""
        return cls(
            compiled.symbol,
            compiled.inputs,
            compiled.outputs,
            compiled.workspace_bytes,
            compiled.private_bytes,
            compiled.threads,
            compiled.work,
        )


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """A step of a segment; fields as in `eecompile.segments.Step`.

    Attributes:
        group_macs: multiply-accumulates that one group of `channels` takes off where it is left
            out.
    """

    function: Function
    gate: bool = False
    keep: str = ""
    otherwise: str = ""
    channels: str = ""
    group_macs: int = 0

    @classmethod
    def of(cls, step: Step | None, function: Function) -> CompiledStep:
        """The compiled form of a step; of what no gate decides about for None."""
        if step is None:
            return cls(function)
        group = kept_macs(step.graph)[1] if step.channels else 0
        return cls(function, step.gate, step.keep, step.otherwise, step.channels, group)

    @property
    def groups(self) -> int:
        """Groups of channels that it may leave out; 0 without any."""
        return dict(self.function.inputs)[self.channels].size if self.channels else 0

    @property
    def groups_share(self) -> float:
        """Of its work, what leaving all groups out takes off."""
        return self.groups * self.group_macs / max(self.function.macs, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """Values that must be there for it, or for it to be left out."""
        named = (self.keep, self.otherwise, self.channels)
        found = (*(name for name, _ in self.function.inputs), *filter(None, named))
        return tuple(dict.fromkeys(found))

    @property
    def scores(self) -> tuple[Value, ...]:
        """The gates' scores that it asks."""
        types = dict(self.function.inputs)
        whole = [(self.keep, TensorType("float32", (1, 1)))] if self.keep else []
        return (*whole, *((name, types[name]) for name in (self.channels,) if name))


@dataclass(frozen=True, slots=True)
class CompiledSegment:
    """What runs between two exits where gates decide in between; elsewhere it is a `Function`.

    Attributes:
        inputs, outputs: what crosses its borders, gates' values apart.
        steps: in execution order.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    steps: tuple[CompiledStep, ...]

    @property
    def gated(self) -> bool:
        """Gates decide inside it."""
        return True

    @property
    def functions(self) -> tuple[Function, ...]:
        """What may be called, gates included, in execution order."""
        return tuple(step.function for step in self.steps)

    @property
    def backbone(self) -> tuple[Function, ...]:
        """What is called where no decisions are made: all functions but the gates."""
        return tuple(step.function for step in self.steps if not step.gate)

    @property
    def work(self) -> Work:
        """What its functions do for one sample, nothing left out, gates apart."""
        return sum((function.work for function in self.backbone), Work())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, nothing left out, gates apart."""
        return self.work.macs

    @property
    def gates_macs(self) -> int:
        """Multiply-accumulates of its gates."""
        return sum(step.function.macs for step in self.steps if step.gate)


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
    def work(self) -> Work:
        """What head and comparator do for one sample."""
        return sum((function.work for function in self.functions), Work())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of head and comparator, for one sample."""
        return self.work.macs


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
    segments: tuple[Function | CompiledSegment, ...]
    exits: tuple[CompiledExit, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the untouched backbone, for one sample."""
        return sum(segment.macs for segment in self.segments)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names by exit index; the last is the network's own answer, ``final``."""
        return (*(exit_.name for exit_ in self.exits), "final")

    @property
    def gated(self) -> bool:
        """Whether gates may leave something out."""
        return any(segment.gated for segment in self.segments)

    @property
    def blocks(self) -> int:
        """Blocks that gates may leave out as a whole."""
        steps = [step for segment in self.segments for step in segment.steps]
        return len({step.keep for step in steps if step.keep and not step.gate})

    def named_segments(self) -> tuple[tuple[str, Function | CompiledSegment], ...]:
        """The segments with the names that cutting gives them."""
        return tuple((f"segment{index}", part) for index, part in enumerate(self.segments))

    def named_steps(self) -> tuple[tuple[str, Function], ...]:
        """What segments with gates consist of: ``<block>.gate``, ``<block>``, ``<segment>.<i>``."""
        found = []
        for name, segment in self.named_segments():
            for index, step in enumerate(segment.steps if segment.gated else ()):
                gives = step.function.outputs[0][0]
                named = step_name(name, index, gives, step.gate, step.keep)
                found.append((named, step.function))
        return tuple(found)

    def functions(self) -> tuple[Function, ...]:
        """Every function in execution order: segment 0, exit 0's, segment 1, ..."""
        found: list[Function] = []
        for index, segment in enumerate(self.segments):
            found.extend(segment.functions)
            for exit_ in self.exits[index : index + 1]:
                found.extend(exit_.functions)
        return tuple(found)

    def steps(self) -> tuple[CompiledStep, ...]:
        """Every function in execution order, with its conditions."""
        found: list[CompiledStep] = []
        for index, segment in enumerate(self.segments):
            found.extend(segment.steps)
            for exit_ in self.exits[index : index + 1]:
                found.extend(CompiledStep(function) for function in exit_.functions)
        return tuple(found)

    @classmethod
    def of(cls, graph: SegmentGraph, compiled: Sequence[FunctionLike]) -> CompiledGraph:
        """The compiled form of `graph`, from the functions of ``graph.graphs()``, in that order."""
        functions = iter(compiled)

        def next_of(part: Graph | None) -> Function | None:
            return None if part is None else Function.of(next(functions))

        segments: list[Function | CompiledSegment] = []
        exits = []
        for index, segment in enumerate(graph.segments):
            if segment.steps:
                steps = tuple(
                    CompiledStep.of(step, Function.of(next(functions))) for step in segment.steps
                )
                ends = [segment.graph.inputs, segment.graph.outputs]
                types = segment.graph.types
                ins, outs = (tuple((name, types[name]) for name in names) for names in ends)
                segments.append(CompiledSegment(ins, outs, steps))
            else:
                segments.append(Function.of(next(functions)))
            for exit_ in graph.exits[index : index + 1]:
                head, comparator = next_of(exit_.head), next_of(exit_.comparator)
                made = CompiledExit(exit_.name, exit_.point, exit_.segment, head, comparator)
                exits.append(made)
        return cls(
            graph.name, graph.inputs, graph.output, graph.classes, tuple(segments), tuple(exits)
        )
