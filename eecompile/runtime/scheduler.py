"""Chooses the clock of each stretch between exits: a pure function of costs, rule and progress.

One clock is chosen per stretch, from the exit just evaluated to the one forecast, as Predictive
Exit does (arXiv 2206.04685). Changing it costs time and energy, which are counted on both sides:
into the stretch's clock, and back to the clock every sample begins at.

A decision is a binary search in a front made beforehand, see `eecompile.runtime.clock_fronts`.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from typing import NamedTuple

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.cost_table import CostTable
from eecompile.policies.base import EXIT
from eecompile.runtime.clock_costs import ClockCosts
from eecompile.runtime.clock_fronts import ClockFronts, Front

__all__ = ["Scheduler", "Step"]


class Step(NamedTuple):
    """What to do next.

    Attributes:
        due: run to the exit of that index; the number of exits: to the end; `EXIT`: answer with the
            exit just evaluated.
        state: at which clock, as an index into the table's states.
        answer: whether the exit at `due` answers whatever the policy says there.
    """

    due: int
    state: int
    answer: bool = False


class Scheduler:
    """Clocks for samples of one network by one rule.

    Asked before a sample (`begin`), and at each evaluated exit where it stays (`after`). Of the
    clocks that keep the deadline, the one that costs least is chosen: energy for "lowest_energy"
    (of the stretch, of changing to its clock and back to `home`, less the waiting at idle power it
    takes the place of), otherwise time; of equal ones the fastest. Where no clock keeps it, the
    fastest is used. If the deadline is safe or hard, then in this order:

    1. An exit that can be reached in time is gone to at the fastest clock. With a safe deadline
       that holds after the first exit only where the end is out of reach anyway; where it is not,
       the end answers.
    2. The deepest exit that can be reached in time answers.
    3. The exit at hand answers; before the first, the one that can be reached soonest.

    States with an unknown latency are never chosen. With "lowest_energy", those with an unknown
    energy are used only where no other is fast enough; where no energy is known at all, the fastest
    is always used, as `notes` says. A change of clock whose time is not known is made between
    samples only, to `home`.

    Attributes:
        rule: what is decided by.
        costs: of stretches and changes of clock.
        home: the state samples begin at: the rule's `start`; without one, the best for the whole
            way with every head, if each sample took it.
        notes: what is not known, and what follows for decisions, in sentences.

    Raises:
        ValueError: the table does not fit a network, knows the latencies of no state, has no such
            fixed frequency, or no latencies for the rule's `start`.

    Source: the least clock with W / f + t_switch + t <= D, and the guard W / f + W_rest / f_max <=
    D - t, of Predictive Exit (arXiv 2206.04685); least energy instead of least clock.
    """

    def __init__(self, table: CostTable, rule: ClockRule) -> None:
        self.rule, self.costs = rule, ClockCosts(table)
        self._fronts = ClockFronts(self.costs, rule)
        self._stretches = self._fronts.stretches
        self.home = self._fronts.home
        self._last, self._limit = self.costs.last, self._fronts.limit_s
        states, exits = range(len(table.states)), range(self._last + 1)
        self._steps = [[Step(due, state) for state in states] for due in exits]
        self._answers = [[Step(due, state, True) for state in states] for due in exits]
        self._exits = [Step(EXIT, state) for state in states]
        self._rests = [self._rest(state) for state in states]
        self.notes = tuple(self._notes(table))

    def begin(self, first: int, state: int, elapsed_s: float = 0.0) -> Step:
        """What a sample begins with.

        The change to the clock of its first stretch is made in the sample's own time.

        Args:
            first: the first exit the policy wants evaluated; the number of exits: none.
            state: the clock at hand, where the sample before has left it.
            elapsed_s: time since the sample's start.
        """
        left, state = self._limit - elapsed_s, self._fronts.enters[state]
        if self._fronts.entry(first)[state] <= left:
            return self._steps[first][self.home]
        return self._chosen(self._fronts.way(-1)[state], -1, first, left, state)

    def after(
        self, index: int, due: int, elapsed_s: float, state: int, forecast: bool = True
    ) -> Step:
        """What follows an evaluated exit at which the policy does not answer.

        Args:
            index: the exit.
            due: what the policy wants evaluated next; the number of exits: the final answer.
            elapsed_s: time since the sample's start.
            state: the clock at hand.
            forecast: whether the sample is expected to leave at `due`. Otherwise the clock is
                chosen for the way to the end with every head on it.
        """
        if forecast:
            fronts = self._stretches[index + 1][due] or self._fronts.stretch(index, due)
        else:
            fronts = self._fronts.way(index)
        return self._chosen(fronts[state], index, due, self._limit - elapsed_s, state)

    def rest(self, elapsed_s: float, state: int) -> int:
        """The clock to wait at after an answer, `elapsed_s` after the sample's start.

        Another than the one at hand only when racing to idle: the one of lowest power in its
        cluster, if going there and back takes less time than the answer did, and no more than is
        left until the deadline.
        """
        if self.rule.objective != "race_to_idle":
            return state
        lowest, there_and_back = self._rests[state]
        if there_and_back < elapsed_s and there_and_back <= self._limit - elapsed_s:
            return lowest
        return state

    def _rest(self, state: int) -> tuple[int, float]:
        """The clock of lowest power in a state's cluster, and the time to go there and back."""
        states = self.costs.states
        same = [k for k, other in enumerate(states) if other.cluster == states[state].cluster]
        powers = self.costs.power_w[same]
        # Clusters list their states by rising frequency, and power rises with it.
        lowest = same[0] if np.isnan(powers).any() else same[int(powers.argmin())]
        return lowest, 2 * float(self.costs.change_s[state, lowest])

    def change(self, before: int, after: int) -> tuple[float, float]:
        """Time and energy of changing the clock: 0 s where not known, NaN J where not known."""
        time_s = float(self.costs.change_s[before, after])
        return (0.0 if time_s == inf else time_s), float(self.costs.change_j[before, after])

    def warm(self) -> Scheduler:
        """This scheduler, with everything decisions look up made beforehand."""
        for index in range(-1, self._last):
            self._fronts.way(index)
            self._fronts.reach(index)
            self._fronts.entry(index + 1)
            for due in range(index + 1, self._last + 1):
                self._fronts.stretch(index, due)
        return self

    def _chosen(self, front: Front, index: int, due: int, left: float, state: int) -> Step:
        """The cheapest state that fits into the time left."""
        at = bisect_right(front.needs, left)
        if at:
            return self._steps[due][front.states[at - 1]]
        if self.rule.answers_in_time:
            return self._last_resort(index, due, left, state)
        return self._steps[due][front.states[0]]

    def _last_resort(self, index: int, due: int, left: float, state: int) -> Step:
        """No clock keeps the deadline as it should be kept, but an answer must be there in time."""
        front = self._fronts.stretch(index, due)[state]
        if front.needs[0] <= left:
            return self._steps[due][front.states[0]]
        soonest, by, needs, exits = self._fronts.reach(index)[state]
        at = bisect_right(needs, left)
        deepest = exits[at - 1] if at else EXIT
        if self.rule.safe and index >= 0 and deepest == self._last:
            return self._answers[deepest][by[deepest]]
        if soonest[due] <= left:
            return self._steps[due][by[due]]
        if deepest != EXIT:
            return self._answers[deepest][by[deepest]]
        if index >= 0:
            return self._exits[state]
        quickest = soonest.index(min(soonest))
        return self._answers[quickest][by[quickest]]

    def _notes(self, table: CostTable) -> list[str]:
        notes, allowed = [], self._fronts.allowed
        without = int((allowed & ~self.costs.has_energy).sum())
        if self.rule.objective == "lowest_energy" and without:
            some = f"the energies of {without} of {allowed.sum()} clocks are not known: those are "
            some += "used only where no other is fast enough"
            none = "no clock's energy is known: the fastest clock is always used"
            notes.append(some if self._fronts.by_energy else none)
        clusters = [state.cluster for state in table.states]
        for name in dict.fromkeys(clusters):
            if clusters.count(name) > 1 and name not in (table.transition_latency_s or {}):
                notes.append(
                    f"the transition latency of `{name}` is not known: its clock changes between "
                    f"samples only, which counts nothing"
                )
        if len(set(clusters)) > 1 and table.migration_latency_s is None:
            notes.append("the time to change cluster is not known: no sample changes it")
        return notes
