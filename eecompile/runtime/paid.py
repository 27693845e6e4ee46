"""What samples pay of a network whose gates leave something out, at each clock, while they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostRow, CostTable, total
from eecompile.runtime.clock_costs import energies_j

__all__ = ["PaidEnergies", "step_rows", "with_gates_run"]

Array = np.ndarray[Any, Any]


def step_rows(network: CompiledGraph, table: CostTable) -> list[tuple[CostRow, ...]]:
    """For each segment the rows of its steps, gates included; its own where it has no gates."""
    left = iter(table.steps)
    return [
        tuple(islice(left, len(segment.steps))) if segment.gated else (row,)
        for row, segment in zip(table.segments, network.segments, strict=True)
    ]


def with_gates_run(network: CompiledGraph, table: CostTable) -> CostTable:
    """The table of a network whose gates run and leave nothing out: what samples pay at most.

    Segments with gates cost there what all their steps do, gates included. Of a network without
    gates it is the table itself.
    """
    if not network.gated:
        return table
    found = []
    for row, steps, segment in zip(
        table.segments, step_rows(network, table), network.segments, strict=True
    ):
        costs = row.costs
        if segment.gated:
            costs = tuple(map(total, zip(*(step.costs for step in steps), strict=True)))
        found.append(replace(row, costs=costs))
    return replace(table, segments=tuple(found))


class PaidEnergies:
    """Energies of stretches between exits, of samples that something was left out of.

    A step that is left out takes none, and one that groups of channels are left out of as much less
    as that saves it multiply-accumulates.
    """

    def __init__(self, network: CompiledGraph, table: CostTable) -> None:
        """From a network with gates and its table."""
        rows = step_rows(network, table)
        self._ends = [0, *accumulate(map(len, rows))]
        self._steps_j = energies_j([*chain(*rows)])
        heads_j = energies_j(table.exits).reshape(-1, len(table.states))
        #: The network's end has no head.
        self._heads_j = np.append(heads_j, np.zeros((1, len(table.states))), axis=0)
        every = [step for segment in network.segments for step in segment.steps]
        groups = np.array([step.groups for step in every])
        shares = np.array([step.groups_share for step in every])
        #: Of each step: what is left of it with no group kept, and what each group adds.
        self._least = 1.0 - shares
        self._each = shares / np.maximum(groups, 1)

    def stretch_j(self, index: int, due: int, state: int, kept: Sequence[int] | Array) -> float:
        """Energy of a stretch of one sample; NaN where not known.

        Args:
            index: the exit before it; -1: the sample's start.
            due: the exit whose head ran last; the number of exits: the network's end.
            state: the clock.
            kept: of each step of the network, groups of channels that ran: 0 where it has none, -1
                where it did not run, see `eecompile.runtime.steps.Program.kept`.
        """
        way = slice(self._ends[index + 1], self._ends[due + 1])
        groups = np.asarray(kept[way])
        shares = np.where(groups < 0, 0.0, self._least[way] + self._each[way] * groups)
        return float(shares @ self._steps_j[way, state] + self._heads_j[due, state])
