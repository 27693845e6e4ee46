"""Small cost tables, and a scheduler that tries every clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isclose

from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.policies.base import EXIT
from eecompile.runtime.scheduler import Step

#: (cluster, clock in Hz, power of one busy core in W or None)
Clock = tuple[str, float, float | None]


def table_of(
    clocks: Sequence[Clock],
    segments: Sequence[float],
    heads: Sequence[float],
    *,
    transitions: Mapping[str, float] | None = None,
    migration_s: float | None = None,
    idle_w: float | None = None,
    cycles: Mapping[str, float] | None = None,
) -> CostTable:
    """Pieces of so many cycles each: time is cycles / clock, energy is power x time.

    `cycles` scales those of a cluster: 2 for one that needs twice as many.
    """

    def row(name: str, count: float) -> CostRow:
        costs = []
        for cluster, hz, watts in clocks:
            time_s = count * (cycles or {}).get(cluster, 1.0) / hz
            costs.append(Cost(time_s, None if watts is None else watts * time_s))
        return CostRow(name, Work(), tuple(costs))

    return CostTable(
        "test",
        "test-board",
        None,
        1,
        tuple(DvfsState(cluster, hz) for cluster, hz, _ in clocks),
        tuple(row(f"segment{k}", count) for k, count in enumerate(segments)),
        tuple(row(f"exit{k}", count) for k, count in enumerate(heads)),
        transitions,
        migration_s,
        idle_w,
    )


class EveryClock:
    """What `Scheduler` is to do, said again without sorting anything: by trying all states.

    Where several states cost the same, each of them is right.
    """

    def __init__(self, table: CostTable, rule: ClockRule) -> None:
        self.table, self.rule, self.last = table, rule, len(table.exits)
        self.limit = inf if rule.deadline_s is None else rule.deadline_s * (1 + 1e-9)
        self.states = [s for s in range(len(table.states)) if self.way(-1, s)[0] < inf]
        if rule.frequency_hz is not None:
            alike = [s for s in self.states if table.states[s].frequency_hz == rule.frequency_hz]
            self.states = [min(alike, key=lambda s: self.way(-1, s)[0])]
        self.by_energy = rule.objective == "lowest_energy" and any(map(self.complete, self.states))
        self.idle_w = 0.0 if rule.deadline_s is None else table.idle_power_w or 0.0
        self.home = min(self.homes())

    def homes(self) -> list[int]:
        """Where samples may begin."""
        if self.rule.start is not None:
            return [self.rule.start]
        in_time = [s for s in self.states if self.complete(s) and self.way(-1, s)[0] <= self.limit]
        if self.by_energy and in_time:
            return cheapest({s: self.energy(*self.way(-1, s)) for s in in_time})
        return cheapest({s: self.way(-1, s)[0] for s in self.states})

    def energy(self, time_s: float, energy_j: float | None) -> float:
        """Less what waiting instead would take."""
        return inf if energy_j is None else energy_j - self.idle_w * time_s

    def sum(self, rows: Sequence[CostRow], state: int) -> tuple[float, float | None]:
        costs = [row.costs[state] for row in rows]
        times = [inf if cost is None else cost.latency_s for cost in costs]
        energies = [None if cost is None else cost.energy_j for cost in costs]
        known = [energy for energy in energies if energy is not None]
        return sum(times, 0.0), sum(known, 0.0) if len(known) == len(rows) else None

    def complete(self, state: int) -> bool:
        """Whether everything is known there."""
        return self.sum((*self.table.segments, *self.table.exits), state)[1] is not None

    def stretch(self, index: int, due: int, state: int) -> tuple[float, float | None]:
        rows = (*self.table.segments[index + 1 : due + 1], *self.table.exits[due : due + 1])
        time_s, energy_j = self.sum(rows, state)
        return time_s, energy_j if self.complete(state) else None

    def way(self, index: int, state: int) -> tuple[float, float | None]:
        rows = (*self.table.segments[index + 1 :], *self.table.exits[index + 1 :])
        time_s, energy_j = self.sum(rows, state)
        return time_s, energy_j if self.complete(state) else None

    def power(self, state: int) -> float | None:
        time_s, energy_j = self.sum(self.table.segments, state)
        return None if energy_j is None or not self.complete(state) else energy_j / time_s

    def change(self, old: int, new: int) -> tuple[float, float | None]:
        """Time (inf: not known) and energy (None: not known)."""
        if old == new:
            return 0.0, 0.0
        before, after = self.table.states[old].cluster, self.table.states[new].cluster
        only = sum(state.cluster == after for state in self.table.states) == 1
        time_s = (self.table.transition_latency_s or {}).get(after, 0.0 if only else inf)
        if before != after:
            migration = self.table.migration_latency_s
            time_s = inf if migration is None else time_s + migration
        powers = [p for p in (self.power(old), self.power(new)) if p is not None]
        return time_s, time_s * max(powers) if powers and time_s < inf else None

    def reachable(self, state: int) -> list[int]:
        return [s for s in self.states if self.change(state, s)[0] < inf]

    def fastest_on(self, index: int, due: int, state: int) -> tuple[float, list[int]]:
        """Least time from a state at hand to the answer at `due`, and by which states."""
        ways = {
            s: self.change(state, s)[0] + self.stretch(index, due, s)[0]
            for s in self.reachable(state)
        }
        ways = ways or {self.home: self.stretch(index, due, self.home)[0]}
        return min(ways.values()), cheapest(ways)

    def needs(self, index: int, due: int, state: int, forecast: bool) -> dict[int, float]:
        """What each state asks for, the time kept for a wrong forecast included."""
        found = {}
        for s in self.reachable(state) or [self.home]:
            change = self.change(state, s)[0]
            change = 0.0 if change == inf else change
            if not forecast:
                found[s] = change + self.way(index, s)[0]
                continue
            found[s] = change + self.stretch(index, due, s)[0]
            if self.rule.safe and due < self.last:
                found[s] += self.fastest_on(due, self.last, s)[0]
        return found

    def cost(self, index: int, due: int, state: int, s: int, forecast: bool) -> float:
        change_s, change_j = self.change(state, s)
        change_s = 0.0 if change_s == inf else change_s
        time_s, energy_j = self.stretch(index, due, s) if forecast else self.way(index, s)
        if not self.by_energy:
            return change_s + time_s
        if energy_j is None or change_j is None:
            return inf
        back = self.change(s, self.home)[1] or 0.0
        return self.energy(change_s + time_s, change_j + energy_j + back)

    def begin(self, first: int, state: int) -> list[Step]:
        state = self.home if self.change(state, self.home)[0] == inf else state
        need = self.change(state, self.home)[0]
        if self.rule.start is None:
            need += self.way(-1, self.home)[0]
        else:
            need += self.stretch(-1, first, self.home)[0]
            if self.rule.safe and first < self.last:
                need += self.fastest_on(first, self.last, self.home)[0]
        if need <= self.limit:
            return [Step(first, self.home)]
        return self.after(-1, first, 0.0, state, False)

    def after(self, index: int, due: int, elapsed: float, state: int, forecast: bool) -> list[Step]:
        left = self.limit - elapsed
        needs = self.needs(index, due, state, forecast)
        fitting = [s for s in needs if needs[s] <= left]
        if fitting:
            costs = {s: self.cost(index, due, state, s, forecast) for s in fitting}
            if min(costs.values()) == inf:  # nothing to compare: the fastest
                costs = {s: needs[s] for s in fitting}
            return [Step(due, s) for s in cheapest(costs)]
        if not (self.rule.safe or self.rule.hard):
            return [Step(due, s) for s in cheapest(needs)]
        return self.last_resort(index, due, left, state)

    def last_resort(self, index: int, due: int, left: float, state: int) -> list[Step]:
        guarded = self.needs(index, due, state, True)
        if min(guarded.values()) <= left:
            return [Step(due, s) for s in cheapest(guarded)]
        ways = {k: self.fastest_on(index, k, state) for k in range(index + 1, self.last + 1)}
        in_time = [k for k in ways if ways[k][0] <= left]
        if self.rule.safe and index >= 0 and self.last in in_time:
            return [Step(self.last, s, True) for s in ways[self.last][1]]
        if due in in_time:
            return [Step(due, s) for s in ways[due][1]]
        if in_time:
            return [Step(max(in_time), s, True) for s in ways[max(in_time)][1]]
        if index >= 0:
            return [Step(EXIT, state)]
        soonest = cheapest({k: ways[k][0] for k in ways})
        return [Step(k, s, True) for k in soonest for s in ways[k][1]]


def cheapest(costs: Mapping[int, float]) -> list[int]:
    """The keys of least value, whatever rounding made of it."""
    least = min(costs.values())
    return [k for k in costs if isclose(costs[k], least, rel_tol=1e-9, abs_tol=1e-12)]
