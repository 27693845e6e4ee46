"""What samples pay for segments of which gates leave out more or less for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph, CompiledStep
from eecompile.cost_table import CostTable
from eecompile.outcomes import ExitCosts

__all__ = ["gated_costs", "score_names", "table_costs", "work_shares"]

Array = np.ndarray[Any, Any]


def score_names(network: CompiledGraph) -> tuple[str, ...]:
    """The gates' scores that something is decided by."""
    steps = [step for segment in network.segments for step in segment.steps]
    names = [name for step in steps for name in (step.keep, step.channels) if name]
    return tuple(dict.fromkeys(names))


def work_shares(step: CompiledStep, scores: Mapping[str, Array], count: int) -> Array:
    """Which share of a step's work each sample pays, float64 (n,).

    Args:
        step: of a segment.
        scores: by name, (n, 1) of a whole step, (n, groups) of channels.
        count: n.
    """
    paid = np.ones(count)
    if step.channels:
        left_out = (scores[step.channels] <= 0).sum(axis=1)
        paid -= left_out * step.group_macs / max(step.function.macs, 1)
    if step.keep:
        paid *= scores[step.keep][:, 0] > 0
    return paid


def gated_costs(
    costs: ExitCosts,
    network: CompiledGraph,
    step_costs: Sequence[float],
    scores: Mapping[str, Mapping[str, Array]],
) -> ExitCosts:
    """The costs of a network with gates, as samples of each split pay them.

    A step that is left out costs nothing: copying what stands for its result is a hundredth of it.

    Args:
        costs: with nothing left out, gates apart; of a network without gates they are the result.
        network: compiled.
        step_costs: of each step of segments with gates, in the order of `named_steps`.
        scores: split -> name -> the gates' scores for each sample of its record.
    """
    if not network.gated or not scores:
        return costs
    sampled = {
        split: _sampled(costs, network, step_costs, of_split) for split, of_split in scores.items()
    }
    means = sampled.get("calibrate", next(iter(sampled.values()))).mean(axis=0)
    segments = tuple(np.diff(means, prepend=0.0).tolist())
    return replace(costs, segments=segments, sampled=sampled)


def _sampled(
    costs: ExitCosts,
    network: CompiledGraph,
    step_costs: Sequence[float],
    scores: Mapping[str, Array],
) -> Array:
    """What each sample pays up to each exit and the end, (n, segments)."""
    count, left = len(next(iter(scores.values()))), iter(step_costs)
    paid = np.zeros((count, len(network.segments)))
    for index, segment in enumerate(network.segments):
        if not segment.gated:
            paid[:, index] = costs.segments[index]
            continue
        for step in segment.steps:
            paid[:, index] += next(left) * work_shares(step, scores, count)
    return paid.cumsum(axis=1)


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
        full = network.macs or 1
        return tuple(function.macs / full for _, function in network.named_steps())
    fastest = table.fastest
    if fastest is None:
        return None
    found = [row.costs[fastest] for row in table.steps]
    values = [
        cost and (cost.latency_s if quantity == "latency" else cost.energy_j) for cost in found
    ]
    return None if None in values else tuple(float(value) for value in values if value is not None)
