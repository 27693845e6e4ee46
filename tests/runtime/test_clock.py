"""A session runs each stretch at the clock the scheduler chose, exactly as a replay says."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.board import Cluster, DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.clocks.simulation import Simulation, simulate
from eecompile.compiled import Function
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.diagnostics import CompileErrors
from eecompile.policies import ExitOutputs, ExitPolicy, ThresholdPolicy, to_json
from eecompile.runtime.governor import ClockWarning, NoGovernor, RecordingGovernor
from eecompile.runtime.library import Code, Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.scheduler import Scheduler
from eecompile.runtime.session import Session
from eecompile.runtime.sysfs_governor import SysfsGovernor
from tests.governor.sysfs_tree import Kernel, Policy
from tests.runtime import tiny

SLOW, MIDDLE, FAST = (DvfsState("cpu", hz, v) for hz, v in ((1e9, 0.8), (2e9, 1.0), (4e9, 1.2)))
STATES = (SLOW, MIDDLE, FAST)
#: Cycles of each piece: those of the segments, then those of the exits' heads.
CYCLES = {"segments": (8e6, 12e6, 20e6), "exits": (1e6, 2e6)}
TRANSITION_S = 1e-4


def table() -> CostTable:
    """Latency is cycles / f, energy cycles x V^2."""
    graph = tiny.network()

    def row(name: str, work: Any, cycles: float) -> CostRow:
        costs = [
            Cost(cycles / s.frequency_hz, 1e-9 * cycles * s.voltage_v**2, "modelled", "modelled")
            for s in STATES
            if s.frequency_hz and s.voltage_v
        ]
        return CostRow(name, work, tuple(costs))

    segments = zip(graph.segments, CYCLES["segments"], strict=True)
    exits = zip(graph.exits, CYCLES["exits"], strict=True)
    return CostTable(
        "host",
        "host",
        None,
        1,
        STATES,
        tuple(row(f"segment{i}", part.work, cycles) for i, (part, cycles) in enumerate(segments)),
        tuple(row(part.name, part.work, cycles) for part, cycles in exits),
        {"cpu": TRANSITION_S},
    )


class Forecasting(ThresholdPolicy):
    """Forecasts the next exit that is evaluated."""

    kind = "forecasting"
    forecasts = True


class Timed(tiny.CountingLibrary):
    """Functions and changes of clock that take as long as the table says, on a clock of ours."""

    def __init__(self, costs: CostTable, governor: RecordingGovernor) -> None:
        super().__init__()
        self.now_s = 0.0
        self.governor, self.changes = governor, 0
        pieces = (*costs.segments, *costs.exits)
        symbols = ("segment_0", "segment_1", "segment_2", "head_0", "head_1")
        self.rows = dict(zip(symbols, pieces, strict=True))

    def function(self, function: Function) -> Code:
        code = super().function(function)

        def timed(frame: int, *arguments: Any) -> int:
            if function.symbol in self.rows:  # the comparator's time is in the head's
                at = STATES.index(self.governor.current or FAST)
                cost = self.rows[function.symbol].costs[at]
                assert cost is not None
                self.now_s += cost.latency_s
            return int(code(frame, *arguments))

        return tiny.CODE(timed)

    def perf_counter(self) -> float:
        changes = len(self.governor.asked)
        if changes > 1:  # the first sets what the machine begins with
            self.now_s += (changes - 1 - self.changes) * TRANSITION_S
            self.changes = changes - 1
        return self.now_s


def artifact(folder: Path, policy: ExitPolicy, rule: ClockRule) -> Path:
    entry = PolicyEntry(to_json(policy), clock=rule.to_json())
    contents = tiny.contents(policies={"p": entry}, default_policy="p", costs=table())
    write_artifact(folder / "out", contents)
    return folder / "out"


def outputs(x: np.ndarray) -> tuple[list[ExitOutputs], np.ndarray]:
    library = Library(tiny.machine_code(), tiny.WEIGHTS)
    names = ["early.logits", "late.logits", "late.class_means", "logits"]
    found = Runner.of(library, tiny.network()).run_all(x, names)
    seen = [
        ExitOutputs(found["early.logits"]),
        ExitOutputs(found["late.logits"], found["late.class_means"]),
    ]
    return seen, found["logits"]


#: Between them there are answers that come late, and answers that the deadline forces.
RULES = [
    ClockRule("lowest_energy", 0.0100),
    ClockRule("lowest_energy", 0.0105, safe=True),
    ClockRule("lowest_energy", 0.0080, hard=True),
    ClockRule("lowest_energy", 0.0300, safe=True),
    ClockRule("lowest_energy", 0.0200, start=2),
    ClockRule("lowest_latency"),
    ClockRule("race_to_idle", 0.0400),
    ClockRule("fixed", frequency_hz=2e9),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", [ThresholdPolicy, Forecasting])
def test_a_session_does_what_the_replay_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: ClockRule, kind: type[ThresholdPolicy]
) -> None:
    policy = kind("max_softmax", [0.6, 0.5])
    x = tiny.inputs(60, seed=4)
    governor = RecordingGovernor(STATES)
    library = Timed(table(), governor)
    monkeypatch.setattr("eecompile.runtime.single.perf_counter", library.perf_counter)
    folder = artifact(tmp_path, policy, rule)
    net = Session(read_artifact(folder), library=library, governor=governor)
    expected: Simulation = simulate(policy, *outputs(x), Scheduler(table(), rule))
    for k, sample in enumerate(x):
        answer = net.run(sample)
        assert answer.exit == net.exit_names[expected.exit[k]]
        np.testing.assert_array_equal(answer.logits, expected.logits[k])
        assert answer.latency_s == pytest.approx(expected.latency_s[k])
        assert answer.energy_j == pytest.approx(expected.energy_j[k])
        library.perf_counter()  # going to the clock it waits at is in no sample's time
    counts = net.clock_counts
    assert counts["transitions"] == expected.transitions.sum() == len(governor.asked) - 1
    assert counts["late"] == expected.missed.sum()
    assert counts["forced"] == expected.forced.sum()
    assert expected.evaluated.any(), "heads are computed in this test"


def test_deadlines_are_missed_or_force_answers_in_these_cases() -> None:
    policy, seen = Forecasting("max_softmax", [0.6, 0.5]), outputs(tiny.inputs(60, seed=4))
    found = [simulate(policy, *seen, Scheduler(table(), rule)) for rule in RULES]
    assert any(each.missed.any() for each in found)
    assert any(each.forced.any() for each in found)


def test_leaving_a_session_puts_clocks_back(tmp_path: Path) -> None:
    governor = RecordingGovernor(STATES)
    rule = ClockRule("lowest_energy", 0.5)
    policy = Forecasting("max_softmax", [0.6, 0.5])
    with ee.load(artifact(tmp_path, policy, rule), governor=governor) as net:
        assert governor.asked == [], "no clock is set before it is needed"
        assert net.run(tiny.inputs(1)[0]).frequency_hz == SLOW.frequency_hz
        assert governor.restored == 0
    assert (governor.restored, governor.current) == (1, None)
    net.run(tiny.inputs(1)[0])
    assert governor.current == SLOW, "it can be used again"


def test_another_policy_puts_clocks_back(tmp_path: Path) -> None:
    governor = RecordingGovernor(STATES)
    rule = ClockRule("fixed", frequency_hz=1e9)
    net = ee.load(artifact(tmp_path, tiny.POLICIES["fast"], rule), governor=governor)
    net.run(tiny.inputs(1)[0])
    net.set_policy(None)
    assert (governor.restored, net.clock_counts) == (1, {})
    assert net.run(tiny.inputs(1)[0]).frequency_hz is None


def test_sessions_that_share_a_governor_know_of_each_other(tmp_path: Path) -> None:
    governor = RecordingGovernor(STATES)
    rule = ClockRule("fixed", frequency_hz=1e9)
    net = ee.load(artifact(tmp_path, tiny.POLICIES["fast"], rule), governor=governor)
    twin, x = net.clone(), tiny.inputs(1)[0]
    expected = net.run(x)
    assert expected.frequency_hz == SLOW.frequency_hz
    twin.full_depth(x)
    assert governor.current == FAST
    answer = net.run(x)
    assert (answer.frequency_hz, governor.current) == (SLOW.frequency_hz, SLOW)
    twin.close()
    assert governor.current is None
    answer = net.run(x)
    assert (answer.frequency_hz, governor.current) == (SLOW.frequency_hz, SLOW)
    assert answer.energy_j == expected.energy_j


class Refused(RecordingGovernor):
    """A machine whose clock stays where it is from some time on: hot, or taken by another."""

    def __init__(self) -> None:
        super().__init__(STATES)
        self.refuses = False

    def set(self, state: DvfsState) -> None:
        super().set(state)
        if self.refuses:
            self.current = None


def test_no_clock_is_claimed_that_was_not_reached(tmp_path: Path) -> None:
    governor = Refused()
    net = ee.load(
        artifact(tmp_path, tiny.POLICIES["fast"], ClockRule("lowest_energy", 0.5)),
        governor=governor,
    )
    x = tiny.inputs(1)[0]
    expected = net.run(x)
    assert expected.frequency_hz == SLOW.frequency_hz
    governor.refuses, governor.current = True, None
    answer = net.run(x)
    assert (answer.frequency_hz, answer.energy_j) == (None, None)
    governor.refuses = False
    answer = net.run(x)  # It is tried again.
    assert (answer.frequency_hz, answer.energy_j) == (SLOW.frequency_hz, expected.energy_j)


def test_batches_and_full_depth_run_at_the_fastest_clock(tmp_path: Path) -> None:
    governor = RecordingGovernor(STATES)
    rule = ClockRule("lowest_energy", 100.0)
    net = ee.load(artifact(tmp_path, tiny.POLICIES["fast"], rule), governor=governor)
    net.run_batch(tiny.inputs(8))
    assert governor.current == FAST
    net.run(tiny.inputs(1)[0])
    assert governor.current == SLOW
    net.full_depth(tiny.inputs(1)[0])
    assert governor.current == FAST


def test_without_a_governor_deadlines_are_kept_and_no_clock_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, rule = (
        ThresholdPolicy("max_softmax", [2.0, 2.0]),
        ClockRule(deadline_s=0.006, hard=True),
    )
    times = iter(np.arange(0.0, 1.0, 0.002))
    monkeypatch.setattr("eecompile.runtime.single.perf_counter", lambda: float(next(times)))
    net = ee.load(artifact(tmp_path, policy, rule), governor=NoGovernor("not allowed"))
    answer = net.run(tiny.inputs(1)[0])
    # 2 ms have gone by at the first exit; at 4 GHz exit 1 takes 3.5 ms more, and the end 8 ms.
    assert (answer.exit, answer.segments_run) == ("late", 2)
    assert (answer.frequency_hz, answer.energy_j) == (None, None)
    assert net.clock_counts["forced"] == 1


def test_clocks_the_governor_cannot_set_are_not_chosen(tmp_path: Path) -> None:
    rule, policy = ClockRule("lowest_energy", 100.0, start=0), tiny.POLICIES["fast"]
    folder = artifact(tmp_path, policy, rule)
    net = ee.load(folder, governor=RecordingGovernor([MIDDLE, FAST]))
    assert net.run(tiny.inputs(1)[0]).frequency_hz == MIDDLE.frequency_hz


def test_a_fixed_clock_that_cannot_be_set_leaves_clocks_alone(tmp_path: Path) -> None:
    governor = RecordingGovernor([MIDDLE, FAST])
    folder = artifact(tmp_path, tiny.POLICIES["fast"], ClockRule("fixed", frequency_hz=1e9))
    with pytest.warns(ClockWarning, match="the cost table has no clock of 1e\\+09 Hz"):
        net = ee.load(folder, governor=governor)
    assert net.run(tiny.inputs(1)[0]).frequency_hz is None and governor.asked == []


def test_permission_lost_on_the_way_ends_what_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    linux = Policy(0, (0,), tuple(round(state.frequency_hz or 0) // 1000 for state in STATES))
    kernel = Kernel(tmp_path / "tree", linux)
    governor = SysfsGovernor(kernel, (Cluster("cpu", "", (0,), STATES),))
    folder = artifact(tmp_path, tiny.POLICIES["fast"], ClockRule("race_to_idle", 100.0))
    net, x = ee.load(folder, governor=governor), tiny.inputs(1)[0]
    first = net.run(x)
    assert first.frequency_hz == FAST.frequency_hz and first.energy_j is not None
    # It waits at the lowest clock, so that each answer begins with a change.
    assert linux.clock == (SLOW.frequency_hz or 0) / 1000
    kernel.denied = [".*"]
    with pytest.warns(ClockWarning, match="permission denied"):
        second = net.run(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = net.run(x)
    for answer in (second, third):
        np.testing.assert_array_equal(answer.logits, first.logits)
        assert (answer.frequency_hz, answer.energy_j) == (None, None)


class Hot(RecordingGovernor):
    """Its clocks are reached only where nothing holds them down."""

    held = False

    def set(self, state: DvfsState) -> None:
        self.current = None
        if not self.held:
            super().set(state)


def test_a_clock_that_is_not_reached_is_not_claimed_and_asked_for_again(tmp_path: Path) -> None:
    governor, x = Hot(STATES), tiny.inputs(1)[0]
    folder = artifact(tmp_path, tiny.POLICIES["fast"], ClockRule("lowest_latency"))
    net = ee.load(folder, governor=governor)
    governor.held = True
    answer = net.run(x)
    assert (answer.frequency_hz, answer.energy_j) == (None, None)
    governor.held = False
    answer = net.run(x)
    assert answer.frequency_hz == FAST.frequency_hz and answer.energy_j is not None


def test_sessions_that_share_a_governor_do_not_claim_each_other_s_clocks(tmp_path: Path) -> None:
    governor, x = RecordingGovernor(STATES), tiny.inputs(1)[0]
    folder = artifact(tmp_path, tiny.POLICIES["fast"], ClockRule("fixed", frequency_hz=1e9))
    net = ee.load(folder, governor=governor)
    clone = net.clone()
    for _ in range(2):
        clone.full_depth(x)
        governor.set(FAST)
        assert net.run(x).frequency_hz == SLOW.frequency_hz
        assert governor.current == SLOW


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_threads_run_on_the_cluster_whose_clock_is_set(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    big, little = DvfsState("big", 4e9), DvfsState("little", 1e9)
    costs = replace(
        table().restricted([0, 2]),
        states=(little, big),
        transition_latency_s=None,
        cpus={"big": tuple(allowed[-1:]), "little": tuple(allowed[:1])},
    )
    entries = {
        name: PolicyEntry(to_json(tiny.POLICIES["fast"]), clock=rule.to_json())
        for name, rule in (
            ("thrifty", ClockRule("lowest_energy", 100.0)),
            ("quick", ClockRule("lowest_latency")),
        )
    }
    write_artifact(
        tmp_path / "out", tiny.contents(policies=entries, default_policy="thrifty", costs=costs)
    )
    governor, x = RecordingGovernor((little, big)), tiny.inputs(1)[0]
    net = ee.load(tmp_path / "out", governor=governor, threads=2)
    workers = net.library.team(2).workers
    assert len(workers) == 1

    def places() -> list[list[int]]:
        return [sorted(os.sched_getaffinity(thread)) for thread in (0, *workers)]

    assert places() == [allowed] * 2, "nothing moves before it is needed"
    assert net.run(x).frequency_hz == 1e9 and places() == [allowed[:1]] * 2
    net.full_depth(x)
    assert governor.current == big and places() == [allowed[-1:]] * 2
    net.set_policy("quick")
    assert places() == [allowed] * 2
    assert net.run(x).frequency_hz == 4e9 and places() == [allowed[-1:]] * 2
    moved: list[list[list[int]]] = []

    def call() -> None:
        net.run(x)
        moved.append(places())

    other = threading.Thread(target=call)
    other.start()
    other.join()
    assert moved == [[allowed[-1:]] * 2], "another caller moves too"
    net.close()
    assert places() == [allowed] * 2


def test_an_artifact_without_the_costs_is_refused(tmp_path: Path) -> None:
    entry = PolicyEntry(to_json(tiny.POLICIES["fast"]), clock=ClockRule().to_json())
    write_artifact(
        tmp_path / "out", tiny.contents(policies={"p": entry}, default_policy="p", costs=None)
    )
    with pytest.raises(CompileErrors, match="no costs to choose its clocks by"):
        ee.load(tmp_path / "out")


def test_a_damaged_clock_rule_is_refused(tmp_path: Path) -> None:
    value = ClockRule().to_json() | {"objective": "warp"}
    entry = PolicyEntry(to_json(tiny.POLICIES["fast"]), clock=value)
    broken = tiny.contents(policies={"p": entry}, default_policy="p", plan=b"none")
    write_artifact(tmp_path / "out", broken)
    with pytest.raises(CompileErrors, match="objective must be one of"):
        ee.load(tmp_path / "out")


def test_what_is_no_governor_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path, tiny.POLICIES["fast"], ClockRule())
    with pytest.raises(CompileErrors, match="Expected a governor, found 'none'"):
        ee.load(folder, governor="none")  # type: ignore[arg-type]
