"""Simulation of a network with gates: each sample takes the time of what its gates left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.clock_rule import ClockRule, Objective
from eecompile.clocks.fitting import fit_start
from eecompile.clocks.outcomes import clock_outcomes
from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.simulation import at_top_clock, simulate, top_clock
from eecompile.cost_table import Cost, CostTable
from eecompile.policies import ExitOutputs, ExitPolicy, NeverPolicy, ThresholdPolicy
from eecompile.record import CalibrateRecord
from eecompile.runtime.scheduler import Scheduler
from tests.runtime import gated
from tests.scheduling.stepping import Stretch, one_by_one
from tests.scheduling.tables import Clock, table_of

NETWORK = gated.network()
X = gated.inputs(120)
KNOWN, WHOLE = gated.reference(X), gated.reference(X, None)
HEAD = NETWORK.exits[0].macs
GATES = (10, 10_000)
CLOCKS: list[Clock] = [("cpu", 1e9, 1.0), ("cpu", 2e9, 3.0), ("cpu", 4e9, 9.0)]
#: 11,111,101 multiply-accumulates with nothing left out, a cycle each.
FULL_S = NETWORK.macs / 4e9
OUTPUTS, FINAL = [ExitOutputs(KNOWN["early.logits"])], KNOWN["logits"]
LEAVES = ThresholdPolicy("max_softmax", [0.6])
NEVER = NeverPolicy(1)


SHARES = gated.shares_of(KNOWN)


def table(clocks: Sequence[Clock] = CLOCKS, transition_s: float = 0.0) -> CostTable:
    """A cycle for each multiply-accumulate."""
    transitions = {"cpu": transition_s}
    pieces = [part.macs for part in NETWORK.segments]
    steps = [function.macs for _, function in NETWORK.named_steps()]
    made = table_of(clocks, pieces, [HEAD], transitions=transitions)
    return replace(made, steps=table_of(clocks, steps, []).segments)


def paid(costs: CostTable, shares: dict[str, np.ndarray] = SHARES) -> PaidCosts:
    found = PaidCosts.of(NETWORK, costs, shares)
    assert found is not None
    return found


def by_macs(sample: int, index: int, due: int, state: int) -> tuple[float, float]:
    """What the reference counts for a sample."""
    ways = [0, *KNOWN["macs"][sample].tolist()]
    _, hertz, watts = CLOCKS[state]
    time_s = (ways[due + 1] - ways[index + 1] + (HEAD if due == 0 else 0)) / hertz
    return time_s, (watts or 0.0) * time_s


def test_samples_pay_for_what_ran() -> None:
    costs = table()
    found = simulate(NEVER, OUTPUTS, FINAL, top_clock(costs), paid=paid(costs))
    np.testing.assert_allclose(found.latency_s, KNOWN["macs"][:, 1] / 4e9, rtol=1e-6)
    np.testing.assert_allclose(found.energy_j, 9.0 * KNOWN["macs"][:, 1] / 4e9, rtol=1e-6)
    found = simulate(LEAVES, OUTPUTS, FINAL, top_clock(costs), paid=paid(costs))
    assert 0 < (found.exit == 0).sum() < len(X)
    ran = np.where(found.exit == 0, KNOWN["macs"][:, 0], KNOWN["macs"][:, 1])
    np.testing.assert_allclose(found.latency_s, (ran + HEAD) / 4e9, rtol=1e-6)
    assert len(set(found.latency_s.tolist())) > 2


def test_what_leaves_nothing_out_pays_everything_and_the_gates() -> None:
    costs = table()
    everything = {name: np.ones_like(share) for name, share in SHARES.items()}
    for policy in (NEVER, LEAVES):
        own = simulate(policy, OUTPUTS, FINAL, top_clock(costs), paid=paid(costs, everything))
        full = at_top_clock(policy, OUTPUTS, FINAL, costs)
        gates = np.where(own.exit == 0, GATES[0], sum(GATES)) / 4e9
        np.testing.assert_allclose(own.latency_s, full.latency_s + gates, rtol=1e-12)
        np.testing.assert_allclose(own.energy_j, full.energy_j + 9.0 * gates, rtol=1e-12)
        np.testing.assert_array_equal(own.logits, full.logits)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_replaying_equals_going_sample_by_sample(data: st.DataObject) -> None:
    policy: ExitPolicy = data.draw(st.sampled_from([NEVER, LEAVES]))
    deadline = data.draw(st.sampled_from([None, 0.8, 0.98, 1.01, 1.3, 2.2, 5.0]))
    kind = data.draw(st.sampled_from(["", "safe", "hard"])) if deadline else ""
    objectives: list[Objective] = ["lowest_energy", "race_to_idle", "unchanged"]
    objective = data.draw(st.sampled_from(objectives))
    start = data.draw(st.none() | st.integers(0, 2)) if objective == "lowest_energy" else None
    limit_s = deadline and deadline * FULL_S
    rule = ClockRule(objective, limit_s, kind == "safe", kind == "hard", start=start)
    costs = table(transition_s=data.draw(st.sampled_from([0.0, 0.02, 0.2])) * FULL_S)
    scheduler = Scheduler(costs, rule)
    found = simulate(policy, OUTPUTS, FINAL, scheduler, paid=paid(costs))
    for sample, wanted in enumerate(one_by_one(policy, OUTPUTS, FINAL, scheduler, by_macs)):
        for name, value in wanted.items():
            np.testing.assert_allclose(getattr(found, name)[sample], value, rtol=1e-6)
    np.testing.assert_allclose(found.seconds_at.sum(axis=1), found.latency_s)


def test_time_that_gates_save_lets_clocks_be_lower() -> None:
    """The scheduler reckons with everything to come, and sees what has gone by."""
    costs = table([("cpu", 1e9, 1.0), ("cpu", 2e9, 3.0)], 0.0)
    # Behind the exit everything just fits at the low clock, if the block in front was left out.
    asked = ThresholdPolicy("max_softmax", [1.0])
    to_exit = NETWORK.segments[0].macs + HEAD
    limit_s = (to_exit / 2 + NETWORK.segments[1].macs) / 1e9
    rule = ClockRule("lowest_energy", limit_s, start=1)
    found = simulate(asked, OUTPUTS, FINAL, Scheduler(costs, rule), paid=paid(costs))
    left_out = KNOWN["keep_0"][:, 0] <= 0
    assert found.evaluated.all() and (found.exit == 1).all()
    assert 0 < left_out.sum() < len(X)
    np.testing.assert_array_equal(found.seconds_at[:, 0] > 0, left_out)


def record(shares: dict[str, np.ndarray]) -> CalibrateRecord:
    return CalibrateRecord(
        ("early",),
        WHOLE["logits"].argmax(axis=1),
        FINAL,
        logits={"early": KNOWN["early.logits"]},
        shares=shares,
        whole={"logits": WHOLE["logits"]},
    )


def test_the_full_network_is_without_its_gates() -> None:
    costs, known = table(), record(SHARES)
    runs = clock_outcomes(
        LEAVES, known, costs, Scheduler(costs, ClockRule("unchanged")), paid(costs)
    )
    full, early = (runs[name] for name in ("full_depth_top_clock", "early_exit_top_clock"))
    np.testing.assert_array_equal(full.logits, WHOLE["logits"])
    np.testing.assert_allclose(full.latency_s, FULL_S)
    assert full.correct(known.labels).all() and not early.correct(known.labels).all()
    np.testing.assert_array_equal(early.latency_s, runs["chosen"].latency_s)
    assert early.latency_s.max() < FULL_S + (HEAD + sum(GATES)) / 4e9 + 1e-12


def mean_j(scheduler: Scheduler, stretch: Stretch) -> tuple[int, float, float]:
    """Late answers, by how much in all, and the energy of a sample."""
    rows = one_by_one(LEAVES, OUTPUTS, FINAL, scheduler, stretch)
    late = [row["latency_s"] - scheduler.rule.deadline_s for row in rows if row["missed"]]
    return len(late), sum(late), float(np.mean([row["energy_j"] for row in rows]))


@pytest.mark.parametrize("deadline", [0.6, 0.95, 1.2, 1.7, 2.5])
def test_the_start_is_fitted_to_what_samples_pay(deadline: float) -> None:
    costs, rule = table(), ClockRule("lowest_energy", deadline * FULL_S)
    found = fit_start(LEAVES, record(SHARES), costs, rule, paid(costs)).start
    tried = [mean_j(Scheduler(costs, replace(rule, start=k)), by_macs) for k in range(3)]
    late, late_s, _ = tried[2]
    allowed = {
        k: energy
        for k, (of_start, of_start_s, energy) in enumerate(tried)
        if of_start <= late and of_start_s <= late_s * (1 + 1e-9)
    }
    assert found is not None
    assert allowed[found] == pytest.approx(min(allowed.values()))


def test_energies_that_are_not_known_are_no_numbers() -> None:
    costs = table()
    first, *rest = costs.steps
    known = [Cost(cost.latency_s) if cost else None for cost in first.costs]
    costs = replace(costs, steps=(replace(first, costs=tuple(known)), *rest))
    found = simulate(NEVER, OUTPUTS, FINAL, top_clock(costs), paid=paid(costs))
    assert np.isnan(found.energy_j).all() and not np.isnan(found.latency_s).any()


def test_a_step_of_which_nothing_is_known_is_refused() -> None:
    costs = table()
    first, *rest = costs.steps
    costs = replace(costs, steps=(replace(first, costs=(None,) * 3), *rest))
    with pytest.raises(ValueError, match="does not know every step"):
        paid(costs)


def test_nothing_is_paid_apart_where_no_gate_decided() -> None:
    assert PaidCosts.of(NETWORK, table(), {}) is None
