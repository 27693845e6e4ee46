"""What clocks and deadlines do to recorded samples: latency, energy and misses by a cost table.

The policy decides on recorded outputs and the very scheduler of the runtime chooses clocks; only
elapsed times are sums of costs instead of measured. Samples come one after the other: each begins
at the clock the one before has left, and changing that is in its own time and energy.

Where gates leave something out, each sample takes the time of what it was left. The scheduler
reckons with nothing left out, and sees the time that has gone by: as in a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.clocks.paying import PaidCosts
from eecompile.cost_table import CostTable
from eecompile.policies import ExitPolicy, replay
from eecompile.policies.base import EXIT, ExitOutputs
from eecompile.runtime.clock_fronts import TOLERANCE
from eecompile.runtime.scheduler import Scheduler

__all__ = ["Courses", "Replayed", "Run", "Simulation", "at_top_clock", "simulate", "top_clock"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Simulation:
    """What n samples got and cost.

    Attributes:
        exit: int64 (n,), index of the exit that answered; the number of exits for the final one.
        logits: float32 (n, classes), the answers' logits.
        evaluated: bool (n, exits), whose heads ran.
        latency_s: (n,), from a sample's start to its answer, changes of clock included.
        energy_j: (n,), of the same, of going to the clock it waits at, and of `waiting_j`; NaN
            where not known.
        waiting_j: (n,), for waiting until the deadline at idle power; 0 where either is not known.
        late_s: (n,), how long after the deadline the answer came; 0 where it did not.
        forced: bool (n,), whether an exit answered because of the deadline where the policy would
            have gone on.
        transitions: int64 (n,), changes of clock.
        seconds_at: (n, states), time spent at each state, changes to it included.
    """

    exit: Array
    logits: Array
    evaluated: Array
    latency_s: Array
    energy_j: Array
    waiting_j: Array
    late_s: Array
    forced: Array
    transitions: Array
    seconds_at: Array

    def correct(self, labels: Array) -> Array:
        """Whether each answer is right, bool (n,)."""
        return np.asarray(self.logits.argmax(axis=1) == labels)

    @property
    def missed(self) -> Array:
        """Whether the answer came after the deadline, bool (n,)."""
        return np.asarray(self.late_s > 0)

    @property
    def mean_energy_j(self) -> float | None:
        """Energy of a sample on the average; None where not known."""
        mean = float(self.energy_j.mean())
        return None if np.isnan(mean) else mean


class Replayed:
    """What a policy decides about recorded samples, to be simulated with several schedulers.

    Args:
        policy: asked as at run time.
        outputs: of all n samples, per exit, in the samples' order.
        final: logits of the final exit, float32 (n, classes).
    """

    def __init__(self, policy: ExitPolicy, outputs: Sequence[ExitOutputs], final: Array) -> None:
        self.policy, self.outputs, self.final = policy, outputs, final
        asked = replay(policy, outputs, final)
        numbers: dict[tuple[bytes, int], int] = {}
        #: Of each sample: its place in `_paths`.
        self._path_of: list[int] = []
        self._paths: list[tuple[tuple[int, ...], int]] = []
        keys = zip(
            map(bytes, np.packbits(asked.evaluated, axis=1)), asked.exit.tolist(), strict=True
        )
        for sample, key in enumerate(keys):
            number = numbers.setdefault(key, len(numbers))
            if number == len(self._paths):
                wanted = tuple(np.flatnonzero(asked.evaluated[sample]).tolist())
                self._paths.append((wanted, key[1]))
            self._path_of.append(number)

    def run(self, courses: Courses, state: int | None = None) -> Run:
        """All samples in their order with a scheduler; `state` as for `simulate`."""
        forecast = self.policy.forecasts
        at = courses.scheduler.home if state is None else state
        # Samples of one path that begin at one clock, and pay the same, share what they cost.
        known: dict[tuple[int, int, int], int] = {}
        found: list[_Course] = []
        picked = []
        groups = courses.groups(len(self._path_of))
        for path, group in zip(self._path_of, groups, strict=True):
            number = known.get((path, group, at))
            if number is None:
                number = known[path, group, at] = len(found)
                found.append(courses.of(*self._paths[path], at, forecast, group))
            picked.append(number)
            at = found[number].state
        return Run(self, courses.scheduler, tuple(found), np.array(picked))


@dataclass(frozen=True)
class Run:
    """What one run of the samples cost, known before what it answered is gathered."""

    replayed: Replayed
    scheduler: Scheduler
    _courses: tuple[_Course, ...]
    _picked: Array

    def each(self, name: str) -> Array:
        """A figure of its course, for each sample."""
        return np.array([getattr(course, name) for course in self._courses])[self._picked]

    @property
    def energy_j(self) -> Array:
        """As `Simulation.energy_j`."""
        return self.each("energy_j")

    @property
    def late_s(self) -> Array:
        """As `Simulation.late_s`."""
        deadline_s, latency_s = self.scheduler.rule.deadline_s, self.each("latency_s")
        if deadline_s is None:
            return np.zeros(len(latency_s))
        late = latency_s > deadline_s * (1 + TOLERANCE)
        return np.where(late, latency_s - deadline_s, 0.0)

    def simulation(self) -> Simulation:
        """Everything that is known of each sample."""
        return _gathered(self)


def simulate(
    policy: ExitPolicy,
    outputs: Sequence[ExitOutputs],
    final: Array,
    scheduler: Scheduler,
    state: int | None = None,
    paid: PaidCosts | None = None,
) -> Simulation:
    """What `policy` and `scheduler` do to samples of which every exit's outputs are known.

    Args:
        policy: asked as at run time.
        outputs: of all n samples, per exit, in the samples' order.
        final: logits of the final exit, float32 (n, classes).
        scheduler: made from the costs that are to be counted.
        state: the clock at hand before the first sample; the scheduler's `home` if not given.
        paid: what these samples pay, of whom gates leave something out; None: everything.
    """
    return Replayed(policy, outputs, final).run(Courses(scheduler, paid), state).simulation()


def at_top_clock(
    policy: ExitPolicy,
    outputs: Sequence[ExitOutputs],
    final: Array,
    table: CostTable,
    deadline_s: float | None = None,
) -> Simulation:
    """The policy with every sample at the fastest clock: what choosing clocks is compared with.

    With a `NeverPolicy`, the full network.
    """
    return simulate(policy, outputs, final, top_clock(table, deadline_s))


def top_clock(table: CostTable, deadline_s: float | None = None) -> Scheduler:
    """The scheduler with which every sample is at the fastest clock."""
    return Scheduler(table, ClockRule("lowest_latency", deadline_s))


@dataclass(frozen=True, slots=True)
class _Course:
    """What becomes of samples that take one path through the exits, from one clock at hand.

    Those of a network with gates pay the same besides.

    Attributes:
        evaluated: exits whose heads run, in order.
        exit: which answers.
        answered: whether the deadline and not the policy said that it answers.
        state: the clock after it.
    """

    evaluated: tuple[int, ...]
    exit: int
    answered: bool
    latency_s: float
    energy_j: float
    waiting_j: float
    transitions: int
    seconds_at: tuple[float, ...]
    state: int


class Courses:
    """What becomes of samples with one scheduler: it goes along each path once, as a session does.

    Args:
        scheduler: made from the costs that are to be counted.
        paid: what samples pay of them, where gates leave something out; None: everything. All runs
            are then of these samples.
    """

    def __init__(self, scheduler: Scheduler, paid: PaidCosts | None = None) -> None:
        self.scheduler, self._paid = scheduler, paid
        costs = scheduler.costs
        self._time_s = cache(lambda index, due: costs.stretch_s(index, due).tolist())
        self._energy_j = cache(lambda index, due: costs.stretch_j(index, due).tolist())
        self._change = cache(scheduler.change)
        # Where gates decide, there are about as many courses as samples: too many to keep.
        self.of = cache(self._of) if paid is None else self._of

    def groups(self, count: int) -> list[int]:
        """Of each of `count` samples: the number of those that pay the same."""
        return [0] * count if self._paid is None else self._paid.group.tolist()

    def _cost(self, group: int, index: int, due: int, state: int) -> tuple[float, float]:
        """Time and energy of the stretch between two exits."""
        if self._paid is not None:
            return self._paid.stretch(group, index, due, state)
        return self._time_s(index, due)[state], self._energy_j(index, due)[state]

    def _of(
        self, path: tuple[int, ...], exit_: int, state: int, forecast: bool, group: int
    ) -> _Course:
        """Of samples whose policy wants the exits of `path` and leaves at `exit_`.

        Args:
            path: exits whose heads are to run, in order.
            exit_: the number of exits for the final one.
            state: the clock at hand.
            forecast: whether the policy expects to leave where it goes next.
            group: of samples that pay the same.
        """
        scheduler, last = self.scheduler, self.scheduler.costs.last
        following = dict(zip((-1, *path), (*path, last), strict=True))
        seconds = [0.0] * len(scheduler.costs.states)
        elapsed_s = energy_j = 0.0
        transitions, answered, evaluated, index = 0, False, [], -1
        step = scheduler.begin(following[-1], state)
        while step.due != EXIT:
            change_s, change_j = self._change(state, step.state)
            transitions += state != step.state
            state = step.state
            time_s, paid_j = self._cost(group, index, step.due, state)
            time_s += change_s
            energy_j += change_j + paid_j
            elapsed_s += time_s
            seconds[state] += time_s
            index = step.due
            if index == last:
                break
            evaluated.append(index)
            if step.answer or index == exit_:
                answered = step.answer
                break
            step = scheduler.after(index, following[index], elapsed_s, state, forecast)
            answered = step.due == EXIT
        rest = scheduler.rest(elapsed_s, state)
        change_s, change_j = self._change(state, rest)
        waiting_j = self._waiting_j(elapsed_s + change_s)
        return _Course(
            tuple(evaluated),
            index,
            answered,
            elapsed_s,
            energy_j + change_j + waiting_j,
            waiting_j,
            transitions + (state != rest),
            tuple(seconds),
            rest,
        )

    def _waiting_j(self, elapsed_s: float) -> float:
        deadline_s, idle_w = self.scheduler.rule.deadline_s, self.scheduler.costs.idle_power_w
        if deadline_s is None or idle_w is None:
            return 0.0
        return max(0.0, deadline_s - elapsed_s) * idle_w


def _gathered(run: Run) -> Simulation:
    """Courses written out for every sample."""
    replayed, courses, picked = run.replayed, run._courses, run._picked
    policy, outputs, final = replayed.policy, replayed.outputs, replayed.final
    evaluated = np.zeros((len(courses), len(outputs)), bool)
    for row, course in zip(evaluated, courses, strict=True):
        row[list(course.evaluated)] = True
    exits = run.each("exit")
    logits, forced = np.array(final, np.float32), np.zeros(len(final), bool)
    for index, seen in enumerate(outputs):
        here = np.flatnonzero(exits == index)
        logits[here] = policy.answer(index, seen.rows(here))
    for path, alike in _answered(courses, policy.start(1) is not None).items():
        here = np.flatnonzero(np.isin(picked, alike))
        forced[here] = _would_go_on(policy, outputs, here, path)
    return Simulation(
        exits,
        logits,
        evaluated[picked],
        run.each("latency_s"),
        run.energy_j,
        run.each("waiting_j"),
        run.late_s,
        forced,
        run.each("transitions"),
        run.each("seconds_at"),
    )


def _answered(courses: Sequence[_Course], remembers: bool) -> dict[tuple[int, ...], list[int]]:
    """Exits at whose end the deadline had the answer given, and the courses that took them.

    All of a course's exits if the policy remembers them, else the last alone.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for number, course in enumerate(courses):
        if course.answered:
            path = course.evaluated if remembers else course.evaluated[-1:]
            found.setdefault(path, []).append(number)
    return found


def _would_go_on(
    policy: ExitPolicy, outputs: Sequence[ExitOutputs], samples: Array, evaluated: Sequence[int]
) -> Array:
    """Whether the policy does not leave at the last of these exits, bool (len(samples),)."""
    state = policy.start(len(samples))
    decision = np.full(len(samples), EXIT)
    for index in evaluated:
        decision = policy.decide(index, outputs[index].rows(samples), state)
    return np.asarray(decision != EXIT)
