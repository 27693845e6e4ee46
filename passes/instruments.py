"""Observers of the pass manager: nothing that watches or reports lives in a pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from eecompile.cost_table import CostTable
from eecompile.figures import hertz, milliseconds
from eecompile.passes.base import Pass, PassResult, Program
from eecompile.text import print_graph, print_segments

__all__ = ["DumpText", "Timing"]


@dataclass
class Timing:
    """How long each pass took: `seconds` by the pass's name, summed where it ran twice."""

    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = 0.0

    def before_pass(self, step: Pass, program: Program) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_pass(self, step: Pass, result: PassResult) -> None:
        """Add what went by."""
        elapsed_s = time.perf_counter() - self._started
        self.seconds[step.name] = self.seconds.get(step.name, 0.0) + elapsed_s


@dataclass
class DumpText:
    """Writes the IR before the first pass and after each into a folder, which is made.

    Files are ``00-before.txt``, ``01-resolve-points.txt`` and so on: the whole graph, the exits
    as comments, and once there are any the segments in full, with their costs as comments.
    """

    folder: Path
    _written: int = 0

    def before_pass(self, step: Pass, program: Program) -> None:
        """Write what the first pass is given."""
        if self._written == 0:
            self._write("before", program)

    def after_pass(self, step: Pass, result: PassResult) -> None:
        """Write what the pass made."""
        skips = "".join(f"# skipped: {s.value}: {s.reason}\n" for s in result.skips)
        self._write(step.name, result.graph, skips)

    def _write(self, name: str, program: Program, notes: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        exits = (f"# exit {e.name} after {e.point}: {e.value}\n" for e in program.exits)
        parts = [notes, *exits, print_graph(program.host.graph())]
        if program.segments is not None:
            parts += [f"# cost {row}\n" for row in _costs(program.costs)]
            parts.append(print_segments(program.segments, "full"))
        path = self.folder / f"{self._written:02}-{name}.txt"
        path.write_text("".join(parts), encoding="utf-8")
        self._written += 1


def _costs(table: CostTable | None) -> list[str]:
    """A line for each piece: where it was measured or modelled, and what it takes there."""
    if table is None:
        return []
    lines = []
    for row in (*table.segments, *table.exits):
        told = [
            f"{milliseconds(cost.latency_s)} {cost.provenance} at {hertz(state.frequency_hz)}"
            for state, cost in zip(table.states, row.costs, strict=True)
            if cost is not None
        ]
        lines.append(f"{row.name}: {', '.join(told) or 'not known'}")
    return lines
