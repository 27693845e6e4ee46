"""Energy that was measured: what a meter gives, and one that has nothing to give.

`eecompile.runtime.sensors` finds a board's meter: one that reads counters of energy
(`eecompile.runtime.counter_meter`) or one that samples power (`eecompile.runtime.power_meter`).
A reading that cannot be right is dropped, and the result says so; where too little is left, there
is no result, and `Meter.problems` says why. Every joule that is given was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread
from typing import Literal, Protocol

__all__ = ["MAX_POWER_W", "Energy", "Meter", "NoMeter", "Ticker"]

#: More than any machine this is for can draw; a jump beyond it is no consumption.
MAX_POWER_W = 2000.0


@dataclass(frozen=True, slots=True)
class Energy:
    """What was drawn between `start` and `stop`.

    Attributes:
        joules: measured.
        seconds: for how long.
        covers: in words, what is included.
        provenance: always "measured".
        problems: what was dropped or is doubtful, in sentences; empty for a clean measurement.
        samples: readings it rests on.
        overhead_s: processor time the measuring itself took, which is part of `joules`.
    """

    joules: float
    seconds: float
    covers: str
    provenance: Literal["measured"] = "measured"
    problems: tuple[str, ...] = ()
    samples: int = 2
    overhead_s: float = 0.0

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


class Meter(Protocol):
    """Energy between two moments, again and again."""

    @property
    def covers(self) -> str:
        """In words, what its energies include."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the latest `stop` gave none, or why there never will be one."""

    def start(self) -> None:
        """Begin; never raises for what sensors do."""

    def stop(self) -> Energy | None:
        """What was drawn since `start`; None where that cannot be told."""


class NoMeter:
    """Measures nothing, and says why.

    >>> meter = NoMeter("no sensor here")
    >>> meter.start(), meter.stop(), meter.problems
    (None, None, ('no sensor here',))
    """

    covers = ""

    def __init__(self, *problems: str) -> None:
        self.problems = problems

    def start(self) -> None:
        """Nothing."""

    def stop(self) -> Energy | None:
        """None."""
        return None


class Ticker:
    """Calls something every so often from a thread of its own, until told to end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._thread: Thread | None = None
        self._ended = Event()

    @property
    def running(self) -> bool:
        """Between `start` and `end`."""
        return self._thread is not None

    def start(self, period_s: float) -> None:
        """Call it after each period from now on."""
        ended = self._ended = Event()

        def repeat() -> None:
            while not ended.wait(period_s):
                self._work()

        self._thread = Thread(target=repeat, name="eecompile-meter", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more calls; one that is being made is waited for."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()
