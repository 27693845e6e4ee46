"""Cuts that no `.ee` file leads to, and what the manager and its instruments do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors, InternalError, Source, Span
from eecompile.ir import Graph
from eecompile.passes.base import Pass, PassManager, PassResult, Program, ResolvedExit
from eecompile.passes.cut_segments import cut
from eecompile.passes.instruments import DumpText, Timing
from eecompile.passes.pipelines import backbone_pipeline, segments_pipeline
from eecompile.passes.resolve_points import resolve_exits
from eecompile.spec import Exit, HeadSpec
from eecompile.text import parse_graph, print_graph
from eecompile.verify import InvariantError, Snapshot, Stage, faults
from tests.helpers import TextHost, program_of, random_inputs, run_segments

NETWORK = parse_graph(
    """graph net(x: float32[1, 4]) -> (y: float32[1, 4], head: float32[1, 4]) {
        const w: float32[4, 4] = random(0)
        a: float32[1, 4] = MatMul(x, w)
        b: float32[1, 4] = Relu(a)
        y: float32[1, 4] = MatMul(b, w)
        head: float32[1, 4] = Add(b, a)
    }"""
)


def exits(**values: str) -> list[ResolvedExit]:
    return [ResolvedExit(n, v, v, NETWORK.types[v]) for n, v in values.items()]


def test_two_exits_at_one_point_each_get_a_segment() -> None:
    found = cut(
        NETWORK, exits(one="b", two="b"), name="net", inputs={"x": "x"}, outputs={"scores": "y"}
    )
    assert [len(segment.graph.ops) for segment in found.segments] == [2, 1, 1]
    assert [exit_.feature for exit_ in found.exits] == ["one", "two"]
    assert faults(Stage.SEGMENTED, Snapshot(segments=found)) is None
    inputs = random_inputs(NETWORK)
    values = run_segments(found.graphs(), inputs)
    np.testing.assert_array_equal(values["one"], values["two"])
    np.testing.assert_array_equal(values["scores"], TextHost(NETWORK).run(inputs)["y"])


def test_a_head_that_reads_more_than_its_tap_is_a_bug() -> None:
    with pytest.raises(InternalError, match="reads more than the exit's tap"):
        cut(
            NETWORK,
            exits(early="b"),
            name="net",
            inputs={"x": "x"},
            outputs={"y": "y"},
            exit_outputs={"early": {"logits": "head"}},
        )


def test_macs_of_segments_add_up_to_the_network() -> None:
    program = PassManager(backbone_pipeline()).run(program_of(NETWORK, {"early": "b"}, "y")).graph
    assert program.segments is not None
    assert program.segments.macs == 32
    assert [segment.macs for segment in program.segments.segments] == [16, 16]


def test_a_diagnostic_points_into_the_line_that_asked() -> None:
    source = Source("net.ee", 'exit early after "layr1"')
    span = Span(source, 17, 24)
    exit_ = Exit("early", "layr1", HeadSpec("linear"), spans={"point": span})
    host = TextHost(NETWORK)
    with pytest.raises(CompileErrors) as caught:
        resolve_exits([exit_], host.points(), host.graph(), "y")
    assert [d.concise() for d in caught.value.diagnostics] == [
        "net.ee:1:18: error[unknown-point]: Unknown point `layr1`"
    ]


@dataclass(frozen=True)
class DropOperator(Pass):
    """A pass with a bug."""

    requires: ClassVar[Stage] = Stage.RESOLVED
    ensures: ClassVar[Stage] = Stage.RESOLVED

    def run(self, program: Program) -> PassResult:
        graph = program.host.graph()
        broken = Graph(
            graph.name, graph.inputs, graph.outputs, graph.ops[1:], graph.constants, graph.types
        )
        host = TextHost(broken)
        return PassResult(Program(host, program.model, program.exits), True)


def test_the_manager_names_the_pass_that_broke_a_rule() -> None:
    resolve, cut_ = backbone_pipeline()
    manager = PassManager((resolve, DropOperator(), cut_))
    with pytest.raises(InvariantError, match="after pass `drop-operator`") as caught:
        manager.run(program_of(NETWORK, {"early": "b"}, "y"))
    notes = "\n".join(caught.value.__notes__)
    assert "after passes [resolve-points]" in notes
    assert "> b: float32[1, 4] = Relu(a)" in notes


def test_the_manager_refuses_a_program_of_an_earlier_stage() -> None:
    program = program_of(NETWORK, {"early": "b"}, "y")
    unresolved = Program(
        program.host, program.model, (ResolvedExit("e", "q", "q", NETWORK.types["a"]),)
    )
    with pytest.raises(InvariantError, match="before pass `cut-segments`"):
        PassManager(backbone_pipeline()[1:]).run(unresolved)


def test_instruments_time_and_dump_every_pass(tmp_path: Path) -> None:
    timing, dump = Timing(), DumpText(tmp_path / "ir")
    program = program_of(NETWORK, {"early": "b"}, "y")
    result = PassManager(segments_pipeline({}), (timing, dump)).run(program)
    assert list(timing.seconds) == [
        "resolve-points",
        "insert-exits",
        "insert-comparators",
        "cut-segments",
    ]
    assert sorted(path.name for path in (tmp_path / "ir").iterdir()) == [
        "00-before.txt",
        "01-resolve-points.txt",
        "02-insert-exits.txt",
        "03-insert-comparators.txt",
        "04-cut-segments.txt",
    ]
    first = (tmp_path / "ir" / "00-before.txt").read_text()
    assert first == print_graph(NETWORK)
    last = (tmp_path / "ir" / "04-cut-segments.txt").read_text()
    assert "    exit early after b on early\n    segment segment1 = graph segment1(early:" in last
    assert [skip.value for skip in result.skips] == ["early", "early"]
