"""Budgets for every sample while it is computed: what was spent, what the rest may take.

Multiply-accumulates are counted and energies are the cost table's. Time is read from the clock
wherever there is a decision; what the rest takes is the cost table's at first, and then what the
same pieces took in this process: the machine may be slower today than when it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import floor, inf
from time import perf_counter

import numpy as np

from eecompile.compiled import CompiledGraph, CompiledStep
from eecompile.cost_table import CostRow, CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.figures import hertz
from eecompile.halt_rule import HaltRule
from eecompile.policies.base import ExitPolicy
from eecompile.policies.halted import HaltedPolicy, SpendingLimit, can_go_on, cheapest_answer
from eecompile.runtime.steps import Program

__all__ = ["Account", "Halting", "Pace", "PieceCosts", "StepNeeds"]

#: The session's own work around a piece, and for making the answer.
_AROUND_S, _ANSWER_S = 10e-6, 5e-6
#: Of the times of a segment, this share is to be within what was reserved for it. What is reserved
#: follows in steps of so much of what the cost table says, from so much more than that on: within a
#: dozen samples where the machine has become twice as slow, while one whose core was taken away
#: hardly counts.
_WITHIN, _STEP, _FIRST = 0.98, 0.02, 1.1
_LEAST, _MOST = 0.5, 100.0


class Pace:
    """How fast this process is now, against what a cost table says: what to reserve for pieces.

    It is one factor for all pieces: those that are seldom reached are as slow as the others, or
    what was reserved for them once would keep samples from ever reaching them again.

    Attributes:
        segments, heads: seconds as the table says, with the session's work around them.
        factor: what is reserved of that.
    """

    __slots__ = ("_least", "factor", "heads", "segments")

    def __init__(
        self, segments: Sequence[float], heads: Sequence[float], *, varies: bool = False
    ) -> None:
        """From a table's seconds.

        Where samples take less than those because of gates (`varies`), that makes nothing faster.
        """
        self.segments = [seconds + _AROUND_S for seconds in segments]
        self.heads = [seconds + _AROUND_S for seconds in heads]
        self.factor, self._least = _FIRST, _FIRST if varies else _LEAST

    def saw(self, index: int, seconds: float) -> None:
        """Segment `index` took that long.

        >>> pace = Pace([1.0], [])
        >>> for _ in range(100):
        ...     pace.saw(0, 2.0)
        >>> 1.99 < pace.factor < 2.03
        True
        """
        over = seconds > self.factor * self.segments[index]
        factor = self.factor + _STEP * (_WITHIN if over else _WITHIN - 1)
        self.factor = min(max(factor, self._least), _MOST)


class StepNeeds:
    """What must be left of a budget before each step of a network with gates runs.

    That is what the step takes at most, and what must follow in its segment at least; what an
    answer takes after the segment is left to `limit`.

    Attributes:
        costs: of each step at most.
        needs: see above, (steps,).
        parts: where each segment's steps begin and end.
    """

    def __init__(self, network: CompiledGraph, costs: Sequence[float]) -> None:
        """`costs` are of all steps of segments, in execution order."""
        self.costs = np.array(costs, np.float64)
        self.needs = np.empty(len(costs))
        self.parts: list[tuple[int, int]] = []
        for segment in network.segments:
            first = self.parts[-1][1] if self.parts else 0
            end = first + len(segment.steps)
            self.parts.append((first, end))
            follows = 0.0
            for place in range(end - 1, first - 1, -1):
                self.needs[place] = self.costs[place] + follows
                follows += _least_share(segment.steps[place - first]) * self.costs[place]

    def limit(self, program: Program, index: int, after: float, factor: float) -> None:
        """Have segment `index` begin no step that leaves less than `after`; all times `factor`."""
        places = slice(*self.parts[index])
        program.table["need"][places] = (self.needs[places] + after) * factor


def _least_share(step: CompiledStep) -> float:
    """Of a step's cost, what any sample pays."""
    if step.keep:
        return 0.0
    groups = dict(step.function.inputs)[step.channels].size if step.channels else 0
    return 1.0 - groups * step.group_macs / max(step.function.macs, 1)


