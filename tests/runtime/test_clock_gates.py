"""Clocks of a network with gates: time and energy are of what ran, as the replay says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.simulation import Simulation, simulate
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.native_plan import plan_bytes
from eecompile.policies import ExitOutputs, ExitPolicy, NeverPolicy, ThresholdPolicy, to_json
from eecompile.runtime.governor import NoGovernor, RecordingGovernor
from eecompile.runtime.paid import PaidEnergies, with_gates_run
from eecompile.runtime.scheduler import Scheduler
from eecompile.runtime.session import Session
from tests.runtime import gated

NETWORK = gated.network()
X = gated.inputs(80, seed=3)
HEAD = NETWORK.exits[0].macs
#: Clock and power.
CLOCKS = ((1e9, 1.0), (2e9, 3.0), (4e9, 9.0))
STATES = tuple(DvfsState("cpu", hz) for hz, _ in CLOCKS)
#: With nothing left out and the gates counted, at the fastest clock.
MOST_S = (NETWORK.macs + 10 + 10_000) / 4e9
#: Asks at the exit, and never leaves there.
ASKS = ThresholdPolicy("max_softmax", [2.0])


def row(name: str, work: Work) -> CostRow:
    """A cycle for each multiply-accumulate."""
    times = [(work.macs / hz, watts) for hz, watts in CLOCKS]
    costs = (Cost(time_s, watts * time_s, "modelled", "modelled") for time_s, watts in times)
    return CostRow(name, work, tuple(costs))


def table() -> CostTable:
    """Changing the clock takes no time."""
    return CostTable(
        *("host", "host", None, 1, STATES),
        tuple(row(name, part.work) for name, part in NETWORK.named_segments()),
        tuple(row(exit_.name, exit_.work) for exit_ in NETWORK.exits),
        transition_latency_s={"cpu": 0.0},
        steps=tuple(row(name, step.work) for name, step in NETWORK.named_steps()),
    )


def opened(folder: Path, policy: ExitPolicy, rule: ClockRule, costs: CostTable) -> Session:
    entry = PolicyEntry(to_json(policy), clock=rule.to_json())
    made = replace(gated.contents(entry), costs=costs)
    write_artifact(folder / "out", replace(made, plan=plan_bytes(made)))
    governor = NoGovernor() if not rule.sets_clocks else RecordingGovernor(STATES)
    return Session(read_artifact(folder / "out"), governor=governor)


class Cycles:
    """The time, as multiply-accumulates at the governor's clock; read thrice a sample.

    Before it, behind the exit's head, and at its end: as with `ASKS`.
    """

    def __init__(self) -> None:
        self.now_s, self.before, self.reading = 0.0, 0, 0
        self.session: Session | None = None

    def perf_counter(self) -> float:
        if self.session is None:
            return self.now_s
        program, clock = self.session._singles.program, self.session._clock
        assert program is not None and clock is not None
        done = program.macs + (HEAD if self.reading else 0)
        if self.reading:
            hz = clock._states[clock._state].frequency_hz
            assert hz is not None
            self.now_s += (done - self.before) / hz
            self.before = done
        else:
            self.before = 0
        self.reading = (self.reading + 1) % 3
        return self.now_s


def replayed(policy: ExitPolicy, rule: ClockRule, costs: CostTable) -> Simulation:
    """What the replay says of the samples."""
    known = gated.reference(X, policy.gate_shift)
    paid = PaidCosts.of(NETWORK, costs, gated.shares_of(known))
    scheduler = Scheduler(with_gates_run(NETWORK, costs), rule)
    outputs = [ExitOutputs(known["early.logits"])]
    return simulate(policy, outputs, known["logits"], scheduler, paid=paid)


#: With half of the first block's time left over, what comes after the exit fits at the low clock.
SAVED_S = (11 + 50 + HEAD) / 2e9 + (NETWORK.segments[1].macs + 10_000) / 1e9
#: Limits between which the way to the end fits, or does not, after what gates saved.
RULES = [
    ClockRule("lowest_energy", SAVED_S, start=1),
    ClockRule("lowest_energy", 1.7 * MOST_S),
    ClockRule("lowest_energy", 1.0005 * MOST_S, start=2),
    ClockRule("lowest_energy", 2.0 * MOST_S, safe=True, start=1),
    ClockRule("lowest_energy", 0.9 * MOST_S, hard=True),
    ClockRule("lowest_energy", 5 * MOST_S),
    ClockRule("lowest_latency", 0.95 * MOST_S),
    ClockRule("race_to_idle", 3 * MOST_S),
    ClockRule("fixed", frequency_hz=2e9),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_session_does_what_the_replay_says(
    rule: ClockRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles, costs = Cycles(), table()
    monkeypatch.setattr("eecompile.runtime.single.perf_counter", cycles.perf_counter)
    expected = replayed(ASKS, rule, costs)
    with opened(tmp_path, ASKS, rule, costs) as net:
        cycles.session = net
        for k, sample in enumerate(X):
            answer = net.run(sample[None])
            if answer.exit != net.exit_names[-1]:  # The deadline had it answered: no third reading.
                cycles.reading = 0
            assert answer.exit == net.exit_names[expected.exit[k]]
            np.testing.assert_array_equal(answer.logits, expected.logits[k])
            assert answer.latency_s == pytest.approx(expected.latency_s[k], rel=1e-6)
            assert answer.energy_j == pytest.approx(expected.energy_j[k], rel=1e-6)
        counts = net.clock_counts
    assert counts["late"] == expected.missed.sum()
    assert counts["forced"] == expected.forced.sum()
    assert counts["transitions"] == expected.transitions.sum()


def test_gates_move_clocks_and_deadlines_in_these_cases() -> None:
    found = [replayed(ASKS, rule, table()) for rule in RULES]
    left_out = gated.reference(X)["keep_0"][:, 0] <= 0
    np.testing.assert_array_equal(found[0].seconds_at[:, 0] > 0, left_out)
    assert 0 < left_out.sum() < len(X)
    assert any(each.forced.any() for each in found)
    assert any(0 < each.missed.sum() < len(X) for each in found)


@pytest.mark.parametrize("shift", [-9.0, 0.0, 0.5, 9.0])
def test_energy_is_of_what_ran(shift: float, tmp_path: Path) -> None:
    policy, rule = NeverPolicy(1, gate_shift=shift), ClockRule("fixed", frequency_hz=2e9)
    wanted = 3.0 * gated.reference(X, shift)["macs"][:, 1] / 2e9
    with opened(tmp_path, policy, rule, table()) as net:
        answers = [net.run(sample[None]) for sample in X]
    assert [answer.energy_j for answer in answers] == pytest.approx(wanted.tolist(), rel=1e-9)
    assert {answer.frequency_hz for answer in answers} == {2e9}
    kept = {answer.macs for answer in answers}
    assert len(kept) == 1 if abs(shift) == 9 else len(kept) > 3


def test_an_energy_that_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    costs = table()
    first, *rest = costs.steps
    known = tuple(cost and Cost(cost.latency_s) for cost in first.costs)
    costs = replace(costs, steps=(replace(first, costs=known), *rest))
    rule = ClockRule("fixed", frequency_hz=2e9)
    with opened(tmp_path, NeverPolicy(1), rule, costs) as net:
        assert net.run(X[:1]).energy_j is None


def test_without_clocks_deadlines_count_the_gates(tmp_path: Path) -> None:
    """What is left is reckoned with everything, the gates too: a hard one is answered early."""
    rule = ClockRule("unchanged", (NETWORK.macs + HEAD) / 4e9, hard=True)
    with opened(tmp_path, ASKS, rule, table()) as net:
        answer = net.run(X[:1])
        assert (answer.exit, answer.energy_j) == ("early", None)
        assert net.clock_counts["forced"] == 1


def test_the_most_that_samples_pay_is_all_steps_together() -> None:
    costs = with_gates_run(NETWORK, table())
    first, second = (row.costs[2] for row in costs.segments)
    assert first is not None and second is not None
    assert first.latency_s + second.latency_s == pytest.approx(MOST_S)
    assert second.energy_j == pytest.approx(9.0 * (NETWORK.segments[1].macs + 10_000) / 4e9)
    assert costs.exits == table().exits and costs.steps == table().steps


def test_a_step_that_is_not_known_leaves_its_segment_unknown() -> None:
    costs = table()
    first, *rest = costs.steps
    unknown = CostRow(first.name, first.work, (None, *first.costs[1:]))
    found = with_gates_run(NETWORK, replace(costs, steps=(unknown, *rest)))
    assert [cost is None for cost in found.segments[0].costs] == [True, False, False]


def test_stretches_pay_for_groups_that_ran() -> None:
    paid = PaidEnergies(NETWORK, table())
    # stem, gate, block; gate, plus, times with one group of two, end.
    kept = np.array([0, 0, -1, 0, 0, 1, 0], np.int32)
    first = 1 + 10
    second = 10_000 + 100_000 + 1_000_000 - gated.GROUP + 10_000_000
    for state, (hz, watts) in enumerate(CLOCKS):
        each = watts / hz
        assert paid.stretch_j(-1, 0, state, kept) == pytest.approx(each * (first + HEAD))
        assert paid.stretch_j(0, 1, state, kept) == pytest.approx(each * second)
        assert paid.stretch_j(-1, 1, state, kept) == pytest.approx(each * (first + second))
