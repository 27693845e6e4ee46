"""The clock while a network answers: what the scheduler says, set by the governor, and its price.

A session whose policy chooses clocks or has a deadline owns one of these. All that can be computed
before there is an input is computed when it is made.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np

from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.runtime.affinity import Placement
from eecompile.runtime.clock_costs import ClockCosts
from eecompile.runtime.governor import ClockWarning, Governor
from eecompile.runtime.paid import PaidEnergies, with_gates_run
from eecompile.runtime.scheduler import Scheduler, Step

__all__ = ["Clock"]

#: Of each step, how much of it ran.
Kept = np.ndarray | None


class Clock:
    """Runs each stretch of an answer at the clock the scheduler chose for it, on its CPUs.

    The scheduler knows the clocks the governor can set. Where that is none, or not any more, it
    knows the fastest state alone: deadlines are looked after as if the machine ran there, and
    neither clock nor energy are told. Nor are they for an answer one of whose clocks was not
    reached, or was changed by whoever shares the governor.

    Threads are kept on the CPUs of the state's cluster, the caller's and the team's, and get theirs
    back with the clocks. Where no clocks are set they run where the system likes.

    Where gates leave something out, clocks are chosen as if nothing to come was left out: deadlines
    are kept by samples of which nothing is. Time that gates have saved slows down what follows, and
    energies are of what ran.

    Attributes:
        rule: it is chosen by.
        transitions: changes of the clock so far.
        late: answers that came after their deadline.
        forced: answers given because of the deadline where the policy would have gone on.
    """

    def __init__(
        self,
        table: CostTable,
        rule: ClockRule,
        governor: Governor,
        workers: Sequence[int] = (),
        network: CompiledGraph | None = None,
    ) -> None:
        """Everything is set to begin; no clock is changed before the first sample.

        Args:
            table: what each stretch costs at each clock.
            rule: to choose by.
            governor: sets the clocks.
            workers: numbers of threads that compute together with the caller's.
            network: of the table, where its gates are to decide; None: it has none.

        Raises:
            ValueError: the table and the rule do not fit each other, see `Scheduler`.
        """
        self._gated = network if network is not None and network.gated else None
        if self._gated is not None:
            table = with_gates_run(self._gated, table)
        Scheduler(table, rule)  # Whatever clocks there are here, the artifact must be sound.
        self.rule = rule
        self._table, self._governor = table, governor
        self._placement, self._threads = Placement(), (0, *workers)
        self._cpus = {cluster.name: cluster.cpus for cluster in table.clusters}
        self.transitions = self.late = self.forced = 0
        self._at, self._energy_j = -1, 0.0
        self._plan()

    def _plan(self) -> None:
        """Choose among the clocks there are from now on."""
        self._offered = self._governor.states
        table, rule, scheduler = self._table, self.rule, None
        kept = [k for k, state in enumerate(table.states) if state in self._offered]
        self._paid: PaidEnergies | None = None
        if rule.sets_clocks and kept:
            start = kept.index(rule.start) if rule.start in kept else None
            offered = table.restricted(kept)
            try:
                scheduler = Scheduler(offered, replace(rule, start=start))
                if self._gated is not None:
                    self._paid = PaidEnergies(self._gated, offered)
            except ValueError as error:
                told = f"Clocks are left alone: of those that can be set here, {error}"
                warnings.warn(told, ClockWarning, stacklevel=2)
        self._sets = scheduler is not None
        if scheduler is None:
            fastest = int(ClockCosts(table).way_s(-1).argmin())
            rule = replace(rule, objective="unchanged", frequency_hz=None, start=None)
            scheduler = Scheduler(table.restricted([fastest]), rule)
        self._scheduler, costs = scheduler.warm(), scheduler.costs
        self._states = costs.states
        self._fastest = int(costs.way_s(-1).argmin())
        self._deadline_s, self._last = rule.deadline_s, costs.last
        #: Energy from one exit (-1: the start) to another one and its head, by state; NaN where not
        #: known, which no sum gets rid of.
        self._energies_j = {
            (index, due): costs.stretch_j(index, due).tolist()
            for index in range(-1, self._last)
            for due in range(index + 1, self._last + 1)
        }
        #: Of changing from a state to another one; NaN where not known.
        self._changes_j: list[list[float]] = costs.change_j.tolist()
        self._state = scheduler.home
        #: What was set last; None where nothing was.
        self._wanted: DvfsState | None = None
        #: The cluster whose CPUs the threads are on, and the caller's thread.
        self._placed: tuple[str, int] | None = None

    def begin(self, first: int) -> Step:
        """What a sample begins with whose policy wants exit `first` evaluated."""
        self._at, self._energy_j = -1, 0.0
        self._settle(self._scheduler.home)
        step = self._scheduler.begin(first, self._state)
        self._change(step.state)
        return step

    def after(
        self, index: int, due: int, elapsed_s: float, forecast: bool, kept: Kept = None
    ) -> Step:
        """What follows exit `index`, whose head was computed and does not answer by its policy.

        Args:
            index: of the exit.
            due: the exit that is wanted next; the number of exits: the end.
            elapsed_s: since the sample's start.
            forecast: whether the policy expects to leave there.
            kept: what ran so far, where gates decide: see `PaidEnergies.stretch_j`.
        """
        if self._sets:
            self._spend(index, kept)
        step = self._scheduler.after(index, due, elapsed_s, self._state, forecast)
        self._change(step.state)
        return step

    def finish(
        self, index: int, elapsed_s: float, kept: Kept = None
    ) -> tuple[float | None, float | None]:
        """Clock of the answer and energy of all of it, each None where not known.

        Going to the clock it waits at is in the energy; the answer does not wait for that.

        Args:
            index: the exit that answers; the number of exits: the network's own answer.
            elapsed_s: since the sample's start.
            kept: as for `after`.
        """
        if self._deadline_s is not None and elapsed_s > self._deadline_s:
            self.late += 1
        if not self._sets:
            return None, None
        self._spend(index, kept)
        frequency_hz = self._states[self._state].frequency_hz if self._holds else None
        self._change(self._scheduler.rest(elapsed_s, self._state))
        energy_j = self._energy_j
        return frequency_hz, None if energy_j != energy_j else energy_j

    def full_speed(self) -> None:
        """Run at the fastest clock, whatever the deadline."""
        self._settle(self._fastest)
        self._change(self._fastest)

    def reset_counts(self) -> None:
        """Count from zero."""
        self.transitions = self.late = self.forced = 0

    def restore(self) -> None:
        """Clocks and threads are put back; the next sample begins anew."""
        self._governor.restore()
        self._placement.restore()
        self._wanted = self._placed = None

    @property
    def _holds(self) -> bool:
        """Whether the clock is the one that was set last, as far as the governor knows."""
        wanted, current = self._wanted, self._governor.current
        return wanted is not None and (current is wanted or current == wanted)

    def _settle(self, state: int) -> None:
        """Between samples: see to it that the clock at hand is known, `state` if it is not."""
        if not self._sets:
            return
        if not self._holds:
            if self._governor.states != self._offered:
                self._plan()
                if not self._sets:
                    self._placement.restore()
                    return
                state = self._scheduler.home
            # Wherever the machine was: its clock is set before it is needed.
            current = self._governor.current
            self._set(self._states.index(current) if current in self._states else state)
        elif self._placed is not None and self._placed[1] != threading.get_native_id():
            self._place(self._states[self._state].cluster)

    def _spend(self, index: int, kept: Kept) -> None:
        if index > self._at:
            if self._paid is not None and kept is not None:
                stretch_j = self._paid.stretch_j(self._at, index, self._state, kept)
            else:
                stretch_j = self._energies_j[self._at, index][self._state]
            self._energy_j += stretch_j if self._holds else nan
            self._at = index

    def _change(self, state: int) -> None:
        if state == self._state:
            return
        self._energy_j += self._changes_j[self._state][state]
        self._set(state)
        self.transitions += 1

    def _set(self, state: int) -> None:
        wanted = self._states[state]
        if self._placed is None or self._placed[0] != wanted.cluster:
            self._place(wanted.cluster)
        self._governor.set(wanted)
        self._state, self._wanted = state, wanted
        if not self._holds:
            self._energy_j = nan

    def _place(self, cluster: str) -> None:
        if cpus := self._cpus.get(cluster, ()):
            self._placement.move(cpus, self._threads)
        self._placed = cluster, threading.get_native_id()
