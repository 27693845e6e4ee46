"""Measures energy by counters of it: the processor's own (RAPL), or a sensor's.

Sources: Linux Documentation/power/powercap/powercap.rst (zones, ``max_energy_range_uj``) and
Documentation/hwmon/sysfs-interface.rst (``energy*_input``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import perf_counter, thread_time

from eecompile.runtime.meter import MAX_POWER_W, Energy, Ticker
from eecompile.runtime.sysfs import SysFiles, number_or_why

__all__ = ["Counter", "CounterMeter", "counted_uj"]

#: A counter's granularity: RAPL is brought up to date about every millisecond.
#: Source: Intel Software Developer's Manual, volume 3, section 15.10.1.
_UPDATE_S = 1e-3
#: A counter that has not moved for this long is stuck: idle packages draw watts.
_STUCK_S = 0.1
#: Between two readings of a counter at most, whatever its range.
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class Counter:
    """A file that counts microjoules; after `range_uj` it begins at 0, where that is known."""

    name: str
    path: str
    range_uj: int | None


def counted_uj(before: int, after: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that goes on at 0 after `range_uj`.

    At most one wrap can be told; the caller sees to it that there was no more.

    >>> counted_uj(5, 9, 100), counted_uj(98, 3, 100), counted_uj(100, 0, 100)
    (4, 6, 1)
    """
    return after - before if after >= before else after + range_uj + 1 - before


class CounterMeter:
    """Sums the differences of energy counters that do not include one another.

    A thread reads them now and then, so that no wrap is missed however long it takes.

    Attributes:
        counters: that are summed.
    """

    def __init__(
        self,
        files: SysFiles,
        counters: Sequence[Counter],
        covers: str,
        max_power_w: float = MAX_POWER_W,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`max_power_w` is the most one counter can rise by in a second."""
        self._files, self.counters, self.covers = files, tuple(counters), covers
        self._max_power_w, self._clock = max_power_w, clock
        self.problems: tuple[str, ...] = ()
        self._spans: list[_Span] = []
        self._overhead_s = 0.0
        ranges = [counter.range_uj for counter in counters if counter.range_uj is not None]
        #: Half of the time in which a counter could go round.
        self._period_s = min(ranges, default=1 << 62) / (max_power_w * 1e6) / 2
        self._thread = Ticker(self._advance)

    def start(self) -> None:
        """As `Meter.start`."""
        self._thread.end()
        self.problems, self._overhead_s = (), 0.0
        self._spans = [
            _Span(counter, self._files, self._max_power_w, self._clock) for counter in self.counters
        ]
        self._thread.start(min(self._period_s, _LONGEST_S))
        for span in self._spans:
            span.begin()

    def stop(self) -> Energy | None:
        """As `Meter.stop`."""
        if not self._spans:
            self.problems = ("`start` was not called",)
            return None
        self._advance()
        self._thread.end()
        spans, self._spans = self._spans, []
        self.problems = tuple(f"{s.counter.name}: {why}" for s in spans if (why := s.verdict()))
        if self.problems:  # a sum that lacks a part is not what `covers` says
            return None
        joules = sum(span.total_uj for span in spans) * 1e-6
        seconds = max(span.seconds for span in spans)
        taken = sum(span.taken for span in spans)
        # Reading in `start` takes as long as reading in `stop`, which was measured.
        return Energy(joules, seconds, self.covers, samples=taken, overhead_s=2 * self._overhead_s)

    def _advance(self) -> None:
        start = thread_time()
        for span in self._spans:
            span.advance()
        self._overhead_s += thread_time() - start


class _Span:
    """One counter since a moment."""

    def __init__(
        self, counter: Counter, files: SysFiles, max_power_w: float, clock: Callable[[], float]
    ) -> None:
        self.counter, self.total_uj, self.seconds, self.taken = counter, 0, 0.0, 0
        self._files, self._max_power_w, self._clock = files, max_power_w, clock
        self._why, self._lock = "", Lock()
        self._last: tuple[float, int] | None = None

    def begin(self) -> None:
        with self._lock:
            self._take()

    def advance(self) -> None:
        """Add what was counted since the last reading."""
        with self._lock:
            last, now = self._last, self._take()
            if last is None or now is None:
                return
            seconds = now[0] - last[0]
            found = self._difference(seconds, last[1], now[1])
            if isinstance(found, str):
                self._why = self._why or found
            else:
                self.total_uj += found
                self.seconds += seconds

    def verdict(self) -> str:
        """Why the sum is none; empty for a good one."""
        if not self._why and self.total_uj == 0 and self.seconds >= _STUCK_S:
            return f"the counter stood still for {self.seconds:.3g} s"
        return self._why

    def _take(self) -> tuple[float, int] | None:
        at = self._clock()
        value = number_or_why(self._files, self.counter.path)
        most = self.counter.range_uj
        if isinstance(value, str):
            self._why = self._why or value
        elif value < 0 or (most is not None and value > most):
            told = "" if most is None else f" of at most {most} microjoules"
            self._why = self._why or f"it reads {value}{told}"
        else:
            self._last = (at, value)
            self.taken += 1
            return self._last
        return None

    def _difference(self, seconds: float, first: int, last: int) -> int | str:
        """Microjoules between two readings, or why they cannot be told."""
        most_uj = (seconds + _UPDATE_S) * self._max_power_w * 1e6
        whole = self.counter.range_uj
        told = f"({first} to {last} microjoules in {seconds:.3g} s)"
        if whole is None and last < first:
            return f"the counter went back {told}"
        if whole is not None and most_uj > whole:
            return f"{seconds:.3g} s without a reading: the counter may have gone round"
        found = counted_uj(first, last, whole or 0)
        if found > most_uj:
            return f"the counter {'was reset or ' if last < first else ''}jumped {told}"
        return found
