"""What samples cost in the mean where gates leave out more or less for each of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eecompile.benching.pareto import PolicyCost, marked, weighted
from eecompile.compiled import CompiledGraph, CompiledStep
from eecompile.cost_table import CostRow, CostTable
from eecompile.gate_counts import gate_name

__all__ = ["gated_means"]


def gated_means(
    network: CompiledGraph,
    table: CostTable,
    shares: Mapping[str, float],
    asked: Collection[int],
    kept: Mapping[str, Any],
) -> tuple[PolicyCost, ...]:
    """Mean cost of a sample at each clock where the cost of every piece is known.

    Args:
        network: with gates.
        table: of the network.
        shares: exit -> share of the samples that leave there.
        asked: exits whose heads are run when a sample comes by.
        kept: of those samples: see `eecompile.gate_counts.counts_json`.
    """
    weights = _weights(network, table, shares, asked, kept)
    found = {}
    for state in range(len(table.states)):
        parts = [(weight, row.costs[state]) for row, weight in weights]
        known = [(weight, cost) for weight, cost in parts if cost is not None]
        if len(known) == len(parts):
            found[state] = weighted(known)
    return marked(found)


def _weights(
    network: CompiledGraph,
    table: CostTable,
    shares: Mapping[str, float],
    asked: Collection[int],
    kept: Mapping[str, Any],
) -> list[tuple[CostRow, float]]:
    """Every piece with how often a sample pays it."""
    steps = iter(table.steps)
    blocks = {block["name"]: block["kept"] for block in kept["blocks"]}
    groups = {place["name"]: place["kept"] for place in kept["channels"]}
    leaving = [shares.get(name, 0.0) for name in network.exit_names]
    found = []
    for index, segment in enumerate(network.segments):
        come = sum(leaving[index:])
        if not segment.gated:
            found.append((table.segments[index], come))
        for step in segment.steps if segment.gated else ():
            runs = blocks[gate_name(step.keep)] if step.keep else come
            found.append((next(steps), runs * _work(step, groups)))
        if index in asked and index < len(table.exits):
            found.append((table.exits[index], come))
    return found


def _work(step: CompiledStep, groups: Mapping[str, float | None]) -> float:
    """The share of a step's work that is done where it runs."""
    if not step.channels:
        return 1.0
    share = groups[gate_name(step.channels)]
    return 1.0 - (1.0 - (1.0 if share is None else share)) * step.groups_share
