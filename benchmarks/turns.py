"""Calls of several sides in turn, so that all see the same neighbours, clock and temperature.

A turn is a block of calls, the first of which is not timed: it fills the caches that the side
before has used. Sides with several threads leave them spinning after a call, on the core that the
next side needs; so between turns of such sides `settle` waits until no thread of this process
runs. Every side keeps its own default of how long it spins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Ratio", "Turns", "ratio", "settle", "take_turns"]

Call = Callable[[], object]
Clock = Callable[[], float]

#: Seconds of calls that make a turn, and the fewest and most calls it may be.
_TURN_S = 0.02
_CALLS = (3, 20)


@dataclass(frozen=True)
class Turns:
    """Latencies of one side in seconds: one row a round, NaN where it had no turn."""

    latencies: tuple[tuple[float, ...], ...]

    @property
    def by_round(self) -> np.ndarray:
        """Median of each round, f64[rounds]."""
        return np.array([np.median(row) if row else np.nan for row in self.latencies])

    @property
    def median(self) -> float:
        """Of all calls, in seconds."""
        return float(np.median(np.concatenate([row for row in self.latencies if row])))

    @property
    def best(self) -> float:
        """The quickest call, in seconds: what it takes when nobody disturbs it."""
        return min(min(row) for row in self.latencies if row)


@dataclass(frozen=True)
class Ratio:
    """Quartiles of one side's time over another's, of neighbouring turns."""

    low: float
    median: float
    high: float


def settle(step_s: float = 0.002, limit_s: float = 1.0) -> None:
    """Waits until this process's threads use less than a tenth of a core; at most `limit_s`."""
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        used, begun = time.process_time(), time.perf_counter()
        time.sleep(step_s)
        if time.process_time() - used < 0.1 * (time.perf_counter() - begun):
            return


def take_turns(
    sides: Mapping[str, Call],
    rounds: int,
    every: Mapping[str, int] | None = None,
    *,
    settled: bool = False,
    clock: Clock = time.perf_counter,
) -> dict[str, Turns]:
    """Every side's latencies over `rounds` rounds, in the order given, then reversed, and so on.

    Args:
        sides: name -> call.
        rounds: turns of each side.
        every: name -> it has a turn in every n-th round only (default 1).
        settled: wait before each turn until no thread runs any more.
        clock: seconds now.

    >>> found = take_turns({"a": lambda: None, "b": lambda: None}, 4, {"b": 2})
    >>> [len(row) > 0 for row in found["b"].latencies]
    [True, False, True, False]
    """
    counts = {name: _calls_of(call) for name, call in sides.items()}
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            if number % (every or {}).get(name, 1):
                rows[name].append(())
                continue
            if settled:
                settle()
            rows[name].append(_turn(sides[name], counts[name], clock))
    return {name: Turns(tuple(found)) for name, found in rows.items()}


def _calls_of(call: Call) -> int:
    call()
    begun = time.perf_counter()
    call()
    calls = _TURN_S / max(time.perf_counter() - begun, 1e-9)
    return int(min(max(calls, _CALLS[0]), _CALLS[1]))


def _turn(call: Call, count: int, clock: Clock) -> tuple[float, ...]:
    call()
    times = []
    for _ in range(count):
        begun = clock()
        call()
        times.append(clock() - begun)
    return tuple(times)


def ratio(ours: Turns, theirs: Turns) -> Ratio:
    """Quartiles of ours / theirs over the rounds in which both had a turn.

    >>> ratio(Turns(((1.0,), (3.0,), ())), Turns(((2.0,), (2.0,), (2.0,))))
    Ratio(low=0.75, median=1.0, high=1.25)
    """
    found = ours.by_round / theirs.by_round
    return Ratio(*map(float, np.percentile(found[np.isfinite(found)], [25, 50, 75])))
