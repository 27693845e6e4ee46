"""The scheduler: equal to trying every clock, and the sentences of its description one by one."""

from __future__ import annotations

import tracemalloc
from math import isinf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule, Objective
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.policies.base import EXIT
from eecompile.runtime.scheduler import Scheduler, Step
from tests.scheduling.tables import Clock, EveryClock, table_of

MS = 1e-3
#: Three clocks of 1, 2 and 4 cycles a millisecond; power rises faster than the clock.
CLOCKS: list[Clock] = [("cpu", 1e3, 1.0), ("cpu", 2e3, 3.0), ("cpu", 4e3, 9.0)]
LOW, MID, TOP = range(3)


def small(**more: Any) -> CostTable:
    """Exits after 8, 16 and 24 of 32 cycles, heads of 1: 8 ms at the top clock, 32 at the low."""
    return table_of(CLOCKS, [8, 8, 8, 8], [1, 1, 1], **{"transitions": {"cpu": 0.0}, **more})


# Parts of 64 are exact in floats, so that a need is as long as the deadline or it is not.
parts = st.integers(1, 64).map(lambda n: n / 64)


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    clusters = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    names = ["big", "little"]
    states = tuple(
        DvfsState(names[c], draw(st.integers(1, 3)) * 1e9 + k * 1e6)
        for c, count in enumerate(clusters)
        for k in range(count)
    )
    exits = draw(st.integers(0, 3))
    known = st.sampled_from([True] * 8 + [False])
    energies = [draw(known) for _ in states]
    latencies = [True, *(draw(known) for _ in states[1:])]

    def row(name: str) -> CostRow:
        costs = [
            Cost(draw(parts), draw(parts) if has_energy else None) if has_latency else None
            for has_energy, has_latency in zip(energies, latencies, strict=True)
        ]
        return CostRow(name, Work(), tuple(costs))

    maybe = st.none() | st.sampled_from([0.0, 1 / 64, 1 / 4])
    transitions = {name: draw(maybe) for name in names[: len(clusters)]}
    return CostTable(
        "test",
        "test",
        None,
        1,
        states,
        tuple(row(f"segment{k}") for k in range(exits + 1)),
        tuple(row(f"exit{k}") for k in range(exits)),
        {name: time for name, time in transitions.items() if time is not None},
        draw(maybe),
        draw(st.none() | st.sampled_from([0.0, 0.5])),
    )


