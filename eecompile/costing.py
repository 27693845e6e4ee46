"""The cost table of a build: measured where the code runs here, modelled elsewhere."""

from __future__ import annotations

from eecompile.board import DvfsState
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostRow, CostTable
from eecompile.hardware import Machine
from eecompile.latency import Latencies, measured_table

__all__ = ["cost_table"]


def cost_table(machine: Machine, network: CompiledGraph, latencies: Latencies | None) -> CostTable:
    """What each piece of a network costs on the machine it was compiled for."""
    if latencies is not None:
        return measured_table(machine.name, "host", DvfsState("cpu", None), latencies)
    segments = tuple(CostRow(name, part.work, ()) for name, part in network.named_segments())
    exits = tuple(CostRow(exit_.name, exit_.work, ()) for exit_ in network.exits)
    return CostTable(machine.name, machine.name, None, machine.cores, (), segments, exits)
