"""Where exits that the compiler places could stand: the candidates of `exits auto`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eecompile.diagnostics import Diagnostic, Diagnostics, Span, did_you_mean_help
from eecompile.dsl.check_gates import skipped_values, with_known_gates
from eecompile.dsl.check_options import placed_head
from eecompile.heads import HEADS, HeadMismatch, make_head
from eecompile.passes.base import Program
from eecompile.passes.host import HostGraph
from eecompile.passes.plan_gates import plan_gates
from eecompile.passes.propose_points import Candidate, propose_points
from eecompile.passes.resolve_points import match_points
from eecompile.spec import AutoExits, Exit, HeadSpec, Model, Name, Policy, Spec

__all__ = ["Placing", "exit_name", "with_candidates"]

#: Most candidates that are tried: each takes a head to fit, and its features on disk.
_MOST = 40


@dataclass(frozen=True)
class Placing:
    """Exits of which the compiler is to choose some.

    Attributes:
        low, high: fewest and most exits to choose.
        names: of the candidates, by the work done when they are reached.
        kept: those that a policy names, which are chosen whatever they are worth.
    """

    low: int
    high: int
    names: tuple[str, ...]
    kept: frozenset[str] = frozenset()

    @property
    def count(self) -> str:
        """How many are chosen, in words.

        >>> Placing(3, 6, ()).count, Placing(2, 2, ()).count
        ('3 to 6', '2')
        """
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def to_json(self) -> dict[str, Any]:
        """What would be chosen from."""
        kept = [name for name in self.names if name in self.kept]
        return {"count": [self.low, self.high], "candidates": list(self.names), "named": kept}


def exit_name(point: str) -> str:
    """The name of the exit at a point: its letters and digits, parts joined by ``_``.

    >>> exit_name("layer2.3"), exit_name("/layer1/Relu_output_0"), exit_name("4.block")
    ('layer2_3', 'layer1_Relu_output_0', 'at_4_block')
    """
    word = re.sub("[^A-Za-z0-9]+", "_", point).strip("_")
    return word if word[:1].isalpha() else f"at_{word}"


def with_candidates(spec: Spec, host: HostGraph, found: Diagnostics) -> tuple[Spec, Placing | None]:
    """The spec with an exit at every candidate, beside those that are written.

    Candidates are the points that ``eecompile init`` proposes, every block's end as a rule, where
    no written exit stands, which no gate may leave out and which the head can read. Their exits are
    called after their points.

    Args:
        spec: checked without its network.
        host: its network.
        found: told what is wrong: fewer candidates than wanted, a policy that starts nowhere.

    Returns:
        The spec, and what is to be chosen; None where the file has no ``exits auto``, or it cannot
        be meant.
    """
    model = spec.model
    auto = model.auto_exits
    head = None if auto is None else placed_head(auto)
    if auto is None or head is None or head.kind not in HEADS:
        return spec, None
    program = Program(host, model)
    before = len(found)
    candidates = _readable(_candidates(program, auto), head, found)
    names = _names(candidates, program)
    kept = frozenset(_named(spec, names, found))
    low, high = _bounds(auto, len(candidates), len(kept), model, found)
    if any(diagnostic.severity == "error" for diagnostic in list(found)[before:]):
        return spec, None
    exits = [
        Exit(name, candidate.name, head, span=auto.span)
        for name, candidate in zip(names, candidates, strict=True)
    ]
    expanded = replace(model, exits=(*model.exits, *exits))
    placing = Placing(low, high, names, kept)
    return replace(spec, models=(expanded, *spec.models[1:])), placing


def _candidates(program: Program, auto: AutoExits) -> list[Candidate]:
    """The points proposed, without those of written exits and those that gates may leave out."""
    points = program.host.points()
    written = [exit_.point for exit_ in program.model.exits]
    taken = {point.value for name in written for point in match_points(name, points)}
    gates = plan_gates(with_known_gates(program.model), program.host, Diagnostics())
    taken |= skipped_values(gates, program.host.graph()).keys()
    answer = next(iter(program.network_outputs().values()))
    most = max(_MOST, auto.high) + len(taken)
    proposed = propose_points(program.host.graph(), points, answer, most)
    return [candidate for candidate in proposed if candidate.value not in taken]


def _readable(
    candidates: Sequence[Candidate], head: HeadSpec, found: Diagnostics
) -> list[Candidate]:
    """Those whose tensor the head can read; an error where it can read none."""
    made = make_head(head.kind, head.options)
    readable, reason = [], ""
    for candidate in candidates:
        try:
            made.feature_graph(candidate.type)
        except HeadMismatch as error:
            reason = reason or f"{candidate.type} at `{candidate.name}`: {error}"
        else:
            readable.append(candidate)
    if reason and not readable:
        message = f"Head `{head}` can read the tensor at no point where an exit could stand"
        found.error("bad-head", message, head.span, reason)
    return readable


def _names(candidates: Sequence[Candidate], program: Program) -> tuple[str, ...]:
    """A name for each exit that nothing else in the network or the file has."""
    model = program.model
    outputs = {*program.host.outputs(), *program.network_outputs()}
    taken = {"final", *program.input_names().values(), *outputs, *(e.name for e in model.exits)}
    names: list[str] = []
    for candidate in candidates:
        name = wanted = exit_name(candidate.name)
        number = 1
        while name in taken or any(output.startswith(f"{name}.") for output in outputs):
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _named(spec: Spec, names: Sequence[str], found: Diagnostics) -> Iterator[str]:
    """The candidates that policies name; names of no exit at all are told."""
    written = [exit_.name for exit_ in spec.model.exits]
    for policy in spec.policies:
        for name, place in _exits_of(policy):
            if name in names:
                yield name
            elif name not in written:
                known = [*written, *names]
                found.error(
                    "unknown-exit",
                    f"Unknown exit `{name}`",
                    place,
                    f"neither written in `{spec.model.name}` nor a candidate of `exits auto`",
                    help=did_you_mean_help(name, known)
                    or f"exits that may be placed: {', '.join(f'`{name}`' for name in names)}",
                )


def _exits_of(policy: Policy) -> Iterator[tuple[str, Span | None]]:
    """The exits a policy names, each with its place."""
    for term in policy.rule.terms if policy.rule else ():
        start = term.options.get("start")
        if term.kind == "predicted" and isinstance(start, Name):
            yield str(start), term.at("start")
    if policy.split is not None:
        at = policy.split.option("at")
        if isinstance(at, Name):
            yield str(at), policy.split.at("at")


def _bounds(
    auto: AutoExits, there: int, kept: int, model: Model, found: Diagnostics
) -> tuple[int, int]:
    """How many exits are chosen: no more than there are, no fewer than policies name."""
    place = auto.at("count")
    where = f"`{model.name}` has {there} points where the compiler could place one"
    if auto.low > there:
        found.error(
            "bad-option",
            f"Expected a number of exits up to {there}, found {auto.low}"
            if there
            else "There is no point where the compiler could place an exit",
            place,
            where,
            help=f"write `count: {there}` or fewer" if there else "write the exits yourself",
        )
    elif kept > auto.high:
        found.error(
            "bad-option",
            f"Policies name {kept} of the exits to be placed, and at most {auto.high} are wanted",
            place,
            "fewer than are named",
            help=f"write `count: {kept}` or more",
        )
    elif auto.high > there and "count" in auto.spans:
        found.add(
            Diagnostic(
                "bad-option",
                f"Up to {auto.high} exits are wanted, and {there} can be placed",
                place,
                where,
                help=f"write `count: {auto.low}..{there}`",
                severity="warning",
            )
        )
    return max(auto.low, kept), min(auto.high, there)
