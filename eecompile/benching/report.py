"""What `bench` found out, as one JSON value and as the table an artifact keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eecompile.artifact import Artifact
from eecompile.benching.blocks import AtClock
from eecompile.benching.exits import (
    PolicyShares,
    exits_json,
    policy_json,
    policy_ways,
)
from eecompile.benching.pareto import Leaving
from eecompile.benching.picture import draw_costs
from eecompile.benching.tables import with_quantiles
from eecompile.cost_table import CostTable
from eecompile.figures import hertz, threads_in_words

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Costs at the clocks asked for, and how they were come by.

    Attributes:
        artifact: what was measured.
        table: the clocks asked for.
        whole: every clock of the board: what an artifact keeps.
        measured: rounds by clock; empty where nothing was measured.
        policy: whose shares are told; None where the artifact has no policies.
        conditions: before and after, overheads, as JSON.
        model_error: of the model against what was measured, as JSON; None where there is no both.
        comparison: with the table the artifact has, as JSON; None where that has no measurements.
    """

    artifact: Artifact
    table: CostTable
    whole: CostTable
    measured: Sequence[AtClock]
    policy: PolicyShares | None
    conditions: Mapping[str, Any]
    model_error: Mapping[str, Any] | None
    comparison: Mapping[str, Any] | None

    @property
    def ways(self) -> tuple[Leaving, ...]:
        """Exits x clocks."""
        names = self.artifact.manifest.network.exit_names
        return policy_ways(self.table, names, self.policy)

    def to_json(self) -> dict[str, Any]:
        """The keys scripts rely on: those of a cost table, `pareto`, `conditions`, `blocks`."""
        network = self.artifact.manifest.network
        ways = self.ways
        return {
            "model": network.name,
            **self._table_json(),
            "pareto": exits_json(self.table, ways, self.policy),
            "policy": policy_json(self.table, ways, self.policy, network),
            "conditions": dict(self.conditions),
            "blocks": [_blocks_json(at) for at in self.measured],
            "model_error": self.model_error,
            "comparison": self.comparison,
        }

    def _table_json(self) -> dict[str, Any]:
        """The table, with quantiles; steps with the segment they lie in, gates marked."""
        network = self.artifact.manifest.network
        table = with_quantiles(self.table.to_json(), network, self.measured)
        places = [
            {"segment": name, "gate": step.gate}
            for name, segment in network.named_segments()
            for step in (segment.steps if segment.gated else ())
        ]
        pairs = zip(table["steps"], places, strict=True)
        return {**table, "steps": [{**row, **place} for row, place in pairs]}

    def svg(self) -> str:
        """The picture."""
        where = self.table.device or f"board {self.table.board}, nothing measured"
        clocks = [len(self.table.states), sum(bool(at.blocks) for at in self.measured)]
        told = f"{clocks[1]} of {clocks[0]} clocks measured"
        lines = [f"{where}, {threads_in_words(self.table.threads)}; {told}"]
        lines += [f"energy: {self.table.energy_covers}"] if self.table.energy_covers else []
        name = self.artifact.manifest.network.name
        return draw_costs(name, lines, self.table.states, self.ways)


def _blocks_json(at: AtClock) -> dict[str, Any]:
    return {
        "cluster": at.state.cluster,
        "frequency_hz": at.state.frequency_hz,
        "rounds": sum(len(block.times_s) for block in at.kept),
        "warm_rounds": sum(block.warm_rounds for block in at.blocks),
        "settled": all(block.settled for block in at.blocks),
        "repeated": at.repeated,
        "left_out": len(at.blocks) - len(at.kept),
        "disturbances": list(at.disturbances),
        "unreachable": at.unreachable or None,
    }


def told_blocks(measured: Sequence[AtClock]) -> list[str]:
    """What is to be said of the measuring, in sentences."""
    found = []
    for at in measured:
        clock = hertz(at.state.frequency_hz)
        if at.unreachable:
            found.append(f"{clock} could not be measured: {at.unreachable}")
            continue
        if at.disturbances:
            what = "; ".join(at.disturbances)
            found.append(f"{clock}: no block was undisturbed ({what})")
        if not all(block.settled for block in at.blocks):
            found.append(f"{clock}: times had not settled when measuring began")
    return found
