"""A session that splits, sample by sample, against the replay of what its exits compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import Artifact, PolicyEntry, read_artifact, write_artifact
from eecompile.offload_rule import OffloadRule, Tail, WireTensor
from eecompile.policies import (
    ExitOutputs,
    SplitCosts,
    SplitPolicy,
    UcbOptions,
    from_json,
    replay_stream,
    to_json,
)
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from eecompile.runtime.vectors import make_vectors, shown_values, verify_artifact
from tests.runtime import tiny
from tests.runtime.learning import Rest

X = tiny.inputs(150, seed=1)
COSTS = SplitCosts((0.25, 0.5, 1.0), (0.02, 0.03), price=0.3)


def policy(observations: str, score: str = "max_softmax") -> SplitPolicy:
    options = UcbOptions(observations, "impute", 0.99, 0.3)  # type: ignore[arg-type]
    exits = (1,) if score == "class_means" else (0, 1)
    return SplitPolicy(score, (0.6, 0.5), exits, COSTS, options)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    write_artifact(tmp_path / "out", tiny.contents())
    return read_artifact(tmp_path / "out")


def recorded() -> tuple[list[ExitOutputs], np.ndarray]:
    values = tiny.reference(X)
    late = ExitOutputs(values["late.logits"], values["late.class_means"])
    return [ExitOutputs(values["early.logits"]), late], values["logits"]


@pytest.mark.parametrize("score", ["max_softmax", "margin", "class_means"])
@pytest.mark.parametrize("observations", ["own", "side"])
@pytest.mark.parametrize("down", [False, True])
def test_a_session_does_what_its_replay_does(
    artifact: Artifact, observations: str, score: str, down: bool
) -> None:
    live, kept = policy(observations, score), policy(observations, score)
    net = Session(artifact, live, server=Rest(down=down))
    exits, final = recorded()
    replayed = replay_stream(kept, exits, final, answered=0.0 if down else 1.0)
    answers = [net.run(x) for x in X]
    names = net.exit_names
    assert [names.index(answer.exit) for answer in answers] == replayed.exit.tolist()
    assert [answer.offloaded for answer in answers] == replayed.offloaded.tolist()
    heads = [exit_.functions for exit_ in tiny.network().exits]
    ran = [sum(len(heads[k]) for k in np.flatnonzero(row)) for row in replayed.evaluated]
    assert [answer.heads_run for answer in answers] == ran
    np.testing.assert_array_equal([answer.logits for answer in answers], replayed.logits)
    assert live.memory() == kept.memory()
    assert replayed.sent.any() and not replayed.sent.all()


def test_a_batch_learns_as_its_samples_one_by_one(artifact: Artifact) -> None:
    one, many = policy("side"), policy("side")
    alone = Session(artifact, one, server=Rest())
    for x in X:
        alone.run(x)
    batch = Session(artifact, many, server=Rest()).run_batch(X)
    assert one.memory() == many.memory()
    assert batch.exits.tolist() == replay_stream(policy("side"), *recorded()).exit.tolist()


def stored(folder: Path) -> Session:
    """Of a policy in an artifact, as first opened."""
    logits = WireTensor("logits", "logits", (1, 3), "float32")
    tails = {k: Tail(name, f"tiny-{k}", "1", (logits,), logits) for k, name in enumerate("ab")}
    rule = OffloadRule(("http://localhost:1",), "float32", 0.2, 1, tails).to_json()
    entries = {"split": PolicyEntry(to_json(policy("side")), offload=rule)}
    graph, x = tiny.network(), tiny.inputs(16)
    runner = Runner.of(Library(tiny.machine_code(), tiny.WEIGHTS), graph)
    values = runner.run_all(x, shown_values(graph))
    source = {"logits": tiny.reference(x)["logits"]}
    vectors = make_vectors(graph, {"x": x}, values, source, {"split": policy("side")})
    made = tiny.contents(policies=entries, default_policy="split", vectors=vectors)
    write_artifact(folder, made)
    return Session(read_artifact(folder), "split", server=Rest())


def test_an_artifact_that_splits_verifies_without_a_server(tmp_path: Path) -> None:
    stored(tmp_path / "out")
    found = verify_artifact(tmp_path / "out")
    assert found.ok and found.exits_agree
    expected = read_artifact(tmp_path / "out").vectors()["exits.split"]
    assert {0, 1} <= set(expected.tolist()), "samples leave, at splits that change"


def test_what_was_learned_outlives_the_session(tmp_path: Path) -> None:
    state, half = tmp_path / "state.json", len(X) // 2
    wanted = stored(tmp_path / "out").run_batch(X).exits.tolist()
    before, after = stored(tmp_path / "out"), stored(tmp_path / "out")
    exits = before.run_batch(X[:half]).exits.tolist()
    before.save_state(state)
    after.load_state(state)
    exits += after.run_batch(X[half:]).exits.tolist()
    assert exits == wanted
    forgetful = stored(tmp_path / "out").run_batch(X[half:]).exits.tolist()
    assert forgetful != wanted[half:]


def test_a_stored_policy_is_one_that_has_learned_nothing() -> None:
    made = policy("own")
    replay_stream(made, *recorded())
    again = from_json(to_json(made))
    assert again.memory() == policy("own").memory() != made.memory()
