"""Budgets for every sample while it is computed: what was spent, what the rest may take.

Multiply-accumulates are counted and energies are the cost table's. Time is read from the clock
wherever there is a decision; what the rest takes is known from `eecompile.runtime.piece_costs`.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from eecompile.diagnostics import Span
from eecompile.halt_rule import HaltRule
from eecompile.policies.base import ExitPolicy
from eecompile.policies.halted import HaltedPolicy, can_go_on, cheapest_answer
from eecompile.runtime.piece_costs import FIRST_FACTOR, PieceCosts
from eecompile.runtime.steps import Program

__all__ = ["Account", "Halting"]


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
            in_table = max(fresh.limit / FIRST_FACTOR, cheapest_answer(fresh)[1])
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
