"""A picture of a segment graph: segments from top to bottom, exits beside their decisions.

Where gates decide inside a segment, its box shows its steps in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eecompile.cost import graph_macs
from eecompile.exit_table import borders, exit_table
from eecompile.figures import readable
from eecompile.ir import Graph, TensorType
from eecompile.segments import Exit, Segment, SegmentGraph, Step
from eecompile.svg_parts import box, document, line, short, text, tip

__all__ = ["draw"]

# Lengths in pixels.
_WIDTH = 920
_AXIS = 64  # the line with the share of work done
_LEFT, _SEGMENT = 112, 340  # segment boxes
_RIGHT, _BRANCH = 560, 328  # exit boxes
_TOP = 132  # of the first segment
_LOWEST, _SCALED = 58, 190  # height of a box without work; what is added for all of it
_LINE = 17
_SHOWN = 4  # tensors named at a border
_ROW, _STEP = 30, 14  # what a row of steps adds to a segment's box; height of a step

_STYLE = """
  .share { font-size: 17px; font-weight: 650; fill: #1d4ed8 }
  .type { font: 11.5px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
          fill: #475569 }
  .segment { fill: #eff6ff; stroke: #3b82f6 } .track { fill: #dbeafe } .work { fill: #3b82f6 }
  .branch { fill: #fffbeb; stroke: #d97706 } .end { fill: #f1f5f9; stroke: #64748b }
  .decision { fill: #ffffff; stroke: #d97706; stroke-width: 1.6 }
  .flow { stroke: #3b82f6; stroke-width: 2; fill: none } .leave { stroke: #d97706 }
  .tick, .gate { fill: #d97706 }
  .step { fill: #bfdbfe } .kept { fill: #fffbeb; stroke: #d97706; stroke-dasharray: 3 2 }
  .group { stroke: #d97706; stroke-width: 0.8 }
  .last { fill: #1d4ed8 } .ahead { fill: #3b82f6 } .aside { fill: #d97706 }
"""


def draw(segments: SegmentGraph, heads: Mapping[str, str] | None = None) -> str:
    """The picture as an SVG document.

    Boxes grow with a segment's share of the multiply-accumulates; the line on the left counts
    them. Each arrow between segments names the tensors that cross. Steps of a segment with gates
    are as wide as their share of its work: what a gate may leave out has a broken outline and the
    gate before it, and channels are divided into their groups.

    Args:
        segments: the network, cut.
        heads: exit -> its head in words (``linear(pool: 4)``); default what the graph shows.
    """
    page = _Page(segments, dict(heads or {}))
    body = list(page.body())
    height = page.y + 40
    label = f"{segments.name}: {len(segments.exits)} exits{_gates(segments)}, "
    label += readable(segments.macs, "MACs")
    return document(_WIDTH, height, segments.name, label, _STYLE, body)


@dataclass
class _Page:
    """Draws from top to bottom.

    Attributes:
        y: where the next thing goes.
        done: multiply-accumulates of the segments drawn.
        branch_end: where the last exit's box ends.
    """

    segments: SegmentGraph
    heads: dict[str, str]
    y: float = _TOP
    done: int = 0
    branch_end: float = 0.0

    @property
    def middle(self) -> float:
        return _LEFT + _SEGMENT / 2

    def body(self) -> Iterator[str]:
        cut = self.segments
        yield from self.header()
        rows = exit_table(cut)
        crossing = borders(cut)
        axis: list[str] = []
        start = self.y
        for index, segment in enumerate(cut.segments):
            yield from self.segment(segment)
            if index < len(cut.exits):
                axis += self.tick(rows[index].backbone_fraction)
                yield from self.decision(cut.exits[index], rows[index].macs_fraction)
                yield from self.border(crossing[index], cut.exits[index])
        axis += self.tick(1.0, last=True)
        yield line(_AXIS, start, _AXIS, self.y, "axis")
        yield from axis
        yield from self.answer(rows[-1].macs_fraction)

    def header(self) -> Iterator[str]:
        cut = self.segments
        yield text(32, 42, cut.name, "title")
        exits = f"{len(cut.exits)} exit{'s' * (len(cut.exits) != 1)}{_gates(cut)}"
        classes = f" · {cut.classes} classes" if cut.classes else ""
        yield text(
            32, 64, f"{exits} · {readable(cut.macs, 'MACs')} at full depth{classes}", "quiet"
        )
        inputs = " · ".join(f"{name}: {type_}" for name, type_ in cut.inputs)
        yield text(self.middle, 100, short(inputs, 60), "type", "middle", inputs)
        yield from _arrow(self.middle, 106, self.middle, _TOP)
        yield text(_AXIS, 100, "MACs", "quiet", "middle")
        yield text(_AXIS, _TOP - 12, "0 %", "quiet", "middle")

    def segment(self, segment: Segment) -> Iterator[str]:
        share = segment.macs / max(self.segments.macs, 1)
        height = _LOWEST + _SCALED * share + _ROW * bool(segment.steps)
        yield box(_LEFT, self.y, _SEGMENT, height, "segment")
        yield from self.progress(segment, self.y + height - 13)
        center = self.y + (height - _ROW * bool(segment.steps)) / 2 - 3
        yield text(_LEFT + 16, center - 3, segment.name, "name")
        count = len(segment.graph.ops)
        facts = f"{count} operator{'s' * (count != 1)} · {readable(segment.macs, 'MACs')}"
        yield text(_LEFT + 16, center + 15, facts, "quiet")
        yield from _steps(segment, center + 15 + 13)
        yield text(_LEFT + _SEGMENT - 16, center + 6, _percent(share), "share", "end")
        self.y += height
        self.done += segment.macs

    def progress(self, segment: Segment, y: float) -> Iterator[str]:
        """A bar over the whole network's work with this segment's part of it filled."""
        total, whole = max(self.segments.macs, 1), _SEGMENT - 32
        for kind, start, macs in (("track", 0, total), ("work", self.done, segment.macs)):
            width = whole * macs / total
            if width > 0:
                x = _LEFT + 16 + whole * start / total
                yield f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" rx="2" height="4" ' + (
                    f'width="{max(width, 2):.1f}"/>'
                )

    def tick(self, fraction: float, last: bool = False) -> list[str]:
        mark = (
            f'<circle class="{"last" if last else "tick"}" cx="{_AXIS}" cy="{self.y:.1f}" r="4"/>'
        )
        return [mark, text(_AXIS - 10, self.y + 4, _percent(fraction), "quiet", "end")]

    def decision(self, exit_: Exit, fraction: float) -> Iterator[str]:
        """The diamond under a segment, and the exit's box to its right."""
        center, size = self.y + 26, 10
        middle = self.middle
        yield from _arrow(middle, self.y, middle, center - size, head=False)
        corners = (middle, center - size), (middle + size, center), (middle, center + size)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*corners, (middle - size, center)))
        lines = list(self.branch_lines(exit_))
        height = 40 + _LINE * len(lines)
        top = center - 26
        yield from _arrow(middle + size, center, _RIGHT, center, aside=True)
        yield f'<polygon class="decision" points="{points}"/>'
        yield box(_RIGHT, top, _BRANCH, height, "branch")
        yield text(_RIGHT + 16, top + 24, short(exit_.name, 20), "name", title=exit_.name)
        yield text(_RIGHT + _BRANCH - 14, top + 24, f"{_percent(fraction)} of MACs", "quiet", "end")
        for index, (told, kind) in enumerate(lines):
            at = top + 43 + _LINE * index
            yield text(_RIGHT + 16, at, short(told, 40), kind, title=told)
        self.y = center + size
        self.branch_end = top + height

    def branch_lines(self, exit_: Exit) -> Iterator[tuple[str, str]]:
        yield f"after {exit_.point}", "quiet"
        if exit_.head is not None:
            yield _described(self.heads.get(exit_.name, "head"), exit_.head), ""
        if exit_.comparator is not None:
            kind = "class means" if exit_.head or exit_.name not in self.heads else ""
            yield _described(kind or self.heads[exit_.name], exit_.comparator), ""

    def border(self, crossing: Mapping[str, TensorType], exit_: Exit) -> Iterator[str]:
        """The arrow to the next segment with what crosses; the tapped tensor first."""
        ordered = sorted(crossing, key=lambda value: value != exit_.feature)
        named: Sequence[str] = ordered[:_SHOWN]
        more = len(ordered) - len(named)
        lines = [(value, f": {crossing[value]}") for value in named]
        lines += [(f"and {more} more", "")] if more else []
        start = self.y
        end = max(start + 24 + _LINE * len(lines), self.branch_end + 16)
        yield from _arrow(self.middle, start, self.middle, end)
        first = start + (end - start - _LINE * len(lines)) / 2 + 10
        for index, (value, type_) in enumerate(lines):
            at = first + _LINE * index
            told = f"{short(value, max(38 - len(type_), 8))}{type_}"
            yield text(self.middle + 16, at, told, "type", title=f"{value}{type_}")
        self.y = end

    def answer(self, fraction: float) -> Iterator[str]:
        cut = self.segments
        yield from _arrow(self.middle, self.y, self.middle, self.y + 34)
        self.y += 34
        yield box(_LEFT, self.y, _SEGMENT, 46, "end")
        yield text(_LEFT + 16, self.y + 28, short(cut.output, 20), "name", title=cut.output)
        type_ = cut.segments[-1].graph.types[cut.output]
        yield text(_LEFT + _SEGMENT - 16, self.y + 28, str(type_), "type", "end")
        heads = " and every head" if cut.exits else ""
        note = f"full depth{heads}: {_percent(fraction)} of MACs"
        yield text(_LEFT + _SEGMENT + 16, self.y + 28, note, "quiet")
        self.y += 46


def _gates(cut: SegmentGraph) -> str:
    """What may be left out, as a part of a list; nothing without gates."""
    steps = [step for segment in cut.segments for step in segment.steps if not step.gate]
    blocks = len({step.keep for step in steps if step.keep})
    channels = len({step.channels for step in steps if step.channels})
    found = f" · {blocks} block{'s' * (blocks != 1)} that gates may leave out" if blocks else ""
    if channels:
        found += f" · channels of {channels} step{'s' * (channels != 1)}"
    return found


def _steps(segment: Segment, y: float) -> Iterator[str]:
    """A row of a segment's steps, each as wide as its share of the work, gates between them."""
    x, wide = _LEFT + 16.0, (_SEGMENT - 32) / max(segment.macs, 1)
    for step in segment.steps:
        if step.gate:
            yield _gate(step, x, y)
            continue
        width = step.macs * wide
        if not width:
            continue
        kind = "kept" if step.keep or step.channels else "step"
        yield (
            f'<rect class="{kind}" x="{x:.1f}" y="{y + 4:.1f}" width="{max(width - 1, 1):.1f}" '
            f'height="{_STEP}">{tip(_step_in_words(step))}</rect>'
        )
        groups = step.graph.types[step.channels].size if step.channels else 0
        for group in range(1, groups):
            at = x + width * group / groups
            yield line(at, y + 4, at, y + 4 + _STEP, "group")
        x += width


def _gate(step: Step, x: float, y: float) -> str:
    corners = (x, y - 4), (x + 4, y), (x, y + 4), (x - 4, y)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    told = f"gate {step.graph.outputs[0]} · {readable(step.macs, 'MACs')}"
    return f'<polygon class="gate" points="{points}">{tip(told)}</polygon>'


def _step_in_words(step: Step) -> str:
    parts = [readable(step.macs, "MACs")]
    if step.keep:
        stands_in = step.otherwise or "zeros"
        parts.append(f"{step.keep} may leave it out: {stands_in} in its place")
    if step.channels:
        parts.append(f"channels as {step.channels} says")
    return " · ".join(parts)


def _described(kind: str, graph: Graph) -> str:
    return f"{kind} · {readable(graph_macs(graph), 'MACs')}"


def _percent(fraction: float) -> str:
    """Whole percent, one decimal under ten.

    >>> _percent(0.256), _percent(0.0123), _percent(0.0)
    ('26 %', '1.2 %', '0 %')
    """
    precise = 0 < fraction < 0.0995
    return f"{100 * fraction:.{int(precise)}f} %"


def _arrow(
    x1: float, y1: float, x2: float, y2: float, *, aside: bool = False, head: bool = True
) -> Iterator[str]:
    """A straight arrow down, or to the right where `aside`."""
    back = 9 if head else 0
    end = (x2 - back, y2) if aside else (x2, y2 - back)
    yield line(x1, y1, *end, "flow leave" if aside else "flow")
    if not head:
        return
    tip = (
        ((x2, y2), (x2 - 10, y2 - 5), (x2 - 10, y2 + 5))
        if aside
        else ((x2, y2), (x2 - 5, y2 - 10), (x2 + 5, y2 - 10))
    )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in tip)
    yield f'<polygon class="{"aside" if aside else "ahead"}" points="{points}"/>'
