"""Gates against a real network: what can be skipped, and why other places cannot."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest

import eecompile.demo
from eecompile.diagnostics import Diagnostic, Diagnostics
from eecompile.dsl.check_gates import check_exits_beside
from eecompile.dsl.options import GATES, UNTRAINED_GATES
from eecompile.gate_report import gate_lines, gates_json
from eecompile.gates.kinds import KINDS
from eecompile.loading import check_file, planned_gates
from eecompile.passes.plan_gates import plan_gates
from eecompile.spec import Exit, HeadSpec, Model, Skip
from tests.gates.networks import host as text_host

DEMO = Path(eecompile.demo.__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(DEMO / "digits.onnx", tmp_path)
    for name in ("fit.npz", "net.gates.npz"):
        shutil.copy(DEMO / "fit.npz", tmp_path / name)
    return tmp_path


def found(folder: Path, *statements: str) -> list[Diagnostic]:
    """What is told of the example network with these statements."""
    body = "\n    ".join(['source onnx "digits.onnx"', 'gates "net.gates.npz"', *statements])
    data = 'data d { fit "fit.npz" calibrate "fit.npz" }'
    text = f"eecompile 1\nmodel net {{\n    {body}\n}}\n{data}\n"
    (folder / "net.ee").write_text(text, encoding="utf-8")
    return list(check_file(folder / "net.ee")[2].in_order())


def test_blocks_and_convolutions_may_both_have_gates(folder: Path) -> None:
    statements = (
        'skip layers "layer1.[0-3]" gate recurrent(hidden: 10)',
        'skip layers "layer2.*" gate fitted',  # layer2.0 is passed over
        'skip channels "layer1.*.conv1" gate squeeze(groups: 4)',
        'skip channels "layer2.[1-2].conv1" gate recurrent(groups: auto)',
    )
    assert found(folder, *statements) == []


def test_a_pattern_without_blocks_tells_why_of_each_candidate(folder: Path) -> None:
    (single,) = found(folder, 'skip layers "layer2.0" gate fitted')
    assert single.id == "not-skippable" and single.span is not None
    assert single.span.text == '"layer2.0"'
    assert [note.split(":")[0] for note in single.notes] == ["`layer2.0`"]
    assert "downsampled" in single.notes[0]
    (several,) = found(folder, 'skip layers "layer*.*.bn[1-2]" gate fitted')
    assert several.id == "not-skippable"
    names = [f"`layer1.{i}.bn{k}`" for i in range(4) for k in (1, 2)]
    names += [f"`layer2.{i}.bn{k}`" for i in range(3) for k in (1, 2)]
    assert several.notes == (f"{', '.join(names)}: no sum joins it with what it reads",)
    assert "`layer1.0`" in several.help
    (unknown,) = found(folder, 'skip channels "layer9.*" gate squeeze')
    assert unknown.id == "unknown-point"


def test_what_is_skipped_and_what_never_is_can_be_read(folder: Path) -> None:
    found(
        folder,
        'skip layers "layer2.*" gate fitted',
        'skip channels "layer1.0.conv1" gate squeeze(groups: 4)',
    )
    spec, host, _ = check_file(folder / "net.ee")
    assert host is not None
    plan = planned_gates(spec, host)
    first, passed = gate_lines(plan)
    assert first.startswith("gates for 2 blocks (43 % of the MACs) and 1 convolution (4.8 % of")
    assert passed.startswith("no gate for `layer2.0`: shortcut is downsampled")
    told = gates_json(plan)
    assert json.loads(json.dumps(told)) == told
    assert [gate["name"] for gate in told["gates"]] == ["layer1.0.conv1", "layer2.1", "layer2.2"]
    channels, block, _ = told["gates"]
    assert (channels["groups"], channels["block"], channels["block_macs"]) == (4, None, 0)
    assert channels["group_macs"] == 2 * 589824 / 4  # its own MACs, and those that read it
    assert (block["convolution"], block["block_macs"]) == (None, 2654208)
    assert told["passed_over"].keys() == {"layer2.0"}


def test_shares_of_everything_are_written_out(folder: Path) -> None:
    found(folder, 'skip channels "**" gate squeeze(groups: 4)')
    spec, host, _ = check_file(folder / "net.ee")
    assert host is not None
    assert gate_lines(planned_gates(spec, host))[0].startswith(
        "gates for 16 convolutions (100 % of the MACs)"
    )


def test_no_exit_stands_where_a_gate_may_leave_nothing(folder: Path) -> None:
    shutil.copy(DEMO / "calibrate.npz", folder)
    statements = (
        'skip layers "layer1.*" gate fitted',
        'exit inside after "layer1.1.bn1" head linear',
        'exit behind after "layer1.1" head linear',
        'exit free after "layer2.1.bn1" head linear',
    )
    (problem,) = found(folder, *statements)
    assert problem.id == "cannot-combine"
    assert problem.message == "Exit `inside` stands within `layer1.1`, which a gate may leave out"
    assert problem.span is not None and problem.span.text == '"layer1.1.bn1"'


def test_every_independent_error_is_told_at_once(folder: Path) -> None:
    problems = found(
        folder,
        'skip layers "layer9.*" gate fitted',
        'skip layers "layer1.*" gate recurent',  # cannot be planned, and hides nothing else
        'skip layers "layer2.1" gate fitted',
        'skip layers "layer2.[1-2]" gate feedforward(hidden: 0)',
        'skip channels "layer1.0.conv1" gate squeeze(groups: 5)',
        'skip layers "layer2.1" gate recurrent',
    )
    assert [problem.id for problem in problems] == [
        "unknown-point",
        "unknown-gate",
        "bad-option",
        "bad-option",
        "duplicate-point",
    ]
    assert "5 groups do not divide the 32 channels" in problems[3].message
    (again,) = problems[4].secondary
    assert again[0].text == '"layer2.1"' and again[0].line == 7


def test_the_tables_name_the_gates_there_are() -> None:
    for what, kinds in GATES.items():
        assert kinds.keys() == {name for name, kind in KINDS.items() if getattr(kind, what)}
        for name, options in kinds.items():
            sizes = inspect.signature(KINDS[name]).parameters.keys()
            assert options.keys() == sizes | ({"groups"} if what == "channels" else set())
    assert UNTRAINED_GATES == {"fitted"} <= KINDS.keys()


def test_no_exit_stands_between_a_gated_convolution_and_its_activation(folder: Path) -> None:
    shutil.copy(DEMO / "calibrate.npz", folder)
    statements = (
        'skip channels "layer1.1.conv1" gate fitted',
        'exit inside after "layer1.1.bn1" head linear',
        'exit behind after "layer1.1" head linear',
        'exit free after "layer2.1.bn1" head linear',
    )
    (problem,) = found(folder, *statements)
    assert problem.id == "cannot-combine"
    assert problem.message.startswith("Exit `inside` stands within `layer1.1.conv1`")


def test_no_exit_is_reached_past_a_recurrent_gate_but_not_past_the_one_before() -> None:
    host = text_host("""graph net(x: float32[1, 4, 8, 8]) -> (y: float32[1, 8, 8, 8]) {
        const w: float32[4, 4, 3, 3] = random(1)
        a: float32[1, 4, 8, 8] = Conv(x, w; CONV) @ one
        b: float32[1, 4, 8, 8] = Conv(x, w; CONV) @ two
        y: float32[1, 8, 8, 8] = Concat(a, b; axis=1)
    }""")
    gate = HeadSpec("recurrent", {"groups": 2})
    exits = tuple(Exit(name, name, HeadSpec("linear")) for name in ("one", "two"))
    model = Model("net", "onnx", "", exits=exits, skips=(Skip("channels", "*", gate),))
    wrong = Diagnostics()
    plan = plan_gates(model, host, wrong)
    check_exits_beside(model, plan, host.graph(), host.points(), wrong)
    (problem,) = wrong.in_order()
    assert problem.message == "Exit `two` is reached past `two`, but not past `one`"
