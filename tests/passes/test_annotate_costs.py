"""Costs are put onto pieces in order; a table of another network is a bug that is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eecompile.board import DvfsState
from eecompile.compiled import CompiledGraph
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.ir import Graph
from eecompile.passes.annotate_costs import AnnotateCosts
from eecompile.passes.base import PassManager, Program
from eecompile.passes.instruments import DumpText
from eecompile.passes.pipelines import segments_pipeline
from eecompile.text import parse_graph
from eecompile.verify import InvariantError
from tests.helpers import program_of

NETWORK = """graph net(x: float32[1, 4]) -> (y: float32[1, 4]) {
    a: float32[1, 4] = Relu(x)
    y: float32[1, 4] = Exp(a)
}"""
HEAD = """graph head(f: float32[1, 4]) -> (logits: float32[1, 4]) {
    logits: float32[1, 4] = Neg(f)
}"""
STATES = (DvfsState("cpu", 1e9), DvfsState("cpu", 2e9), DvfsState("cpu", 3e9))


def program() -> Program:
    heads: dict[str, Graph] = {"early": parse_graph(HEAD)}
    start = program_of(NETWORK, {"early": "a"}, "y", 4)
    return PassManager(segments_pipeline(heads)).run(start).graph


def compiled(found: Program) -> CompiledGraph:
    class Made:
        """What lowering would say of a graph."""

        def __init__(self, graph: Graph) -> None:
            self.symbol = f"eec_{graph.name}"
            self.inputs = tuple((name, graph.types[name]) for name in graph.inputs)
            self.outputs = tuple((name, graph.types[name]) for name in graph.outputs)
            self.workspace_bytes = self.private_bytes = 0
            self.threads, self.work = 1, Work(kernels=1)

    assert found.segments is not None
    return CompiledGraph.of(found.segments, [Made(graph) for graph in found.segments.graphs()])


def row(name: str, *seconds: float | None) -> CostRow:
    return CostRow(
        name, Work(), tuple(None if s is None else Cost(s, None, "measured") for s in seconds)
    )


TABLE = CostTable(
    "host",
    "host",
    "a machine",
    1,
    STATES,
    (row("segment0", 3.0, 2.0, 1.0), row("segment1", 6.0, None, 2.0)),
    (row("early", 0.3, 0.2, 0.1),),
)


def test_every_graph_has_its_symbol_and_the_costs_known_for_all() -> None:
    before = program()
    step = AnnotateCosts(compiled(before), TABLE)
    result = PassManager((step,)).run(before)
    assert result.modified and not PassManager((step,)).run(result.graph).modified
    snapshot = result.graph.snapshot()
    assert snapshot.symbols == {
        name: f"eec_{name}" for name in ("segment0", "early_head", "segment1")
    }
    assert snapshot.costs == {
        "segment0": (3.0, 1.0),
        "early_head": (0.3, 0.1),
        "segment1": (6.0, 2.0),
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (replace(TABLE, segments=TABLE.segments[:1]), "`segment1` has no cost"),
        (replace(TABLE, exits=()), "`early_head` has no cost"),
        (replace(TABLE, exits=(row("early", -1.0, 0.0, 0.0),)), "has the latencies (-1.0, 0.0)"),
    ],
)
def test_a_table_that_does_not_fit_is_our_fault(table: CostTable, message: str) -> None:
    before = program()
    with pytest.raises(InvariantError) as caught:
        PassManager((AnnotateCosts(compiled(before), table),)).run(before)
    assert message in str(caught.value)


def test_a_function_that_is_missing_is_our_fault() -> None:
    before = program()
    short = replace(compiled(before), segments=compiled(before).segments[:1])
    with pytest.raises(InvariantError, match="`segment1` has no symbol in the library"):
        PassManager((AnnotateCosts(short, TABLE),)).run(before)


def test_costs_are_dumped_beside_the_segments(tmp_path: Path) -> None:
    before = program()
    PassManager((AnnotateCosts(compiled(before), TABLE),), [DumpText(tmp_path)]).run(before)
    text = (tmp_path / "01-annotate-costs.txt").read_text()
    assert "# cost segment1: 6000.0 ms measured at 1 GHz, 2000.0 ms measured at 3 GHz\n" in text
    assert "# cost" not in (tmp_path / "00-before.txt").read_text()
