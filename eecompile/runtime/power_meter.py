"""Measures energy by sampling a sensor of power.

Sources: Linux Documentation/hwmon/sysfs-interface.rst (units of every attribute),
drivers/hwmon/ina3221.c, and for older Jetson kernels the ina3221x driver's ``in_power*_input`` in
milliwatts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

from eecompile.runtime.meter import MAX_POWER_W, Energy, Ticker
from eecompile.runtime.sysfs import SysFiles, number_or_why

__all__ = ["PERIOD_S", "Channel", "PowerIntegral", "PowerMeter", "judged"]

#: Between two samples of a sensor's power. Sensors on boards convert every few milliseconds.
PERIOD_S = 0.01
#: Of the samples of a power sensor, those that may be missing before nothing is given.
_MOST_DROPPED = 0.1


@dataclass(frozen=True, slots=True)
class Channel:
    """Files whose product, times `scale`, is a power in watts: one of power, or volts and amps."""

    name: str
    paths: tuple[str, ...]
    scale: float

    def watts(self, files: SysFiles) -> float | str:
        """The power now, or why there is none."""
        found: list[int | str] = []
        for path in self.paths:
            found.append(number_or_why(files, path))
            if isinstance(found[-1], str):
                break
        return self.product(found)

    def product(self, readings: Sequence[int | str]) -> float | str:
        """The power of what the files held, or why there is none.

        >>> Channel("ina219", ("in1_input", "curr1_input"), 1e-6).product([5000, 600])
        3.0
        """
        found = self.scale
        for value in readings:
            if isinstance(value, str):
                return value
            found *= value
        return found


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
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._files, self.channel, self.covers = files, channel, covers
        self._max_power_w, self.period_s, self._clock = max_power_w, period_s, clock
        self.problems: tuple[str, ...] = ()
        self._began_s = self._overhead_s = 0.0
        self._thread = Ticker(self._sample)

    def start(self) -> None:
        """As `Meter.start`; the first sample is taken before it returns."""
        self._thread.end()
        self.problems, self._overhead_s = (), 0.0
        self._integral = PowerIntegral(self._max_power_w)
        self._began_s = self._clock()
        self._sample()
        self._thread.start(self.period_s)

    def stop(self) -> Energy | None:
        """As `Meter.stop`; the last sample is taken before it returns."""
        if not self._thread.running:
            self.problems = ("`start` was not called",)
            return None
        self._thread.end()
        self._sample()
        found = judged(self._integral, self._clock() - self._began_s, self.period_s)
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
        before = self._clock()
        watts = self.channel.watts(self._files)
        self._integral.add((before + self._clock()) / 2, watts)
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
