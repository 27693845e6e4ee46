"""Measuring: blocks of rounds at each clock in turn, warmed up, watched, repeated where disturbed.

A sweep measures one block at every clock, the clocks in an order drawn anew for each sweep; a block
is a number of rounds, each of which runs every function once, in execution order. Heat and whatever
else the machine does then hit all clocks and all functions alike, and caches are as in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from time import perf_counter
from typing import Protocol

import numpy as np

from eecompile.benching.device import Device
from eecompile.benching.power import Drawn, drawn_by
from eecompile.board import DvfsState
from eecompile.console import Reporter
from eecompile.figures import hertz
from eecompile.runtime.governor import Governor
from eecompile.runtime.meter import Meter

__all__ = [
    "AtClock",
    "Block",
    "Settings",
    "Watch",
    "measure_clocks",
    "settled",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how carefully to measure.

    Attributes:
        seconds: at each clock, all sweeps together, warming up not counted.
        rounds: at each clock, at most.
        sweeps: blocks at each clock.
        repeats: of a block that was disturbed.
        meter_seconds: of running each function alone in each block, where there is a meter.
        seed: of the orders of clocks.
        window: rounds of which a median is taken while warming up.
        tolerance: by how much two medians may differ when it is warm.
        warm_seconds: after which measuring begins, warm or not; that is told.
    """

    seconds: float = 2.0
    rounds: int = 1000
    sweeps: int = 5
    repeats: int = 2
    meter_seconds: float = 0.1
    seed: int = 0
    window: int = 8
    tolerance: float = 0.03
    warm_seconds: float = 3.0

    @classmethod
    def of(cls, rounds: int | None, seconds: float | None) -> Settings:
        """As usual, but for what is given; rounds alone take the time they take.

        >>> Settings.of(50, None).rounds, Settings.of(50, None).seconds, Settings.of(None, 1).rounds
        (50, inf, 1000)
        """
        if rounds is None:
            return cls() if seconds is None else cls(seconds=seconds)
        return cls(seconds=inf if seconds is None else seconds, rounds=rounds)


class Watch(Protocol):
    """Sees what goes on around a block."""

    def begin(self, state: DvfsState | None) -> None:
        """A block begins, at a clock that was set (None: at whatever clock there is)."""

    def end(self) -> tuple[str, ...]:
        """What disturbed the block, in words; nothing where it can be trusted."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rounds measured one after the other.

    Attributes:
        times_s: (rounds, functions).
        warm_rounds: run before, not counted.
        settled: whether the median had settled by then.
        disturbances: what else went on; empty for a good block.
        drawn: by function, while it alone ran again and again; empty without a meter.
    """

    times_s: np.ndarray
    warm_rounds: int
    settled: bool
    disturbances: tuple[str, ...] = ()
    drawn: tuple[Drawn, ...] = ()


@dataclass
class AtClock:
    """What was measured at one clock: one block a sweep."""

    state: DvfsState
    blocks: list[Block] = field(default_factory=list)
    repeated: int = 0
    unreachable: str = ""

    @property
    def kept(self) -> list[Block]:
        """The good blocks; all of them where none is good."""
        return [block for block in self.blocks if not block.disturbances] or self.blocks

    @property
    def times_s(self) -> np.ndarray:
        """(rounds, functions) of the blocks that are kept."""
        return np.concatenate([block.times_s for block in self.kept])

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What disturbed the figures: empty where at least one block was good."""
        return tuple(dict.fromkeys(what for block in self.kept for what in block.disturbances))

    @property
    def powers_w(self) -> np.ndarray | None:
        """By function, the median over blocks; NaN where none knows it, None without meter."""
        found = np.array([[one.watts for one in block.drawn] for block in self.kept if block.drawn])
        if not len(found):
            return None
        known = [column[np.isfinite(column)] for column in found.T]
        return np.array([np.median(column) if len(column) else np.nan for column in known])


def measure_clocks(
    device: Device,
    governor: Governor,
    states: Sequence[DvfsState],
    watch: Watch,
    meter: Meter | None,
    settings: Settings,
    progress: Reporter,
    place: Callable[[DvfsState], None] = lambda state: None,
) -> list[AtClock]:
    """Blocks at every state, in the order of `states`.

    A clock the governor cannot set has no blocks and says why. The governor is left at the last
    clock: restoring is its context's.

    Args:
        device: runs the functions.
        governor: sets clocks; one without states leaves the clock alone, and `states` is then the
            single one that is taken for the current.
        states: to measure, each of the governor's.
        watch: what disturbs a block is measured again, and told where that does not help.
        meter: None where nothing tells what is drawn.
        settings: how long.
        progress: told of every block.
        place: moves the work to a state's cluster, where there are several.
    """
    found = [AtClock(state) for state in states]
    order = np.random.default_rng(settings.seed)
    total, done = settings.sweeps * len(found), 0
    for _ in range(settings.sweeps):
        for index in order.permutation(len(found)).tolist():
            at = found[index]
            progress(done, total, hertz(at.state.frequency_hz))
            done += 1
            for attempt in range(settings.repeats + 1):
                at.unreachable = at.unreachable or _set(governor, at.state)
                if at.unreachable:
                    break
                place(at.state)
                state = at.state if governor.states else None
                block = _block(device, state, watch, meter, settings)
                if not block.disturbances or attempt == settings.repeats:
                    at.blocks.append(block)
                    break
                at.repeated += 1
    return found


def _set(governor: Governor, state: DvfsState) -> str:
    """Change to a state; why it could not be done, empty where it was."""
    if not governor.states:
        return ""
    governor.set(state)
    if governor.current == state:
        return ""
    return governor.reason or f"the system does not run at {hertz(state.frequency_hz)}"


def _block(
    device: Device,
    state: DvfsState | None,
    watch: Watch,
    meter: Meter | None,
    settings: Settings,
) -> Block:
    warm, stable = _warm_up(device, settings)
    rounds = ceil(settings.rounds / settings.sweeps)
    limit = settings.seconds / settings.sweeps
    watch.begin(state)
    times = [device.round()]
    begun = perf_counter()
    while len(times) < rounds and (len(times) < 3 or perf_counter() - begun < limit):
        times.append(device.round())
    disturbances = watch.end()
    drawn: tuple[Drawn, ...] = ()
    if meter is not None:
        places = range(len(times[0]))
        drawn = tuple(drawn_by(device, at, meter, settings.meter_seconds) for at in places)
    return Block(np.asarray(times), warm, stable, disturbances, drawn)


def _warm_up(device: Device, settings: Settings) -> tuple[int, bool]:
    """Rounds until their median settles; how many there were, and whether it did."""
    totals: list[float] = []
    begun = perf_counter()
    while True:
        totals.append(sum(device.round()))
        if settled(totals, settings.window, settings.tolerance):
            return len(totals), True
        enough = len(totals) >= 2 * settings.window
        if enough and perf_counter() - begun > settings.warm_seconds:
            return len(totals), False


def settled(totals: Sequence[float], window: int, tolerance: float) -> bool:
    """Whether the medians of the last two windows of rounds differ by at most a fraction.

    >>> settled([9, 5, 4, 4], 2, 0.1), settled([9, 5, 4, 4, 4, 4], 2, 0.1)
    (False, True)
    """
    if len(totals) < 2 * window:
        return False
    before = float(np.median(totals[-2 * window : -window]))
    now = float(np.median(totals[-window:]))
    return abs(now - before) <= tolerance * before
