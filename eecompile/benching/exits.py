"""What a policy's report says of its exits, beside what leaving at each of them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eecompile.artifact import Artifact
from eecompile.benching.gates import gated_means
from eecompile.benching.pareto import Leaving, PolicyCost, asked_exits, leavings, mean_costs
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import Cost, CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic, did_you_mean_help
from eecompile.policies import from_json

__all__ = ["PolicyShares", "exits_json", "policy_json", "policy_shares", "policy_ways"]


@dataclass(frozen=True)
class PolicyShares:
    """Where a policy's samples leave.

    Attributes:
        name: the policy's.
        asked: exits whose heads it may run.
        samples: how many were looked at; none was fitted on. 0 where there are no such data.
        shares: exit -> share of the samples that leave there.
        accuracies: exit -> share of right answers among them; None where none leaves.
        accuracy: of all of them.
        forecasts: whether it goes past heads it could ask: costs are then at most what is said.
        gates: what gates kept of them, see `eecompile.gate_counts.counts_json`; None where the
            network has none, or that is not known.
    """

    name: str
    asked: tuple[int, ...]
    samples: int
    shares: Mapping[str, float]
    accuracies: Mapping[str, float | None]
    accuracy: float | None
    forecasts: bool
    gates: Mapping[str, Any] | None = None


def policy_shares(artifact: Artifact, name: str | None) -> PolicyShares | None:
    """What is known of a policy of the artifact; None where it has no policies.

    Raises:
        CompileErrors: it has no policy of this name.
    """
    manifest = artifact.manifest
    name = name or manifest.default_policy
    if name is None:
        return None
    entry = artifact.policies.get(name)
    if entry is None:
        known = ", ".join(manifest.policies) or "none"
        help_ = did_you_mean_help(name, manifest.policies) or f"policies: {known}"
        message = f"The artifact has no policy `{name}`"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help_)])
    policy = from_json(entry.rule)
    asked = asked_exits(policy, len(manifest.network.exits))
    forecasts = bool(getattr(policy, "forecasts", False))
    test = entry.report.get("test")
    if not test:
        return PolicyShares(name, asked, 0, {}, {}, None, forecasts)
    rows = test["exits"]
    return PolicyShares(
        name,
        asked,
        test["n"],
        {row["name"]: row["fraction"] for row in rows},
        {row["name"]: row["accuracy"] for row in rows},
        test["accuracy"]["value"],
        forecasts,
        entry.report.get("gates"),
    )


def policy_ways(
    table: CostTable, exit_names: tuple[str, ...], policy: PolicyShares | None
) -> tuple[Leaving, ...]:
    """Exits x clocks under a policy: the heads it may ask are paid for."""
    return leavings(table, exit_names, None if policy is None else policy.asked)


def exits_json(
    table: CostTable, ways: tuple[Leaving, ...], policy: PolicyShares | None
) -> list[dict[str, Any]]:
    """The pairs of exit and clock as JSON."""
    return [
        {
            "exit": way.exit,
            **_cost_json(table, way.state, way.cost),
            "optimal": way.optimal,
            "share": policy.shares.get(way.exit) if policy else None,
            "accuracy": policy.accuracies.get(way.exit) if policy else None,
        }
        for way in ways
    ]


def policy_json(
    table: CostTable,
    ways: tuple[Leaving, ...],
    policy: PolicyShares | None,
    network: CompiledGraph,
) -> dict[str, Any] | None:
    """A policy's mean cost at each clock as JSON; without points where no shares are known."""
    if policy is None:
        return None
    words = f"shares and accuracies: policy {policy.name} on {policy.samples} held-out samples"
    if not policy.samples:
        words = f"policy {policy.name} has no held-out data: shares are not known"
    if policy.forecasts:
        words += "; it passes heads by, so that costs are at most these"
    means: tuple[PolicyCost, ...] = ()
    if policy.samples and not network.gated:
        means = mean_costs(ways, policy.shares, len(table.states))
    elif policy.samples and policy.gates is not None:
        means = gated_means(network, table, policy.shares, policy.asked, policy.gates)
    elif network.gated:
        words += "; what gates leave out for it is not known"
    return {
        "name": policy.name,
        "samples": policy.samples,
        "accuracy": policy.accuracy,
        "words": words,
        "points": [
            {**_cost_json(table, mean.state, mean.cost), "optimal": mean.optimal} for mean in means
        ],
    }


def _cost_json(table: CostTable, state: int, cost: Cost) -> dict[str, Any]:
    return {
        "cluster": table.states[state].cluster,
        "frequency_hz": table.states[state].frequency_hz,
        "latency_s": cost.latency_s,
        "energy_j": cost.energy_j,
        "provenance": cost.provenance,
        "energy_provenance": cost.energy_provenance,
    }
