"""A picture of a cost table: time and energy at each clock, and exits x clocks with their front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from eecompile.benching.axes import Axis, Frame
from eecompile.benching.pareto import Leaving
from eecompile.board import DvfsState
from eecompile.figures import hertz, joules, milliseconds
from eecompile.svg_parts import document, line, short, text

__all__ = ["draw_costs"]

# Lengths in pixels.
_WIDTH, _TOP = 1080, 148
_LEFT = (84, 470)
_RIGHT = (620, 1040)
_CHART, _GAP = 180, 96  # of each of two charts, one above the other
_LEGEND = 22
_SERIES = 6  # exits drawn at most

_COLOURS = ("#f59e0b", "#ea580c", "#db2777", "#7c3aed", "#2563eb", "#0f172a")
_DASHES = ("", "6 4", "2 4", "10 3 2 3")  # by cluster
_STYLE = """
  .grid { stroke: #e2e8f0 } .mark { font-size: 12px; fill: #64748b }
  .series { fill: none; stroke-width: 1.8 } .ring { fill: none; stroke: #0f172a; stroke-width: 1.2 }
  .small { font-size: 12px; fill: #334155 }
"""


@dataclass(frozen=True)
class _Series:
    """One exit on one cluster: its points by rising clock."""

    name: str
    colour: str
    dash: str
    points: tuple[Leaving, ...]


def _beside(
    place: tuple[float, float], words: str, taken: list[tuple[float, float]]
) -> Iterator[str]:
    """A text beside a point where it hides no other point; none where there is no such place.

    Args:
        place: the point, in pixels.
        words: short.
        taken: centres of points and earlier texts; this one's are added.
    """
    x, y = place
    width = 7.2 * len(words)
    sides = (
        (x - 12 - width, y + 4),
        (x + 12, y + 4),
        (x - width / 2, y - 14),
        (x - width / 2, y + 22),
    )
    for left, base in sides:
        inside = _RIGHT[0] + 4 <= left and left + width <= _RIGHT[1] + 32
        free = all(
            not (left - 8 <= at <= left + width + 8 and base - 18 <= height <= base + 8)
            for at, height in taken
        )
        if inside and free:
            taken += [(left + width * share, base - 5) for share in (0.1, 0.5, 0.9)]
            yield text(left, base, words, "small")
            return


def draw_costs(
    title: str, subtitles: Sequence[str], states: Sequence[DvfsState], ways: Sequence[Leaving]
) -> str:
    """The picture as an SVG document.

    Left, what leaving at each exit takes and draws at each clock; right, one against the other,
    with the pairs that are worth having ringed. Where energies are not known the right-hand side
    shows each exit's times at all clocks. Measured points are filled, modelled ones hollow.

    Args:
        title: the network's name.
        subtitles: of what machine the costs are, and what they include; a line each, two at most.
        states: the clocks; `Leaving.state` is an index into them.
        ways: exits x clocks; at least one. More exits than can be told apart are drawn in part.
    """
    page = _Page(title, tuple(subtitles), tuple(states), tuple(ways))
    body = list(page.body())
    label = f"{title}: latency and energy of {len(ways)} pairs of exit and clock"
    return document(_WIDTH, page.height, title, label, _STYLE, body)


class _Page:
    def __init__(
        self,
        title: str,
        subtitles: tuple[str, ...],
        states: tuple[DvfsState, ...],
        ways: tuple[Leaving, ...],
    ) -> None:
        self.title, self.subtitles, self.states, self.ways = title, subtitles, states, ways
        self.by_energy = all(way.cost.energy_j is not None for way in ways)
        self.clusters = list(dict.fromkeys(states[way.state].cluster for way in ways))
        self.series = self._series()
        self.bottom = _TOP + 2 * _CHART + _GAP
        self.height = self.bottom + 88 + _LEGEND * (1 + self._places()[-1][1])

    def _series(self) -> list[_Series]:
        names = list(dict.fromkeys(way.exit for way in self.ways))
        count = min(len(names), _SERIES)
        # The last is always drawn, the others evenly between it and the first.
        drawn = [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
        drawn[-1] = names[-1]
        colours = _COLOURS[-count:]
        found = []
        for name, colour in zip(drawn, colours, strict=True):
            for cluster, dash in zip(self.clusters, _DASHES * 9, strict=False):
                points = [w for w in self.ways if w.exit == name and self._cluster(w) == cluster]
                points.sort(key=lambda way: self.states[way.state].frequency_hz or 0.0)
                if points:
                    found.append(_Series(name, colour, dash, tuple(points)))
        return found

    def _cluster(self, way: Leaving) -> str:
        return self.states[way.state].cluster

    def _clock(self, way: Leaving) -> float:
        return self.states[way.state].frequency_hz or 0.0

    def body(self) -> Iterator[str]:
        yield text(32, 44, short(self.title, 60), "title", title=self.title)
        for line_number, told in enumerate(self.subtitles):
            yield text(32, 68 + 19 * line_number, short(told, 140), "quiet", title=told)
        yield from self.left()
        yield from self.right() if self.by_energy else self.times_only()
        yield from self.legend()

    # -- charts --------------------------------------------------------------------------------

    def left(self) -> Iterator[str]:
        clocks = [self._clock(way) for way in self.ways]
        x = Axis.over("clock", clocks, *_LEFT, zero=False)
        charts = [("latency", "Time of one answer, by clock")]
        charts += [("energy", "Energy of one answer, by clock")] if self.by_energy else []
        height = _CHART if self.by_energy else 2 * _CHART + _GAP
        for index, (quantity, title) in enumerate(charts):
            top = _TOP + index * (_CHART + _GAP)
            values = [self.value(quantity, way) for way in self.ways]
            y = Axis.over(quantity, values, top + height, top)
            yield from Frame(x, y, title).draw()
            for series in self.series:
                places = [
                    (x.at(self._clock(way)), y.at(self.value(quantity, way)), way)
                    for way in series.points
                ]
                yield from self.drawn(series, places, quantity)

    def right(self) -> Iterator[str]:
        latencies = [way.cost.latency_s for way in self.ways]
        energies = [self.value("energy", way) for way in self.ways]
        x = Axis.of_factors("latency", latencies, *_RIGHT)
        y = Axis.of_factors("energy", energies, self.bottom, _TOP)
        yield from Frame(x, y, "Exit and clock: energy against time").draw()
        taken: list[tuple[float, float]] = []
        for series in self.series:
            places = [
                (x.at(way.cost.latency_s), y.at(self.value("energy", way)), way)
                for way in series.points
            ]
            taken += [(at, height) for at, height, _ in places]
            yield from self.drawn(series, places, "energy", front=True)
        count = len(self.clusters)
        for series in (*self.series[-count:], *self.series[:count]):
            for way in dict.fromkeys((series.points[0], series.points[-1])):
                place = x.at(way.cost.latency_s), y.at(self.value("energy", way))
                clock = hertz(self.states[way.state].frequency_hz)
                yield from _beside(place, clock, taken)

    def times_only(self) -> Iterator[str]:
        """Each exit in a row of its own: all there is to show without energies."""
        x = Axis.over("latency", [way.cost.latency_s for way in self.ways], *_RIGHT)
        names = list(dict.fromkeys(series.name for series in self.series))
        marks = Axis("", 1.0, (), self.bottom, _TOP)
        yield from Frame(x, marks, "Time of leaving at each exit, all clocks").draw()
        step = (self.bottom - _TOP) / len(names)
        rows = {name: self.bottom - step * (row + 0.5) for row, name in enumerate(names)}
        for name, y in rows.items():
            yield line(_RIGHT[0], y, _RIGHT[1], y, "grid")
            yield text(_RIGHT[0] - 8, y + 4, short(name, 12), "mark", "end", title=name)
        for series in self.series:
            y = rows[series.name]
            places = [(x.at(way.cost.latency_s), y, way) for way in series.points]
            yield from self.drawn(series, places, "latency", front=True)
        middle = (_RIGHT[0] + _RIGHT[1]) / 2
        note = "energy is not known: no meter, and no power model of this machine"
        yield text(middle, self.bottom + 62, note, "quiet", "middle")

    def value(self, quantity: str, way: Leaving) -> float:
        """An SI value to draw."""
        return way.cost.latency_s if quantity == "latency" else way.cost.energy_j or 0.0

    def drawn(
        self,
        series: _Series,
        places: Sequence[tuple[float, float, Leaving]],
        quantity: str,
        *,
        front: bool = False,
    ) -> Iterator[str]:
        """A curve with its points, those of the front ringed."""
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        line_points = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        faint = ' stroke-opacity="0.45"' if front else ""
        yield (
            f'<polyline class="series" stroke="{series.colour}"{dash}{faint} '
            f'points="{line_points}"/>'
        )
        for x, y, way in places:
            cost = way.cost
            told = cost.energy_provenance if quantity == "energy" else cost.provenance
            fill = series.colour if told == "measured" else "#ffffff"
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{fill}" stroke="{series.colour}" '
                f'stroke-width="1.8"><title>{escape(self.words(way))}</title></circle>'
            )
            if front and way.optimal:
                yield f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>'

    def words(self, way: Leaving) -> str:
        """What the pointer shows at a point."""
        state, cost = self.states[way.state], way.cost
        clock = f"{state.cluster} at {hertz(state.frequency_hz)}"
        told = f"{way.exit}, {clock}: {milliseconds(cost.latency_s)} ({cost.provenance})"
        if cost.energy_j is not None:
            told += f", {joules(cost.energy_j)} ({cost.energy_provenance})"
        return told

    # -- legend --------------------------------------------------------------------------------

    def _legend(self) -> list[tuple[str, str, str]]:
        """What each sign means: (kind of sign, colour or dash, words)."""
        exits = {series.name: series.colour for series in self.series}
        found = [("line", colour, f"leaving at {name}") for name, colour in exits.items()]
        found = [(k, c, w.replace("leaving at final", "final answer")) for k, c, w in found]
        if len(self.clusters) > 1:
            dashes = zip(self.clusters, _DASHES * 9, strict=False)
            found += [("dash", dash, f"cluster {name}") for name, dash in dashes]
        told = {way.cost.provenance for way in self.ways}
        told |= {way.cost.energy_provenance or way.cost.provenance for way in self.ways}
        fills = {"measured": "#475569", "modelled": "#ffffff"}
        found += [("point", fill, words) for words, fill in fills.items() if words in told]
        more = " without drawing more" if self.by_energy else ""
        found.append(("ring", "", f"on the front: nothing as deep is faster{more}"))
        return found

    def _places(self) -> list[tuple[int, int]]:
        """Column and row of each; the last, which is long, does not stand at the right."""
        found = [(index % 4, index // 4) for index in range(len(self._legend()))]
        column, row = found[-1]
        return [*found[:-1], (column, row) if column < 2 else (0, row + 1)]

    def legend(self) -> Iterator[str]:
        top = self.bottom + 92
        for (column, row), (kind, value, words) in zip(self._places(), self._legend(), strict=True):
            x, y = 40 + column * 258, top + _LEGEND * row
            if kind in ("line", "dash"):
                colour = value if kind == "line" else "#475569"
                dash = f' stroke-dasharray="{value}"' if kind == "dash" and value else ""
                yield (
                    f'<line x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" stroke="{colour}" '
                    f'stroke-width="2.4"{dash}/>'
                )
            elif kind == "point":
                yield (
                    f'<circle cx="{x + 13}" cy="{y - 4}" r="3.6" fill="{value}" stroke="#475569" '
                    'stroke-width="1.8"/>'
                )
            else:
                yield f'<circle class="ring" cx="{x + 13}" cy="{y - 4}" r="6.5"/>'
            yield text(x + 36, y, short(words, 34 if kind == "line" else 70), "small", title=words)
