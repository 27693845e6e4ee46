"""What a person sees: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Reporter", "Steps", "table"]


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

    def __post_init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, name: str) -> Iterator[Reporter]:
        """Run the block as the next step; the value reports progress inside it."""
        number, start = len(self.times_s) + 1, time.perf_counter()
        label = f"[{number}/{self.total}] {name}"
        if self.quiet:
            yield _silent
        elif self._console.is_terminal:
            with _bar(self._console) as progress:
                task = progress.add_task(label, total=None)
                yield lambda done, total, what="": progress.update(
                    task, completed=done, total=total, description=f"{label} {what}".rstrip()
                )
        else:
            yield _silent
        self.times_s[name] = time.perf_counter() - start
        self.say(f"[{number}/{self.total}] {name} ... {self.times_s[name]:.1f} s")

    def warn(self, text: str) -> None:
        """What a person should know even where progress is not wanted."""
        self._console.print(text, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if not self.quiet:
            self._console.print(text, markup=False)


def _silent(done: int, total: int, what: str = "") -> None:
    """Report to nobody."""


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print an aligned table; the first `left` columns are text, the rest numbers."""
    drawn = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, markup=False, width=width).print(drawn)
