"""What a device draws while it runs one function again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Protocol, runtime_checkable

from eecompile.benching.device import Device, Repeating
from eecompile.runtime.counter_meter import Counter, CounterMeter, counted_uj
from eecompile.runtime.meter import Meter
from eecompile.runtime.power_meter import Channel, PowerIntegral, PowerMeter, judged
from eecompile.runtime.sysfs import number_in

__all__ = ["Drawn", "SelfReading", "drawn_by"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Power while one function ran alone.

    Attributes:
        watts: mean; NaN where it cannot be told.
        seconds: for how long.
        overhead_s: processor time that measuring took meanwhile, which is part of it.
        problems: why there is none, or what is doubtful.
    """

    watts: float
    seconds: float
    overhead_s: float = 0.0
    problems: tuple[str, ...] = ()


@runtime_checkable
class SelfReading(Protocol):
    """A device that reads its own meters while it works, because a wire would be too slow."""

    def repeated(
        self, function: int, seconds: float, paths: Sequence[str] = (), interval_s: float = 0.0
    ) -> Any:
        """Run a function for so long; `readings` of the paths before, after and in between."""


def drawn_by(device: Device, function: int, meter: Meter, seconds: float) -> Drawn:
    """Power of a device while it runs a function, by its place in execution order.

    Args:
        device: one that can repeat a function; others draw what nobody can tell.
        function: by its place in execution order.
        meter: of the device's system.
        seconds: at least.
    """
    if isinstance(device, SelfReading):
        return _read_there(device, function, meter, seconds)
    if not isinstance(device, Repeating):
        return Drawn(nan, 0.0, problems=("the device cannot run one function alone",))
    meter.start()
    taken = device.repeat(function, seconds)
    found = meter.stop()
    if found is None or found.seconds <= 0:
        return Drawn(nan, taken, problems=meter.problems)
    return Drawn(found.watts, found.seconds, found.overhead_s, found.problems)


def _read_there(device: SelfReading, function: int, meter: Meter, seconds: float) -> Drawn:
    """The same from readings the device took itself."""
    if isinstance(meter, CounterMeter):
        paths = [counter.path for counter in meter.counters]
        found = device.repeated(function, seconds, paths)
        return _counted(meter.counters, found)
    if isinstance(meter, PowerMeter):
        channel, period_s = meter.channel, meter.period_s
        found = device.repeated(function, seconds, channel.paths, period_s)
        return _integrated(channel, period_s, found)
    return Drawn(nan, 0.0, problems=meter.problems)


def _counted(counters: Sequence[Counter], found: Any) -> Drawn:
    first, last = found.readings[0], found.readings[-1]
    seconds, total_uj = last.time_s - first.time_s, 0
    for counter, *texts in zip(counters, first.texts, last.texts, strict=True):
        before, after = (number_in(text) for text in texts)
        if before is None or after is None or (counter.range_uj is None and after < before):
            return Drawn(nan, seconds, problems=(f"{counter.name}: its readings make no sense",))
        total_uj += counted_uj(before, after, counter.range_uj or 0)
    if seconds <= 0 or total_uj <= 0:
        return Drawn(nan, seconds, problems=("the counter stood still",))
    return Drawn(total_uj * 1e-6 / seconds, seconds)


def _integrated(channel: Channel, period_s: float, found: Any) -> Drawn:
    integral = PowerIntegral()
    for reading in found.readings:
        numbers = [number_in(text) for text in reading.texts]
        told: list[int | str] = ["not a number" if one is None else one for one in numbers]
        integral.add(reading.time_s, channel.product(told))
    verdict = judged(integral, found.readings[-1].time_s - found.readings[0].time_s, period_s)
    if isinstance(verdict, str):
        return Drawn(nan, found.seconds, problems=(f"{channel.name}: {verdict}",))
    seconds = integral.last_s - integral.first_s
    problems = tuple(f"{channel.name}: {text}" for text in verdict)
    return Drawn(integral.joules / seconds, seconds, problems=problems)
