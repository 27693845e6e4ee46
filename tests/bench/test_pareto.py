"""Exits x clocks: what is summed, and which pairs are on the front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eecompile.benching.pareto import Leaving, asked_exits, leavings, mean_costs
from eecompile.policies import PatiencePolicy, ThresholdPolicy
from tests.bench.parts import table

NAMES = ("early", "late", "final")


def test_leaving_pays_segments_and_heads_up_to_there() -> None:
    found = leavings(table([[1.0], [10.0], [100.0]], [[0.5], [0.25]]), NAMES)
    assert [(way.exit, way.cost.latency_s) for way in found] == [
        ("early", 1.5),
        ("late", 11.75),
        ("final", 111.75),
    ]


def test_heads_that_are_not_asked_cost_nothing_and_nobody_leaves_there() -> None:
    found = leavings(table([[1.0], [10.0], [100.0]], [[0.5], [0.25]]), NAMES, asked=(1,))
    assert [(way.exit, way.cost.latency_s) for way in found] == [("late", 11.25), ("final", 111.25)]


def test_a_faster_clock_that_draws_more_leaves_both_on_the_front() -> None:
    costs = table([[2.0, 1.0]], powers_w=[1.0, 3.0])
    assert [way.optimal for way in leavings(costs, ("final",))] == [True, True]


def test_a_clock_that_is_slower_and_draws_more_is_not() -> None:
    costs = table([[2.0, 1.0]], powers_w=[2.0, 3.0])
    assert [way.optimal for way in leavings(costs, ("final",))] == [False, True]


def test_of_clocks_that_draw_alike_the_fastest_is() -> None:
    costs = table([[2.0, 1.0]], powers_w=[1.0, 2.0 + 1e-12])
    assert [way.optimal for way in leavings(costs, ("final",))] == [False, True]


def test_without_energies_only_the_fastest_is() -> None:
    assert [way.optimal for way in leavings(table([[2.0, 1.0]]), ("final",))] == [False, True]


def test_going_deeper_at_a_faster_clock_beats_leaving_early_at_a_slow_one() -> None:
    costs = table([[5.0, 1.0], [1.0, 1.0]], [[0.0, 0.0]])
    found = leavings(costs, ("early", "final"))
    assert [(way.exit, way.state, way.optimal) for way in found] == [
        ("early", 0, False),
        ("early", 1, True),
        ("final", 0, False),
        ("final", 1, True),
    ]


def test_of_equal_clocks_one_is_on_the_front() -> None:
    costs = table([[1.0, 1.0]], powers_w=[1.0, 1.0])
    assert [way.optimal for way in leavings(costs, ("final",))] == [True, False]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_the_front_is_what_nothing_else_beats(costs: list[tuple[int, int]], exits: int) -> None:
    latencies = [float(latency) for latency, _ in costs]
    powers = [energy / latency for latency, energy in costs]
    states = [table([[1.0]]).states[0]] * len(costs)
    found = leavings(
        table([latencies] * (exits + 1), [latencies] * exits, powers_w=powers, states=states),
        [f"exit{i}" for i in range(exits)] + ["final"],
    )

    def value(way: Leaving) -> tuple[float, float, float]:
        return way.depth, -way.cost.latency_s, -(way.cost.energy_j or 0.0)

    front = [way for way in found if way.optimal]
    for way in found:
        beaten = [
            other
            for other in found
            if value(other) != value(way)
            and all(a >= b - 1e-12 for a, b in zip(value(other), value(way), strict=True))
        ]
        if way.optimal:
            assert not beaten
        else:
            assert any(
                all(a >= b - 1e-9 for a, b in zip(value(other), value(way), strict=True))
                for other in front
            )


def test_a_policy_costs_the_mean_over_its_shares() -> None:
    costs = table([[1.0, 0.5], [3.0, 1.5]], [[0.0, 0.0]], powers_w=[1.0, 4.0], measured=(1,))
    found = leavings(costs, ("early", "final"))
    means = mean_costs(found, {"early": 0.75, "final": 0.25}, 2)
    assert [(m.state, m.cost.latency_s, m.cost.energy_j) for m in means] == [
        (0, 1.75, 1.75),
        (1, 0.875, 3.5),
    ]
    assert [m.cost.provenance for m in means] == ["modelled", "measured"]
    assert [m.optimal for m in means] == [True, True]


def test_exits_nobody_takes_need_no_cost() -> None:
    found = [w for w in leavings(table([[1.0], [1.0]], [[0.0]]), ("early", "final")) if w.depth]
    means = mean_costs(found, {"early": 0.0, "final": 1.0}, 1)
    assert [mean.cost.latency_s for mean in means] == [2.0]


def test_a_policy_asks_the_exits_whose_thresholds_can_be_reached() -> None:
    assert asked_exits(ThresholdPolicy("entropy", [float("inf"), 0.9]), 2) == (1,)
    assert asked_exits(PatiencePolicy(1, 2), 2) == (0, 1)
