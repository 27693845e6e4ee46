"""What samples pay for segments of which gates leave out more or less for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eecompile.clocks.planning import budget_costs
from eecompile.compiled import CompiledGraph, CompiledStep
from eecompile.cost_table import CostTable
from eecompile.outcomes import ExitCosts
from eecompile.record import Record

__all__ = [
    "costs_as_paid",
    "gated_costs",
    "macs_of_steps",
    "paid_on_the_way",
    "table_costs",
    "work_shares",
]

Array = np.ndarray[Any, Any]


def costs_as_paid(
    network: CompiledGraph, table: CostTable, records: Mapping[str, Record]
) -> dict[str, ExitCosts]:
    """Quantity -> what policies are fitted with: the costs, as the samples of each record pay them.

    Args:
        network: compiled.
        table: of the network.
        records: by split.
    """
    found = {"macs": ExitCosts.macs(network), **budget_costs(table)}
    shares = {split: made.shares for split, made in records.items() if made.shares}
    return {
        quantity: gated_costs(costs, network, steps, shares)
        for quantity, costs in found.items()
        if (steps := table_costs(network, table, quantity)) is not None
    }


def work_shares(step: CompiledStep, shares: Mapping[str, Array], count: int) -> Array:
    """Which share of a step's work each sample pays, float64 (n,).

    Args:
        step: of a segment.
        shares: score -> share of what it decides on that was kept, (n, 1).
        count: n.
    """
    paid = np.ones(count)
    if step.channels:
        paid -= (1.0 - shares[step.channels][:, 0]) * step.groups_share
    if step.keep:
        paid *= shares[step.keep][:, 0]
    return paid


def gated_costs(
    costs: ExitCosts,
    network: CompiledGraph,
    step_costs: Sequence[float],
    shares: Mapping[str, Mapping[str, Array]],
) -> ExitCosts:
    """The costs of a network with gates, as samples of each split pay them.

    A step that is left out costs nothing: copying what stands for its result is a hundredth of it.

    Args:
        costs: with nothing left out, gates apart; of a network without gates they are the result.
        network: compiled.
        step_costs: of each step of segments with gates, in the order of `named_steps`.
        shares: split -> score -> the shares kept of each sample of its record, see `Record.shares`.
    """
    if not network.gated or not shares:
        return costs
    full, steps = np.asarray(costs.segments), np.asarray(step_costs)
    sampled = {
        split: paid_on_the_way(network, full, steps, of_split) for split, of_split in shares.items()
    }
    means = sampled.get("calibrate", next(iter(sampled.values()))).mean(axis=0)
    segments = tuple(np.diff(means, prepend=0.0).tolist())
    return replace(costs, segments=segments, sampled=sampled)


def paid_on_the_way(
    network: CompiledGraph, segments: Array, steps: Array, shares: Mapping[str, Array]
) -> Array:
    """What each sample pays for the backbone up to each exit and the end.

    Args:
        network: compiled.
        segments: what each costs, float64 (segments, ...): at several clocks, or one number. Of
            those with gates their steps count instead.
        steps: of segments with gates, in the order of `named_steps`, float64 (steps, ...).
        shares: score -> share kept of each sample, (n, 1).

    Returns:
        float64 (n, segments, ...).
    """
    count, left = len(next(iter(shares.values()))), iter(steps)
    paid = np.zeros((count, *segments.shape))
    for index, segment in enumerate(network.segments):
        if not segment.gated:
            paid[:, index] = segments[index]
            continue
        for step in segment.steps:
            paid[:, index] += np.multiply.outer(work_shares(step, shares, count), next(left))
    return paid.cumsum(axis=1)


def macs_of_steps(network: CompiledGraph) -> tuple[float, ...]:
    """Of each step of segments with gates, as a share of the backbone's MACs."""
    full = network.macs or 1
    return tuple(function.macs / full for _, function in network.named_steps())


def table_costs(
    network: CompiledGraph, table: CostTable, quantity: str
) -> tuple[float, ...] | None:
    """Of each step of segments with gates: what it costs, in the order of `named_steps`.

    Args:
        network: compiled.
        table: of the network.
        quantity: "macs" as a share of the backbone's; "latency" in seconds or "energy" in joules at
            the fastest clock. None where that is not known of each.
    """
    if quantity == "macs":
        return macs_of_steps(network)
    fastest = table.fastest
    if fastest is None:
        return None
    known = [cost for row in table.steps if (cost := row.costs[fastest]) is not None]
    values = [cost.latency_s if quantity == "latency" else cost.energy_j for cost in known]
    found = tuple(value for value in values if value is not None)
    return found if len(found) == len(table.steps) else None
