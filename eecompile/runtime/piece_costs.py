"""What the pieces of a network cost at most, and how long they take in this process.

Multiply-accumulates are counted and energies are the cost table's. What a piece takes of time is
the cost table's at first, and then what the same pieces took in this process: the machine may be
slower today than when it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import floor, inf

import numpy as np

from eecompile.compiled import CompiledGraph, CompiledStep
from eecompile.cost_table import CostRow, CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.figures import hertz
from eecompile.halt_rule import HaltRule
from eecompile.policies.halted import SpendingLimit, can_go_on, cheapest_answer
from eecompile.runtime.paid import step_rows
from eecompile.runtime.steps import Program

__all__ = ["FIRST_FACTOR", "Pace", "PieceCosts", "StepNeeds"]

#: The session's own work around a piece, and for making the answer.
_AROUND_S, _ANSWER_S = 10e-6, 5e-6
#: Of the times of a segment, this share is to be within what was reserved for it. What is reserved
#: follows in steps of so much of what the cost table says, from so much more than that on: within a
#: dozen samples where the machine has become twice as slow, while one whose core was taken away
#: hardly counts.
_WITHIN, _STEP, FIRST_FACTOR = 0.98, 0.02, 1.1
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
        self.factor, self._least = FIRST_FACTOR, FIRST_FACTOR if varies else _LEAST

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
    return 0.0 if step.keep else 1.0 - step.groups_share


class PieceCosts:
    """What a network's pieces cost, by quantity, and how long they take in this process.

    Attributes:
        macs: of each segment at most, gates included.
        gates: whether gates run, and may leave something out.
        pace: of this process, for one thread.
    """

    def __init__(
        self, network: CompiledGraph, table: CostTable | None, *, gates: bool = True
    ) -> None:
        """Of the table the fastest state counts: what clocks are left at.

        Without `gates` those of the network cost nothing, and leave nothing out.
        """
        self._network, self._table = network, table
        self.gates = gates and network.gated
        self._exit_names = network.exit_names
        self._known: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
            "macs": (
                tuple(part.macs + gates * part.gates_macs for part in network.segments),
                tuple(exit_.macs for exit_ in network.exits),
            )
        }
        state = None if table is None else table.fastest
        if table is not None and state is not None:
            ways, heads = _column(table.segments, state), _column(table.exits, state)
            for index, rows in enumerate(step_rows(network, table)):
                segment = network.segments[index]
                if segment.gated:
                    found = zip(segment.steps, _column(rows, state), strict=True)
                    own = [cost for step, cost in found if gates or not step.gate]
                    ways[index] = (sum(s for s, _ in own), sum(j for _, j in own))
            for index, name in enumerate(("latency_s", "energy_j")):
                piece = [tuple(cost[index] for cost in part) for part in (ways, heads)]
                if all(value < inf for part in piece for value in part):
                    self._known[name] = (piece[0], piece[1])
        self._needs: dict[bool, StepNeeds | None] = {}
        self._state, self.macs = state, self._known["macs"][0]
        seconds = self._known.get("latency_s", ((), ()))
        self.pace = Pace(*seconds, varies=self.gates)

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
        """Of the network's steps, in multiply-accumulates or seconds.

        None where that is not known, or nothing is left out.
        """
        if not self.gates:
            return None
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
        rows = chain(*step_rows(self._network, table))
        return [seconds for seconds, _ in _column([*rows], state)]

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
