"""Policies of a build with their clocks: settings chosen, held-out figures, and warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eecompile.clock_rule import ClockRule
from eecompile.clocks.building import BuiltClocks, build_clocks
from eecompile.clocks.simulation import Simulation, simulate
from eecompile.compiled import CompiledGraph
from eecompile.diagnostics import Source
from eecompile.dsl.parser import parse
from eecompile.outcomes import ExitCosts
from eecompile.policies import from_json, replay, to_json
from eecompile.policy_building import build_policies
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.report import held_out_lines
from eecompile.runtime.scheduler import Scheduler
from tests.scheduling.tables import Clock, table_of

MS = 1e-3
CLOCKS: list[Clock] = [("cpu", 1e3, 1.0), ("cpu", 2e3, 3.0), ("cpu", 4e3, 9.0)]
#: Exits after 8, 16 and 24 of 32 cycles, heads of 1: 8 ms at the top clock without them.
TABLE = table_of(CLOCKS, [8, 8, 8, 8], [1, 1, 1], transitions={"cpu": 0.0})
COSTS = {"macs": ExitCosts((0.25,) * 4, (1 / 32,) * 3, 1.0)}
NAMES = ("a", "b", "c")


def record(kind: type[Any], seed: int, count: int = 400) -> Any:
    """Logits of three classes that grow surer and righter with depth."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    logits = [
        (3 * np.eye(3)[labels] * (k + 1) / 4 + generator.standard_normal((count, 3))).astype(
            np.float32
        )
        for k in range(4)
    ]
    return kind(NAMES, labels, logits[-1], logits=dict(zip(NAMES, logits, strict=False)))


CALIBRATE, TEST = record(CalibrateRecord, 1), record(TestRecord, 2)


def built(policy: str) -> BuiltClocks:
    spec, found = parse(Source("p.ee", f"eecompile 1 policy p {{ {policy} }}"))
    found.raise_errors()
    records = {"calibrate": CALIBRATE, "test": TEST}
    network = CompiledGraph("net", (), "logits", 3, (), ())
    policies = build_policies(spec.policies, network, COSTS, records, seed=0)
    return build_clocks(spec.policies, policies, network, TABLE, records, COSTS)


@pytest.mark.parametrize("rule", ["predicted", "confidence(max_softmax)"])
@pytest.mark.parametrize("deadline", ["8.2 ms", "9 ms hard", "12 ms hard", "12 ms safe", "30 ms"])
def test_everything_reported_is_of_the_setting_chosen(rule: str, deadline: str) -> None:
    found = built(
        f"exit when {rule} budget accuracy drop <= 3 % deadline {deadline} frequency lowest_energy"
    )
    entry, policy = found.entries["p"], found.policies["p"]
    assert {told.id for told in found.warnings} <= {"short-deadline"}
    assert to_json(policy) == entry.rule
    report, clock = entry.report, entry.report["clock"]
    chosen = ClockRule.from_json(entry.clock)

    def simulated(known: Any) -> Simulation:
        outputs, scheduler = known.outputs(), Scheduler(TABLE, chosen)
        return simulate(from_json(entry.rule), outputs, known.final, scheduler)

    here = simulated(TEST)
    right, full = here.correct(TEST.labels), TEST.final.argmax(axis=1) == TEST.labels
    assert clock["test"]["chosen"]["accuracy"] == right.mean()
    assert clock["test"]["chosen"]["mean_energy_j"] == here.mean_energy_j
    assert clock["test"]["chosen"]["mean_lateness_s"] == here.late_s.mean()
    assert clock["test"]["budget_missed_by"] == max(0.0, full.mean() - right.mean() - 0.03)
    # The figures without clocks are of the same setting.
    without = replay(policy, TEST.outputs(), TEST.final)
    assert report["test"]["accuracy"]["value"] == without.correct(TEST.labels).mean()
    assert report["calibrate"]["accuracy_drop"] <= 0.03
    assert report["points"]
    fitting = clock["fitting"]
    assert fitting["settings"] > 1 and fitting["drop_at_most"] <= fitting["drop_allowed"] == 0.03
    if not fitting["reference"]["forced_answers"]:  # else that may break the budget
        assert fitting["chosen"]["mean_energy_j"] <= fitting["reference"]["mean_energy_j"]
    assert fitting["chosen"]["deadline_misses"] <= fitting["reference"]["deadline_misses"]
    assert chosen.start is not None
    assert fitting["start"]["frequency_hz"] == TABLE.states[chosen.start].frequency_hz
    assert any("settings that keep the budget" in line for line in held_out_lines("p", report, 1))


def test_forced_answers_that_break_the_budget_are_told() -> None:
    # 7.9 ms: the end is out of reach, so that exits answer everything.
    found = built(
        "exit when predicted budget accuracy drop <= 1 % deadline 7.9 ms hard "
        "frequency lowest_energy"
    )
    short, warning = found.warnings
    assert (short.id, short.severity) == ("short-deadline", "warning")
    assert (warning.id, warning.severity) == ("infeasible-budget", "warning")
    clock = found.entries["p"].report["clock"]
    told = warning.full()
    assert "Answers that the deadline forces break the budget of policy `p`" in told
    assert "no setting keeps `accuracy drop <= 1 %` with `deadline 7.9 ms hard`" in told
    assert f"{100 * clock['fitting']['drop_at_most']:.2f} % of accuracy" in told
    missed_by = clock["test"]["budget_missed_by"]
    assert missed_by > 0 and clock["test"]["chosen"]["forced_answers"] > 0
    lines = held_out_lines("p", found.entries["p"].report, 1)
    assert lines[-1] == f"  budget missed by {100 * missed_by:.3g} percentage points"


def test_another_budget_leaves_the_setting_alone() -> None:
    found = built(
        "exit when predicted budget mean macs <= 70 % deadline 12 ms frequency lowest_energy"
    )
    entry, clock = found.entries["p"], found.entries["p"].report["clock"]
    assert clock["fitting"]["settings"] == 1 and clock["test"]["budget_missed_by"] is None
    assert entry.report["calibrate"]["at_most"]["macs"] <= 0.7
    assert not any("settings that" in line for line in held_out_lines("p", entry.report, 1))


def test_late_answers_are_told_with_how_late_they_are() -> None:
    report = (
        built("exit when predicted deadline 8.2 ms frequency lowest_energy").entries["p"].report
    )
    chosen = report["clock"]["test"]["chosen"]
    late = chosen["deadline_misses"]
    assert late > 0
    by_ms = 1e3 * chosen["mean_lateness_s"] * chosen["n"] / late
    line = next(line for line in held_out_lines("p", report, 1) if " late, " in line)
    assert line.startswith(f"  {late} of 400 answers late, by ")
    assert float(line.split(", by ")[1].split()[0]) == pytest.approx(by_ms, rel=0.01)
