"""What a person sees: progress on standard error, tables on standard output."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from eecompile.diagnostics import columns_of

__all__ = ["Reporter", "Steps", "folded", "table"]

_BAR_COLUMNS = 30
#: Redrawing more often shows nothing more, and costs time on slow lines.
_REDRAW_S = 0.1
#: Start of the line, and nothing behind it.
_CLEAR = "\r\x1b[K"
#: Width of what goes to a file or a pipe.
_FILE_COLUMNS = 120
#: No column is folded to less than this.
_LEAST_COLUMNS = 8


class Reporter(Protocol):
    """Progress within one step: `done` of `total` units of `what`."""

    def __call__(self, done: int, total: int, what: str = "") -> None: ...  # noqa: D102


@dataclass
class Steps:
    """Numbered steps of a long command: ``[3/9] insert exits ... 0.8 s`` on standard error.

    On a terminal the running step shows a bar; elsewhere every step is one plain line. Durations
    are kept in `times_s`, by step name, for the build report.
    """

    total: int
    quiet: bool = False
    times_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[Reporter]:
        """Run the block as the next step; the value reports progress inside it."""
        number, start = len(self.times_s) + 1, time.perf_counter()
        label = f"[{number}/{self.total}] {name}"
        if self.quiet or not _on_terminal():
            yield _silent
        else:
            bar = _Bar(label)
            try:
                yield bar
            finally:
                _erase()
        self.times_s[name] = time.perf_counter() - start
        self.say(f"{label} ... {self.times_s[name]:.1f} s")

    def warn(self, text: str) -> None:
        """What a person should know even where progress is not wanted."""
        if _on_terminal():
            _erase()
        print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if not self.quiet:
            self.warn(text)


def _silent(done: int, total: int, what: str = "") -> None:
    """Report to nobody."""


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _erase() -> None:
    print(end=_CLEAR, file=sys.stderr, flush=True)


class _Bar:
    """The last line of the terminal: what runs, how far it is, and how long it may still take."""

    def __init__(self, label: str) -> None:
        self._label, self._start_s, self._drawn_s = label, time.perf_counter(), 0.0
        self._draw(label)

    def __call__(self, done: int, total: int, what: str = "") -> None:
        now_s = time.perf_counter()
        if now_s - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now_s
        share = min(done / total, 1.0) if total else 0.0
        full = "=" * round(share * _BAR_COLUMNS)
        text = f"{self._label} {what}".rstrip() + f" [{full:{_BAR_COLUMNS}}] {share:4.0%}"
        if share:
            left_s = round((now_s - self._start_s) * (1 - share) / share)
            text += f" {left_s // 60}:{left_s % 60:02} left"
        self._draw(text)

    @staticmethod
    def _draw(text: str) -> None:
        # A line that is wrapped could not be erased.
        room = shutil.get_terminal_size().columns - 1
        print(end=_CLEAR + text[:room], file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print an aligned table; the first `left` columns are text, the rest numbers."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else _FILE_COLUMNS
    for line in folded(columns, rows, left, width):
        print(line)


def folded(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int
) -> Iterator[str]:
    r"""The lines of a table, its cells folded where it would be wider than `width` columns.

    >>> print(*folded(["exit", "taken"], [["early", "7 %"], ["final", "93 %"]], 1, 40), sep="\n")
    exit   taken
    early    7 %
    final   93 %
    """
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    sizes = [max(map(_widest, column)) for column in zip(*cells, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > _LEAST_COLUMNS:
        sizes[sizes.index(max(sizes))] -= 1
    for row in cells:
        parts = [_pieces(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for number in range(max(map(len, parts))):
            pieces = [part[number] if number < len(part) else "" for part in parts]
            drawn = (
                _aligned(piece, size, index < left)
                for index, (piece, size) in enumerate(zip(pieces, sizes, strict=True))
            )
            yield "  ".join(drawn).rstrip()


def _widest(cell: str) -> int:
    return max(map(columns_of, cell.splitlines()), default=0)


def _pieces(cell: str, size: int) -> list[str]:
    """The lines of one cell."""
    lines = [
        piece
        for line in cell.splitlines()
        for piece in ([line] if columns_of(line) <= size else textwrap.wrap(line, size))
    ]
    return lines or [""]


def _aligned(piece: str, size: int, to_left: bool) -> str:
    space = " " * (size - columns_of(piece))
    return piece + space if to_left else space + piece
