"""Exits x clocks: what leaving at each exit costs at each clock, and which pairs are worth having.

Which exits a sample passes is the policy's business; what they cost is the table's. Here every
exit asked on the way is paid for, so that leaving late costs more than full depth without exits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from eecompile.cost_table import Cost, CostTable, total

__all__ = ["Leaving", "PolicyCost", "leavings", "marked", "mean_costs", "weighted"]


@dataclass(frozen=True, slots=True)
class Leaving:
    """Answering at one exit at one clock.

    Attributes:
        exit: its name, "final" for the network's own answer.
        depth: its index; deeper is taken to answer better.
        state: index of the clock into the table's states.
        cost: all segments up to there, and all heads asked on the way, its own included.
        optimal: no other pair answers as deep or deeper in no more time with no more energy (in no
            more time, where energies are not known).
    """

    exit: str
    depth: int
    state: int
    cost: Cost
    optimal: bool


def leavings(
    table: CostTable, exit_names: Sequence[str], asked: Collection[int] | None = None
) -> tuple[Leaving, ...]:
    """Every pair of exit and clock whose cost is known, by exit, then in the states' order.

    Args:
        table: one row of segments more than of exits.
        exit_names: by depth, the last for the network's own answer.
        asked: exits whose heads are run when a sample comes by; default all of them. Nothing
            leaves at the others.
    """
    asked = range(len(table.exits)) if asked is None else asked
    found: list[tuple[int, int, Cost]] = []
    for depth in range(len(exit_names)):
        if depth < len(table.exits) and depth not in asked:
            continue
        rows = [*table.segments[: depth + 1]]
        rows += [table.exits[index] for index in sorted(asked) if index <= depth]
        for state in range(len(table.states)):
            cost = total([row.costs[state] for row in rows])
            if cost is not None:
                found.append((depth, state, cost))
    by_energy = all(cost.energy_j is not None for _, _, cost in found)
    return tuple(
        Leaving(
            exit_names[depth],
            depth,
            state,
            cost,
            not any(_beats(other, (depth, state, cost), by_energy) for other in found),
        )
        for depth, state, cost in found
    )


def _beats(one: tuple[int, int, Cost], other: tuple[int, int, Cost], by_energy: bool) -> bool:
    """Whether `one` is nowhere worse and somewhere better; of equals the first is kept."""
    (depth, state, cost), (its_depth, its_state, its_cost) = one, other
    better = [float(depth - its_depth), _less(cost.latency_s, its_cost.latency_s)]
    if by_energy:
        assert cost.energy_j is not None and its_cost.energy_j is not None, "all are known"
        better.append(_less(cost.energy_j, its_cost.energy_j))
    if min(better) < 0:
        return False
    return max(better) > 0 or state < its_state


def _less(one: float, other: float) -> float:
    """By how much `one` is less, 0 where only arithmetic tells them apart.

    >>> _less(1.0, 3.0), _less(1.0, 1.0 + 1e-12)
    (2.0, 0.0)
    """
    return 0.0 if abs(other - one) <= 1e-9 * abs(other) else other - one


@dataclass(frozen=True, slots=True)
class PolicyCost:
    """What a policy's samples cost on average at one clock.

    Attributes:
        state: index of the clock.
        cost: the mean over the shares of samples that leave at each exit.
        optimal: no other clock is as good in time and energy.
    """

    state: int
    cost: Cost
    optimal: bool


def mean_costs(
    found: Sequence[Leaving], shares: Mapping[str, float], states: int
) -> tuple[PolicyCost, ...]:
    """Mean cost of a sample at each clock where the cost of every exit that is taken is known.

    Args:
        found: as `leavings` gives them.
        shares: exit -> share of the samples that leave there; they sum to 1.
        states: how many clocks there are.

    >>> costs = {"early": Cost(1.0, 2.0), "final": Cost(3.0, 4.0)}
    >>> here = [Leaving(name, 0, 0, cost, True) for name, cost in costs.items()]
    >>> mean_costs(here, {"early": 0.5, "final": 0.5}, 1)[0].cost.latency_s
    2.0
    """
    assert isclose(sum(shares.values()), 1.0, abs_tol=1e-6), "shares of all samples"
    taken = {name for name, share in shares.items() if share > 0}
    means: dict[int, Cost] = {}
    for state in range(states):
        costs = {way.exit: way.cost for way in found if way.state == state and way.exit in taken}
        if set(costs) == taken:
            parts = [(shares[name], costs[name]) for name in sorted(taken)]
            means[state] = weighted(parts)
    return marked(means)


def marked(means: Mapping[int, Cost]) -> tuple[PolicyCost, ...]:
    """Mean costs by the index of their clock, those that no other clock beats marked."""
    found = [(0, state, cost) for state, cost in means.items()]
    by_energy = all(cost.energy_j is not None for cost in means.values())
    return tuple(
        PolicyCost(state, cost, not any(_beats(o, (0, state, cost), by_energy) for o in found))
        for _, state, cost in found
    )


def weighted(parts: Sequence[tuple[float, Cost]]) -> Cost:
    """The sum of costs, each by its weight; every one is known."""
    whole = total([cost for _, cost in parts])
    assert whole is not None, "all are known"
    energy = None
    if whole.energy_j is not None:
        energy = sum(share * (cost.energy_j or 0.0) for share, cost in parts)
    return Cost(
        sum(share * cost.latency_s for share, cost in parts),
        energy,
        whole.provenance,
        whole.energy_provenance,
    )


def asked_exits(rule: Any, count: int) -> tuple[int, ...]:
    """Exits whose heads a policy may run: those with a threshold in reach, where it has some."""
    thresholds = getattr(rule, "thresholds", None)
    if thresholds is None or len(thresholds) != count:
        return tuple(range(count))
    return tuple(index for index, limit in enumerate(thresholds) if limit < float("inf"))