@st.composite
def rules(draw: st.DrawFn, table: CostTable) -> ClockRule:
    usable = [k for k, cost in enumerate(table.segments[0].costs) if cost is not None]
    deadline = draw(st.none() | st.integers(1, 256).map(lambda n: n / 64))
    kind = draw(st.sampled_from(["", "safe", "hard"])) if deadline else ""
    objectives: list[Objective] = ["lowest_energy", "lowest_latency", "fixed"]
    objective = draw(st.sampled_from(objectives))
    return ClockRule(
        objective,
        deadline,
        kind == "safe",
        kind == "hard",
        table.states[draw(st.sampled_from(usable))].frequency_hz if objective == "fixed" else None,
        draw(st.none() | st.sampled_from(usable)) if objective == "lowest_energy" else None,
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_decisions_equal_trying_every_clock(data: st.DataObject) -> None:
    table = data.draw(tables())
    rule = data.draw(rules(table))
    scheduler, peer = Scheduler(table, rule), EveryClock(table, rule)
    assert scheduler.home in peer.homes()
    peer.home = scheduler.home
    last = len(table.exits)
    elapsed = data.draw(st.integers(0, 256).map(lambda n: n / 64))
    for state in range(len(table.states)):
        for first in range(last + 1):
            assert scheduler.begin(first, state) in peer.begin(first, state)
        for index in range(last):
            for due in range(index + 1, last + 1):
                for forecast in (True, False):
                    found = scheduler.after(index, due, elapsed, state, forecast)
                    assert found in peer.after(index, due, elapsed, state, forecast)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_safe_or_hard_deadline_is_never_missed_if_any_answer_can_be_in_time(
    data: st.DataObject,
) -> None:
    """Whatever the policy asks for, and however often its forecasts are wrong."""
    table = data.draw(tables())
    kind = data.draw(st.sampled_from(["safe", "hard"]))
    deadline = data.draw(st.integers(1, 256)) / 64
    scheduler = Scheduler(
        table, ClockRule("lowest_energy", deadline, kind == "safe", kind == "hard")
    )
    costs, last = scheduler.costs, len(table.exits)
    state = data.draw(st.integers(0, len(table.states) - 1))
    if isinf(costs.change_s[state, scheduler.home]):  # between samples that counts nothing
        state = scheduler.home
    soonest = min(
        float((costs.change_s[state] + costs.stretch_s(-1, due)).min()) for due in range(last + 1)
    )
    index, elapsed = -1, 0.0
    step = scheduler.begin(data.draw(st.integers(0, last)), state)
    while step.due != EXIT:
        elapsed += scheduler.change(state, step.state)[0]
        elapsed += float(costs.stretch_s(index, step.due)[step.state])
        index, state = step.due, step.state
        if step.answer or index == last:
            break
        due = data.draw(st.integers(index + 1, last))
        step = scheduler.after(index, due, elapsed, state, data.draw(st.booleans()))
    if soonest <= deadline:
        assert elapsed <= deadline * (1 + 1e-9)


def test_the_cheapest_clock_that_keeps_the_deadline_is_taken() -> None:
    scheduler = Scheduler(small(), ClockRule("lowest_energy", 40 * MS, start=TOP))
    assert scheduler.begin(0, TOP) == Step(0, TOP)
    # 17 cycles from exit 0 to exit 2: 17, 8.5 or 4.25 ms.
    assert scheduler.after(0, 2, 23 * MS, TOP) == Step(2, LOW)
    assert scheduler.after(0, 2, 23.1 * MS, TOP) == Step(2, MID)
    assert scheduler.after(0, 2, 31.5 * MS, TOP) == Step(2, MID)
    assert scheduler.after(0, 2, 31.6 * MS, TOP) == Step(2, TOP)
    # Where nothing is forecast, 26 to the end with every head: 26, 13 or 6.5 ms.
    assert scheduler.after(0, 2, 14 * MS, TOP, forecast=False) == Step(2, LOW)
    assert scheduler.after(0, 2, 23 * MS, TOP, forecast=False) == Step(2, MID)
    assert scheduler.after(0, 2, 33 * MS, TOP, forecast=False) == Step(2, TOP)


def test_a_missed_deadline_goes_on_at_the_top_clock() -> None:
    scheduler = Scheduler(small(), ClockRule("lowest_energy", 8 * MS))
    assert scheduler.after(1, 2, 9 * MS, LOW) == Step(2, TOP)
    assert scheduler.after(1, 3, 9 * MS, LOW, forecast=False) == Step(3, TOP)


def test_a_safe_deadline_keeps_time_for_the_rest_at_the_top_clock() -> None:
    trusting = Scheduler(small(), ClockRule("lowest_energy", 0.028, hard=True))
    safe = Scheduler(small(), ClockRule("lowest_energy", 0.028, safe=True))
    # 9 cycles to exit 1; 16 more to the end are 4 ms at the top clock.
    assert trusting.after(0, 1, 19 * MS, TOP) == Step(1, LOW)
    assert safe.after(0, 1, 19 * MS, TOP) == Step(1, MID)
    assert safe.after(0, 1, 15 * MS, TOP) == Step(1, LOW)


def test_when_time_runs_out_a_safe_deadline_prefers_the_end_and_a_hard_one_the_forecast() -> None:
    # The end is 6 ms away at the top clock, and 6.25 with the head of exit 1.
    safe = Scheduler(small(), ClockRule("lowest_energy", 8 * MS, safe=True))
    hard = Scheduler(small(), ClockRule("lowest_energy", 8 * MS, hard=True))
    assert safe.after(0, 1, 2 * MS, TOP) == Step(3, TOP, True)
    assert hard.after(0, 1, 2 * MS, TOP) == Step(1, MID)


@pytest.mark.parametrize("kind", ["safe", "hard"])
def test_last_resorts_are_the_deepest_exit_in_time_and_then_the_one_at_hand(kind: str) -> None:
    rule = ClockRule("lowest_latency", 8 * MS, safe=kind == "safe", hard=kind == "hard")
    scheduler = Scheduler(small(), rule)
    # From exit 0: exit 1 after 2.25 ms, exit 2 after 4.25, the end after 6.
    assert scheduler.after(0, 3, 3 * MS, TOP) == Step(2, TOP, True)
    assert scheduler.after(0, 3, 4 * MS, TOP) == Step(1, TOP, True)
    assert scheduler.after(0, 3, 6 * MS, TOP) == Step(EXIT, TOP)


def test_the_first_exit_is_tried_even_where_the_end_is_then_out_of_reach() -> None:
    scheduler = Scheduler(small(), ClockRule("lowest_energy", 8 * MS, safe=True))
    assert scheduler.begin(0, TOP) == Step(0, TOP)


def test_where_nothing_can_be_in_time_the_soonest_answer_is_given() -> None:
    scheduler = Scheduler(small(), ClockRule("lowest_energy", 1 * MS, hard=True))
    assert scheduler.begin(2, TOP) == Step(0, TOP, True)


def test_clocks_stay_where_changing_them_costs_more_than_it_saves() -> None:
    """A network of 1 ms on a board that takes 500 us to change its clock."""
    quick = table_of(
        [(name, hz * 8, watts) for name, hz, watts in CLOCKS],
        [8, 8, 8, 8],
        [1, 1, 1],
        transitions={"cpu": 500e-6},
    )
    for deadline in (1.2 * MS, 2 * MS, 4 * MS, 1.0):
        scheduler = Scheduler(quick, ClockRule("lowest_energy", deadline))
        home = scheduler.home
        assert scheduler.begin(0, home).state == home
        for due in (1, 2, 3):
            assert scheduler.after(0, due, 0.3 * MS, home).state == home


def test_clocks_change_where_that_saves_more_than_it_costs() -> None:
    slow = table_of(CLOCKS, [800, 800, 800, 800], [1, 1, 1], transitions={"cpu": 500e-6})
    scheduler = Scheduler(slow, ClockRule("lowest_energy", 3.0, start=TOP))
    assert scheduler.after(0, 1, 0.2, TOP).state == LOW


def test_coming_back_is_counted() -> None:
    # 9 cycles: 9 mJ at the low clock, 20.25 mJ at the top; each change 9 W for so long.
    for transition_s, state in ((0.6 * MS, 0), (0.7 * MS, 1)):
        table = table_of(CLOCKS[::2], [8] * 4, [1] * 3, transitions={"cpu": transition_s})
        scheduler = Scheduler(table, ClockRule("lowest_energy", start=1))
        assert scheduler.after(0, 1, 0.0, 1).state == state


def test_waiting_until_the_deadline_counts_where_idle_power_is_known() -> None:
    # From exit 0 to exit 1, 9 cycles: 36 mJ in 9 ms, or 20.25 mJ in 2.25 ms and 6.75 ms to wait.
    clocks: list[Clock] = [("cpu", 1e3, 4.0), ("cpu", 4e3, 9.0)]
    for idle_w, deadline_s, state in ((None, 0.1, 1), (2.0, 0.1, 1), (3.0, 0.1, 0), (3.0, None, 1)):
        table = table_of(clocks, [8, 8, 8, 8], [1, 1, 1], transitions={"cpu": 0.0}, idle_w=idle_w)
        rule = ClockRule("lowest_energy", deadline_s, start=0)
        assert Scheduler(table, rule).after(0, 1, 0.0, 0).state == state


CLUSTERS: list[Clock] = [("big", 2e3, 4.0), ("big", 4e3, 16.0), ("little", 1e3, 0.5)]


def clusters(migration_s: float | None) -> CostTable:
    return table_of(
        CLUSTERS,
        [8, 8, 8, 8],
        [1, 1, 1],
        transitions={"big": 0.0, "little": 0.0},
        migration_s=migration_s,
    )


def test_a_sample_stays_on_its_cluster_unless_moving_is_known() -> None:
    rule = ClockRule("lowest_energy", 1.0, start=1)
    stays = Scheduler(clusters(None), rule)
    assert stays.after(0, 1, 0.0, 1).state == 0
    assert any("cluster is not known" in note for note in stays.notes)
    assert Scheduler(clusters(0.1 * MS), rule).after(0, 1, 0.0, 1).state == 2
    assert Scheduler(clusters(100.0), rule).after(0, 1, 0.0, 1).state == 0


def test_between_samples_the_cluster_may_change() -> None:
    relaxed = Scheduler(clusters(None), ClockRule("lowest_energy", 1.0))
    assert relaxed.home == 2
    assert relaxed.begin(0, 1) == Step(0, 2)
    hurried = Scheduler(clusters(None), ClockRule("lowest_energy", 9 * MS))
    assert hurried.begin(0, 2) == Step(0, 1)


def test_unknown_transitions_change_nothing_within_a_sample() -> None:
    scheduler = Scheduler(small(transitions=None), ClockRule("lowest_energy", 20 * MS))
    assert scheduler.home == MID
    assert scheduler.begin(0, TOP) == Step(0, MID)
    assert scheduler.after(0, 1, 19 * MS, MID) == Step(1, MID)
    assert any("transition latency of `cpu` is not known" in note for note in scheduler.notes)


def test_without_energies_the_fastest_clock_is_used_and_that_is_said() -> None:
    table = table_of([(name, hz, None) for name, hz, _ in CLOCKS], [8, 8], [1])
    scheduler = Scheduler(table, ClockRule("lowest_energy", 1.0))
    assert scheduler.home == TOP
    assert scheduler.notes[0] == "no clock's energy is known: the fastest clock is always used"


def test_a_clock_of_unknown_energy_is_used_only_where_others_are_too_slow() -> None:
    table = table_of(
        [*CLOCKS[:2], ("cpu", 4e3, None)], [8, 8, 8, 8], [1, 1, 1], transitions={"cpu": 0}
    )
    scheduler = Scheduler(table, ClockRule("lowest_energy", 30 * MS))
    assert scheduler.home == MID
    assert scheduler.after(0, 1, 0.0, MID) == Step(1, LOW)
    assert scheduler.after(0, 1, 27 * MS, MID) == Step(1, TOP)
    assert scheduler.notes[0].startswith("the energies of 1 of 3 clocks are not known")


def test_a_fixed_clock_is_always_that() -> None:
    scheduler = Scheduler(small(), ClockRule("fixed", 9 * MS, frequency_hz=2e3))
    assert {scheduler.begin(0, state).state for state in range(3)} == {MID}
    assert {scheduler.after(0, 1, t, s).state for t in (0.0, 1.0) for s in range(3)} == {MID}


def test_racing_to_idle_rests_at_low_power_where_the_way_there_and_back_is_short() -> None:
    for transition, state in ((1 * MS, LOW), (5 * MS, TOP)):
        table = small(transitions={"cpu": transition})
        scheduler = Scheduler(table, ClockRule("race_to_idle", 1.0))
        assert scheduler.begin(0, LOW) == Step(0, TOP)
        assert scheduler.after(0, 1, 2 * MS, TOP) == Step(1, TOP)
        assert scheduler.rest(8 * MS, TOP) == state
        assert scheduler.rest(1.0 - 1 * MS, TOP) == TOP, "the next input comes too soon"
    assert Scheduler(small(), ClockRule("lowest_latency")).rest(8 * MS, TOP) == TOP


def test_one_state_leaves_nothing_to_choose() -> None:
    table = table_of([("cpu", 1e3, None)], [8, 8], [1])
    scheduler = Scheduler(table, ClockRule("lowest_energy", 1 * MS))
    assert scheduler.begin(0, 0) == Step(0, 0)
    assert scheduler.after(0, 1, 1.0, 0) == Step(1, 0)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (ClockRule("fixed", frequency_hz=9e3), "no clock of 9000 Hz"),
        (ClockRule(start=3), "state 3, the rule's start"),
    ],
)
def test_a_rule_that_does_not_fit_the_table_is_refused(rule: ClockRule, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Scheduler(small(), rule)


def test_a_table_that_fits_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a network"):
        Scheduler(table_of(CLOCKS, [1, 1, 1], [1]), ClockRule())
    with pytest.raises(ValueError, match="does not fit a network"):
        Scheduler(table_of([], [1, 1], [1]), ClockRule())
    unknown = CostRow("segment", Work(), (None,))
    table = CostTable("t", "b", None, 1, (DvfsState("cpu", 1e9),), (unknown,))
    with pytest.raises(ValueError, match="no clock at which every latency is known"):
        Scheduler(table, ClockRule())


def test_warming_changes_no_decision() -> None:
    rule = ClockRule("lowest_energy", 9 * MS, safe=True)
    cold, warm = Scheduler(small(), rule), Scheduler(small(), rule).warm()
    for state in range(3):
        assert [cold.begin(k, state) for k in range(4)] == [warm.begin(k, state) for k in range(4)]
        for t in range(10):
            assert cold.after(0, 2, t * MS, state) == warm.after(0, 2, t * MS, state)


def test_a_decision_allocates_numbers_only() -> None:
    scheduler = Scheduler(small(), ClockRule("lowest_energy", 9 * MS, safe=True)).warm()
    times = [t * MS for t in range(10)]

    def decide() -> None:
        for elapsed_s in times:
            scheduler.begin(0, TOP)
            scheduler.after(0, 2, elapsed_s, TOP)
            scheduler.after(0, 2, elapsed_s, TOP, forecast=False)

    decide()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        decide()
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after <= before + 64 and most - before < 500, "a few floats at a time"
