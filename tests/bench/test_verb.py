"""The verb itself: what it prints, one JSON object, a picture, and how it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eecompile.artifact import write_artifact
from tests.cli.calls import Call, content, in_process
from tests.runtime import tiny

QUICK = ("--rounds", "20", "--seconds", "0.2")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return in_process(capfd)


def test_help_has_an_example(call: Call) -> None:
    assert "example:\n  eecompile bench" in call("bench", "--help").out


def test_tables_for_people(artifact: Path, call: Call) -> None:
    done = call("bench", artifact, "--board", "rk3399", *QUICK)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "tiny for host: board rk3399, nothing measured, one thread"
    assert "note: this machine is no `rk3399`: every cost is modelled" in lines
    assert "~ modelled; everything else is measured, medians" in lines
    heads = [line.split()[0] for line in lines if line.startswith(("latency ", "energy "))]
    assert heads == ["latency", "latency", "energy", "energy"]  # 14 clocks, 8 a table
    assert sum(line.startswith("full depth") for line in lines) == 4
    at = next(i for i, line in enumerate(lines) if line.startswith("leaving at"))
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["early", "late", "final"]
    assert lines[at + 4].startswith("mean, fast")
    assert "shares and accuracies: policy fast on 40 held-out samples" in lines
    assert max(map(len, lines)) <= 120 or lines[at + 1]


def test_what_is_measured_has_percentiles(artifact: Path, call: Call) -> None:
    done = call("bench", artifact, *QUICK)
    assert done.status == 0, done.err
    names = [line.split()[0] for line in done.out.splitlines() if line]
    assert names.index("full") < names.index("P90") < names.index("P95") < names.index("P99")
    assert "[2/4] measure 1 clock" in done.err


def test_one_object_for_scripts(artifact: Path, call: Call) -> None:
    done = call("bench", artifact, "--json", *QUICK)
    assert done.status == 0
    assert {
        *("target", "board", "device", "threads", "governor", "states", "segments", "exits"),
        *("full_depth", "pareto", "policy", "conditions", "blocks", "model_error", "comparison"),
        *("model", "notes", "energy_covers", "updated"),
    } <= set(done.json)
    assert done.err == ""


def test_quiet_says_nothing_on_the_way(artifact: Path, call: Call) -> None:
    assert call("bench", artifact, "--quiet", *QUICK).err == ""


def test_a_picture_and_an_update(artifact: Path, call: Call, tmp_path: Path) -> None:
    done = call("bench", artifact, "--svg", tmp_path / "a.svg", "--update", *QUICK)
    assert done.status == 0, done.err
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert "the artifact keeps these costs" in done.out
    assert json.loads((artifact / "costs.json").read_text())["threads"] == 1
    assert call("verify", artifact).status == 0


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        (("--freq", "3 kg"), "unknown-unit"),
        (("--freq", "999 GHz"), "unknown-frequency"),
        (("--freq", ""), "syntax-error"),
        (("--freq", "600 MHz] cores 4 frequencies [1 GHz"), "syntax-error"),
        (("--board", "rk3399", "--freq", "1 MHz"), "unknown-frequency"),
        (("--board", "nowhere"), "unknown-target"),
        (("--board", "rk3399", "--update"), "bad-argument"),
        (("--policy", "fats"), "bad-argument"),
        (("--rounds", "0"), "bad-argument"),
        (("--seconds", "-1"), "bad-argument"),
        (("--threads", "0"), "bad-argument"),
        (("--rpc", "no port"), "bad-argument"),
        (("--svg", "/proc/no/such.svg"), "cannot-write"),
        (("--svg", "no-such-folder/a.svg"), "cannot-write"),
    ],
)
def test_bad_input_is_told(arguments: tuple[str, ...], id: str, artifact: Path, call: Call) -> None:
    before = content(artifact)
    done = call("bench", artifact, "--json", *arguments)
    assert (done.status, done.ids) == (1, [id]), done.err
    assert "measure" not in done.err.partition("error[")[0], "nothing has taken time"
    assert content(artifact) == before


def test_another_machine_s_artifact_can_be_modelled(tmp_path: Path, call: Call) -> None:
    target = replace(tiny.contents().target, name="rk3399", triple="riscv64-linux-gnu")
    write_artifact(tmp_path / "out", replace(tiny.contents(), target=target))
    done = call("bench", tmp_path / "out", "--json")
    assert (done.status, done.ids) == (1, ["wrong-machine"])
    assert "give `--board rk3399` to have its costs modelled" in done.err
    assert call("bench", tmp_path / "out", "--board", "rk3399").status == 0


def test_what_is_no_artifact(tmp_path: Path, call: Call) -> None:
    done = call("bench", tmp_path, "--json")
    assert (done.status, done.ids) == (1, ["bad-artifact"])
