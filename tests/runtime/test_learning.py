"""What a policy learns while a session answers: kept, shared, forgotten, and never mixed up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.policies import to_json
from eecompile.policies.base import EXIT, ExitOutputs
from eecompile.runtime.session import Session, load
from tests.runtime import tiny
from tests.runtime.learning import Sending

X = tiny.inputs(12)


class Counting(Sending):
    """Leaves at the first exit, and counts the samples."""

    kind = "counting"

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        return np.full(len(outputs.logits), EXIT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policies = {
        "counting": PolicyEntry(to_json(Counting(0))),
        "other": PolicyEntry(to_json(Counting(1))),
    }
    contents = tiny.contents(policies=policies, default_policy="counting")
    write_artifact(tmp_path / "out", contents)
    return tmp_path / "out"


def policy(net: Session) -> Any:
    assert net._how is not None
    return net._how.policy


def test_nothing_is_learned_from_being_loaded(folder: Path) -> None:
    net = load(folder)
    assert policy(net).learned == 0
    net.run(X[0])
    net.run_batch(X)
    net.full_depth_batch(X)
    assert policy(net).learned == 1 + len(X)


def test_a_state_outlives_the_session(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    net = load(folder, state=path)
    assert policy(net).learned == 0, "there is no state yet"
    net.run_batch(X)
    net.save_state(path)
    again = load(folder, state=path)
    assert policy(again).learned == len(X)
    again.save_state(tmp_path / "same.json")
    assert (tmp_path / "same.json").read_bytes() == path.read_bytes()
    again.reset_state()
    assert policy(again).learned == 0
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == ["state.json"]


def changed(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifact": "0" * 64}, "was learned with another artifact"),
        ({"policy": "other"}, "was learned by another policy: `other`, not `counting`"),
        ({"policy": None}, "another policy: one of the caller's, not `counting`"),
        ({"memory": {"learned": "many"}}, "it is of another policy"),
        ({"memory": []}, "`memory` must be an object"),
        ({"guard": {}}, "must both have a guard, or neither"),
        ({"version": 7}, "it is of version 7, this reads 1"),
        ({"format": "x"}, "`format` must be eecompile-state"),
        ({"more": 1}, "`more` is no field"),
    ],
)
def test_foreign_and_damaged_states_change_nothing(
    folder: Path, tmp_path: Path, changes: Mapping[str, Any], words: str
) -> None:
    path, net = tmp_path / "state.json", load(folder)
    net.run_batch(X)
    net.save_state(path)
    changed(path, changes)
    net.run(X[0])
    with pytest.raises(CompileErrors) as failure:
        net.load_state(path)
    (found,) = failure.value.diagnostics
    assert found.id == "bad-state" and words in found.message
    assert policy(net).learned == len(X) + 1


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]"])
def test_files_that_are_no_state_are_refused(folder: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(CompileErrors) as failure:
        load(folder, state=path)
    assert failure.value.diagnostics[0].id == "bad-state"
    with pytest.raises(CompileErrors, match="is a directory"):
        load(folder, state=tmp_path)


def test_without_decisions_there_is_nothing_to_keep(folder: Path, tmp_path: Path) -> None:
    net = load(folder)
    net.set_policy(None)
    for call in (net.save_state, net.load_state):
        with pytest.raises(CompileErrors, match="Decisions are off"):
            call(tmp_path / "state.json")


def test_a_state_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileErrors) as failure:
        load(folder).save_state(tmp_path / "missing" / "state.json")
    assert failure.value.diagnostics[0].id == "cannot-write"


def test_clones_teach_one_policy(folder: Path, tmp_path: Path) -> None:
    net = load(folder)
    nets = [net, *(net.clone() for _ in range(3))]
    with ThreadPoolExecutor(len(nets)) as pool:
        list(pool.map(lambda one: [one.run(x) for x in X], nets))
    assert {id(policy(one)) for one in nets} == {id(policy(net))}
    assert policy(net).learned == len(nets) * len(X)
    nets[1].set_policy("counting")
    nets[1].run(X[0])
    assert (policy(nets[1]).learned, policy(net).learned) == (1, len(nets) * len(X))


def test_a_policy_of_ones_own_keeps_its_state_too(folder: Path, tmp_path: Path) -> None:
    mine, path = Counting(1), tmp_path / "state.json"
    net = Session(read_artifact(folder), mine)
    net.run_batch(X)
    net.save_state(path)
    assert json.loads(path.read_text())["policy"] is None
    other = Counting(1)
    Session(read_artifact(folder), other).load_state(path)
    assert other.learned == mine.learned == len(X)
