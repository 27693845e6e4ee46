"""What samples pay for stretches between exits at each clock, where gates leave something out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.gated_costs import paid_on_the_way
from eecompile.runtime.clock_costs import energies_j, latencies_s

__all__ = ["PaidCosts"]

Array = np.ndarray[Any, Any]


class PaidCosts:
    """Costs of stretches between exits, as recorded samples of a network with gates pay them.

    The gates' own work counts. A step that is left out costs nothing, and one that some of its
    channels are left out of as much less as that saves it multiply-accumulates.

    Attributes:
        group: int64 (n,), of each sample: those with one number pay the same.
    """

    def __init__(
        self, network: CompiledGraph, table: CostTable, shares: Mapping[str, Array]
    ) -> None:
        """Sums are made once for samples of which the same was left out.

        Args:
            network: compiled, with gates.
            table: of the network.
            shares: score -> share kept of each sample, (n, 1): see `Record.shares`.

        Raises:
            ValueError: the latency of a step is not known at a clock where all segments' are.
        """
        kept = np.concatenate(list(shares.values()), axis=1)
        _, first, group = np.unique(kept, axis=0, return_index=True, return_inverse=True)
        self.group: Array = group.reshape(-1)
        alike = {name: array[first] for name, array in shares.items()}
        known = ~np.isnan(latencies_s(table.segments)).any(axis=0)
        if np.isnan(latencies_s(table.steps)[:, known]).any():
            raise ValueError("the cost table does not know every step of segments with gates")
        #: Time and energy, each from the start on, (groups, segments + 1, states), and of heads,
        #: with a last row for the network's end, which has none.
        self._sums = [
            (
                _from_start(paid_on_the_way(network, of(table.segments), of(table.steps), alike)),
                np.array([*of(table.exits), np.zeros(len(table.states))]),
            )
            for of in (latencies_s, energies_j)
        ]

    @classmethod
    def of(
        cls, network: CompiledGraph, table: CostTable, shares: Mapping[str, Array]
    ) -> PaidCosts | None:
        """Those of a record's samples; None where no gate decided: they pay everything."""
        return cls(network, table, shares) if network.gated and shares else None

    def stretch(self, group: int, index: int, due: int, state: int) -> tuple[float, float]:
        """Time and energy of a stretch for samples of a group; NaN where not known.

        Args:
            group: see the class.
            index: the exit just evaluated; -1: the sample's start.
            due: the exit whose head is run next; the number of exits: the network's end.
            state: the clock.
        """
        time_s, energy_j = (
            float(way[group, due + 1, state] - way[group, index + 1, state] + head[due, state])
            for way, head in self._sums
        )
        return time_s, energy_j


def _from_start(way: Array) -> Array:
    """With nothing paid in front of the first segment: (n, segments + 1, states)."""
    return np.concatenate([np.zeros_like(way[:, :1]), way], axis=1)
