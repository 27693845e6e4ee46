"""A cost table as arrays over clocks: stretches between exits, ways to the end, changes of clock.

A *stretch* from exit i to exit j is segments i+1 to j and the head of j; -1 stands for the start of
a sample, the number of exits for the network's own answer, which has no head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eecompile.board import DvfsState
from eecompile.cost_table import CostRow, CostTable

__all__ = ["ClockCosts", "energies_j", "latencies_s"]

Array = np.ndarray[Any, Any]


class ClockCosts:
    """What a cost table says, ready to be looked up.

    Attributes:
        states: the clocks; every array's last axis.
        last: the number of exits.
        usable: bool (states,), where the latency of every piece is known.
        has_energy: bool (states,), where its energy is known too.
        power_w: (states,), mean power over the full depth; NaN where not known.
        change_s: (from, to), time to change the clock; inf where it is not known.
        change_j: (from, to), energy of that; NaN where not known.
        idle_power_w: while waiting; None where not known.

    Raises:
        ValueError: the table has no state, no piece or not one exit less than segments, or no state
            at which every latency is known.
    """

    def __init__(self, table: CostTable) -> None:
        if not table.states or len(table.segments) != len(table.exits) + 1:
            raise ValueError("the cost table does not fit a network with exits")
        self.states, self.last = table.states, len(table.exits)
        self.idle_power_w = table.idle_power_w
        rows = (*table.segments, *table.exits)
        latency, energy = latencies_s(rows), energies_j(rows)
        self.usable: Array = np.asarray(~np.isnan(latency).any(axis=0))
        self.has_energy: Array = self.usable & ~np.isnan(energy).any(axis=0)
        if not self.usable.any():
            raise ValueError("the cost table has no clock at which every latency is known")
        self._latency = _Sums(np.where(self.usable, latency, 0.0), self.last)
        self._energy = _Sums(np.where(self.has_energy, energy, 0.0), self.last)
        full_s, full_j = self._latency.below[-1], self._energy.below[-1]
        known = self.has_energy & (full_s > 0)
        self.power_w = np.where(known, full_j / np.where(known, full_s, 1.0), np.nan)
        self.change_s: Array = _changes(table)
        higher = np.fmax(self.power_w[:, None], self.power_w[None, :])
        finite = np.isfinite(self.change_s)
        self.change_j = np.where(finite, np.where(finite, self.change_s, 0.0) * higher, np.nan)
        np.fill_diagonal(self.change_j, 0.0)

    def stretch_s(self, index: int, due: int) -> Array:
        """Time of the stretch between two exits at each state; inf where not known."""
        return np.where(self.usable, self._latency.stretch(index, due), np.inf)

    def stretch_j(self, index: int, due: int) -> Array:
        """Its energy at each state; NaN where not known."""
        return np.where(self.has_energy, self._energy.stretch(index, due), np.nan)

    def way_s(self, index: int) -> Array:
        """Time from an exit to the end with every head on the way; inf where not known."""
        return np.where(self.usable, self._latency.way(index), np.inf)

    def way_j(self, index: int) -> Array:
        """Its energy at each state; NaN where not known."""
        return np.where(self.has_energy, self._energy.way(index), np.nan)


class _Sums:
    """Sums over consecutive pieces: (pieces, states) with segments before heads."""

    def __init__(self, values: Array, last: int) -> None:
        segments, self.heads = values[: last + 1], values[last + 1 :]
        start = np.zeros((1, values.shape[1]))
        #: Row k: the first k segments, or heads.
        self.below = np.concatenate([start, segments.cumsum(axis=0)])
        self.heads_below = np.concatenate([start, self.heads.cumsum(axis=0)])
        self.last = last

    def stretch(self, index: int, due: int) -> Array:
        head = self.heads[due] if due < self.last else 0.0
        return np.asarray(self.below[due + 1] - self.below[index + 1] + head)

    def way(self, index: int) -> Array:
        segments = self.below[-1] - self.below[index + 1]
        return np.asarray(segments + self.heads_below[-1] - self.heads_below[index + 1])


def latencies_s(rows: Sequence[CostRow]) -> Array:
    """Of pieces at each clock, float64 (pieces, states); NaN where not known."""
    return np.array(
        [[np.nan if cost is None else cost.latency_s for cost in row.costs] for row in rows]
    )


def energies_j(rows: Sequence[CostRow]) -> Array:
    """Likewise."""
    known = [[None if cost is None else cost.energy_j for cost in row.costs] for row in rows]
    return np.array([[np.nan if value is None else value for value in row] for row in known])


def _changes(table: CostTable) -> Array:
    """(from, to): within a cluster its transition latency, between clusters the migration too."""
    found = np.full((len(table.states),) * 2, np.inf)
    names = [state.cluster for state in table.states]
    transitions = dict(table.transition_latency_s or {})
    for name in names:
        if names.count(name) == 1:  # its only clock is the one it is at
            transitions.setdefault(name, 0.0)
    for before, old in enumerate(table.states):
        for after, new in enumerate(table.states):
            found[before, after] = _change(table, transitions, old, new, before == after)
    return found


def _change(
    table: CostTable, transitions: dict[str, float], old: DvfsState, new: DvfsState, same: bool
) -> float:
    if same:
        return 0.0
    transition = transitions.get(new.cluster, np.inf)
    if old.cluster == new.cluster:
        return transition
    # The other cluster's clock is wherever it was left: it may have to change as well.
    migration = np.inf if table.migration_latency_s is None else table.migration_latency_s
    return float(migration + transition)
