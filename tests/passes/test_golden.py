"""Passes and rules as text: each file holds what goes in, ``---``, and what comes out.

Above the graphs of the first half stand lines ``key: value``:

    run: pass names            exit: NAME after POINT      output: NAME [classes]
    verify: stage              classes: number             answer: value
    show: graph|borders|full   tap: EXIT value             symbol: GRAPH name
    shown: NAME value          cost: GRAPH seconds ...

A graph called ``head`` or ``comparator`` is inserted at every exit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.ir import Graph
from eecompile.passes.base import Pass, PassManager, Program
from eecompile.passes.cut_segments import CutSegments
from eecompile.passes.host import HostError
from eecompile.passes.insert_comparators import InsertComparators
from eecompile.passes.insert_exits import InsertExits
from eecompile.passes.resolve_points import ResolvePoints
from eecompile.text import parse_graph, parse_segments, print_graph, print_segments
from eecompile.verify import RULES, InvariantError, Snapshot, Stage, verify
from tests.helpers import program_of

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.txt"))


class Case:
    """The first half of a golden file."""

    def __init__(self, text: str) -> None:
        head, *bodies = re.split(r"(?m)^(?=(?:graph|segments) )", text)
        lines = [line.split(": ", 1) for line in head.splitlines() if line and line[0] != "#"]
        self.lines = [(key, value.split()) for key, value in lines]
        self.bodies = bodies

    def all(self, key: str) -> list[list[str]]:
        return [value for name, value in self.lines if name == key]

    def one(self, key: str, default: str = "") -> str:
        return next((" ".join(value) for value in self.all(key)), default)

    def graphs(self) -> dict[str, Graph]:
        found = [parse_graph(body) for body in self.bodies if body.startswith("graph")]
        return {graph.name: graph for graph in found}


def run_passes(case: Case) -> str:
    network, *inserted = case.graphs().values()
    points = [(name, point.strip('"')) for name, _, point in case.all("exit")]
    output, _, classes = case.one("output").partition(" ")
    program = program_of(network, dict(points), output, int(classes) if classes else None)
    if len(points) > len(program.model.exits):  # two of one name
        exits = tuple(replace(program.model.exits[0], name=n, point=p) for n, p in points)
        program = replace(program, model=replace(program.model, exits=exits))
    graphs = {graph.name: {name: graph for name, _ in points} for graph in inserted}
    known: dict[str, Pass] = {
        step.name: step
        for step in (
            ResolvePoints(),
            InsertExits(graphs.get("head", {})),
            InsertComparators(graphs.get("comparator", {})),
            CutSegments(),
        )
    }
    steps = tuple(known[name] for name in case.one("run").split())
    result = PassManager(steps).run(program)
    again = steps[-1].run(result.graph)
    assert not again.modified, f"{steps[-1].name} changes something the second time"
    notes = "".join(f"# skipped: {s.value}: {s.reason}\n" for s in result.skips)
    return notes + show(result.graph, case.one("show", "graph"))


def show(program: Program, detail: str) -> str:
    if program.segments is not None:
        return print_segments(program.segments, "full" if detail == "full" else "borders")
    exits = (f"# exit {e.name} after {e.point}: {e.value} {e.type}\n" for e in program.exits)
    outputs = (f"# output {name}: {value}\n" for name, value in program.host.outputs().items())
    return "".join([*exits, *outputs, print_graph(program.host.graph())])


def check_rules(case: Case) -> str:
    graphs = [body for body in case.bodies if body.startswith("graph")]
    segments = [body for body in case.bodies if body.startswith("segments")]
    snapshot = Snapshot(
        graph=parse_graph(graphs[0]) if graphs else None,
        answer=case.one("answer"),
        outputs={name: value for name, value in case.all("shown")},
        taps={exit_: value for exit_, value in case.all("tap")},
        classes=int(case.one("classes")) if case.one("classes") else None,
        segments=parse_segments(segments[0]) if segments else None,
        symbols={graph: symbol for graph, symbol in case.all("symbol")},
        costs={graph: tuple(map(float, s)) for graph, *s in case.all("cost")},
    )
    verify(Stage[case.one("verify").upper()], snapshot, "in this test")
    return "holds\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[Path, str], None]) -> None:
    case = Case(path.read_text(encoding="utf-8").partition("\n---\n")[0])
    try:
        found = check_rules(case) if case.one("verify") else run_passes(case)
    except (CompileErrors, HostError, InvariantError) as error:
        text = error.full() if isinstance(error, CompileErrors) else str(error)
        found = "\n".join([type(error).__name__, text, *getattr(error, "__notes__", [])]) + "\n"
    golden(path, found)


def test_every_rule_has_a_file_that_breaks_it() -> None:
    broken = {path.stem.removeprefix("rule-") for path in FOLDER.glob("rule-*.txt")}
    assert broken == {rule.name for rule in RULES}


def test_every_rule_file_names_its_rule() -> None:
    for path in FOLDER.glob("rule-*.txt"):
        assert f"rule `{path.stem.removeprefix('rule-')}`" in path.read_text(encoding="utf-8")
