"""`run` and `eval` keep what was learned, and say what a guard and a server did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import PolicyEntry, write_artifact
from eecompile.guard_rule import GuardRule, GuardSetting
from eecompile.policies import ThresholdPolicy, to_json
from tests.cli.calls import Call
from tests.runtime import tiny

X = tiny.inputs(60)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    policy = to_json(ThresholdPolicy("max_softmax", [float("inf"), 0.0]))
    rule = GuardRule(0.98, 0.05, (GuardSetting(policy, 0.0, (0.0, 1.0, 0.0)),))
    policies = {
        "watched": PolicyEntry(policy, guard=rule.to_json()),
        "plain": PolicyEntry(policy),
    }
    source = 'eecompile 1\nmodel tiny { source onnx "tiny.onnx" }\ndata d { test "test.npz" }\n'
    contents = tiny.contents(
        policies=policies, default_policy="watched", source_text=source, normalizations={}
    )
    write_artifact(tmp_path / "out", contents)
    np.save(tmp_path / "x.npy", X)
    labels = tiny.reference(X)["logits"].argmax(axis=1)
    np.savez(tmp_path / "test.npz", images=X, labels=labels)
    return tmp_path / "out"


def test_run_goes_on_from_its_state_and_shows_the_guard(call: Call, artifact: Path) -> None:
    state = artifact.parent / "state.json"
    command = ("run", artifact, "--input", artifact.parent / "x.npy", "--state", state)
    done = call(*command, "--json")
    assert done.status == 0, done.err
    audited = [answer["audited"] for answer in done.json["answers"]]
    assert done.json["guard"]["audits"] == sum(audited) > 0
    assert done.json["guard"]["samples"] == len(X) and done.json["offload"] is None
    assert not any(answer["offloaded"] for answer in done.json["answers"])
    again = call(*command)
    assert "audits differed from full depth" in again.out and "final (audited)" in again.out
    assert json.loads(state.read_text())["guard"]["counts"][0] == 2 * len(X)


def test_eval_learns_nothing_from_warming_up(call: Call, artifact: Path) -> None:
    state, data = artifact.parent / "state.json", artifact.parent / "test.npz"
    command = ("eval", artifact, "--data", data, "--state", state)
    found: Any = call(*command, "--json").json
    assert found["guard"]["samples"] == len(X)
    assert found["guard"]["audits"] == round(found["audited_fraction"] * len(X))
    assert found["offloaded_fraction"] == 0 and found["offload"] is None
    assert 0 < found["differing_fraction"] == pytest.approx(1 - found["accuracy"])
    again = call(*command)
    assert again.status == 0 and f" of {len(X)}" not in again.err
    assert json.loads(state.read_text())["guard"]["counts"][0] == 2 * len(X)
    plain = call("eval", artifact, "--data", data, "--policy", "plain", "--json").json
    assert plain["guard"] is None and plain["audited_fraction"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--full-depth", "--state", "s.json"), "with `--full-depth` nothing is"),
        (("run", "--endpoint", "http://edge:8000"), "`watched` offloads nothing"),
        (("eval", "--endpoint", "http://edge:8000"), "`watched` offloads nothing"),
        (("eval", "--board", "raspberry-pi-4", "--state", "s.json"), "`--state` is for this"),
    ],
)
def test_states_and_endpoints_without_use_are_refused(
    call: Call, artifact: Path, arguments: tuple[str, ...], words: str
) -> None:
    verb, *rest = arguments
    given = ("--input", artifact.parent / "x.npy") if verb == "run" else (
        "--data", artifact.parent / "test.npz",
    )  # fmt: skip
    done = call(verb, artifact, *given, *rest)
    assert done.status == 1 and words in done.err


@pytest.mark.parametrize("verb", ["run", "eval"])
def test_where_no_state_can_be_written_nothing_runs(call: Call, artifact: Path, verb: str) -> None:
    data = ("--input", "x.npy") if verb == "run" else ("--data", "test.npz")
    given = (data[0], artifact.parent / data[1], "--state", artifact.parent / "no" / "s.json")
    done = call(verb, artifact, *given)
    assert done.status == 1 and "there is no folder" in done.err and done.out == ""


def test_one_answer_shows_the_guard_too(call: Call, artifact: Path) -> None:
    np.save(artifact.parent / "one.npy", X[:1])
    done = call("run", artifact, "--input", artifact.parent / "one.npy", "--json")
    assert done.json["guard"]["samples"] == 1 and done.json["offload"] is None


def test_a_foreign_state_is_refused_before_anything_runs(call: Call, artifact: Path) -> None:
    state = artifact.parent / "state.json"
    state.write_text("{}")
    command = ("run", artifact, "--input", artifact.parent / "x.npy", "--state", state, "--json")
    done = call(*command)
    assert (done.status, done.ids) == (1, ["bad-state"])
    assert state.read_text() == "{}"
