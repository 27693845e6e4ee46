"""What tests of `bench` share: a device that only counts, a watch that is told, small tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eecompile.board import DvfsState
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable, Provenance
from eecompile.runtime.governor import RecordingGovernor
from eecompile.runtime.sysfs import LocalFiles, SysFiles

SLOW, MIDDLE, FAST = (DvfsState("cpu", hz) for hz in (600e6, 1e9, 1.5e9))


@dataclass
class CountingDevice:
    """Two functions that take 3 and 1 thousand cycles of the clock that is set.

    Attributes:
        log: what was asked for, in order.
    """

    governor: RecordingGovernor
    name: str = "counting"
    files: SysFiles = field(default_factory=LocalFiles)
    threads: int = 1
    log: list[str] = field(default_factory=list)

    @property
    def clock_hz(self) -> float:
        state = self.governor.current
        return (state.frequency_hz if state else None) or 1e9

    def round(self) -> list[float]:
        self.log.append(f"round {self.clock_hz / 1e6:.0f}")
        return [3e3 / self.clock_hz, 1e3 / self.clock_hz]

    def repeat(self, function: int, seconds: float) -> float:
        self.log.append(f"repeat {function}")
        return 2 * seconds

    def place(self, cpus: Sequence[int]) -> None:
        self.log.append(f"place {list(cpus)}")


@dataclass
class ToldWatch:
    """Finds the disturbances it was given, one list a block, then none."""

    given: list[tuple[str, ...]] = field(default_factory=list)
    states: list[DvfsState | None] = field(default_factory=list)

    def begin(self, state: DvfsState | None) -> None:
        self.states.append(state)

    def end(self) -> tuple[str, ...]:
        return self.given.pop(0) if self.given else ()


def table(
    segments: Sequence[Sequence[float]],
    exits: Sequence[Sequence[float]] = (),
    *,
    powers_w: Sequence[float] | None = None,
    states: Sequence[DvfsState] | None = None,
    measured: Sequence[int] = (),
) -> CostTable:
    """Latencies by piece and state; energies are those times the state's power."""
    states = (SLOW, FAST)[: len(segments[0])] if states is None else states

    def row(name: str, latencies: Sequence[float]) -> CostRow:
        costs = []
        for index, latency in enumerate(latencies):
            energy = None if powers_w is None else latency * powers_w[index]
            told: Provenance = "measured" if index in measured else "modelled"
            costs.append(Cost(latency, energy, told, None if energy is None else "modelled"))
        return CostRow(name, Work(macs=1), tuple(costs))

    return CostTable(
        "host",
        "host",
        "a machine" if measured else None,
        1,
        tuple(states),
        tuple(row(f"segment{i}", found) for i, found in enumerate(segments)),
        tuple(row(f"exit{i}", found) for i, found in enumerate(exits)),
    )
