"""Finding the exit points of a `.ee` file in the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from eecompile.diagnostics import Diagnostics, did_you_mean_help
from eecompile.ir import Graph
from eecompile.passes.base import Pass, PassResult, Program, ResolvedExit
from eecompile.passes.host import Point
from eecompile.passes.structure import Flow
from eecompile.spec import Exit, matching
from eecompile.verify import Stage

__all__ = ["ResolvePoints", "match_points", "resolve_exits"]

_SHOWN = 5


@dataclass(frozen=True)
class ResolvePoints(Pass):
    """Finds the value behind each exit's point and puts the exits in the order they are reached.

    1. A point's name stands for itself, also where it holds ``*`` or ``[``.
    2. Any other name is a glob; the points it matches must all be one value.
    3. The answer must depend on the value, and must not be the value.
    4. Exits are ordered so that none leads to an earlier one; exits on parallel branches keep
       their order in the file.

    before::

        exit late after "layer3"      exit early after "layer1*"

    after::

        early: /layer1/Relu_output_0      late: /layer3/Relu_output_0

    It changes nothing in the host.
    """

    requires: ClassVar[Stage] = Stage.EXPORTED
    ensures: ClassVar[Stage] = Stage.RESOLVED

    def run(self, program: Program) -> PassResult:
        """The program with `exits` filled in.

        Raises:
            CompileErrors: as `resolve_exits`.
        """
        outputs = program.network_outputs()
        exits = resolve_exits(
            program.model.exits,
            program.host.points(),
            program.host.graph(),
            next(iter(outputs.values())),
            taken={*program.input_names().values(), *outputs},
        )
        return PassResult(replace(program, exits=exits), exits != program.exits)


def resolve_exits(
    exits: Iterable[Exit],
    points: Mapping[str, Point],
    graph: Graph,
    answer: str,
    taken: Iterable[str] = (),
) -> tuple[ResolvedExit, ...]:
    """The exits with their values, in the order they are reached.

    Args:
        exits: as written.
        points: of the host, by every name.
        graph: the network.
        answer: value of the network's answer.
        taken: names exits may not have (those of inputs and outputs).

    Raises:
        CompileErrors: every exit whose point is unknown, ambiguous, does not lead to the answer,
            is the answer, or is another exit's; and every name used twice.
    """
    found = Diagnostics()
    resolved: list[tuple[Exit, Point]] = []
    flow = Flow(graph)
    above = flow.above(answer)
    _check_names(exits := tuple(exits), frozenset(taken), found)
    for exit_ in exits:
        point = _find(exit_, points, found)
        if point is not None and _leads_on(exit_, point, answer, above, found):
            resolved.append((exit_, point))
    _check_distinct(resolved, found)
    found.raise_errors()
    order = flow.ordered([point.value for _, point in resolved])
    ordered = (resolved[index] for index in order)
    return tuple(ResolvedExit(e.name, p.name, p.value, p.type) for e, p in ordered)


def match_points(pattern: str, points: Mapping[str, Point]) -> list[Point]:
    """The points a name or glob stands for, one for each value, in the graph's order.

    Where several names of one value match, a module path is preferred, then the shortest name.
    """
    matched: dict[str, Point] = {}
    for name in matching(pattern, points):
        point = points[name]
        best = matched.get(point.value)
        if best is None or _preference(point) < _preference(best):
            matched[point.value] = point
    return list(matched.values())


def _preference(point: Point) -> tuple[bool, int, str]:
    return not point.module, len(point.name), point.name


def _find(exit_: Exit, points: Mapping[str, Point], found: Diagnostics) -> Point | None:
    """The exit's one point, or a diagnostic and None."""
    matched = match_points(exit_.point, points)
    if len(matched) == 1:
        return matched[0]
    span = exit_.at("point")
    if not matched:
        glob = any(char in exit_.point for char in "*?[")
        found.error(
            "unknown-point",
            f"No point matches `{exit_.point}`" if glob else f"Unknown point `{exit_.point}`",
            span,
            "nothing in the network has such a name" if glob else "no such point in the network",
            help=did_you_mean_help(exit_.point, points),
        )
        return None
    names = [f"`{point.name}`" for point in matched]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    found.error(
        "ambiguous-point",
        f"`{exit_.point}` matches {len(matched)} points",
        span,
        "an exit stands at one point",
        notes=(f"it matches {', '.join(names[:_SHOWN])}{more}",),
        help="write one exit for each",
    )
    return None


def _leads_on(exit_: Exit, point: Point, answer: str, above: set[str], found: Diagnostics) -> bool:
    span = exit_.at("point")
    if point.value == answer:
        found.error(
            "nothing-to-skip",
            f"Point `{point.name}` is the network's output",
            span,
            "an exit here would save nothing",
            help="choose an earlier point",
        )
        return False
    if point.value not in above:
        found.error(
            "unreachable-output",
            f"Point `{point.name}` does not lead to the network's output",
            span,
            "the output does not depend on it",
        )
        return False
    return True


def _check_names(exits: tuple[Exit, ...], taken: frozenset[str], found: Diagnostics) -> None:
    first: dict[str, Exit] = {}
    for exit_ in exits:
        span = exit_.at("name")
        if exit_.name in taken:
            found.error(
                "duplicate-name",
                f"Exit `{exit_.name}` has the name of an input or output",
                span,
                help="give the exit another name",
            )
        elif exit_.name in first:
            other = first[exit_.name].at("name")
            found.error(
                "duplicate-name",
                f"Two exits are called `{exit_.name}`",
                span,
                secondary=((other, "first here"),) if other else (),
            )
        first.setdefault(exit_.name, exit_)


def _check_distinct(resolved: list[tuple[Exit, Point]], found: Diagnostics) -> None:
    first: dict[str, Exit] = {}
    for exit_, point in resolved:
        other = first.setdefault(point.value, exit_)
        if other is not exit_:
            there = other.at("point")
            found.error(
                "duplicate-point",
                f"Exits `{other.name}` and `{exit_.name}` stand at the same point",
                exit_.at("point"),
                f"this is where `{other.name}` stands",
                secondary=((there, "first here"),) if there else (),
                help="use a comparator for a second opinion at one point",
            )
