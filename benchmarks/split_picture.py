"""The picture of `benchmarks.split`: regret, what is saved and lost by price, and drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from eecompile.benching.axes import Axis, Frame, round_factors, round_steps
from eecompile.svg_parts import document, text

__all__ = ["Band", "draw"]

Array = np.ndarray[Any, Any]

# Lengths in pixels.
_WIDTH, _HEIGHT = 1240, 470
_TOP, _BOTTOM = 126, 350
_CHARTS = ((84, 400), (492, 808), (900, 1216))
_COLOURS = ("#db2777", "#2563eb", "#ea580c", "#0f172a")
_STYLE = """
  .grid { stroke: #e2e8f0 } .mark { font-size: 12px; fill: #64748b }
  .series { fill: none; stroke-width: 2 } .small { font-size: 12px; fill: #334155 }
  .goal { fill: #dcfce7 }
"""


@dataclass(frozen=True)
class Band:
    """A curve over samples with the 95 % interval of its mean; lists of equal length."""

    at: tuple[int, ...]
    mean: tuple[float, ...]
    half: tuple[float, ...]

    @classmethod
    def of(cls, at: Array, values: Array, t: float) -> Band:
        """From values (runs, points); `t` is Student's for so many runs."""
        half = t * values.std(axis=0, ddof=1) / sqrt(len(values))
        return cls(tuple(at.tolist()), tuple(values.mean(axis=0).tolist()), tuple(half.tolist()))


def draw(
    about: str,
    regret: Mapping[str, Band],
    prices: Mapping[str, Sequence[tuple[float, float, float]]],
    drift: Mapping[str, Band],
) -> str:
    """The picture as an SVG document.

    Args:
        about: under the title.
        regret: by method.
        prices: by noise: (price, cost saved in per cent, accuracy lost in points).
        drift: by discount, the share of samples at the second half's best split in per cent.
    """
    title = "SplitEE learns where to split, without labels"
    body = [text(32, 44, title, "title"), text(32, 68, about, "quiet")]
    body += _regret(regret)
    body += _prices(prices)
    body += _drift(drift)
    return document(_WIDTH, _HEIGHT, title, f"{title}: {about}", _STYLE, body)


def _axes(
    chart: int, names: tuple[str, str], marks: tuple[Sequence[float], Sequence[float]], *, log: bool
) -> tuple[Axis, Axis]:
    left, right = _CHARTS[chart]
    x = Axis(names[0], 1.0, tuple(marks[0]), left, right, log)
    return x, Axis(names[1], 1.0, tuple(marks[1]), _BOTTOM, _TOP)


def _regret(curves: Mapping[str, Band]) -> Iterator[str]:
    last = max(band.at[-1] for band in curves.values())
    top = max(max(band.mean) for band in curves.values())
    marks = round_factors(50, last)[::2], round_steps(0, top)
    x, y = _axes(0, ("samples (logarithmic)", "cumulative regret"), marks, log=True)
    yield from Frame(x, y, "Regret, clean images").draw()
    yield from _bands(curves, x, y, _CHARTS[0][0])


def _drift(curves: Mapping[str, Band]) -> Iterator[str]:
    last = max(band.at[-1] for band in curves.values())
    marks = round_steps(0, last), round_steps(0, 100)
    names = ("samples; noise from the middle on", "% at the new best split")
    x, y = _axes(2, names, marks, log=False)
    yield from Frame(x, y, "Inputs change half way").draw()
    yield from _bands(curves, x, y, _CHARTS[2][0])


def _bands(curves: Mapping[str, Band], x: Axis, y: Axis, left: float) -> Iterator[str]:
    for number, ((name, band), colour) in enumerate(zip(curves.items(), _COLOURS, strict=True)):
        points = list(zip(band.at, band.mean, band.half, strict=True))
        low = [(x.at(t), y.at(max(mean - half, 0.0))) for t, mean, half in points]
        high = [(x.at(t), y.at(min(mean + half, y.marks[-1]))) for t, mean, half in points]
        outline = _points([*high, *reversed(low)])
        yield f'<polygon fill="{colour}" fill-opacity="0.15" points="{outline}"/>'
        yield _line(colour, [(x.at(t), y.at(mean)) for t, mean, _ in points])
        yield from _entry(left, number, colour, name)


def _prices(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Iterator[str]:
    prices = [price for points in curves.values() for price, _, _ in points]
    saved = [share for points in curves.values() for _, share, _ in points]
    names = ("price of sending, share of the network's cost", "cost saved, %")
    marks = round_steps(0, max(prices)), round_steps(min(*saved, 0.0), max(*saved, 60.0))
    x, y = _axes(1, names, marks, log=False)
    left, top = x.at(marks[0][0]), y.at(marks[1][-1])
    width, height = x.at(marks[0][-1]) - left, y.at(50.0) - top
    corner = f'x="{left:.1f}" y="{top:.1f}"'
    yield f'<rect class="goal" {corner} width="{width:.1f}" height="{height:.1f}"/>'
    yield from Frame(x, y, "Saved against always-final, and points lost").draw()
    for number, ((name, points), colour) in enumerate(zip(curves.items(), _COLOURS, strict=True)):
        places = [(x.at(price), y.at(share)) for price, share, _ in points]
        yield _line(colour, places)
        for (at, height), (price, share, drop) in zip(places, points, strict=True):
            tip = f"<title>price {price:g}: {share:.1f} % saved, {drop:.2f} points lost</title>"
            yield f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3.6" fill="{colour}">{tip}</circle>'
        drops = [drop for _, _, drop in points]
        words = "clean" if name == "0" else f"noise {name}"
        told = f"{words}: {min(drops):.1f} to {max(drops):.1f}"
        yield from _entry(_CHARTS[1][0], number, colour, told)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _line(colour: str, places: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="series" stroke="{colour}" points="{_points(places)}"/>'


def _entry(left: float, number: int, colour: str, words: str) -> Iterator[str]:
    """A line of a chart's legend."""
    x, y = left + 170 * (number % 2), 418 + 22 * (number // 2)
    ends = f'x1="{x}" y1="{y - 4}" x2="{x + 20}" y2="{y - 4}"'
    yield f'<line {ends} stroke="{colour}" stroke-width="3"/>'
    yield text(x + 26, y, words, "small")
