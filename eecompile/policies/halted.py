"""Stop where a budget is spent, and answer with the deepest exit it reaches (DDI, 1907.04523).

At an exit point the rule goes on only where an answer from further on is sure to fit into what is
left. Where none is, this exit answers: its head was reserved for. Heads in between do not run,
unless an exit policy asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import EXIT, HALT, ExitOutputs, ExitPolicy
from eecompile.policies.json_form import from_json, to_json

__all__ = ["HaltedPolicy", "SpendingLimit", "can_go_on", "cheapest_answer"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """What a sample may spend of one quantity, and what pieces take of it at most; in one unit.

    Attributes:
        limit: for a sample.
        segments: of each segment; one more than exits.
        heads: of evaluating each exit: head and comparator.
    """

    limit: float
    segments: Sequence[float]
    heads: Sequence[float]


def cheapest_answer(costs: SpendingLimit) -> tuple[int, float]:
    """Index of the exit whose answer costs least, the number of exits for the final one; its cost.

    >>> cheapest_answer(SpendingLimit(10, (2, 3, 4), (5, 1)))
    (1, 6.0)
    """
    found, way = (-1, inf), 0.0
    for index, segment in enumerate(costs.segments):
        way += segment
        cost = way + costs.heads[index] if index < len(costs.heads) else way
        found = (index, cost) if cost < found[1] else found
    return found


def can_go_on(limits: Sequence[SpendingLimit], spent: Sequence[float], index: int) -> bool:
    """Whether an answer from beyond exit `index` (-1: the start) fits into what is left.

    >>> limits = [SpendingLimit(6, (2, 3, 4), (1, 1))]
    >>> can_go_on(limits, [2], 0), can_go_on(limits, [5], 1), can_go_on(limits, [3], 0)
    (True, False, False)
    """
    if len(limits) == 1:  # Most often, and asked at every exit.
        (one,) = limits
        left, heads = one.limit - spent[0], one.heads
        for after in range(index + 1, len(heads)):
            left -= one.segments[after]
            if heads[after] <= left:
                return True
            if left < 0:
                return False
        return index < len(heads) and one.segments[-1] <= left
    ways = list(spent)
    for after in range(index + 1, len(limits[0].segments)):
        ways = [way + one.segments[after] for way, one in zip(ways, limits, strict=True)]
        if all(map(_fits, limits, ways, [after] * len(ways))):
            return True
    return False


def _fits(one: SpendingLimit, way: float, index: int) -> bool:
    """Whether exit `index`, or the network's own answer, fits behind a way."""
    return way + one.heads[index] <= one.limit if index < len(one.heads) else way <= one.limit


@dataclass(slots=True)
class _State:
    """Of samples that were all evaluated at the same exits.

    Attributes:
        inner: the other policy's.
        at: the exit evaluated last, -1 at the start.
        spent: of each limit, with that exit.
        asks: bool (n,), whether the other policy is asked at the next exit; else the budget ends
            there.
        place: int64 (n,), places in `inner` of those it was asked about; None where it was of all.
    """

    inner: Any
    at: int
    spent: tuple[float, ...]
    asks: Array
    place: Array | None = None


class HaltedPolicy(ExitPolicy):
    """Another policy as far as budgets go that hold for every sample.

    Heads that the other policy asks for count. One that does not fit, where a cheaper answer
    further on does, is left out, and the policy is asked no more.

    Args:
        policy: asked where to leave; it must not offload.
        limits: to be kept; costs are exact.

    Raises:
        ValueError: they allow no answer at all, or are of different exits.
    """

    kind: ClassVar[str] = "halted"

    def __init__(self, policy: ExitPolicy, limits: Sequence[SpendingLimit]) -> None:
        self.policy, self.limits = policy, tuple(limits)
        self.gate_shift = policy.gate_shift
        sizes = {(len(one.segments), len(one.heads) + 1) for one in limits}
        if len(sizes) != 1 or any(len(set(size)) > 1 for size in sizes):
            raise ValueError("limits must be of the same exits, with a segment more")
        self.exits = len(self.limits[0].heads)
        if not can_go_on(self.limits, [0.0] * len(self.limits), -1):
            raise ValueError("the limits allow no answer at all")
        self._first = self._next(-1, (0,) * len(self.limits), policy.first())

    def _next(self, index: int, spent: Sequence[float], due: int) -> tuple[int, bool]:
        """The exit evaluated after `index`, where the way goes on; whether the policy is asked."""
        for at in range(index + 1, self.exits):
            spent = self._after(spent, at)
            if at == due:
                if all(map(_fits, self.limits, spent, [at] * len(self.limits))):
                    return at, True
                due = self.exits
            if not can_go_on(self.limits, spent, at):
                return at, False
        return self.exits, True

    def _after(self, spent: Sequence[float], index: int) -> tuple[float, ...]:
        """With segment `index`."""
        return tuple(
            paid + one.segments[index] for paid, one in zip(spent, self.limits, strict=True)
        )

    def start(self, count: int) -> Any:
        """Nothing spent yet."""
        asks = np.full(count, self._first[1])
        return _State(self.policy.start(count), -1, (0,) * len(self.limits), asks)

    def select(self, state: Any, kept: Array) -> Any:
        """That of the samples that go on."""
        inner = self.policy.select(state.inner, kept if state.place is None else state.place[kept])
        return _State(inner, state.at, state.spent, state.asks[kept])

    def first(self) -> int:
        """The other policy's first exit, or the one that the budget ends at."""
        return self._first[0]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> Array:
        """As the other policy where it is asked, and as long as there is a budget to go on."""
        spent = state.spent
        for at in range(state.at + 1, index + 1):
            spent = self._after(spent, at)
        spent = tuple(p + one.heads[index] for p, one in zip(spent, self.limits, strict=True))
        state.at, state.spent, state.place = index, spent, None
        decisions = np.full(len(outputs.logits), HALT)
        rows = np.flatnonzero(state.asks)
        if len(rows) == len(decisions):
            wanted = self.policy.decide(index, outputs, state.inner)
        elif len(rows):
            state.inner = self.policy.select(state.inner, rows)
            state.place = np.cumsum(state.asks) - 1
            wanted = self.policy.decide(index, outputs.rows(rows), state.inner)
        else:
            return decisions
        goes_on, asks = can_go_on(self.limits, spent, index), np.ones(len(decisions), bool)
        for due in np.unique(wanted).tolist():
            chosen = rows[wanted == due]
            if due == EXIT:
                decisions[chosen] = EXIT
            elif goes_on:
                decisions[chosen], asks[chosen] = self._next(index, spent, due)
        state.asks = asks
        return decisions

    def answer(self, index: int, outputs: ExitOutputs) -> Array:
        """The other policy's."""
        return self.policy.answer(index, outputs)

    def parameters(self) -> dict[str, Any]:
        """The other policy and the limits."""
        limits = [asdict(one) for one in self.limits]
        return {"policy": to_json(self.policy), "limits": limits}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> HaltedPolicy:
        """The inverse of `parameters`."""
        limits = [SpendingLimit(**one) for one in parameters["limits"]]
        return cls(from_json(parameters["policy"]), limits)
