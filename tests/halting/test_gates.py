"""Limits where gates decide: what they leave out may be spent on going deeper."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact, write_artifact
from eecompile.halt_rule import HaltRule
from eecompile.halted_gates import GatedSteps, replay_halted
from eecompile.policies import ExitOutputs, NeverPolicy
from eecompile.runtime.piece_costs import PieceCosts
from eecompile.runtime.session import Session
from tests.runtime import gated

NEVER = NeverPolicy(1)
FULL = gated.network().macs
HEAD, GATE, PLUS, TIMES, END = 1000, 10_000, 100_000, 1_000_000, 10_000_000
X = gated.inputs(200)
KNOWN = gated.reference(X)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gated") / "out"
    write_artifact(path, gated.contents())
    return path


def expected(limit: int) -> tuple[list[str], list[int], list[bool]]:
    """Where each sample leaves within a limit, what it has spent then, whether it was halted."""
    rows = [way(limit, row) for row in range(len(X))]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def replayed(limit: int) -> tuple[list[str], list[int], list[bool]]:
    """The same from a record."""
    network = gated.network()
    pieces = PieceCosts(network, None)
    needs = pieces.step_needs(timed=False)
    assert needs is not None
    shares = {name: KNOWN[name] > 0 for name in ("keep_0", "keep_1")}
    shares["groups"] = (KNOWN["groups"] > 0).mean(axis=1, keepdims=True)
    steps = GatedSteps.of(network, needs.costs.tolist(), shares, len(X))
    (one,) = pieces.limits(HaltRule(macs=limit / FULL))
    outputs = [ExitOutputs(KNOWN["early.logits"])]
    found, spent = replay_halted(NEVER, one, steps, outputs, KNOWN["logits"])
    for exit_, answer, early, final in zip(
        found.exit, found.logits, KNOWN["early.logits"], KNOWN["logits"], strict=True
    ):
        np.testing.assert_array_equal(answer, final if exit_ else early)
    names = [("early", "final")[exit_] for exit_ in found.exit]
    return names, np.rint(spent).astype(int).tolist(), found.halted.tolist()


def way(limit: int, row: int) -> tuple[str, int, bool]:
    """Of one sample, step by step."""
    first, whole = KNOWN["macs"][row].tolist()
    if first + GATE + PLUS + TIMES + END <= limit:
        return "final", whole, False
    spent, keeps = first + HEAD, KNOWN["keep_1"][row, 0] > 0
    off = gated.GROUP * int((KNOWN["groups"][row] <= 0).sum())
    # What a step takes at most, what it takes, and what must follow it.
    for most, takes, follows in (
        (GATE, GATE, END),
        (keeps * PLUS, keeps * PLUS, END),
        (keeps * TIMES, keeps * (TIMES - off), keeps * END),
        (END, END, 0),
    ):
        if most and spent + most + follows > limit:
            return "early", spent, True
        spent += takes
    return "final", spent, False


LIMITS = [
    *(1111, 5000, 10_011_010, 10_011_011, 10_011_111, 10_500_000),
    *(11_111_011, 11_111_110, 11_110_111, 11_112_000),
]


@pytest.mark.parametrize("limit", LIMITS)
def test_what_gates_leave_out_lets_samples_go_deeper_and_none_spends_more(
    folder: Path, limit: int
) -> None:
    net = ee.load(folder, NEVER)
    net.set_halt({"macs": limit / FULL})
    answers = [net.run(x) for x in X]
    assert max(answer.macs for answer in answers) <= limit
    exits, spent, halted = expected(limit)
    assert [answer.exit for answer in answers] == exits
    assert [answer.macs for answer in answers] == spent
    assert [answer.halted for answer in answers] == halted
    for row, answer in enumerate(answers):
        name = "early.logits" if answer.exit == "early" else "logits"
        np.testing.assert_array_equal(answer.logits, KNOWN[name][row])
    assert replayed(limit) == (exits, spent, halted)
    batch = net.run_batch(X)
    assert batch.macs.tolist() == spent
    assert [net.exit_names[index] for index in batch.exits] == exits


def test_limits_are_of_one_call(folder: Path) -> None:
    net = ee.load(folder, NEVER)
    for x, (_, whole) in zip(X[:50], KNOWN["macs"].tolist(), strict=False):
        net.run(x, budget_macs=10_011_111 / FULL)
        assert net.run(x).macs == whole
        assert net.full_depth(x).exit == "final"


@pytest.mark.parametrize("given", ["call", "session", "clone"])
def test_with_decisions_off_only_exits_serve_to_keep_a_budget(folder: Path, given: str) -> None:
    net = ee.load(folder)
    net.set_policy(None)
    known = gated.reference(X, None)
    most, whole = (int(known["macs"][0, k]) for k in (0, 1))
    for macs in (most + HEAD, whole - 1, whole, FULL):
        limit: dict[str, Any] = {"budget_macs": macs / FULL} if given == "call" else {}
        if given != "call":
            net.set_halt({"macs": macs / FULL})
        asked = net.clone() if given == "clone" else net
        gated.calls(net.library)
        answers = [asked.run(x, **limit) for x in X[:20]]
        called = gated.calls(net.library)
        assert (called["gate_0"], called["gate_1"]) == (0, 0)
        final = macs >= whole
        assert {answer.exit for answer in answers} == {"final" if final else "early"}
        assert {answer.macs for answer in answers} == {whole if final else most + HEAD}
        name = "logits" if final else "early.logits"
        np.testing.assert_array_equal([a.logits for a in answers], known[name][:20])
        batch = asked.run_batch(X[:20]) if given != "call" else None
        assert batch is None or batch.macs.tolist() == [answer.macs for answer in answers]
    net.set_halt(None)
    assert net.halt is None
    assert net.run(X[0]).exit == "final"
    assert gated.calls(net.library)["gate_0"] == 0


def test_between_steps_a_call_is_cancelled_where_there_is_an_answer(folder: Path) -> None:
    # The decision is made with an answer in hand; the next segment begins no step.
    net = Session(read_artifact(folder))
    policy = Cancelling(net)
    net.set_policy(policy)
    gated.calls(net.library)
    answer = net.run(X[0])
    assert (answer.exit, answer.cancelled) == ("early", True)
    called = gated.calls(net.library)
    assert called["head"] == 1
    assert not any(called[name] for name in ("gate_1", "plus", "times", "end"))
    np.testing.assert_array_equal(answer.logits, KNOWN["early.logits"][0])
    policy.net = None
    assert net.run(X[0]).exit == "final"


class Cancelling(NeverPolicy):
    """Asks its only exit, and cancels the call while it does, in another thread."""

    def __init__(self, net: Session) -> None:
        super().__init__(1)
        self.net: Session | None = net

    def first(self) -> int:
        return 0

    def decide(self, index: int, outputs: Any, state: Any) -> np.ndarray:
        if self.net is not None:
            thread = threading.Thread(target=self.net.cancel)
            thread.start()
            thread.join()
        return super().decide(index, outputs, state)
