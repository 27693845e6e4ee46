"""Cutting segments where gates decide what of them runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from eecompile.diagnostics import InternalError
from eecompile.ir import Graph, Op
from eecompile.passes.base import Pass, PassResult, Program
from eecompile.passes.structure import Flow, static_values
from eecompile.segments import SHIFT, Segment, SegmentGraph, Step
from eecompile.verify import Stage

__all__ = ["PlacedGate", "SplitAtGates", "split_at_gates"]


@dataclass(frozen=True)
class PlacedGate:
    """One gate: where it stands, what it decides about, what it computes.

    Values are named as in the source network's graph.

    Attributes:
        name: of its block; what it computes is called ``<name>.keep``, ``<name>.channels`` ...
        feature: the value it looks at.
        graph: reads ``x`` (the feature), perhaps ``before.h`` and ``before.c`` (the state of the
            gate before), and the value `SHIFT`; gives some of ``keep``, ``channels``, ``h``, ``c``.
        entry, result: of the block it may leave out, empty where it leaves out channels only.
        zeros: whether a block left out gives zeros; else a copy of `entry`.
        masked: the value whose channels it may leave out; empty where it leaves out none.
        completed: the value that `completion` is added to, empty without it.
        completion: reads ``scores``, what decides about the channels; gives ``more``.
    """

    name: str
    feature: str
    graph: Graph
    entry: str = ""
    result: str = ""
    zeros: bool = False
    masked: str = ""
    completed: str = ""
    completion: Graph | None = None

    def local(self, name: Callable[[str], str]) -> PlacedGate:
        """The same gate with its values called otherwise."""
        return replace(
            self,
            feature=name(self.feature),
            entry=self.entry and name(self.entry),
            result=self.result and name(self.result),
            masked=self.masked and name(self.masked),
        )


@dataclass(frozen=True)
class SplitAtGates(Pass):
    """Cuts segments into steps: what always runs, gates, and what gates may leave out.

    1. A block that a layer gate may leave out is a step of its own, from its entry to its result;
       several of the same gate where one of channels looks at what is computed inside.
    2. The channels of a gated convolution pass a ``Keep``, which reads the gate's scores.
    3. What stands in for channels left out is added to the result of the convolution that reads
       them, wherever it is.
    4. A gate is a step in front of the first that it decides about; one of channels inside a block
       runs only where the block does. The state of a recurrent one passes from gate to gate,
       across segments too.
    5. Values between steps are called ``<segment>/<value>``.

    before::

        segment segment0 = graph segment0(x) -> (y) { a = Relu(x)  f = Conv(a, w)  y = Add(a, f) }

    after::

        segment segment0 = graph segment0(x) -> (y) { a = Relu(x)  f = Conv(a, w)  y = Add(a, f) }
            step = graph segment0_0(x) -> (segment0/a)
            gate = graph segment0_1_gate(segment0/a, gates.shift) -> (block.keep)
            step keep block.keep otherwise segment0/a = graph segment0_2(segment0/a) -> (y)

    Attributes:
        gates: in the order in which they are reached.
    """

    requires: ClassVar[Stage] = Stage.SEGMENTED
    ensures: ClassVar[Stage] = Stage.SEGMENTED

    gates: Sequence[PlacedGate] = ()

    def run(self, program: Program) -> PassResult:
        """The program with its segments cut into steps."""
        assert program.segments is not None, "cut already"
        found = split_at_gates(program.segments, program.host.graph(), self.gates)
        return PassResult(replace(program, segments=found), found != program.segments)


def split_at_gates(
    segments: SegmentGraph, source: Graph, gates: Sequence[PlacedGate]
) -> SegmentGraph:
    """The segments with steps where gates stand in them; see `SplitAtGates`.

    Args:
        segments: cut from `source`.
        source: the graph that the gates' values are of.
        gates: in the order in which they are reached.

    Raises:
        InternalError: a block or a feature lies in no segment as a whole.
    """
    makers = {out: op.name for op in source.ops for out in op.outputs}
    crossing = dict(zip(source.inputs, (name for name, _ in segments.inputs), strict=True))
    left, state = list(gates), dict[str, str]()
    found = []
    for segment in segments.segments:
        graph = segment.graph
        made = {op.name: op.outputs[0] for op in graph.ops}
        named = {v: made[op] for v, op in makers.items() if op in made}
        # An operator that is copied elsewhere is called there as where it was first.
        named = crossing | named
        here = [g.local(named.__getitem__) for g in left if _lies_in(g, makers, made)]
        left = [g for g in left if not _lies_in(g, makers, made)]
        sums = {
            named[gate.completed]: gate for gate in gates if makers.get(gate.completed, "") in made
        }
        steps = _Cutter(segment, state, sums).cut(here) if here or sums else ()
        found.append(replace(segment, steps=steps))
        crossing |= {v: name for v, name in named.items() if name in graph.outputs}
    if left:
        raise InternalError(f"gates {', '.join(gate.name for gate in left)} lie in no segment")
    return replace(segments, segments=tuple(found))


def _lies_in(gate: PlacedGate, makers: Mapping[str, str], made: Mapping[str, str]) -> bool:
    return makers.get(gate.result or gate.masked, "") in made


@dataclass
class _Piece:
    """Operators that run together, and what decides about them."""

    ops: list[Op]
    keep: str = ""
    otherwise: str = ""
    result: str = ""
    gate: Graph | None = None


@dataclass
class _Cutter:
    """Cuts one segment. `state` holds the values of the last gate's state, from segment to segment.

    `sums` are the values that something is added to, with the gates that it stands in for.
    What is placed already is never placed again; operators on constants alone go along with those
    that read them.
    """

    segment: Segment
    state: dict[str, str]
    sums: Mapping[str, PlacedGate] = field(default_factory=dict)
    pieces: list[_Piece] = field(default_factory=list)
    placed: set[str] = field(default_factory=set)
    channels: dict[str, str] = field(default_factory=dict)

    def cut(self, gates: Sequence[PlacedGate]) -> tuple[Step, ...]:
        """The segment's steps; the gates' values are called as in the segment."""
        self.graph = self._with_keeps(gates)
        self.static = static_values(self.graph)
        self.flow = Flow(self.graph)
        waiting = list(gates)
        while waiting:
            gate = waiting.pop(0)
            self._always((gate.feature, gate.entry))
            self._gate(gate)
            if gate.result:
                ops = self._left(gate.result)
                inside = {out for op in ops for out in op.outputs}
                inner = [g for g in waiting if not g.result and f"{g.masked}/all" in inside]
                keep = f"{gate.name}.keep"
                for other in inner:
                    waiting.remove(other)
                    self._place(self._left(other.feature), keep)
                    self._gate(other, "" if "h" in other.graph.outputs else keep)
                otherwise = "" if gate.zeros else gate.entry
                self._place(self._left(gate.result), keep, otherwise, gate.result)
        self._always(self.graph.outputs)
        self._divide()
        return tuple(self._steps())

    def _with_keeps(self, gates: Iterable[PlacedGate]) -> Graph:
        """The segment's graph with a ``Keep`` behind each value that is masked."""
        graph = self._with_sums()
        masks = {gate.masked: gate for gate in gates if gate.masked}
        types, ops = dict(graph.types), list[Op]()
        for op in graph.ops:
            gate = masks.get(op.outputs[0])
            if gate is None:
                ops.append(op)
                continue
            value, scores = op.outputs[0], f"{gate.name}.channels"
            types[f"{value}/all"] = types[value]
            types[scores] = gate.graph.types["channels"]
            ops.append(replace(op, outputs=(f"{value}/all",)))
            keep = Op(f"{gate.name}.mask", "Keep", (f"{value}/all", scores), (value,))
            ops.append(replace(keep, scope=op.scope))
            self.channels[keep.name] = scores
        inputs = tuple(dict.fromkeys((*graph.inputs, *self.channels.values())))
        return replace(graph, inputs=inputs, ops=tuple(ops), types=types)

    def _with_sums(self) -> Graph:
        """The segment's graph with what stands in for channels that are left out."""
        graph = self.segment.graph
        types, constants, inputs = dict(graph.types), dict(graph.constants), dict[str, None]()
        ops = list[Op]()
        for op in graph.ops:
            value = op.outputs[0]
            gate = self.sums.get(value)
            if gate is None or gate.completion is None:
                ops.append(op)
                continue
            scores, prefix = f"{gate.name}.channels", f"{gate.name}.left_out"
            made = gate.completion
            inner = {v for o in made.ops for v in o.outputs} | set(made.constants)
            made = made.renamed({v: f"{prefix}/{v}" for v in inner} | {"scores": scores})
            types |= {**made.types, f"{value}/part": types[value]}
            constants |= made.constants
            inputs[scores] = None
            ops.append(replace(op, outputs=(f"{value}/part",)))
            ops += [replace(o, name=f"{prefix}/{o.name}", scope=op.scope) for o in made.ops]
            read = (f"{value}/part", f"{prefix}/more")
            ops.append(Op(f"{prefix}/sum", "Add", read, (value,), {}, op.scope))
        read_here = (*graph.inputs, *inputs)
        return replace(graph, inputs=read_here, ops=tuple(ops), constants=constants, types=types)

    def _left(self, *values: str) -> list[Op]:
        """What has to run for some values and is not placed yet."""
        wanted = {v for value in values if value for v in (value, *self.flow.above(value))}
        wanted -= self.static
        return [
            op
            for op in self.graph.ops
            if not wanted.isdisjoint(op.outputs) and op.name not in self.placed
        ]

    def _always(self, values: Iterable[str]) -> None:
        self._place(self._left(*values))

    def _place(self, ops: list[Op], keep: str = "", otherwise: str = "", result: str = "") -> None:
        if ops:
            self.pieces.append(_Piece(ops, keep, otherwise, result))
            self.placed.update(op.name for op in ops)

    def _divide(self) -> None:
        """Cuts pieces such that each reads one gate's channels, and what may be left out gives one.

        Convolutions side by side, and those whose gates all read what their block reads, have no
        gate between them.
        """
        index = 0
        wanted = self._wanted()
        while index < len(self.pieces):
            piece = self.pieces[index]
            value = self._divided_at(piece, wanted[index])
            above = {value, *self.flow.above(value)} if value else set[str]()
            first = [op for op in piece.ops if not above.isdisjoint(op.outputs)]
            if not 0 < len(first) < len(piece.ops):
                index += 1
                continue
            names = {op.name for op in first}
            rest = [op for op in piece.ops if op.name not in names]
            part = replace(piece, ops=first, otherwise="", result="")
            self.pieces[index : index + 1] = [part, replace(piece, ops=rest)]
            wanted = self._wanted()

    def _divided_at(self, piece: _Piece, outputs: Sequence[str]) -> str:
        """The value that the first part of a piece ends with; empty where it stays whole."""
        masked = [op.outputs[0] for op in piece.ops if op.name in self.channels]
        if len(masked) > 1:
            return masked[0]
        return outputs[0] if piece.keep and len(outputs) > 1 else ""

    def _gate(self, gate: PlacedGate, keep: str = "") -> None:
        """A gate's own step, its values named for all segments."""
        graph = gate.graph.pruned()
        names = {"x": gate.feature, SHIFT[0]: SHIFT[0]}
        before = {name: f"before.{name}" for name in ("h", "c")}
        names |= {own: self.state[name] for name, own in before.items() if own in graph.inputs}
        names |= {name: f"{gate.name}.{name}" for name in graph.outputs}
        inner = {v for op in graph.ops for v in op.outputs} | set(graph.constants)
        own = {value: f"{gate.name}.gate/{value}" for value in inner}
        made = graph.renamed(own | names)
        ops = tuple(replace(op, name=f"{gate.name}.gate/{op.name}") for op in made.ops)
        self.pieces.append(_Piece([], keep, gate=replace(made, ops=ops)))
        self.state.update((n, f"{gate.name}.{n}") for n in ("h", "c") if n in graph.outputs)

    def _steps(self) -> Iterable[Step]:
        wanted = self._wanted()
        for index, (piece, outputs) in enumerate(zip(self.pieces, wanted, strict=True)):
            name = f"{self.segment.name}_{index}"
            if piece.gate is not None:
                gate = piece.gate.renamed(self._crossing(piece.gate.inputs), f"{name}_gate")
                yield Step(gate, gate=True, keep=piece.keep)
                continue
            if piece.result and outputs != [piece.result]:
                raise InternalError(f"{piece.keep} decides about {outputs}, not {piece.result}")
            if piece.keep and not piece.result:
                self._check_inner(piece.keep, outputs)
            read = [self.channels[op.name] for op in piece.ops if op.name in self.channels]
            if len(read) > 1:
                raise InternalError(f"{' and '.join(read)} decide about the same operators")
            otherwise = self._crossing([piece.otherwise]).get(piece.otherwise, piece.otherwise)
            graph = self._graph(name, piece, outputs)
            yield Step(graph, False, piece.keep, otherwise, *read)

    def _check_inner(self, keep: str, values: Sequence[str]) -> None:
        """Values inside a block are read by what is left out with it only."""
        for piece in self.pieces:
            read = {v for op in piece.ops for v in op.inputs} | set(
                piece.gate.inputs if piece.gate else ()
            )
            if piece.keep != keep and not read.isdisjoint(values):
                raise InternalError(f"what {keep} decides about is read outside")

    def _wanted(self) -> list[list[str]]:
        """Of each piece, the values that others read or that the segment gives, in order."""
        read: set[str] = set(self.graph.outputs)
        wanted = []
        for piece in reversed(self.pieces):
            made = [out for op in piece.ops for out in op.outputs]
            wanted.append([value for value in made if value in read])
            graph = piece.gate
            read |= {v for op in piece.ops for v in op.inputs} | set(graph.inputs if graph else ())
            read.add(piece.otherwise)
        return wanted[::-1]

    def _crossing(self, values: Iterable[str]) -> dict[str, str]:
        """What values are called between steps, where that is not their own name."""
        shown = {*self.graph.inputs, *self.graph.outputs}
        here = {out for op in self.graph.ops for out in op.outputs}
        return {v: f"{self.segment.name}/{v}" for v in values if v in here and v not in shown}

    def _graph(self, name: str, piece: _Piece, outputs: Sequence[str]) -> Graph:
        """A piece as a graph of its own."""
        own = {op.name for op in piece.ops}
        ops = [op for op in self.graph.ops if op.name in own or self.static.issuperset(op.outputs)]
        graph = replace(self.graph, name=name, outputs=tuple(outputs), ops=tuple(ops)).pruned()
        made = {out for op in graph.ops for out in op.outputs}
        read = dict.fromkeys(v for op in graph.ops for v in op.inputs if v)
        inputs = [v for v in read if v not in made and v not in graph.constants]
        types = {v: self.graph.types[v] for v in (*made, *inputs, *graph.constants)}
        graph = replace(graph, inputs=tuple(inputs), types=types)
        return graph.renamed(self._crossing((*inputs, *outputs)))
