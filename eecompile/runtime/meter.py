"""Measures energy: counters of the processor (RAPL), and sensors of power that a board names.

A reading that cannot be right is dropped, and the result says so; where too little is left, there
is no result, and `Meter.problems` says why. Every joule that is given was measured.

Sources: Linux Documentation/power/powercap/powercap.rst (zones, ``max_energy_range_uj``),
Documentation/hwmon/sysfs-interface.rst (units of every attribute), drivers/hwmon/ina3221.c, and for
older Jetson kernels the ina3221x driver's ``in_power*_input`` in milliwatts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import perf_counter, thread_time
from typing import Literal, Protocol

from eecompile.runtime.sysfs import SysFiles, number_in

__all__ = [
    "MAX_POWER_W",
    "PERIOD_S",
    "Channel",
    "Counter",
    "CounterMeter",
    "Energy",
    "Meter",
    "NoMeter",
    "PowerIntegral",
    "PowerMeter",
    "counted_uj",
    "judged",
    "reading",
]

#: More than any machine this is for can draw; a jump beyond it is no consumption.
MAX_POWER_W = 2000.0
#: Between two samples of a sensor's power. Sensors on boards convert every few milliseconds.
PERIOD_S = 0.01
#: A counter's granularity: RAPL is brought up to date about every millisecond.
#: Source: Intel Software Developer's Manual, volume 3, section 15.10.1.
_UPDATE_S = 1e-3
#: A counter that has not moved for this long is stuck: idle packages draw watts.
_STUCK_S = 0.1
#: Between two readings of a counter at most, whatever its range.
_LONGEST_S = 60.0
#: Of the samples of a power sensor, those that may be missing before nothing is given.
_MOST_DROPPED = 0.1


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


def counted_uj(before: int, after: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that goes on at 0 after `range_uj`.

    At most one wrap can be told; the caller sees to it that there was no more.

    >>> counted_uj(5, 9, 100), counted_uj(98, 3, 100), counted_uj(100, 0, 100)
    (4, 6, 1)
    """
    return after - before if after >= before else after + range_uj + 1 - before


@dataclass(frozen=True, slots=True)
class Counter:
    """A file that counts microjoules; after `range_uj` it begins at 0, where that is known."""

    name: str
    path: str
    range_uj: int | None


@dataclass(frozen=True, slots=True)
class Channel:
    """Files whose product, times `scale`, is a power in watts: one of power, or volts and amps."""

    name: str
    paths: tuple[str, ...]
    scale: float

    def watts(self, files: SysFiles) -> float | str:
        """The power now, or why there is none."""
        found = self.scale
        for path in self.paths:
            value = reading(files, path)
            if isinstance(value, str):
                return value
            found *= value
        return found


