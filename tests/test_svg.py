"""The picture and the table of a segment graph."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from eecompile.exit_table import borders, exit_table
from eecompile.segments import SegmentGraph
from eecompile.svg import draw
from eecompile.text import parse_segments

SVG = "{http://www.w3.org/2000/svg}"


def chain(exits: int, name: str = "exit") -> SegmentGraph:
    """A network of equal layers with an exit after each but the last; the input is read again."""
    lines = ["segments net(x: float32[1, 8], again: float32[1, 8]) -> y classes 8 {"]
    for index in range(exits + 1):
        source = f"{name}{index - 1}" if index else "x"
        result = f"{name}{index}" if index < exits else "y"
        lines.append(
            f"segment segment{index} = graph segment{index}"
            f"({source}: float32[1, 8], again: float32[1, 8]) -> ({result}: float32[1, 8]) {{"
            "const w: float32[8, 8] = random(0)"
            f"a: float32[1, 8] = MatMul({source}, w) {result}: float32[1, 8] = Add(a, again) }}"
        )
        if index < exits:
            lines.append(
                f"exit {result} after layer{index} on {result}"
                f" head = graph {result}_head({result}: float32[1, 8]) -> "
                f"({result}.logits: float32[1, 8]) {{ const w: float32[8, 8] = random(0)"
                f" {result}.logits: float32[1, 8] = MatMul({result}, w) }}"
            )
    return parse_segments("\n".join([*lines, "}"]))


def test_the_table_counts_backbone_heads_and_borders() -> None:
    rows = exit_table(chain(3), {"exit0": "linear"})
    assert [row.name for row in rows] == ["exit0", "exit1", "exit2", "y"]
    assert [row.backbone_fraction for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [row.macs_fraction for row in rows] == [0.5, 1.0, 1.5, 1.75]
    assert [row.head_macs for row in rows] == [64, 64, 64, 0]
    assert [row.border_tensors for row in rows] == [2, 2, 2, 0]
    assert [row.border_bytes for row in rows] == [64, 64, 64, 0]
    assert (rows[0].head, rows[0].point, rows[0].feature) == ("linear", "layer0", "float32[1, 8]")


def test_borders_name_inputs_that_are_read_again() -> None:
    assert [list(border) for border in borders(chain(2))] == [
        ["again", "exit0"],
        ["again", "exit1"],
    ]


@pytest.mark.parametrize("exits", [0, 1, 3, 27])
def test_every_exit_and_segment_is_drawn_inside_the_page(exits: int) -> None:
    root = ElementTree.fromstring(draw(chain(exits)))
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    texts = list(root.iter(f"{SVG}text"))
    shown = ["".join(text.itertext()) for text in texts]
    for index in range(exits + 1):
        assert f"segment{index}" in shown
    for index in range(exits):
        assert f"exit{index}" in shown
        assert f"after layer{index}" in shown
    for element in (*texts, *root.iter(f"{SVG}rect")):
        assert 0 <= float(element.get("x", 0)) <= width
        assert 0 <= float(element.get("y", 0)) <= height


@pytest.mark.parametrize("exits", [3, 27])
def test_boxes_do_not_overlap(exits: int) -> None:
    root = ElementTree.fromstring(draw(chain(exits)))
    boxes = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in ("segment", "branch")]
    assert len(boxes) == 2 * exits + 1
    for kind in ("segment", "branch"):
        spans = [
            (float(box.attrib["y"]), float(box.attrib["y"]) + float(box.attrib["height"]))
            for box in boxes
            if box.get("class") == kind
        ]
        assert all(end < start for (_, end), (start, _) in pairwise(spans))


def test_names_are_escaped_and_long_ones_keep_their_full_text() -> None:
    text = draw(chain(1), {"exit0": 'linear(name: "<&>")' + "x" * 80})
    root = ElementTree.fromstring(text)
    tips = ["".join(tip.itertext()) for tip in root.iter(f"{SVG}title")]
    assert any(tip.startswith('linear(name: "<&>")') for tip in tips)


def test_the_picture_is_the_same_every_time() -> None:
    assert draw(chain(3)) == draw(chain(3))
