"""A device measured at the clocks of a plan, with what is to be known of the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from eecompile.benching.blocks import AtClock, Settings, measure_clocks
from eecompile.benching.device import Device, LocalDevice, Placing
from eecompile.benching.observing import Watcher, governor_of
from eecompile.benching.planning import Plan
from eecompile.board import Board, DvfsState
from eecompile.console import Reporter
from eecompile.figures import hertz
from eecompile.runtime.governor import Governor, NoGovernor
from eecompile.runtime.meter import NoMeter
from eecompile.runtime.sensors import find_meter
from eecompile.runtime.throttling import clock_conditions

__all__ = ["Measurement", "clock_there_was", "measured"]

#: Clocks that differ by less are one.
_SAME = 5e-3


@dataclass(frozen=True)
class Measurement:
    """Rounds by clock, and under which conditions they were run.

    Attributes:
        found: one for each clock.
        conditions: as JSON: what the system told before and after, who set the clock, what other
            programs did, what reading the clock and the meter takes.
        governor: that chose the clock; "eecompile" where we set it.
        energy_covers: in words, what the meter includes; empty without one.
        notes: in sentences.
    """

    found: list[AtClock] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    governor: str | None = None
    energy_covers: str = ""
    notes: tuple[str, ...] = ()


def measured(
    device: Device, governor: Governor, plan: Plan, settings: Settings, progress: Reporter
) -> Measurement:
    """Blocks at each clock of the plan; at whatever clock there is where none is to be set.

    The governor's and the device's contexts put back what this changes.
    """
    board = plan.board
    first = board.clusters[0]
    cpus = {cluster.name: cluster.cpus for cluster in board.clusters}
    watch = Watcher(device.files, cpus, board.machine.cores, isinstance(device, LocalDevice))
    meter = find_meter(board, device.files)
    before = clock_conditions(device.files)
    place, notes = _placing(device, board)
    found = measure_clocks(
        device,
        governor if plan.measured else NoGovernor(),
        plan.measured or (DvfsState(first.name, None),),
        watch,
        None if isinstance(meter, NoMeter) else meter,
        settings,
        progress,
        place,
    )
    if not plan.measured:
        found[0].state = clock_there_was(board, watch.clocks_hz, notes, plan.kept)
    set_by = "eecompile" if plan.measured else governor_of(before, first.cpus)
    conditions = {
        "before": before.to_json(),
        "after": clock_conditions(device.files).to_json(),
        "clock_set_by": set_by,
        "clock_hz": found[0].state.frequency_hz if not plan.measured else None,
        "others_cores": float(np.median(watch.others)) if watch.others else None,
        "timer_s": timer_s() if isinstance(device, LocalDevice) else None,
        "meter": {
            "covers": meter.covers or None,
            "overhead_share": _meter_share(found),
            "problems": list(_problems(found) or meter.problems),
        },
    }
    # Where there is no cpufreq the conditions say so anyway.
    loose = not plan.measured and bool(before.policies)
    warned = before.warnings if loose else ()
    return Measurement(found, conditions, set_by, meter.covers, (*notes, *warned))


def _placing(device: Device, board: Board) -> tuple[Callable[[DvfsState], None], list[str]]:
    """What moves the work to a state's cluster, and what is to be said of it."""
    if len(board.clusters) < 2:
        return lambda state: None, []
    if not isinstance(device, Placing):
        return lambda state: None, ["threads cannot be kept on one cluster here"]
    placing: Placing = device
    at: list[str] = []

    def place(state: DvfsState) -> None:
        if at[-1:] != [state.cluster]:
            placing.place(board.cluster(state.cluster).cpus)
            at.append(state.cluster)

    return place, []


def timer_s() -> float:
    """What reading this machine's clock takes: it is part of every time."""
    return float(np.median(np.diff([perf_counter() for _ in range(2001)])))


def _meter_share(found: Sequence[AtClock]) -> float | None:
    """Share of the time in which power was measured that measuring it took; None without meter."""
    drawn = [one for at in found for block in at.blocks for one in block.drawn]
    seconds = sum(one.seconds for one in drawn)
    return sum(one.overhead_s for one in drawn) / seconds if seconds else None


def _problems(found: Sequence[AtClock]) -> list[str]:
    """What the meter said, each once."""
    told = (text for at in found for b in at.blocks for one in b.drawn for text in one.problems)
    return list(dict.fromkeys(told))


def clock_there_was(
    board: Board,
    clocks_hz: Sequence[float],
    notes: list[str],
    states: Sequence[DvfsState] | None = None,
) -> DvfsState:
    """The state a board ran at while nobody set clocks; one without a clock where that is unsure.

    Args:
        board: its first cluster is meant.
        clocks_hz: what the clock was, some times.
        notes: what is to be said of it is added.
        states: those there really are; None: the board's.
    """
    name = board.clusters[0].name
    states = [state for state in states or board.states if state.cluster == name]
    if len(states) == 1:
        return states[0]
    for state in states:
        hz = state.frequency_hz
        if hz and clocks_hz and all(abs(clock / hz - 1) < _SAME for clock in clocks_hz):
            return state
    if clocks_hz:
        low, high = hertz(min(clocks_hz)), hertz(max(clocks_hz))
        moved = f"moved between {low} and {high}" if low != high else f"was {low}"
        notes.append(f"the clock {moved}: its row is of no single clock of the table")
    return DvfsState(name, None)