def reading(files: SysFiles, path: str) -> int | str:
    """The number in a file, or why there is none."""
    try:
        found = number_in(files.read(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return "gone"
        return (error.strerror or "unreadable").lower()
    return "not a number" if found is None else found


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
        self._thread = _Repeated(self._advance)

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
        value = reading(self._files, self.counter.path)
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


class _Repeated:
    """Calls something every so often from a thread of its own, until told to end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._thread: Thread | None = None
        self._ended = Event()

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, period_s: float) -> None:
        ended = self._ended = Event()

        def repeat() -> None:
            while not ended.wait(period_s):
                self._work()

        self._thread = Thread(target=repeat, name="eecompile-meter", daemon=True)
        self._thread.start()

    def end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()


class PowerIntegral:
    """The integral of power over time by the trapezoid rule, without readings that cannot be.

    >>> integral = PowerIntegral(max_power_w=100)
    >>> integral.add(0.0, 2.0), integral.add(1.0, 4.0), integral.add(2.0, -1.0)
    (None, None, None)
    >>> integral.add(3.0, 4.0); integral.joules, integral.taken, integral.dropped
    (11.0, 3, {'negative': 1})
    """

    def __init__(self, max_power_w: float = MAX_POWER_W) -> None:
        self._max_power_w = max_power_w
        self.joules, self.taken = 0.0, 0
        self.first_s = self.last_s = self._last_w = 0.0
        self.longest_gap_s = 0.0
        self.dropped: dict[str, int] = {}
        self._distinct: set[float] = set()

    def add(self, at_s: float, watts: float | str) -> None:
        """A reading at a time; a text says why there is none."""
        why = watts if isinstance(watts, str) else self._why_not(watts)
        if why:
            self.dropped[why] = self.dropped.get(why, 0) + 1
            return
        assert isinstance(watts, float | int), "texts were dropped"
        if self.taken:
            gap = at_s - self.last_s
            self.joules += gap * (watts + self._last_w) / 2
            self.longest_gap_s = max(self.longest_gap_s, gap)
        else:
            self.first_s = at_s
        self.last_s, self._last_w = at_s, watts
        self.taken += 1
        if len(self._distinct) < 2:
            self._distinct.add(watts)

    @property
    def constant(self) -> bool:
        """Whether every reading was the same."""
        return len(self._distinct) < 2

    def _why_not(self, watts: float) -> str:
        if watts < 0:
            return "negative"
        return "" if watts <= self._max_power_w else f"above {self._max_power_w:g} W"


class PowerMeter:
    """Samples a power sensor from a thread of its own.

    Attributes:
        channel: the sensor.
        period_s: between two samples.
    """

    def __init__(
        self,
        files: SysFiles,
        channel: Channel,
        covers: str,
        max_power_w: float = MAX_POWER_W,
        period_s: float = PERIOD_S,
    ) -> None:
        self._files, self.channel, self.covers = files, channel, covers
        self._max_power_w, self.period_s = max_power_w, period_s
        self.problems: tuple[str, ...] = ()
        self._began_s = self._overhead_s = 0.0
        self._thread = _Repeated(self._sample)

    def start(self) -> None:
        """As `Meter.start`; the first sample is taken before it returns."""
        self._thread.end()
        self.problems, self._overhead_s = (), 0.0
        self._integral = PowerIntegral(self._max_power_w)
        self._began_s = perf_counter()
        self._sample()
        self._thread.start(self.period_s)

    def stop(self) -> Energy | None:
        """As `Meter.stop`; the last sample is taken before it returns."""
        if not self._thread.running:
            self.problems = ("`start` was not called",)
            return None
        self._thread.end()
        self._sample()
        found = judged(self._integral, perf_counter() - self._began_s, self.period_s)
        told = [found] if isinstance(found, str) else found
        self.problems = tuple(f"{self.channel.name}: {text}" for text in told)
        if isinstance(found, str):
            return None
        integral = self._integral
        return Energy(
            integral.joules,
            integral.last_s - integral.first_s,
            self.covers,
            problems=self.problems,
            samples=integral.taken,
            overhead_s=self._overhead_s,
        )

    def _sample(self) -> None:
        start = thread_time()
        before = perf_counter()
        watts = self.channel.watts(self._files)
        self._integral.add((before + perf_counter()) / 2, watts)
        self._overhead_s += thread_time() - start


def judged(integral: PowerIntegral, seconds: float, period_s: float) -> list[str] | str:
    """What is doubtful about a measurement, or as one text why it is none."""
    dropped = sum(integral.dropped.values())
    total = dropped + integral.taken
    told = "; ".join(f"{count} {why}" for why, count in integral.dropped.items())
    if integral.taken < 2 or dropped > _MOST_DROPPED * total:
        return f"{dropped} of {total} readings were dropped ({told})"
    covered = integral.last_s - integral.first_s
    if covered < seconds * (1 - _MOST_DROPPED) or covered <= 0:
        return f"readings cover {covered:.3g} of {seconds:.3g} s ({told or 'too few'})"
    found = [f"{dropped} of {total} readings were dropped ({told})"] if dropped else []
    if integral.constant:
        found.append(f"all {integral.taken} readings were the same")
    if integral.longest_gap_s > 10 * period_s:
        found.append(f"{integral.longest_gap_s:.3g} s passed between two readings")
    return found
