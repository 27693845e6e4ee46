"""What the scheduler looks up: for each way and clock at hand, the clocks worth choosing, sorted.

Made when first asked for, and then kept.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.policies.base import EXIT
from eecompile.runtime.clock_costs import ClockCosts

__all__ = ["TOLERANCE", "ClockFronts", "Front", "Reach"]

Array = np.ndarray[Any, Any]

#: Share of a deadline that sums of costs may lie above it by the rounding of floats.
TOLERANCE = 1e-9

#: Costs nearer than this share of them are the same, and the faster clock is taken: clocks at one
#: voltage differ by rounding only.
_ALIKE = 1e-9

#: Linux counts clocks in kilohertz: nearer than half of one is the same.
_SAME_HZ = 500.0


class Front(NamedTuple):
    """A Pareto front of one way and one clock at hand: by rising need, each state cheaper."""

    needs: list[float]
    states: list[int]


class Reach(NamedTuple):
    """What can be reached how soon, from one exit and one clock at hand.

    Attributes:
        soonest: of each exit, the final one last: least time to its answer; inf where it is behind.
        by: of each: the state that takes that long.
        needs: rising; with so much time ...
        exits: ... the exit of this index is the deepest that can answer.
    """

    soonest: list[float]
    by: list[int]
    needs: list[float]
    exits: list[int]


class ClockFronts:
    """Fronts by rule and costs.

    Attributes:
        limit_s: the deadline, with room for rounding; inf where there is none.
        allowed: bool (states,), those the rule leaves and whose latencies are known.
        by_energy: whether energies decide.
        home: see `eecompile.runtime.scheduler.Scheduler`.
        enters: by clock at hand: the one a sample is thought to begin at. That is `home` where
            nobody knows the time to change to it: between samples it is changed to all the same.

    Raises:
        ValueError: as `eecompile.runtime.scheduler.Scheduler` does.
    """

    def __init__(self, costs: ClockCosts, rule: ClockRule) -> None:
        self.costs, self.rule, self._last = costs, rule, costs.last
        self.limit_s = inf if rule.deadline_s is None else rule.deadline_s * (1 + TOLERANCE)
        self.allowed: Array = costs.usable & self._of_rule()
        known = bool((self.allowed & costs.has_energy).any())
        self.by_energy = rule.objective == "lowest_energy" and known
        # Time not needed is waited for at idle power: the longer a way takes, the less of that.
        self._idle_w = (costs.idle_power_w or 0.0) if self.limit_s < inf else 0.0
        self.home = self._home()
        stuck = np.isinf(costs.change_s[:, self.home])
        self.enters: list[int] = np.where(stuck, self.home, np.arange(len(stuck))).tolist()
        back = costs.change_j[:, self.home]
        self._back_j = np.where(np.isnan(back), 0.0, back)
        exits = range(self._last + 1)
        self.stretches: list[list[list[Front] | None]] = [[None for _ in exits] for _ in exits]
        self._ways: list[list[Front] | None] = [None for _ in exits]
        self._reaches: list[list[Reach] | None] = [None for _ in exits]
        self._entries: list[list[float] | None] = [None for _ in exits]

    def way(self, index: int) -> list[Front]:
        """By clock at hand: of the way from an exit (-1: the start) to the end with every head."""
        found = self._ways[index + 1]
        if found is None:
            nothing = np.zeros(len(self.costs.states))
            found = self._fronts(self.costs.way_s(index), self.costs.way_j(index), nothing)
            self._ways[index + 1] = found
        return found

    def stretch(self, index: int, due: int) -> list[Front]:
        """By clock at hand: of a stretch; needs hold the time to keep for a wrong forecast."""
        found = self.stretches[index + 1][due]
        if found is None:
            time_s, energy_j = self.costs.stretch_s(index, due), self.costs.stretch_j(index, due)
            found = self._fronts(time_s, energy_j, self._reserve(due))
            self.stretches[index + 1][due] = found
        return found

    def reach(self, index: int) -> list[Reach]:
        """By clock at hand: which exits can be reached, and how soon."""
        found = self._reaches[index + 1]
        if found is None:
            nowhere = np.full(self.costs.change_s.shape, inf)
            needs = [
                self._needs(self.costs.stretch_s(index, due)) if due > index else nowhere
                for due in range(self._last + 1)
            ]
            soonest = np.stack([need.min(axis=1) for need in needs], axis=1)
            by = np.stack([need.argmin(axis=1) for need in needs], axis=1)
            found = [_reach(*rows) for rows in zip(soonest.tolist(), by.tolist(), strict=True)]
            self._reaches[index + 1] = found
        return found

    def entry(self, first: int) -> list[float]:
        """By clock at hand: the time a sample needs so that it may begin at `home`."""
        found = self._entries[first]
        if found is None:
            way = self.costs.way_s(-1)
            if self.rule.start is not None:
                way = self.costs.stretch_s(-1, first) + self._reserve(first)
            found = (self.costs.change_s[:, self.home] + way[self.home]).tolist()
            self._entries[first] = found
        return found

    def _of_rule(self) -> Array:
        """Which states the rule leaves."""
        usable, start, asked = self.costs.usable, self.rule.start, self.rule.frequency_hz
        if start is not None and not (start < len(usable) and usable[start]):
            raise ValueError(f"no latencies are known at state {start}, the rule's start")
        left = np.ones(len(usable), bool)
        if asked is not None:
            clocks = [state.frequency_hz for state in self.costs.states]
            left = np.array([hz is not None and abs(hz - asked) <= _SAME_HZ for hz in clocks])
            if not (usable & left).any():
                raise ValueError(f"the cost table has no clock of {asked:g} Hz")
        elif self.rule.sets_clocks:
            return left
        # A fixed clock is that of the fastest cluster that has it.
        fastest = np.where(usable & left, self.costs.way_s(-1), inf).argmin()
        return np.asarray(np.arange(len(left)) == fastest)

    def _home(self) -> int:
        if self.rule.start is not None:
            return self.rule.start
        time_s = np.where(self.allowed, self.costs.way_s(-1), inf)
        if self.by_energy:
            in_time = self.allowed & self.costs.has_energy & (time_s <= self.limit_s)
            cost = self.costs.way_j(-1) - self._idle_w * np.where(in_time, time_s, 0.0)
            if in_time.any():
                least = float(cost[in_time].min())
                time_s = np.where(in_time & (cost <= least + _ALIKE * abs(least)), time_s, inf)
        return int(time_s.argmin())

    def _reserve(self, due: int) -> Array:
        """By the state of the stretch to `due`: time to keep for the rest, if it must be safe."""
        if not self.rule.safe or due == self._last:
            return np.zeros(len(self.costs.states))
        return np.asarray(self._needs(self.costs.stretch_s(due, self._last)).min(axis=1))

    def _needs(self, time_s: Array) -> Array:
        """(at hand, to): a change of clock and what is run then; inf where that cannot be."""
        needs = self.costs.change_s + np.where(self.allowed, time_s, inf)
        stuck = ~np.isfinite(needs).any(axis=1)
        needs[stuck, self.home] = time_s[self.home]
        return needs

    def _fronts(self, time_s: Array, energy_j: Array, reserve_s: Array) -> list[Front]:
        """Of one way, given at each clock."""
        needs = self._needs(time_s)
        costs = needs
        if self.by_energy:
            can = np.isfinite(needs)
            costs = self.costs.change_j + energy_j + self._back_j
            costs = costs - self._idle_w * np.where(can, needs, 0.0)
            costs = np.where(can & ~np.isnan(costs), costs, inf)
        bounds = needs + reserve_s
        order = np.lexsort((costs, bounds), axis=-1)
        bounds = np.take_along_axis(bounds, order, axis=1)
        costs = np.take_along_axis(costs, order, axis=1)
        kept = np.ones(bounds.shape, bool)
        least = np.minimum.accumulate(costs, axis=1)[:, :-1]
        room = _ALIKE * np.where(np.isinf(least), 0.0, np.abs(least))
        kept[:, 1:] = costs[:, 1:] < least - room
        kept &= np.isfinite(bounds)
        return [
            Front(bound[keep].tolist(), states[keep].tolist())
            for bound, states, keep in zip(bounds, order, kept, strict=True)
        ]


def _reach(soonest: list[float], by: list[int]) -> Reach:
    needs: list[float] = []
    exits: list[int] = []
    for index in range(len(soonest) - 1, EXIT, -1):
        if soonest[index] < (needs[-1] if needs else inf):
            needs.append(soonest[index])
            exits.append(index)
    return Reach(soonest, by, needs[::-1], exits[::-1])
