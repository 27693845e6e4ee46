"""What can be said of a segment graph without running it: costs up to each exit, and borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eecompile.ir import TensorType
from eecompile.segments import SegmentGraph

__all__ = ["ExitRow", "borders", "exit_rows", "exit_table"]


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One exit in numbers; the last row of a table is the network's own answer.

    Attributes:
        name: the exit's, or the network's output.
        point: where it stands; empty for the network's own answer.
        head: what is computed there, in words; empty where nobody said.
        feature: type of the tapped tensor, or of the network's output.
        segment_macs: multiply-accumulates of the segment that ends here.
        backbone_fraction: share of the backbone's multiply-accumulates done when it is reached.
        head_macs: multiply-accumulates of head and comparator.
        macs_fraction: what a sample that leaves here has cost, heads on its way included, against
            the untouched backbone.
        border_tensors: how many tensors cross the border behind it.
        border_bytes: their bytes, for one sample.
    """

    name: str
    point: str
    head: str
    feature: str
    segment_macs: int
    backbone_fraction: float
    head_macs: int
    macs_fraction: float
    border_tensors: int
    border_bytes: int


def borders(segments: SegmentGraph) -> tuple[dict[str, TensorType], ...]:
    """For each exit the values that later segments read, by name.

    A network input that is read again counts, as it has to be kept.
    """
    known = dict(segments.inputs)
    found: list[dict[str, TensorType]] = []
    for index, segment in enumerate(segments.segments[:-1]):
        known.update((value, segment.graph.types[value]) for value in segment.graph.outputs)
        later = segments.segments[index + 1 :]
        read = {value for part in later for value in part.graph.inputs}
        found.append({value: type_ for value, type_ in known.items() if value in read})
    return tuple(found)


def exit_table(
    segments: SegmentGraph, heads: Mapping[str, str] | None = None
) -> tuple[ExitRow, ...]:
    """A row for each exit in order, and one for the network's own answer.

    Args:
        segments: the network, cut.
        heads: exit -> its head in words (``linear(pool: 4)``).
    """
    total = max(segments.macs, 1)
    rows: list[ExitRow] = []
    done = spent = 0
    crossing = zip(segments.segments, segments.exits, borders(segments), strict=False)
    for segment, exit_, border in crossing:
        done += segment.macs
        spent += segment.macs + exit_.macs
        rows.append(
            ExitRow(
                name=exit_.name,
                point=exit_.point,
                head=(heads or {}).get(exit_.name, ""),
                feature=str(segment.graph.types[exit_.feature]),
                segment_macs=segment.macs,
                backbone_fraction=done / total,
                head_macs=exit_.macs,
                macs_fraction=spent / total,
                border_tensors=len(border),
                border_bytes=sum(type_.nbytes for type_ in border.values()),
            )
        )
    last = segments.segments[-1]
    feature = str(last.graph.types[segments.output])
    spent += last.macs
    rows.append(ExitRow(segments.output, "", "", feature, last.macs, 1.0, 0, spent / total, 0, 0))
    return tuple(rows)


def exit_rows(
    segments: SegmentGraph, heads: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """`exit_table` as JSON."""
    return [asdict(row) for row in exit_table(segments, heads)]
