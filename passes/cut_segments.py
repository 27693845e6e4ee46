"""Cutting a network at its exits into segments, exit heads and comparators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from eecompile.diagnostics import InternalError
from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.base import Pass, PassResult, Program, ResolvedExit
from eecompile.passes.structure import Flow, canonical_keys, static_values
from eecompile.segments import Exit, Segment, SegmentGraph
from eecompile.text import print_segments
from eecompile.verify import Stage

__all__ = ["CutSegments", "cut"]


@dataclass(frozen=True)
class CutSegments(Pass):
    """Cuts the host's graph at every exit point.

    1. Segment k is what its tap needs and no earlier segment computed; the last one is the rest.
    2. What a later segment or an exit needs crosses the border, however many tensors that are.
       Network inputs are read again, constants and what follows from constants are duplicated.
    3. Operators that lead to an exit's outputs only become that exit's head and comparator.
    4. Values at borders get names that do not depend on the host: a tap is called as its exit,
       other values ``<segment>.<i>``, network inputs and outputs as in the `.ee` file, and exit
       outputs ``<exit>.logits``, ``<exit>.class_means``.
    5. A tap or output that is computed already (two exits at one point, a tap that is the
       network's input) is copied, so that every segment yields its own tap.

    before::

        graph net(x: float32[1, 4]) -> (y: float32[1, 4], early.logits: float32[1, 4]) {
            a: float32[1, 4] = Relu(x)
            early.logits: float32[1, 4] = Neg(a)
            y: float32[1, 4] = Exp(a)
        }

    after::

        segments net(x: float32[1, 4]) -> y {
            segment segment0 = graph segment0(x: float32[1, 4]) -> (early: float32[1, 4])
            exit early after a on early
                head = graph early_head(early: float32[1, 4]) -> (early.logits: float32[1, 4])
            segment segment1 = graph segment1(early: float32[1, 4]) -> (y: float32[1, 4])
        }

    It does not move work between segments and does not merge small ones. O(#exits x #ops).
    """

    requires: ClassVar[Stage] = Stage.RESOLVED
    ensures: ClassVar[Stage] = Stage.SEGMENTED

    def run(self, program: Program) -> PassResult:
        """The program with `segments` filled in."""
        found = cut(
            program.host.graph(),
            program.exits,
            name=program.model.name,
            inputs=program.input_names(),
            outputs=program.network_outputs(),
            exit_outputs={e.name: program.exit_outputs(e.name) for e in program.exits},
            classes=program.model.output.classes if program.model.output else None,
        )
        before = program.segments
        same = before is not None and print_segments(before, "full") == print_segments(
            found, "full"
        )
        return PassResult(replace(program, segments=found), not same)


def cut(
    graph: Graph,
    exits: Sequence[ResolvedExit],
    *,
    name: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    exit_outputs: Mapping[str, Mapping[str, str]] | None = None,
    classes: int | None = None,
) -> SegmentGraph:
    """The graph cut after every exit; see `CutSegments`.

    Args:
        graph: the whole network, with what was inserted at its exits.
        exits: in the order they are reached: none leads to an earlier one.
        name: of the segment graph.
        inputs: the graph's inputs -> their names in the segments.
        outputs: the network's outputs by the names they get -> their values; the answer first.
        exit_outputs: exit -> its outputs (``logits``, ``class_means`` ...) -> their values.
        classes: number of classes, where known.

    Raises:
        InternalError: an exit's branch reads a value of the backbone that is not its tap.
    """
    cutter = _Cutter(graph, dict(inputs), outputs)
    segments: list[Segment] = []
    found: list[Exit] = []
    owners = cutter.owners([e.value for e in exits])
    for index, exit_ in enumerate(exits):
        segments.append(cutter.segment(index, owners, {exit_.name: exit_.value}))
        branches = (exit_outputs or {}).get(exit_.name, {})
        found.append(cutter.exit(index, exit_, branches))
    segments.append(cutter.segment(len(exits), owners, outputs))
    types = tuple((inputs[value], graph.types[value]) for value in graph.inputs)
    return SegmentGraph(name, types, next(iter(outputs)), classes, tuple(segments), tuple(found))


@dataclass
class _Cutter:
    """The state of one cut: which name each value that later segments may read has got."""

    graph: Graph
    named: dict[str, str]
    outputs: Mapping[str, str]

    @cached_property
    def flow(self) -> Flow:
        return Flow(self.graph)

    @cached_property
    def static(self) -> frozenset[str]:
        return static_values(self.graph)

    @cached_property
    def rank(self) -> dict[str, tuple[int, str, str, str, int]]:
        return canonical_keys(self.graph, self.named)

    def needed(self, values: Iterable[str]) -> set[str]:
        """The values and their ancestors, static ones left out."""
        found: set[str] = set()
        for value in values:
            if value not in found:
                found |= {value} | self.flow.above(value)
        return found - self.static

    def owners(self, taps: Sequence[str]) -> dict[str, int]:
        """Backbone value -> index of the segment that computes it; network inputs have none."""
        owners: dict[str, int] = {}
        for index, values in enumerate([*([tap] for tap in taps), list(self.outputs.values())]):
            for value in self.needed(values):
                owners.setdefault(value, index)
        return {v: owner for v, owner in owners.items() if v not in self.graph.inputs}

    def segment(self, index: int, owners: Mapping[str, int], ends: Mapping[str, str]) -> Segment:
        """Segment `index`, whose own results `ends` (name -> value) come first."""
        name = f"segment{index}"
        own = {v for v, owner in owners.items() if owner == index}
        readers = self.readers(index, own, owners)
        border = [value for value in readers if value not in ends.values()]
        if len(border) > 1:
            border.sort(key=lambda v: (*self.rank[v][:-1], sorted(readers[v]), self.rank[v][-1]))
        results = {**ends, **{f"{name}.{i}": value for i, value in enumerate(border)}}
        segment = Segment(name, _build(self, name, own, results, self.named))
        for result, value in results.items():
            if value in own:
                self.named.setdefault(value, result)
        return segment

    def readers(self, index: int, own: set[str], owners: Mapping[str, int]) -> dict[str, set[int]]:
        """What `own` hands on -> the later segments that read it."""
        last = max(owners.values(), default=index)
        readers = {v: {last} for v in self.outputs.values() if v in own}
        for op in self.graph.ops:
            reader = max(owners.get(out, -1) for out in op.outputs)
            for value in own.intersection(op.inputs) if reader > index else ():
                readers.setdefault(value, set()).add(reader)
        return readers

    def exit(self, index: int, exit_: ResolvedExit, branches: Mapping[str, str]) -> Exit:
        """Exit `index` with the graphs that compute its outputs from its tap."""
        graphs: dict[str, Graph] = {}
        for role in ("head", "comparator"):
            results = {
                f"{exit_.name}.{output}": value
                for output, value in branches.items()
                if output.startswith("class_means") == (role == "comparator")
            }
            if results:
                graphs[role] = self.branch(f"{exit_.name}_{role}", exit_, results)
        return Exit(exit_.name, exit_.point, exit_.name, index, **graphs)

    def branch(self, name: str, exit_: ResolvedExit, results: Mapping[str, str]) -> Graph:
        """The graph from an exit's tap to some of its outputs."""
        needed = self.needed(results.values())
        own = needed & self.flow.below(exit_.value)
        known = own | self.static | {exit_.value, ""}
        for op in self.graph.ops:
            if not own.isdisjoint(op.outputs) and not known.issuperset(op.inputs):
                raise InternalError(f"`{op.name}` of `{name}` reads more than the exit's tap")
        graph = _build(self, name, own, results, {exit_.value: exit_.name})
        types = {exit_.name: exit_.type, **graph.types}
        return replace(graph, inputs=(exit_.name,), types=types)


def _build(
    cutter: _Cutter, name: str, own: set[str], results: Mapping[str, str], given: Mapping[str, str]
) -> Graph:
    """A self-contained graph of the operators that produce `own`.

    Args:
        cutter: gives the whole graph.
        name: of the new graph.
        own: values it computes; static values that they need are added.
        results: names of its outputs -> their values; one that is not in `own` is copied.
        given: values it may read -> their names. They become inputs where they are read.
    """
    source = cutter.graph
    fresh: dict[str, str] = {}
    copies: dict[str, str] = {}
    for result, value in results.items():
        if value in own and value not in fresh:
            fresh[value] = result
        else:
            copies[result] = value
    ops = _operators(cutter, own, copies.values())
    read = {value for op in ops for value in op.inputs if value} | set(copies.values())
    produced = {out for op in ops for out in op.outputs}
    inputs = [v for v in given if v in read and v not in own]
    local = _Names({**{v: given[v] for v in inputs}, **fresh}, set(results))
    body = [local.rename(op) for op in ops]
    body += [_copy(local[value], result, source.types[value]) for result, value in copies.items()]
    constants = {local[v]: array for v, array in source.constants.items() if v in read}
    types = {local[v]: t for v, t in source.types.items() if v in read or v in produced}
    types.update((result, source.types[value]) for result, value in copies.items())
    return Graph(
        name, tuple(local[v] for v in inputs), tuple(results), tuple(body), constants, types
    )


def _operators(cutter: _Cutter, own: set[str], read: Iterable[str]) -> list[Op]:
    """The operators that produce `own`, and those that make the static values they need."""
    ops = cutter.graph.ops
    found = [op for op in ops if not own.isdisjoint(op.outputs)]
    read = {*read, *(value for op in found for value in op.inputs)}
    static = (read & cutter.static) - cutter.graph.constants.keys()
    if not static:
        return found
    wanted = own | static.union(*(cutter.flow.above(value) for value in static))
    return [op for op in ops if not wanted.isdisjoint(op.outputs)]


def _copy(value: str, result: str, type_: TensorType) -> Op:
    return Op(f"copy {result}", "Reshape", (value,), (result,), {"shape": type_.shape})


class _Names:
    """Names inside one graph: the given ones, else the host's, with a number where taken."""

    def __init__(self, names: Mapping[str, str], taken: set[str]) -> None:
        self.names = dict(names)
        self.taken = taken | set(names.values())

    def __getitem__(self, value: str) -> str:
        if value not in self.names:
            free, number = value, 0
            while free in self.taken:
                number += 1
                free = f"{value}_{number}"
            self.names[value] = free
            self.taken.add(free)
        return self.names[value]

    def rename(self, op: Op) -> Op:
        """The operator with every value called by its name here."""
        inputs = tuple(self[v] if v else "" for v in op.inputs)
        return replace(op, inputs=inputs, outputs=tuple(self[v] for v in op.outputs))
