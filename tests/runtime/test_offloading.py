"""Samples that are offloaded: computed once, here or elsewhere, and answered whatever happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import Artifact, PolicyEntry, read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.memory import border_values
from eecompile.policies import to_json
from eecompile.runtime.session import Session, load
from tests.runtime import tiny
from tests.runtime.learning import Rest, Sending

X = tiny.inputs(40)
#: Samples that are sent when the first score of the early exit decides.
SENT = tiny.reference(X)["early.logits"][:, 0] <= 0


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    write_artifact(tmp_path / "out", tiny.contents())
    return read_artifact(tmp_path / "out")


def session(artifact: Artifact, server: Rest, at: int = 0) -> tuple[Session, tiny.CountingLibrary]:
    library = tiny.CountingLibrary()
    return Session(artifact, Sending(at), library=library, server=server), library


def test_what_crosses_the_border_is_what_later_segments_read() -> None:
    assert border_values(tiny.network()) == (("a", "b"), ("b", "c"), ())


@pytest.mark.parametrize(("at", "ran"), [(0, 1), (1, 2)])
def test_a_server_answers_and_no_further_segment_runs_here(
    artifact: Artifact, at: int, ran: int
) -> None:
    server = Rest()
    net, library = session(artifact, server, at)
    names = ["early.logits", "late.logits"]
    unsure = int(np.flatnonzero(tiny.reference(X)[names[at]][:, 0] <= 0)[0])
    answer = net.run(X[unsure])
    assert (answer.exit, answer.offloaded, answer.segments_run) == ("final", True, ran)
    assert (answer.audited, answer.outputs) == (False, {})
    np.testing.assert_array_equal(answer.logits, tiny.reference(X)["logits"][unsure])
    assert [name for name, _ in library.calls if name.startswith("segment")] == [
        f"segment_{k}" for k in range(ran)
    ]
    assert answer.macs == sum(10 ** tiny.NAMES.index(name) for name, _ in library.calls)
    assert server.asked == [(at, list(sorted(border_values(tiny.network())[at])))]
    assert net.offload_counts == {"answered": 1, "failed": 0}
    assert net.exit_counts == {"early": 0, "late": 0, "final": 1}


@pytest.mark.parametrize("at", [0, 1])
def test_where_nobody_answers_it_goes_on_here_and_no_segment_runs_twice(
    artifact: Artifact, at: int
) -> None:
    net, library = session(artifact, Rest(down=True), at)
    names = ["early.logits", "late.logits"]
    unsure = int(np.flatnonzero(tiny.reference(X)[names[at]][:, 0] <= 0)[0])
    answer = net.run(X[unsure])
    assert (answer.exit, answer.offloaded, answer.segments_run) == ("final", False, 3)
    np.testing.assert_array_equal(answer.logits, tiny.reference(X)["logits"][unsure])
    np.testing.assert_array_equal(answer.outputs["logits"][0], answer.logits)
    segments = [name for name, _ in library.calls if name.startswith("segment")]
    assert segments == ["segment_0", "segment_1", "segment_2"]
    assert net.offload_counts == {"answered": 0, "failed": 1}


def test_without_a_server_the_network_runs_to_its_end(artifact: Artifact) -> None:
    policy = Sending(0)
    net = Session(artifact, policy)
    answer = net.run(X[int(np.flatnonzero(SENT)[0])])
    assert (answer.exit, answer.offloaded, answer.segments_run) == ("final", False, 3)
    assert net.offload_counts == {} and net.offload_failure is None and net.connect()
    net.run(X[int(np.flatnonzero(~SENT)[0])])
    assert [here for _, _, here in policy.told] == [True, False], "the device did what was sent"


def test_the_policy_is_told_of_each_sample_once(artifact: Artifact) -> None:
    policy, server = Sending(0), Rest()
    net = Session(artifact, policy, server=server)
    values = tiny.reference(X)
    for x in X:
        net.run(x)
    server.down = True
    net.run(X[int(np.flatnonzero(SENT)[0])])
    net.full_depth(X[0])
    assert len(policy.told) == len(X) + 1
    for row, (state, final, here) in enumerate(policy.told[:-1]):
        np.testing.assert_array_equal(state["seen"][0], values["early.logits"][row])
        assert not here
        if SENT[row]:
            assert final is not None
            np.testing.assert_array_equal(final, values["logits"][row : row + 1])
        else:
            assert final is None
    assert policy.told[-1][2], "the server was asked in vain"


def test_a_batch_is_answered_one_by_one(artifact: Artifact) -> None:
    policy, server = Sending(0), Rest()
    net = Session(artifact, policy, server=server)
    batch = net.run_batch(X)
    np.testing.assert_array_equal(batch.offloaded, SENT)
    np.testing.assert_array_equal(batch.exits, np.where(SENT, 2, 0))
    np.testing.assert_array_equal(batch.segments_run, np.ones(len(X)))
    values = tiny.reference(X)
    expected = np.where(SENT[:, None], values["logits"], values["early.logits"])
    np.testing.assert_array_equal(batch.logits, expected)
    assert len(policy.told) == len(X)
    assert batch.exit_counts == net.exit_counts == {
        "early": int((~SENT).sum()), "late": 0, "final": int(SENT.sum()),
    }  # fmt: skip
    assert len(net.run_batch(X[:0])) == 0


def test_a_batch_of_a_wrong_shape_runs_nothing(artifact: Artifact) -> None:
    net, library = session(artifact, Rest())
    with pytest.raises(CompileErrors, match=r"Expected float32\[n, 4\]"):
        net.run_batch(np.zeros((2, 5), np.float32))
    assert library.calls == []


def test_connecting_and_closing_reach_the_server(artifact: Artifact) -> None:
    server = Rest()
    with Session(artifact, Sending(0), server=server) as net:
        assert server.connected == 0, "nothing is sent before it is needed"
        assert net.connect() and server.connected == 1
        server.down = True
        assert not net.connect()
    assert server.closed == 1


def test_endpoints_are_for_policies_that_offload(artifact: Artifact) -> None:
    with pytest.raises(CompileErrors, match="`fast` offloads nothing"):
        load(artifact.path, endpoint="http://edge:8000")


def test_a_stored_policy_that_offloads_needs_a_server(tmp_path: Path) -> None:
    entry = PolicyEntry(to_json(Sending(0)))
    write_artifact(tmp_path / "out", tiny.contents(policies={"p": entry}, default_policy="p"))
    with pytest.raises(CompileErrors, match="it offloads, and the artifact names no server"):
        load(tmp_path / "out")
