"""The invariants of a network on its way through the compiler, one table of rules for all stages.

A rule belongs to the first stage it holds at and holds from there on. The pass manager checks them
before and after every pass, so that a pass which breaks something is named by the failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from eecompile.diagnostics import InternalError
from eecompile.ir import Graph, TensorType
from eecompile.operators import OPERATORS
from eecompile.segments import SHIFT, SegmentGraph
from eecompile.shapes import check_types
from eecompile.text import excerpt

__all__ = ["RULES", "Fault", "InvariantError", "Rule", "Snapshot", "Stage", "faults", "verify"]

_DTYPES = frozenset(("float32", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool"))


class Stage(IntEnum):
    """How far a network has come; each stage adds rules to those before it."""

    EXPORTED = 0  #: read from the source
    RESOLVED = 1  #: exit points found
    EXITED = 2  #: heads or comparators inserted
    SEGMENTED = 3  #: cut at the exits
    COMPILED = 4  #: every graph has a symbol in the library
    COSTED = 5  #: every graph has a cost


@dataclass(frozen=True)
class Snapshot:
    """What the rules look at. A rule about something that is None or empty holds.

    Attributes:
        graph: the whole network, with what was inserted.
        answer: value of the network's answer.
        outputs: output name -> value, inserted ones included.
        taps: exit -> tapped value, in the order the exits are reached.
        classes: number of classes, where known.
        segments: the network cut.
        symbols: graph name -> symbol in the compiled library.
        costs: graph name -> latency_s at each legal operating point, in their order.
    """

    graph: Graph | None = None
    answer: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    taps: Mapping[str, str] = field(default_factory=dict)
    classes: int | None = None
    segments: SegmentGraph | None = None
    symbols: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def graphs(self) -> Iterator[Graph]:
        """Every graph there is: the whole network, then its parts."""
        if self.graph is not None:
            yield self.graph
        if self.segments is not None:
            yield from self.segments.graphs()


@dataclass(frozen=True)
class Fault:
    """One place where a rule does not hold."""

    value: str
    message: str
    graph: Graph | None = None


@dataclass(frozen=True)
class Rule:
    """An invariant: its kebab-case name, the first stage it holds at, and what it says."""

    name: str
    stage: Stage
    check: Callable[[Snapshot], Iterator[Fault]]
    claim: str


class InvariantError(InternalError):
    """A rule is broken: a bug in the compiler. `faults` holds every place found."""

    def __init__(self, message: str, found: tuple[Fault, ...]) -> None:
        super().__init__(message)
        self.faults = found


def _single_assignment(at: Snapshot) -> Iterator[Fault]:
    for graph in at.graphs():
        made = [*graph.inputs, *graph.constants, *(out for op in graph.ops for out in op.outputs)]
        for value, count in Counter(made).items():
            if count > 1:
                yield Fault(value, f"has {count} producers", graph)
        for name, count in Counter(op.name for op in graph.ops).items():
            if count > 1:
                yield Fault(name, f"is the name of {count} operators", graph)


def _topological_order(at: Snapshot) -> Iterator[Fault]:
    for graph in at.graphs():
        known = {*graph.inputs, *graph.constants, ""}
        for op in graph.ops:
            for value in op.inputs:
                if value not in known:
                    yield Fault(value, f"is read by `{op.name}` before it is there", graph)
            known.update(op.outputs)
        for value in graph.outputs:
            if value not in known:
                yield Fault(value, "is an output and is not computed", graph)


def _known_operators(at: Snapshot) -> Iterator[Fault]:
    for graph in at.graphs():
        for op in graph.ops:
            if op.kind not in OPERATORS:
                yield Fault(op.name, f"is a `{op.kind}`, which is no neutral operator", graph)
                continue
            allowed = OPERATORS[op.kind].attributes
            names = {name.removesuffix("?") for name in allowed}
            wrong = op.attributes.keys() ^ {name for name in allowed if not name.endswith("?")}
            for name in sorted(wrong - (names & op.attributes.keys())):
                state = "is unknown" if name in op.attributes else "is missing"
                yield Fault(op.name, f"is a `{op.kind}` whose attribute `{name}` {state}", graph)


def _typed_values(at: Snapshot) -> Iterator[Fault]:
    for graph in at.graphs():
        read = {value for op in graph.ops for value in op.inputs if value}
        made = {out for op in graph.ops for out in op.outputs}
        missing = {*graph.inputs, *read, *made} - graph.types.keys()
        for value in sorted(missing):
            yield Fault(value, "has no type", graph)
        for value, type_ in graph.types.items():
            if type_.dtype not in _DTYPES or any(not isinstance(n, int) for n in type_.shape):
                yield Fault(value, f"has the type {type_}, which is not static", graph)
        for value, array in graph.constants.items():
            if TensorType.of(array) != graph.types.get(value):
                stated = graph.types.get(value)
                yield Fault(value, f"is {TensorType.of(array)}, stated as {stated}", graph)
        if not missing:
            for message in check_types(graph):
                name, _, reason = message.removeprefix("`").partition("`: ")
                yield Fault(name, f"is typed wrongly: {reason}", graph)


def _taps_exist(at: Snapshot) -> Iterator[Fault]:
    if at.graph is None:
        return
    made = {*at.graph.inputs, *(out for op in at.graph.ops for out in op.outputs)}
    for exit_, value in at.taps.items():
        if value not in made:
            yield Fault(value, f"is tapped by exit `{exit_}` and is not computed", at.graph)


def _taps_lead_on(at: Snapshot) -> Iterator[Fault]:
    if at.graph is None:
        return
    above = _ancestors(at.graph, at.answer)
    for exit_, value in at.taps.items():
        if value not in above:
            yield Fault(value, f"is tapped by exit `{exit_}` and leads to no answer", at.graph)


def _exits_in_order(at: Snapshot) -> Iterator[Fault]:
    passed: list[str] = []
    for exit_, value in at.taps.items():
        above = _ancestors(at.graph, value) if at.graph is not None else set()
        passed.append(value)
        for later, tap in list(at.taps.items())[len(passed) :]:
            if tap in above:
                yield Fault(tap, f"(`{later}`) is reached before exit `{exit_}`", at.graph)


def _exits_yield_scores(at: Snapshot) -> Iterator[Fault]:
    for graph, output in _scores(at):
        type_ = graph.types.get(output)
        wanted = "float32[1, classes]" if at.classes is None else f"float32[1, {at.classes}]"
        shape = type_.shape if type_ is not None and type_.dtype == "float32" else ()
        if len(shape) != 2 or shape[0] != 1 or at.classes not in (None, shape[1]):
            yield Fault(output, f"is {type_}, not {wanted}", graph)


def _scores(at: Snapshot) -> Iterator[tuple[Graph, str]]:
    """The values that must hold one score a class."""
    for name, value in at.outputs.items():
        owner, _, kind = name.rpartition(".")
        if at.graph is not None and owner in at.taps and kind in ("logits", "class_means"):
            yield at.graph, value
    for exit_ in at.segments.exits if at.segments else ():
        for graph in exit_.graphs:
            for value in graph.outputs:
                if value in (f"{exit_.name}.logits", f"{exit_.name}.class_means"):
                    yield graph, value


def _exits_feed_nothing(at: Snapshot) -> Iterator[Fault]:
    if at.graph is None:
        return
    above = _ancestors(at.graph, at.answer)
    for name, value in at.outputs.items():
        exit_ = name.partition(".")[0]
        if exit_ in at.taps and value != at.taps[exit_] and value in above:
            yield Fault(
                value, f"is what exit `{exit_}` computed, and the answer reads it", at.graph
            )


def _one_segment_more(at: Snapshot) -> Iterator[Fault]:
    if at.segments is None:
        return
    cut, exits = at.segments, at.segments.exits
    if len(cut.segments) != len(exits) + 1:
        yield Fault(cut.name, f"has {len(cut.segments)} segments for {len(exits)} exits")
    if [exit_.segment for exit_ in exits] != list(range(len(exits))):
        yield Fault(cut.name, "has an exit k that does not decide after segment k")
    if at.taps and [exit_.name for exit_ in exits] != list(at.taps):
        yield Fault(cut.name, "has not the exits that were resolved, in their order")
    names = Counter(graph.name for graph in cut.graphs())
    for name, count in names.items():
        if count > 1:
            yield Fault(name, f"is the name of {count} graphs")


def _borders_typed(at: Snapshot) -> Iterator[Fault]:
    if at.segments is None:
        return
    known = dict(at.segments.inputs)
    for index, segment in enumerate(at.segments.segments):
        yield from _reads(segment.graph, known)
        for value in segment.graph.outputs:
            if value in known:
                yield Fault(value, "crosses two borders under one name", segment.graph)
            known[value] = segment.graph.types[value]
        for exit_ in at.segments.exits[index : index + 1]:
            if exit_.feature not in segment.graph.outputs:
                yield Fault(exit_.feature, f"is tapped by `{exit_.name}` and not handed on")
            for graph in exit_.graphs:
                yield from _reads(graph, known)
                if graph.inputs != (exit_.feature,):
                    yield Fault(exit_.feature, f"is not the one input of `{graph.name}`", graph)
    if at.segments.output != at.segments.segments[-1].graph.outputs[0]:
        yield Fault(at.segments.output, "is not the last segment's first output")


def _steps_fit(at: Snapshot) -> Iterator[Fault]:
    """Steps read what is there, give what their segment does, and can be left out as they say."""
    if at.segments is None:
        return
    known = dict((*at.segments.inputs, SHIFT))
    for segment in at.segments.segments:
        for step in segment.steps:
            graph = step.graph
            yield from _reads(graph, known)
            if step.keep and known.get(step.keep) != SHIFT[1]:
                yield Fault(step.keep, f"decides about `{graph.name}` and is no score")
            if step.otherwise and len(graph.outputs) != 1:
                yield Fault(graph.name, "may be left out and has not one output", graph)
            elif step.otherwise and known.get(step.otherwise) != graph.types[graph.outputs[0]]:
                yield Fault(step.otherwise, f"cannot stand in for `{graph.outputs[0]}`")
            if step.channels and step.channels not in graph.inputs:
                yield Fault(step.channels, f"is not read by `{graph.name}`", graph)
            known |= {value: graph.types[value] for value in graph.outputs}
        known |= {value: segment.graph.types[value] for value in segment.graph.outputs}
        made = {value for step in segment.steps for value in step.graph.outputs}
        for value in segment.graph.outputs if segment.steps else ():
            if value not in made:
                yield Fault(value, f"is not computed by the steps of `{segment.name}`")


def _reads(graph: Graph, known: Mapping[str, TensorType]) -> Iterator[Fault]:
    for value in graph.inputs:
        if known.get(value) != graph.types[value]:
            stated = graph.types[value]
            yield Fault(value, f"crosses as {known.get(value)} and is read as {stated}", graph)


def _nothing_unused(at: Snapshot) -> Iterator[Fault]:
    """Exit graphs keep their one input also where they do not read it."""
    if at.segments is None:
        return
    cut = at.segments
    read = {value for graph in cut.graphs() for value in graph.inputs}
    read |= {exit_.feature for exit_ in cut.exits} | set(cut.segments[-1].graph.outputs)
    for segment in cut.segments:
        for value in segment.graph.outputs:
            if value not in read:
                yield Fault(value, "crosses a border and nothing reads it", segment.graph)
        used = {value for op in segment.graph.ops for value in op.inputs}
        for value in segment.graph.inputs:
            if value not in used:
                yield Fault(value, f"is an input of `{segment.name}`, which does not read it")
    for graph in cut.graphs():
        live = {op.name for op in graph.pruned().ops}
        for op in graph.ops:
            if op.name not in live:
                yield Fault(op.name, "leads to no output", graph)


def _each_operator_once(at: Snapshot) -> Iterator[Fault]:
    """Operators on constants may stand in several segments; copies are new."""
    if at.segments is None or at.graph is None:
        return
    placed = Counter(op.name for graph in at.segments.graphs() for op in graph.ops)
    moving = set(at.graph.inputs)
    for op in at.graph.pruned().ops:
        if not moving.isdisjoint(op.inputs):
            moving.update(op.outputs)
            if placed[op.name] != 1:
                yield Fault(op.outputs[0], f"stands in {placed[op.name]} graphs", at.graph)


def _symbols(at: Snapshot) -> Iterator[Fault]:
    for graph in at.segments.graphs() if at.segments else ():
        if graph.name not in at.symbols:
            yield Fault(graph.name, "has no symbol in the library")
    for symbol, count in Counter(at.symbols.values()).items():
        if count > 1:
            yield Fault(symbol, f"is the symbol of {count} graphs")


def _costs(at: Snapshot) -> Iterator[Fault]:
    for graph in at.segments.graphs() if at.segments else ():
        if graph.name not in at.costs:
            yield Fault(graph.name, "has no cost")
    for name, latencies_s in at.costs.items():
        if not all(latency_s >= 0 for latency_s in latencies_s):
            yield Fault(name, f"has the latencies {latencies_s}, in seconds")
    if len({len(latencies_s) for latencies_s in at.costs.values()}) > 1:
        yield Fault("costs", "are not given for every graph at every operating point")


def _ancestors(graph: Graph, value: str) -> set[str]:
    """What `value` is computed from, itself left out."""
    return {v for op in graph.pruned((value,)).ops for v in op.inputs if v}


#: What holds, in the order it is checked: later rules take earlier ones for granted.
RULES: tuple[Rule, ...] = (
    Rule("single-assignment", Stage.EXPORTED, _single_assignment, "each value has one producer"),
    Rule("topological-order", Stage.EXPORTED, _topological_order, "values are read once computed"),
    Rule("known-operators", Stage.EXPORTED, _known_operators, "operators are those of the table"),
    Rule("typed-values", Stage.EXPORTED, _typed_values, "types are static and what ops infer"),
    Rule("taps-exist", Stage.RESOLVED, _taps_exist, "each exit taps a value of the graph"),
    Rule("taps-lead-on", Stage.RESOLVED, _taps_lead_on, "every path reaches the final exit"),
    Rule("exits-in-order", Stage.RESOLVED, _exits_in_order, "exit order follows the backbone"),
    Rule("exits-yield-scores", Stage.EXITED, _exits_yield_scores, "heads yield f32[1, classes]"),
    Rule("exits-feed-nothing", Stage.EXITED, _exits_feed_nothing, "the backbone reads no head"),
    Rule("one-segment-more", Stage.SEGMENTED, _one_segment_more, "exit k ends segment k"),
    Rule("borders-typed", Stage.SEGMENTED, _borders_typed, "what crosses was computed, same type"),
    Rule("steps-fit", Stage.SEGMENTED, _steps_fit, "steps make their segment, left out or not"),
    Rule("nothing-unused", Stage.SEGMENTED, _nothing_unused, "what is computed or crosses is read"),
    Rule("each-operator-once", Stage.SEGMENTED, _each_operator_once, "no work is lost or doubled"),
    Rule("symbols", Stage.COMPILED, _symbols, "each graph has a symbol of its own"),
    Rule("costs", Stage.COSTED, _costs, "costs >= 0, for every graph and operating point"),
)


def faults(stage: Stage, snapshot: Snapshot) -> tuple[Rule, tuple[Fault, ...]] | None:
    """The first rule of the stage that does not hold, with every place; None where all hold."""
    for rule in RULES:
        if rule.stage <= stage:
            found = tuple(rule.check(snapshot))
            if found:
                return rule, found
    return None


def verify(stage: Stage, snapshot: Snapshot, when: str = "") -> None:
    """Nothing, where every rule up to `stage` holds.

    Args:
        stage: the stage the network should be at.
        snapshot: the network.
        when: what just happened, for the message: "after pass `cut-segments`".

    Raises:
        InvariantError: a rule does not hold; its notes show the IR around each fault.
    """
    broken = faults(stage, snapshot)
    if broken is None:
        return
    rule, found = broken
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    error = InvariantError(
        f"rule `{rule.name}` ({rule.claim}) is broken {when}: "
        f"`{first.value}` {first.message}{more}",
        found,
    )
    notes = (excerpt(fault.graph, fault.value) for fault in found[:3] if fault.graph is not None)
    for note in dict.fromkeys(notes):
        error.add_note(note)
    raise error