class PieceCosts:
    """What a network's pieces cost, by quantity, and how long they take in this process.

    Attributes:
        macs: of each segment at most, gates included.
        pace: of this process, for one thread.
    """

    def __init__(self, network: CompiledGraph, table: CostTable | None) -> None:
        """Of the table the fastest state counts: what clocks are left at."""
        self._network, self._table = network, table
        self._exit_names = network.exit_names
        self._known: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
            "macs": (
                tuple(segment.macs + segment.gates_macs for segment in network.segments),
                tuple(exit_.macs for exit_ in network.exits),
            )
        }
        state = None if table is None else table.fastest
        if table is not None and state is not None:
            ways, heads = _column(table.segments, state), _column(table.exits, state)
            steps = iter(_column(table.steps, state))
            for index, segment in enumerate(network.segments):
                if segment.gated:  # Gates included.
                    own = [next(steps) for _ in segment.steps]
                    ways[index] = (sum(s for s, _ in own), sum(j for _, j in own))
            for index, name in enumerate(("latency_s", "energy_j")):
                piece = [tuple(cost[index] for cost in part) for part in (ways, heads)]
                if all(value < inf for part in piece for value in part):
                    self._known[name] = (piece[0], piece[1])
        self._needs: dict[bool, StepNeeds | None] = {}
        self._state, self.macs = state, self._known["macs"][0]
        seconds = self._known.get("latency_s", ((), ()))
        self.pace = Pace(*seconds, varies=network.gated)

    def limits(self, rule: HaltRule, place: Span | None = None) -> tuple[SpendingLimit, ...]:
        """A rule's limits with what pieces cost at most; that of time, if any, is the last.

        Raises:
            CompileErrors: a cost is not known here, or there is no answer within the limits; the
                cheapest one is named.
        """
        found = []
        for name in ("macs", "energy_j", "latency_s"):
            limit = rule.given.get(name)
            if limit is not None:
                found.append(self._limit(name, HaltRule(**{name: limit}), place))
        if not can_go_on(found, [0.0] * len(found), -1):
            raise self._out_of_reach(f"No answer keeps all of `{rule}`", place, self._notes(rule))
        return tuple(found)

    def _limit(self, name: str, rule: HaltRule, place: Span | None) -> SpendingLimit:
        limit = rule.given[name]
        if name not in self._known:
            raise CompileErrors([self._unknown(name, place)])
        if name == "macs":  # A whole number of them, whatever a fraction is rounded to.
            limit = floor(limit * self._network.macs + 1e-3)
        found = SpendingLimit(limit, *self._known[name])
        if cheapest_answer(found)[1] > found.limit:
            message = f"Not even the cheapest answer keeps `{rule}`"
            raise self._out_of_reach(message, place, self._notes(rule))
        return found

    def cheapest(self, name: str) -> tuple[str, float]:
        """Name of the exit whose answer costs least at most, and that as `HaltRule` has it."""
        index, cost = cheapest_answer(SpendingLimit(inf, *self._known[name]))
        return self._exit_names[index], cost / (self._network.macs if name == "macs" else 1)

    def full_depth(self, name: str) -> float:
        """Of the whole network, gates included and heads not, as `HaltRule` has it."""
        return sum(self._known[name][0]) / (self._network.macs if name == "macs" else 1)

    def all_heads(self, name: str) -> float:
        """Of all exits' heads and comparators together, as `HaltRule` has it."""
        return sum(self._known[name][1]) / (self._network.macs if name == "macs" else 1)

    def provenance(self, name: str) -> str:
        """Where what is known of a quantity comes from."""
        table = self._table
        if name == "macs" or table is None:
            return "counted"
        found = table.latency_provenance if name == "latency_s" else table.energy_provenance
        return str(found)

    def spent(self, name: str, exits: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
        """What samples spend of a quantity at most, as `HaltRule` has it: float64 (n,).

        Args:
            name: of the quantity.
            exits: int64 (n,), which exit answers; the final one last.
            evaluated: bool (n, exits), whose heads ran.
        """
        segments, heads = self._known[name]
        found: np.ndarray = np.cumsum(segments)[exits] + evaluated @ np.asarray(heads, np.float64)
        return found / (self._network.macs if name == "macs" else 1)

    def reserved(self, seconds: float) -> SpendingLimit:
        """A limit of time, all of it and all pieces in seconds of the cost table."""
        return SpendingLimit(seconds - _ANSWER_S, self.pace.segments, self.pace.heads)

    def step_needs(self, *, timed: bool) -> StepNeeds | None:
        """Of the network's steps, in multiply-accumulates or seconds; None where not known."""
        if timed not in self._needs:
            steps = [step for part in self._network.segments for step in part.steps]
            costs: list[float] | None = [step.function.macs for step in steps]
            if timed:
                costs = self._step_seconds()
            self._needs[timed] = None if costs is None else StepNeeds(self._network, costs)
        return self._needs[timed]

    def _step_seconds(self) -> list[float] | None:
        """As the table says."""
        table, state = self._table, self._state
        if table is None or state is None:
            return None
        steps, found = iter(_column(table.steps, state)), []
        for index, segment in enumerate(self._network.segments):
            if segment.gated:
                found += [next(steps)[0] for _ in segment.steps]
            else:
                found.append(self._known["latency_s"][0][index])
        return found

    def _notes(self, rule: HaltRule) -> tuple[str, ...]:
        notes = []
        for name in rule.given:
            exit_, cost = self.cheapest(name)
            least = str(HaltRule(**{name: cost})).split("<= ")[1]
            what = "the network's own answer" if exit_ == "final" else f"exit `{exit_}`"
            notes.append(f"the cheapest is {what} with {least}{self._where(name)}")
        return tuple(notes)

    def _where(self, name: str) -> str:
        """On which board, at which clock, and where it is known from."""
        table, state = self._table, self._state
        if name == "macs" or table is None or state is None:
            return ""
        clock = table.states[state].frequency_hz
        at = "" if clock is None else f" at {hertz(clock)}"
        return f" on `{table.board}`{at}, {self.provenance(name)}"

    def _out_of_reach(
        self, message: str, place: Span | None, notes: tuple[str, ...]
    ) -> CompileErrors:
        return CompileErrors(
            [
                Diagnostic(
                    "infeasible-budget",
                    message,
                    place,
                    "leaves no time for any answer" if "latency" in message else "allows no answer",
                    notes=notes,
                    help="allow more, or give the model earlier exits",
                )
            ]
        )

    def _unknown(self, name: str, place: Span | None) -> Diagnostic:
        board = "an artifact without costs" if self._table is None else f"`{self._table.board}`"
        known = ", ".join(f"`{quantity.split('_')[0]}`" for quantity in self._known)
        what = name.split("_")[0]
        return Diagnostic(
            "unknown-costs",
            f"What pieces of the network take of {what} is not known on {board}",
            place,
            f"needs the {what} of every segment and head",
            notes=(f"known are {known}", *(self._table.notes if self._table else ())),
            help=f"halt by one of these: {known}",
        )


def _column(rows: Sequence[CostRow], state: int) -> list[tuple[float, float]]:
    """Latency and energy of pieces at a state; infinite where not known."""
    found = []
    for row in rows:
        cost = row.costs[state]
        energy = None if cost is None else cost.energy_j
        found.append((inf if cost is None else cost.latency_s, inf if energy is None else energy))
    return found


class Halting:
    """A rule for a session's samples, its costs looked up.

    Attributes:
        rule: see above.
        limits: what it comes to: see `PieceCosts.limits`.
        timed: whether the last of them is time.
    """

    __slots__ = ("_costs", "limits", "rule", "timed")

    def __init__(self, rule: HaltRule, costs: PieceCosts, place: Span | None = None) -> None:
        """As `PieceCosts.limits`.

        Raises:
            CompileErrors: as there.
        """
        self.rule, self._costs = rule, costs
        self.limits, self.timed = costs.limits(rule, place), rule.latency_s is not None

    def policy(self, policy: ExitPolicy) -> HaltedPolicy:
        """The policy with the limits that need no clock, which hold in a batch too."""
        return HaltedPolicy(policy, self.limits)

    def expected(self, policy: ExitPolicy) -> HaltedPolicy:
        """The policy with the limits as they come out where time is as the cost table says."""
        limits = list(self.limits)
        if self.timed:
            fresh = self._costs.reserved(limits[-1].limit)
            in_table = max(fresh.limit / _FIRST, cheapest_answer(fresh)[1])
            limits[-1] = replace(fresh, limit=in_table)
        return HaltedPolicy(policy, limits)

    def account(self, start: float) -> Account:
        """Of a sample whose call began at `start`, its input copied by now."""
        return Account(self, self._costs, start)


class Account:
    """What one sample has spent, and what it can still afford.

    Time that is left is counted in seconds of the cost table, of which there are fewer where the
    machine is slower now.
    """

    __slots__ = ("_counted", "_last", "_limits", "_pace", "_pieces", "_spent", "_start", "_timed")

    def __init__(self, halting: Halting, costs: PieceCosts, start: float) -> None:
        """Nothing spent but the time since `start`."""
        limits = halting.limits
        self._start, self._timed = start, halting.timed
        self._pieces, self._pace = costs, costs.pace
        self._spent: list[float] = [0] * len(limits)
        self._counted = len(limits) - self._timed
        if self._timed:
            limits = (*limits[:-1], costs.reserved(limits[-1].limit))
        self._limits = limits
        if self._timed:
            self._tick()

    def segment(self, index: int, macs: int) -> None:
        """Segment `index` has run, with so many multiply-accumulates."""
        for k in range(self._counted):
            costs = self._limits[k].segments
            self._spent[k] += macs if costs is self._pieces.macs else costs[index]
        if self._timed:
            before = self._last
            self._tick()
            self._pace.saw(index, self._last - before)

    def head(self, index: int) -> None:
        """Head and comparator of exit `index` have run."""
        for k in range(self._counted):
            self._spent[k] += self._limits[k].heads[index]
        if self._timed:
            self._tick()

    def _tick(self) -> None:
        """Look at the clock."""
        self._last = perf_counter()
        limit = self._limits[-1].limit
        self._spent[-1] = limit - (limit - self._last + self._start) / self._pace.factor

    def tries(self, index: int, program: Program | None) -> bool:
        """Whether gates may leave out enough for an answer from beyond exit `index` to fit.

        If so, the next segment begins no step after which that would not fit any more. Of several
        limits, and of energies, none is tried like that.
        """
        limits = self._limits
        if program is None or len(limits) > 1 or not (self._timed or self._counts_macs):
            return False
        needs = self._pieces.step_needs(timed=self._timed)
        if needs is None:
            return False
        one, heads = limits[0], limits[0].heads
        last = len(heads)
        ways = [0.0 if index + 1 == last else heads[index + 1]]
        for due in range(index + 2, last + 1):
            ahead = sum(one.segments[index + 2 : due + 1])
            ways.append(ahead + (heads[due] if due < last else 0.0))
        needs.limit(program, index + 1, min(ways), self._pace.factor if self._timed else 1.0)
        if self._timed:
            program.limit(one.limit, round(self._start * 1e9))
        else:
            program.limit(one.limit - (self._spent[0] - program.macs))
        return True

    @property
    def _counts_macs(self) -> bool:
        return self._limits[0].segments is self._pieces.macs

    def affords(self, index: int) -> bool:
        """Whether head and comparator of exit `index` fit into what is left."""
        for spent, one in zip(self._spent, self._limits, strict=True):
            if spent + one.heads[index] > one.limit:
                return False
        return True

    def goes_on(self, index: int) -> bool:
        """Whether an answer from beyond exit `index` fits into what is left."""
        return can_go_on(self._limits, self._spent, index)
