"""A picture of a sweep: accuracy against cost, one curve for each policy."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor
from xml.sax.saxutils import escape

from eecompile.benching.axes import Axis, Frame, round_steps
from eecompile.figures import joules, milliseconds, percent
from eecompile.svg_parts import document, line, short, text
from eecompile.sweeping import Curve, Sweep, SweptPoint

__all__ = ["draw_sweep"]

# Lengths in pixels.
_WIDTH = 1080
_X, _Y = (86, 716), (548, 108)
_LEGEND = (748, 124)
_ROW = 45

#: Nothing is drawn that loses more than this, unless nothing else is there.
_DEPTH = 0.12

_COLOURS = (
    *("#2563eb", "#ea580c", "#16a34a", "#db2777", "#7c3aed", "#0891b2"),
    *("#a16207", "#dc2626", "#475569", "#65a30d", "#4f46e5", "#0f766e"),
)
_STYLE = """
  .grid { stroke: #e2e8f0 } .mark { font-size: 12px; fill: #64748b }
  .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
  .full { stroke: #0f172a; stroke-width: 1.2; stroke-dasharray: 6 4 }
  .bar { stroke: #475569; stroke-width: 1.6 } .small { font-size: 12px; fill: #475569 }
"""

#: Quantity -> what the axis says.
_NAMES = {
    "macs": "mean multiply-accumulates of an answer, % of the whole network's",
    "latency": "mean latency of an answer",
    "energy": "mean energy of an answer",
}


def draw_sweep(sweep: Sweep) -> str:
    """The picture as an SVG document.

    Each dot is an operating point on the data; the setting a policy was built in is ringed. What
    loses far more accuracy than anyone wants is cut off at the bottom.
    """
    page = _Page(sweep)
    label = f"{sweep.title}: accuracy against {sweep.quantity} of {len(sweep.curves)} policies"
    return document(_WIDTH, page.height, sweep.title, label, _STYLE, page.body())


class _Page:
    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.full = sweep.full_depth.accuracy.value
        self.shown = self._shown()
        self.x, self.y = self._cost_axis(), self._accuracy_axis()
        legend = _LEGEND[1] + _ROW * len(sweep.curves) + 40
        self.height = max(_Y[0] + 64, legend) + 22 * len(sweep.left_out)

    def cost(self, point: SweptPoint) -> float:
        return point.report.costs[self.sweep.quantity].value

    def _shown(self) -> list[SweptPoint]:
        """The points that fix the axes."""
        points = [point for curve in self.sweep.curves for point in curve.points]
        near = [p for p in points if p.report.accuracy.value >= self.full - _DEPTH]
        return near or points

    def _cost_axis(self) -> Axis:
        whole = self.sweep.full_depth.costs[self.sweep.quantity].value
        values = [whole, *(self.cost(point) for point in self.shown)]
        if self.sweep.quantity != "macs":
            axis = Axis.over(self.sweep.quantity, values, *_X, zero=False)
            name = f"{_NAMES[self.sweep.quantity]}, {axis.name.split(', ')[1]}"
            told = self.sweep.full_depth.provenance[self.sweep.quantity]
            return Axis(f"{name} ({told})", axis.unit, axis.marks, axis.start, axis.end)
        low = floor(10 * min(values) + 1e-9) * 10
        high = ceil(10 * max(values) - 1e-2) * 10
        return Axis(_NAMES["macs"], 0.01, tuple(map(float, range(low, high + 1, 10))), *_X)

    def _accuracy_axis(self) -> Axis:
        values = [100 * point.report.accuracy.value for point in self.shown]
        values.append(100 * self.full)
        marks = round_steps(min(values), min(100.0, max(values) + 0.2), 8)
        return Axis("accuracy, %", 0.01, tuple(marks), *_Y)

    def body(self) -> Iterator[str]:
        sweep = self.sweep
        yield text(32, 44, short(f"{sweep.title}: accuracy and cost", 60), "title")
        yield text(
            32,
            68,
            f"{sweep.full_depth.n} samples; each dot is an operating point that budgets choose",
            "quiet",
        )
        yield from Frame(self.x, self.y, "").draw()
        left, right = _X
        top, bottom = _Y[1], _Y[0]
        yield (
            f'<clipPath id="chart"><rect x="{left - 8}" y="{top - 8}" width="{right - left + 16}" '
            f'height="{bottom - top + 8}"/></clipPath>'
        )
        yield from self.full_depth()
        yield '<g clip-path="url(#chart)">'
        for curve, colour in zip(sweep.curves, self.colours(), strict=True):
            yield from self.curve(curve, colour)
        yield "</g>"
        yield from self.interval()
        yield from self.legend()

    def colours(self) -> list[str]:
        count = len(self.sweep.curves)
        return [_COLOURS[index % len(_COLOURS)] for index in range(count)]

    def full_depth(self) -> Iterator[str]:
        """The whole network: a line at its accuracy, a diamond where it stands."""
        y = self.y.at(self.full)
        yield line(_X[0], y, _X[1], y, "full")
        told = f"whole network: {percent(self.full, 2)}"
        yield text(_X[0] + 8, y - 8, told, "small")
        x = self.x.at(self.sweep.full_depth.costs[self.sweep.quantity].value)
        corners = ((x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        yield f'<polygon fill="#0f172a" points="{points}"><title>{told}</title></polygon>'

    def curve(self, curve: Curve, colour: str) -> Iterator[str]:
        places = [
            (self.x.at(self.cost(p)), self.y.at(p.report.accuracy.value), p) for p in curve.points
        ]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        yield f'<polyline class="curve" stroke="{colour}" points="{joined}"/>'
        for x, y, point in sorted(places, key=lambda place: place[2].built_in):
            told = f"<title>{escape(self.words(curve, point))}</title>"
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}"'
            if point.built_in:
                yield f'{shape} r="6" fill="#ffffff" stroke="{colour}" stroke-width="3">{told}'
            else:
                yield f'{shape} r="2.6" fill="{colour}">{told}'
            yield "</circle>"

    def words(self, curve: Curve, point: SweptPoint) -> str:
        """What the pointer shows at a point."""
        costs = [f"{percent(self.cost(point))} of the MACs"]
        if self.sweep.quantity != "macs":
            write = milliseconds if self.sweep.quantity == "latency" else joules
            costs = [write(self.cost(point))]
        made = f", for {point.budget}" if point.budget else ""
        return f"{curve.name}: {percent(point.report.accuracy.value, 2)}, {costs[0]}{made}"

    def interval(self) -> Iterator[str]:
        """How far an accuracy may be off, as a bar in the free corner."""
        half = 100 * (self.sweep.full_depth.accuracy.high - self.sweep.full_depth.accuracy.low) / 2
        span = self.y.at(0.0) - self.y.at(2 * half / 100)
        x, bottom = _X[1] - 18, _Y[0] - 18
        yield line(x, bottom, x, bottom - span, "bar")
        for y in (bottom, bottom - span):
            yield line(x - 5, y, x + 5, y, "bar")
        words = ("95 % interval, whole network's;", "of the same samples, differences are surer")
        yield (
            f'<rect x="{x - 274:.1f}" y="{bottom - span / 2 - 18:.1f}" width="264" height="38" '
            'fill="#ffffff" fill-opacity="0.8"/>'
        )
        for row, told in enumerate(words):
            yield text(x - 14, bottom - span / 2 - 3 + 16 * row, told, "small", "end")

    def legend(self) -> Iterator[str]:
        x, y = _LEGEND
        for curve, colour in zip(self.sweep.curves, self.colours(), strict=True):
            yield f'<line x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}" stroke="{colour}" '
            yield 'stroke-width="3"/>'
            yield text(x + 36, y + 5, short(curve.name, 32), "name", title=curve.name)
            yield text(x + 36, y + 22, short(curve.rule, 40), "small", title=curve.rule)
            y += _ROW
        yield f'<circle cx="{x + 13}" cy="{y}" r="6" fill="#ffffff" stroke="#475569" '
        yield 'stroke-width="3"/>'
        yield text(x + 36, y + 4, "the setting it was built in", "small")
        base = self.height - 22 * len(self.sweep.left_out)
        for row, (name, why) in enumerate(self.sweep.left_out.items()):
            told = f"{name} is left out: it {why}"
            yield text(32, base + 22 * row, short(told, 140), "small", title=told)
