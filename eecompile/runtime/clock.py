"""The clock while a network answers: what the scheduler says, set by the governor, and its price.

A session whose policy chooses clocks or has a deadline owns one of these. All that can be computed
before there is an input is computed when it is made.
"""

from __future__ import annotations

import math
from dataclasses import replace

from eecompile.clock_rule import ClockRule
from eecompile.cost_table import CostTable
from eecompile.runtime.clock_costs import ClockCosts
from eecompile.runtime.governor import Governor
from eecompile.runtime.scheduler import Scheduler, Step

__all__ = ["Clock"]


class Clock:
    """Runs each stretch of an answer at the clock the scheduler chose for it.

    Where the governor sets no clocks, the scheduler knows the fastest state alone: deadlines are
    looked after as if the machine ran there, and neither clock nor energy are told.

    Attributes:
        rule: it is chosen by.
        transitions: changes of the clock so far.
        late: answers that came after their deadline.
        forced: answers given because of the deadline where the policy would have gone on.
    """

    def __init__(self, table: CostTable, rule: ClockRule, governor: Governor) -> None:
        """Everything is set to begin; no clock is changed before the first sample.

        Raises:
            ValueError: the table and the rule do not fit each other, see `Scheduler`.
        """
        self.rule = rule
        self._sets = bool(governor.states)
        if not self._sets:
            table = table.restricted([int(ClockCosts(table).way_s(-1).argmin())])
            rule = replace(rule, objective="unchanged", frequency_hz=None, start=None)
        self._governor, self._states = governor, table.states
        self._scheduler = scheduler = Scheduler(table, rule).warm()
        self._fastest = int(scheduler.costs.way_s(-1).argmin())
        self._deadline_s, self._last = rule.deadline_s, scheduler.costs.last
        #: Energy from one exit (-1: the start) to another one and its head, by state; NaN where not
        #: known, which no sum gets rid of.
        self._energies_j = {
            (index, due): scheduler.costs.stretch_j(index, due).tolist()
            for index in range(-1, self._last)
            for due in range(index + 1, self._last + 1)
        }
        self.transitions = self.late = self.forced = 0
        self._state: int | None = None
        self._at, self._energy_j = -1, 0.0
        self._indices = {state: index for index, state in enumerate(table.states)}

    def begin(self, first: int) -> Step:
        """What a sample begins with whose policy wants exit `first` evaluated."""
        self._at, self._energy_j = -1, 0.0
        step = self._scheduler.begin(first, self._begun(self._scheduler.home))
        self._change(step.state)
        return step

    def after(self, index: int, due: int, elapsed_s: float, forecast: bool) -> Step:
        """What follows exit `index`, whose head was computed and does not answer by its policy."""
        self._spend(index)
        assert self._state is not None, "a sample has begun"
        step = self._scheduler.after(index, due, elapsed_s, self._state, forecast)
        self._change(step.state)
        return step

    def finish(self, index: int, elapsed_s: float) -> tuple[float | None, float | None]:
        """Clock of the answer and energy of all of it, each None where not known.

        Going to the clock it waits at is in the energy; the answer does not wait for that.

        Args:
            index: the exit that answers; the number of exits: the network's own answer.
            elapsed_s: since the sample's start.
        """
        self._spend(index)
        assert self._state is not None, "a sample has begun"
        frequency_hz = self._states[self._state].frequency_hz
        if self._deadline_s is not None and elapsed_s > self._deadline_s:
            self.late += 1
        is_set = self._is_set(self._state)
        self._change(self._scheduler.rest(elapsed_s, self._state))
        energy_j = self._energy_j
        if not (self._sets and is_set):
            return None, None
        return frequency_hz, None if energy_j != energy_j else energy_j

    def full_speed(self) -> None:
        """Run at the fastest clock, whatever the deadline."""
        self._begun(self._fastest)
        self._change(self._fastest)

    def reset_counts(self) -> None:
        """Count from zero."""
        self.transitions = self.late = self.forced = 0

    def restore(self) -> None:
        """Clocks are put back; the next sample begins anew."""
        self._governor.restore()
        self._state = None

    def _is_set(self, state: int) -> bool:
        """Whether the machine runs at a state, as far as the governor knows."""
        if not self._sets:
            return True
        current, wanted = self._governor.current, self._states[state]
        return current is wanted or current == wanted

    def _begun(self, first: int) -> int:
        """Where the machine is: a session that shares the governor may have been there since.

        Where that is not known (before the first sample, after a `restore`, or because a clock was
        not reached), `first` is set, before it is needed.
        """
        if self._state is None or not self._is_set(self._state):
            current = self._governor.current
            known = None if current is None else self._indices.get(current)
            if known is None:
                known = first
                self._governor.set(self._states[known])
            self._state = known
        return self._state

    def _spend(self, index: int) -> None:
        if index > self._at:
            assert self._state is not None, "a sample has begun"
            if self._is_set(self._state):
                self._energy_j += self._energies_j[self._at, index][self._state]
            else:
                self._energy_j = math.nan  # Of another clock: nobody knows which.
            self._at = index

    def _change(self, state: int) -> None:
        before = self._state
        if state == before or before is None:
            return
        self._energy_j += self._scheduler.change(before, state)[1]
        self._governor.set(self._states[state])
        self._state = state
        self.transitions += 1
