"""The cost table of a build: measured where the code runs here, modelled elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eecompile.benching.blocks import AtClock, Block
from eecompile.benching.measuring import clock_there_was
from eecompile.benching.modelling import with_model
from eecompile.benching.tables import measured_table
from eecompile.board import Board, DvfsState
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.hardware import cpu_name

__all__ = ["cost_table"]


def cost_table(
    board: Board,
    states: Sequence[DvfsState],
    network: CompiledGraph,
    threads: int,
    times_s: np.ndarray | None,
    clocks_hz: Sequence[float] = (),
) -> CostTable:
    """What each piece of a network costs on a board.

    Args:
        board: that it was compiled for.
        states: its clocks that may be used.
        network: compiled.
        threads: that share an answer.
        times_s: of its functions here (rounds, functions); None where the code does not run here.
        clocks_hz: what the clock was before and after that.
    """
    target, measured = board.machine.name, None
    if times_s is not None:
        notes: list[str] = []
        at = DvfsState("cpu", None)
        if board.clusters:
            at = clock_there_was(board, list(clocks_hz), notes)
        found = [AtClock(at, [Block(times_s, 0, True)])]
        measured = measured_table(target, board, cpu_name(), threads, network, found, None)
        measured = replace(measured, notes=tuple(notes))
    table, _ = with_model(network, board, threads, target, measured)
    # What was measured at no single clock is of use only where no clock is known.
    allowed = [k for k, state in enumerate(table.states) if state in states]
    return table.restricted(allowed) if allowed else table
