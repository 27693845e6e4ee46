"""What each piece of a compiled network costs at each clock: the table the scheduler decides by.

It stands in an artifact's ``costs.json``. A cost says where it comes from: ``measured`` or
``modelled``. What is not known is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from eecompile.board import DvfsState
from eecompile.cost import Work

__all__ = ["Cost", "CostRow", "CostTable", "Provenance"]

Provenance = Literal["measured", "modelled"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one piece at one clock, for one sample.

    Attributes:
        latency_s: time from call to return.
        energy_j: drawn meanwhile, by the CPUs unless the table's `energy_covers` says more.
        provenance: of the latency.
        energy_provenance: of the energy; None where there is none.
    """

    latency_s: float
    energy_j: float | None = None
    provenance: Provenance = "modelled"
    energy_provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class CostRow:
    """A segment, or an exit's head and comparator together.

    Attributes:
        name: of the segment or exit.
        work: what it computes and moves, whatever the machine.
        costs: one for each of the table's states, in their order; None where nothing is known.
    """

    name: str
    work: Work
    costs: tuple[Cost | None, ...]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of a network's pieces at the clocks of one machine.

    Attributes:
        target: what the code was compiled for.
        board: name of the board whose clocks these are; "host" for this machine.
        device: the processor that was measured; None where nothing was.
        threads: cores that work on an answer.
        states: the clocks, clusters in the board's order, each by rising frequency.
        segments, exits: in execution order; one segment more than exits.
        transition_latency_s: by cluster; a cluster without one is not known to change clocks.
        migration_latency_s: between clusters, None where not known.
        idle_power_w: while waiting, None where not known.
        energy_covers: in words, what the energies include.
        notes: what the figures rest on, and what is missing, in sentences.
    """

    target: str
    board: str
    device: str | None
    threads: int
    states: tuple[DvfsState, ...]
    segments: tuple[CostRow, ...]
    exits: tuple[CostRow, ...] = ()
    transition_latency_s: Mapping[str, float] | None = None
    migration_latency_s: float | None = None
    idle_power_w: float | None = None
    energy_covers: str = ""
    notes: tuple[str, ...] = ()

    def full_depth(self, state: int) -> Cost | None:
        """All segments, no exit heads, at the state of that index; None where one is not known."""
        return total([row.costs[state] for row in self.segments])

    def restricted(self, states: Sequence[int]) -> CostTable:
        """The table with these states only, by their indices."""

        def row(found: CostRow) -> CostRow:
            return replace(found, costs=tuple(found.costs[index] for index in states))

        return replace(
            self,
            states=tuple(self.states[index] for index in states),
            segments=tuple(map(row, self.segments)),
            exits=tuple(map(row, self.exits)),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal table; keys scripts rely on."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, value: Any) -> CostTable:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such table; the message names the place.
        """
        raise NotImplementedError


def total(costs: Sequence[Cost | None]) -> Cost | None:
    """Several pieces one after the other; measured only where each of them is.

    >>> total([Cost(1.0, 2.0, "measured", "modelled"), Cost(2.0)])
    Cost(latency_s=3.0, energy_j=None, provenance='modelled', energy_provenance=None)
    """
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    energies = [cost.energy_j for cost in known if cost.energy_j is not None]
    whole = len(energies) == len(known)
    measured = all(cost.provenance == "measured" for cost in known)
    drawn = all(cost.energy_provenance == "measured" for cost in known)
    return Cost(
        sum(cost.latency_s for cost in known),
        sum(energies) if whole else None,
        "measured" if measured else "modelled",
        ("measured" if drawn else "modelled") if whole else None,
    )
