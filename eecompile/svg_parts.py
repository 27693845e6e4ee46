"""What our pictures are drawn with: marks as SVG text, one look for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

__all__ = ["box", "document", "line", "short", "text", "tip"]

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2937 }
  .title { font-size: 21px; font-weight: 650 } .name { font-size: 14px; font-weight: 650 }
  .quiet { fill: #64748b }
  .axis { stroke: #cbd5e1; stroke-width: 2 }
"""


def document(
    width: float, height: float, title: str, label: str, style: str, body: Iterable[str]
) -> str:
    """A whole SVG document: `body` on white.

    Args:
        width: in pixels.
        height: in pixels.
        title: shown under the pointer.
        label: the picture in words, for those who do not see it.
        style: CSS besides what all pictures have.
        body: marks, the first lowest.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
            f'viewBox="0 0 {width} {height:.0f}" role="img" aria-label={quoteattr(label)}>',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{style}</style>",
            f'<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def short(words: str, length: int) -> str:
    """The text, its middle left out where it is too long.

    >>> short("layer1.0.conv1.weight", 12)
    'layer1…eight'
    """
    if len(words) <= length:
        return words
    head = length // 2
    return f"{words[:head]}…{words[head - length + 1 :]}"


def text(x: float, y: float, words: str, kind: str, anchor: str = "start", title: str = "") -> str:
    """A text; one that was shortened shows its `title` under the pointer."""
    shown = tip(title) if title and title != words else ""
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{shown}{escape(words)}</text>'


def tip(words: str) -> str:
    """What is shown under the pointer, inside a mark."""
    return f"<title>{escape(words)}</title>"


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A box with round corners."""
    return (
        f'<rect class="{kind}" x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}" rx="8"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
