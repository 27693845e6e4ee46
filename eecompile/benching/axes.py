"""Axes of a chart: where a value is drawn, round numbers to mark, and the frame around it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from eecompile.svg_parts import line, text

__all__ = ["Axis", "Frame", "in_unit", "round_factors", "round_steps"]

#: Quantity -> units with their values in SI, the largest first.
_UNITS = {
    "latency": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)),
    "energy": (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)),
    "clock": (("GHz", 1e9), ("MHz", 1e6)),
}


def in_unit(quantity: str, largest: float) -> tuple[str, float]:
    """The unit in which the largest value to be shown is 1 or more, and its value in SI.

    >>> in_unit("latency", 0.043), in_unit("clock", 1.8e9)
    (('ms', 0.001), ('GHz', 1000000000.0))
    """
    units = _UNITS[quantity]
    return next((unit for unit in units if largest >= unit[1]), units[-1])


def round_steps(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from at most `low` to at least `high`, at most `most` or a few more.

    >>> round_steps(0, 43)
    [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    >>> round_steps(0.6, 1.5)
    [0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    """
    span = high - low if high > low else max(abs(high), 1e-30)
    rough = span / max(most - 1, 1)
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * rough)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, max(last, first + 1) + 1)]


def round_factors(low: float, high: float) -> list[float]:
    """Values 1, 2 or 5 times a power of ten around a range, for an axis of equal factors.

    >>> round_factors(3, 43)
    [2.0, 5.0, 10.0, 20.0, 50.0]
    """
    found = []
    for power in range(floor(log10(low)) - 1, ceil(log10(high)) + 2):
        found += [float(f"{factor * 10.0**power:.10g}") for factor in (1, 2, 5)]
    first = max(index for index, value in enumerate(found) if value <= low * 1.0001)
    last = min(index for index, value in enumerate(found) if value >= high * 0.9999)
    return found[first : max(last, first + 1) + 1]


@dataclass(frozen=True)
class Axis:
    """Values between its first and last mark, along pixels from `start` to `end`.

    Attributes:
        name: what is shown, with its unit.
        unit: the value in SI of one of the numbers shown.
        marks: values that are marked, in the unit shown.
        start: pixel of the first mark.
        end: pixel of the last mark.
        factors: whether equal factors, not equal differences, are equally far apart.
    """

    name: str
    unit: float
    marks: tuple[float, ...]
    start: float
    end: float
    factors: bool = False

    @classmethod
    def over(
        cls, quantity: str, values: Sequence[float], start: float, end: float, zero: bool = True
    ) -> Axis:
        """An axis for SI values; from zero, so that lengths can be compared, or from the least."""
        name, unit = in_unit(quantity, max(values))
        shown = [value / unit for value in values]
        marks = round_steps(0.0 if zero else min(shown), max(shown))
        return cls(f"{quantity}, {name}", unit, tuple(marks), start, end)

    @classmethod
    def of_factors(cls, quantity: str, values: Sequence[float], start: float, end: float) -> Axis:
        """An axis for SI values above zero on which twice as much is everywhere as far away."""
        name, unit = in_unit(quantity, max(values))
        shown = [value / unit for value in values]
        marks = round_factors(min(shown), max(shown))
        return cls(f"{quantity}, {name} (logarithmic)", unit, tuple(marks), start, end, True)

    def at(self, value: float) -> float:
        """The pixel of an SI value."""
        low, high, shown = self.marks[0], self.marks[-1], value / self.unit
        if self.factors:
            low, high, shown = log10(low), log10(high), log10(shown)
        share = (shown - low) / (high - low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Frame:
    """A chart: its axes, and what has no axis above it."""

    x: Axis
    y: Axis
    title: str

    def draw(self) -> Iterator[str]:
        """Grid, marks and names; data is drawn on top of it."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        yield text(left, top - 16, self.title, "name")
        for mark in self.y.marks:
            y = self.y.at(mark * self.y.unit)
            yield line(left, y, right, y, "grid")
            yield text(left - 8, y + 4, f"{mark:g}", "mark", "end")
        for mark in self.x.marks:
            x = self.x.at(mark * self.x.unit)
            yield line(x, bottom, x, bottom + 5, "axis")
            yield text(x, bottom + 20, f"{mark:g}", "mark", "middle")
        yield line(left, bottom, right, bottom, "axis")
        yield text((left + right) / 2, bottom + 40, self.x.name, "quiet", "middle")
        yield (
            f'<text class="quiet" text-anchor="middle" transform="translate({left - 48:.1f} '
            f'{(top + bottom) / 2:.1f}) rotate(-90)">{self.y.name}</text>'
        )
