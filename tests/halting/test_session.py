"""Sessions that halt: exact by multiply-accumulates, calls counted, cancelled from anywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eecompile as ee
from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.clock_rule import ClockRule
from eecompile.compiled import Function
from eecompile.cost_table import Cost, CostTable
from eecompile.diagnostics import CompileErrors
from eecompile.halt_rule import HaltRule
from eecompile.policies import (
    ExitOutputs,
    ExitPolicy,
    HaltedPolicy,
    NeverPolicy,
    PatiencePolicy,
    ThresholdPolicy,
    replay,
    to_json,
)
from eecompile.runtime.library import Code
from eecompile.runtime.session import Session
from tests.runtime import tiny

INF = float("inf")
FULL = 100101  #: multiply-accumulates of the tiny network, without heads
SEGMENTS, HEADS = (1, 100, 100000), (10, 11000)
NEVER = NeverPolicy(2)


def written(folder: Path, **changes: Any) -> Path:
    write_artifact(folder / "out", tiny.contents(**changes))
    return folder / "out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Session:
    return ee.load(folder)


def counted(folder: Path, policy: ExitPolicy | None = None) -> tuple[Session, tiny.CountingLibrary]:
    library = tiny.CountingLibrary()
    net = Session(read_artifact(folder), NEVER, library=library)
    net.set_policy(policy)
    return net, library


@pytest.mark.parametrize(
    ("macs", "ran", "exit_"),
    [
        (11, ["segment_0", "head_0"], "early"),
        (11100, ["segment_0", "head_0"], "early"),
        (11101, ["segment_0", "segment_1", "head_1", "comparator_1"], "late"),
        (FULL - 1, ["segment_0", "segment_1", "head_1", "comparator_1"], "late"),
        (FULL, ["segment_0", "segment_1", "segment_2"], "final"),
    ],
)
@pytest.mark.parametrize("policy", [NEVER, None], ids=["never", "none"])
def test_the_deepest_exit_that_is_afforded_answers_and_no_other_head_runs(
    folder: Path, policy: ExitPolicy | None, macs: int, ran: list[str], exit_: str
) -> None:
    net, library = counted(folder, policy)
    answer = net.run(tiny.inputs(1), budget_macs=macs / FULL)
    assert [name for name, _ in library.calls] == ran
    assert (answer.exit, answer.halted, answer.cancelled) == (exit_, exit_ != "final", False)
    assert answer.macs <= macs
    assert answer.segments_run == sum(name.startswith("segment") for name in ran)
    expected = tiny.reference(tiny.inputs(1))
    names = {"early": "early.logits", "late": "late.logits", "final": "logits"}
    np.testing.assert_array_equal(answer.logits, expected[names[exit_]][0])
    assert net.run(tiny.inputs(1)).exit == "final"  # It was a limit of that call.


def test_heads_that_the_policy_wants_count(folder: Path) -> None:
    never_sure = ThresholdPolicy("max_softmax", [2.0, INF])
    net, library = counted(folder, never_sure)
    assert net.run(tiny.inputs(1), budget_macs=FULL / FULL).exit == "late"
    ran = ["segment_0", "head_0", "segment_1", "head_1", "comparator_1"]
    assert [name for name, _ in library.calls] == ran
    assert net.run(tiny.inputs(1), budget_macs=(FULL + 10) / FULL).exit == "final"


def outputs_of(x: np.ndarray) -> tuple[list[ExitOutputs], np.ndarray]:
    known = tiny.reference(x)
    late = ExitOutputs(known["late.logits"], known["late.class_means"])
    return [ExitOutputs(known["early.logits"]), late], known["logits"]


POLICIES = [
    NEVER,
    ThresholdPolicy("max_softmax", [0.6, 0.5]),
    ThresholdPolicy("entropy", [INF, 0.3]),
    PatiencePolicy(1, 2),
]


@settings(deadline=None, max_examples=20)
@given(macs=st.integers(11, 120_000), seed=st.integers(0, 100))
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.kind}")
def test_samples_batches_and_replay_agree(
    opened: Session, policy: ExitPolicy, macs: int, seed: int
) -> None:
    x, net = tiny.inputs(12, seed), opened
    net.set_policy(policy)
    net.set_halt({"macs": macs / FULL})
    singles = [net.run(sample) for sample in x]
    batch = net.run_batch(x)
    outputs, final = outputs_of(x)
    assert net._how is not None and net._how.halt is not None
    found = replay(HaltedPolicy(policy, net._how.halt.limits), outputs, final)
    assert batch.exits.tolist() == found.exit.tolist()
    assert batch.halted.tolist() == found.halted.tolist()
    assert [net.exit_names.index(answer.exit) for answer in singles] == found.exit.tolist()
    assert [answer.halted for answer in singles] == found.halted.tolist()
    spent = np.cumsum(SEGMENTS)[found.exit] + found.evaluated @ np.array(HEADS)
    assert [answer.macs for answer in singles] == batch.macs.tolist() == spent.tolist()
    assert batch.macs.max() <= macs
    np.testing.assert_array_equal(batch.logits, [answer.logits for answer in singles])
    assert batch.heads_run.tolist() == [answer.heads_run for answer in singles]


def with_energies(graph: Any = None) -> CostTable:
    table = tiny.costs(tiny.network())
    costs = iter([1.0, 10.0, 100.0, 1.0, 50.0])

    def row(found: Any) -> Any:
        return replace(found, costs=(Cost(1e-3, next(costs), "measured", "modelled"),))

    return replace(
        table, segments=tuple(map(row, table.segments)), exits=tuple(map(row, table.exits))
    )


@pytest.mark.parametrize(
    ("joules", "exit_"),
    [(2.0, "early"), (60.9, "early"), (61.0, "late"), (110.0, "late"), (111.0, "final")],
)
def test_energy_is_the_tables(tmp_path: Path, joules: float, exit_: str) -> None:
    net = ee.load(written(tmp_path, costs=with_energies()), NEVER)
    assert net.run(tiny.inputs(1), budget_j=joules).exit == exit_
    net.set_halt({"energy": joules})
    assert set(net.run_batch(tiny.inputs(5)).exits) == {net.exit_names.index(exit_)}
    # Of two limits both are kept.
    assert net.run(tiny.inputs(1), budget_macs=11 / FULL).exit == "early"
    assert net.run(tiny.inputs(1), budget_macs=1.0).exit == exit_


class Slow(tiny.CountingLibrary):
    """Does something before a function runs."""

    def __init__(self, symbol: str, what: Callable[[], object]) -> None:
        super().__init__()
        self._symbol, self._what = symbol, what

    def function(self, function: Function) -> Code:
        code = super().function(function)

        def slowed(*arguments: Any) -> int:
            if function.symbol == self._symbol:
                self._what()
            return code(*arguments)

        return tiny.CODE(slowed)


def test_time_that_is_lost_on_the_way_is_noticed(folder: Path) -> None:
    library = Slow("segment_1", lambda: time.sleep(1.0))
    net = Session(read_artifact(folder), NEVER, library=library)
    answer = net.run(tiny.inputs(1), budget_s=1.0)
    assert (answer.exit, answer.halted) == ("late", True)
    assert [name for name, _ in library.calls][-1] == "comparator_1"
    assert net.run(tiny.inputs(1), budget_s=100.0).exit == "final"


def test_time_before_the_first_segment_counts(tmp_path: Path) -> None:
    table = tiny.costs(tiny.network(), 0.1)  # Every piece takes 100 ms, or so it says.
    net = ee.load(written(tmp_path, costs=table), NEVER)
    # Early 0.2 s, late 0.3 s, final 0.3 s: all that is reserved beyond is the margin.
    assert net.run(tiny.inputs(1), budget_s=0.2001).exit == "early"
    assert net.run(tiny.inputs(1), budget_s=0.5).exit == "final"
    batch = net.clone()
    batch.set_halt({"latency": 0.2001})
    answers = batch.run_batch(tiny.inputs(3))
    assert answers.exits.tolist() == [0, 0, 0]
    assert answers.halted.all()


@pytest.mark.parametrize(
    ("budget", "id_", "words"),
    [
        ({"budget_macs": 10 / FULL}, "infeasible-budget", "exit `early` with 0.0109889 %"),
        ({"budget_s": 1e-3}, "infeasible-budget", "with 2 ms on `host`, measured"),
        ({"budget_j": 1e-3}, "unknown-costs", "halt by one of these: `macs`, `latency`"),
        ({"budget_macs": -0.5}, "bad-argument", "above 0"),
        ({"budget_s": float("nan")}, "bad-argument", "above 0"),
        ({"budget_s": INF}, "bad-argument", "finite"),
        ({"budget_macs": 60}, "bad-argument", "60 % is 0.6"),
        ({"budget_s": "1 ms"}, "bad-argument", "number"),
    ],
)
def test_what_no_answer_keeps_is_refused(
    folder: Path, budget: dict[str, Any], id_: str, words: str
) -> None:
    net, library = counted(folder, NEVER)
    with pytest.raises(CompileErrors) as raised:
        net.run(tiny.inputs(1), **budget)
    (found,) = raised.value.diagnostics
    assert found.id == id_
    assert words in found.full()
    assert not library.calls


@pytest.mark.parametrize(
    "limits",
    [
        *({}, {"accuracy_drop": 0.1}, {"mac": 0.5}, "50 %", {"macs": True}, {"macs": 1e-9}),
        *({"macs": 10**400}, {"latency": 10**400}),
    ],
    ids=lambda limits: str(limits)[:30],
)
def test_what_is_no_limit_is_refused_and_changes_nothing(folder: Path, limits: Any) -> None:
    net = ee.load(folder, halt={"macs": 0.5})
    with pytest.raises(CompileErrors):
        net.set_halt(limits)
    assert net.halt == HaltRule(macs=0.5)


def test_without_costs_only_macs_are_known(tmp_path: Path) -> None:
    net = ee.load(written(tmp_path, costs=None), NEVER, halt={"macs": 0.5})
    assert net.run(tiny.inputs(1)).exit == "late"
    with pytest.raises(CompileErrors, match="not known on an artifact without costs"):
        net.set_halt({"latency": 1.0})


def test_a_stored_policy_halts_until_told_otherwise(tmp_path: Path) -> None:
    entry = PolicyEntry(to_json(NEVER), halt=HaltRule(macs=0.5).to_json())
    net = ee.load(written(tmp_path, policies={"hard": entry}, default_policy="hard"))
    assert (net.policy, net.halt, net.run(tiny.inputs(1)).exit) == (
        *("hard", HaltRule(macs=0.5)),
        "late",
    )
    net.set_halt({"macs": 0.05})
    assert net.run(tiny.inputs(1)).exit == net.clone().run(tiny.inputs(1)).exit == "early"
    assert net.clone().halt == HaltRule(macs=0.05)
    # The policy's own limit holds beside that of the call, whichever is smaller.
    assert net.run(tiny.inputs(1), budget_macs=0.5).exit == "early"
    net.set_halt(None)
    assert net.run(tiny.inputs(1)).exit == "final"
    net.set_policy("hard")
    assert net.run(tiny.inputs(1), budget_macs=0.05).exit == "early"
    assert net.run(tiny.inputs(1)).exit == "late"
    net.set_policy(None)
    assert net.halt is None
    net.set_halt({"macs": 0.5})
    assert (net.policy, net.run(tiny.inputs(1)).exit) == (None, "late")
    net.set_halt(None)
    assert net._how is None


def test_a_stored_rule_that_cannot_be_is_refused(tmp_path: Path) -> None:
    rule = HaltRule(macs=0.5).to_json()
    clock = ClockRule("unchanged", 1.0).to_json()
    for entry in (
        PolicyEntry(to_json(NEVER), halt={**rule, "macs": -1.0}),
        PolicyEntry(to_json(NEVER), halt=rule, clock=clock),
    ):
        path = written(tmp_path, policies={"hard": entry}, default_policy="hard", plan=b"none")
        with pytest.raises(CompileErrors, match="`hard` cannot be used"):
            ee.load(path)


def test_deadlines_and_halts_do_not_meet(tmp_path: Path) -> None:
    clock = ClockRule("unchanged", 1.0).to_json()
    entry = PolicyEntry(to_json(NEVER), clock=clock)
    net = ee.load(written(tmp_path, policies={"timely": entry}, default_policy="timely"))
    with pytest.raises(CompileErrors, match="chooses clocks or has a deadline"):
        net.run(tiny.inputs(1), budget_macs=0.5)


def in_another_thread(net: Session) -> None:
    thread = threading.Thread(target=net.cancel)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("where", "policy", "ran"),
    [
        # None was computed: the next exit answers.
        ("segment_0", NEVER, ["segment_0", "head_0"]),
        ("segment_0", None, ["segment_0", "head_0"]),
        ("segment_1", None, ["segment_0", "segment_1", "head_1", "comparator_1"]),
        ("segment_0", ThresholdPolicy("entropy", [INF, 2.0]), ["segment_0", "head_0"]),
        # One was: it answers.
        (
            "segment_1",
            ThresholdPolicy("max_softmax", [2.0, INF]),
            ["segment_0", "head_0", "segment_1"],
        ),
        # There is nothing left to save.
        ("segment_2", NEVER, ["segment_0", "segment_1", "segment_2"]),
    ],
)
@pytest.mark.parametrize("budget", [None, 2.0], ids=["no-budget", "budget"])
def test_a_cancelled_call_answers_with_the_deepest_exit_it_has(
    folder: Path, where: str, policy: ExitPolicy | None, ran: list[str], budget: float | None
) -> None:
    library = Slow(where, lambda: in_another_thread(net))
    net = Session(read_artifact(folder), NEVER, library=library)
    net.set_policy(policy)
    x = tiny.inputs(1)
    answer = net.run(x, budget_macs=budget)
    assert [name for name, _ in library.calls] == ran
    heads = [int(name[-1]) for name in ran if name.startswith("head")]
    last = "segment_2" in ran
    index = 2 if last else heads[-1]
    assert answer.exit == net.exit_names[index]
    assert (answer.cancelled, answer.halted) == (not last, False)
    expected = tiny.reference(x)
    names = ("early.logits", "late.logits", "logits")
    np.testing.assert_array_equal(answer.logits, expected[names[index]][0])
    assert answer.macs == sum(10 ** tiny.NAMES.index(name) for name in ran)


class Cancelling(ThresholdPolicy):
    """Cancels the call that it decides on, as a signal between two statements would."""

    def __init__(self) -> None:
        super().__init__("max_softmax", [2.0, 2.0])
        self.net: Session | None = None

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        if self.net is not None:
            assert self.net.cancel()
        return super().decide(index, outputs, state)


@pytest.mark.parametrize("budget", [None, 2.0], ids=["no-budget", "budget"])
def test_a_decision_that_is_cancelled_is_the_last(folder: Path, budget: float | None) -> None:
    policy = Cancelling()
    net, library = counted(folder, policy)
    policy.net = net
    answer = net.run(tiny.inputs(1), budget_macs=budget)
    assert (answer.exit, answer.cancelled) == ("early", True)
    assert "segment_2" not in {name for name, _ in library.calls}


def test_only_the_call_under_way_is_cancelled(folder: Path) -> None:
    net, _ = counted(folder, NEVER)
    assert not net.cancel()
    assert net.run(tiny.inputs(1)).exit == "final"
    assert not net.cancel()
    # A word of a call that has ended is nobody's.
    library = Slow("segment_0", lambda: words.append(net._stop))
    words: list[Any] = []
    net = Session(read_artifact(folder), NEVER, library=library)
    net.run(tiny.inputs(1))
    words[0].set()
    assert not net.run(tiny.inputs(1)).cancelled
