"""`eecompile eval --sweep`: what every policy of an artifact does at each of its operating points.

The data go through the compiled network once, all heads included; each point is then replayed on
what was recorded. Where gates decide, they go through it once for each shift of the gates.
Latencies and energies are those of the artifact's cost table, at the fastest clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eecompile.artifact import Artifact, PolicyEntry, read_artifact
from eecompile.clocks.planning import budget_costs
from eecompile.clocks.recording import recorded
from eecompile.compiled import CompiledGraph
from eecompile.console import Reporter
from eecompile.cost_table import CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.evaluation import open_test_data
from eecompile.gated_costs import gated_costs, macs_of_steps, table_costs
from eecompile.outcomes import ExitCosts, Interval, Report, evaluate
from eecompile.policies import ExitPolicy, NeverPolicy, from_json
from eecompile.policies.points import OperatingPoint, OutOfReach, choose
from eecompile.record import TestRecord
from eecompile.runtime.budgets import in_words, stored_points
from eecompile.runtime.governor import NoGovernor
from eecompile.runtime.session import Session
from eecompile.signatures import Trusted

__all__ = ["SHARES", "Curve", "Sweep", "SweptPoint", "front", "network_costs", "sweep_artifact"]

#: Budgets shown side by side, as shares of what the whole network costs.
SHARES = tuple(percent / 100 for percent in range(40, 101, 10))

#: Quantity -> its key in JSON.
_KEYS = {"macs": "mean_macs_fraction", "latency": "mean_latency_s", "energy": "mean_energy_j"}

#: What was recorded, and what its samples paid by quantity.
Recorded = tuple[TestRecord, Mapping[str, ExitCosts]]


@dataclass(frozen=True)
class SweptPoint:
    """One setting of a policy on the data.

    Attributes:
        report: what it does there.
        budget: what it was made for, as the language writes it; None for no budget in particular.
        built_in: whether it is the setting the policy was built in.
        point: what it did on the calibration data; None where nothing was fitted.
    """

    report: Report
    budget: str | None
    built_in: bool
    point: OperatingPoint | None = None

    def to_json(self) -> dict[str, Any]:
        """SI units; the MACs are a fraction of the untouched backbone's."""
        return {**_figures(self.report), "budget": self.budget, "built_in": self.built_in}


@dataclass(frozen=True)
class Curve:
    """A policy at all its operating points, cheapest first.

    Attributes:
        name: of the policy.
        rule: when it leaves, in words.
        points: those a budget of the sweep's quantity may choose.
        at_shares: what a budget of each of `SHARES` chooses; None where it is out of reach.
    """

    name: str
    rule: str
    points: tuple[SweptPoint, ...]
    at_shares: tuple[SweptPoint | None, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """All policies of an artifact on the same samples.

    Attributes:
        title: the network's name.
        quantity: the cost they are compared by.
        full_depth: what never leaving does.
        full_cost: of the untouched network, in that quantity.
        curves: by policy.
        left_out: policy -> why it has no curve.
    """

    title: str
    quantity: str
    full_depth: Report
    full_cost: float
    curves: tuple[Curve, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Keys scripts rely on."""
        return {
            "n": self.full_depth.n,
            "quantity": self.quantity,
            "full_depth": _figures(self.full_depth),
            "policies": [
                {
                    "name": curve.name,
                    "rule": curve.rule,
                    "points": [point.to_json() for point in curve.points],
                }
                for curve in self.curves
            ],
            "left_out": dict(self.left_out),
        }


def _figures(report: Report) -> dict[str, Any]:
    costs = {key: report.costs.get(quantity) for quantity, key in _KEYS.items()}
    return {
        "accuracy": report.accuracy.value,
        "accuracy_interval": _ends(report.accuracy),
        "accuracy_drop": report.accuracy_drop.value,
        "accuracy_drop_interval": _ends(report.accuracy_drop),
        **{key: None if cost is None else cost.value for key, cost in costs.items()},
        "provenance": dict(report.provenance),
    }


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def sweep_artifact(
    path: Path,
    data: str,
    quantity: str,
    samples: int | None,
    progress: Reporter,
    threads: int | None = None,
    policy: str | None = None,
    trusted: Trusted | None = None,
) -> Sweep:
    """Every policy of an artifact at every operating point, on the same samples.

    Args:
        path: the artifact.
        data: as for `eval`.
        quantity: "macs", "latency" or "energy": the cost that budgets are of.
        samples: at most so many.
        progress: told of samples done.
        threads: that record; None: the artifact's.
        policy: only this one.
        trusted: public keys, one of which must have signed the artifact; None: anybody may have.

    Raises:
        CompileErrors: the artifact or the data are wrong, there is no such policy, or it is not
            known what an answer costs in this quantity.
    """
    artifact = read_artifact(path, trusted=trusted)
    network = artifact.manifest.network
    costs = network_costs(network, artifact.costs)
    if quantity not in costs:
        known = ", ".join(f"`{name}`" for name in costs)
        message = f"What {quantity} an answer takes is not known of this artifact"
        raise CompileErrors([Diagnostic("unknown-costs", message, help=f"sweep by {known}")])
    # Decisions are replayed, so that no clock, server or guard has a part in it.
    with Session(artifact, NeverPolicy(len(network.exits)), threads, governor=NoGovernor()) as own:
        if policy is not None:
            own.set_policy(policy)
        dataset = open_test_data(own, data)
        whole = recorded(TestRecord, own, dataset, samples, progress)

        def at(shift: float) -> Recorded:
            if not network.gated:
                return whole, costs
            made = recorded(TestRecord, own, dataset, samples, progress, shift)
            return made, {
                name: gated_costs(found, network, steps, {"test": made.shares})
                for name, found in costs.items()
                if (steps := _step_costs(artifact, name)) is not None
            }

        sweeping = _Sweeping(artifact, cache(at), costs, quantity)
        curves, left_out = _curves(artifact, policy, sweeping)
    full = evaluate(NeverPolicy(len(network.exits)), whole, costs)
    full_cost = costs[quantity].full_depth
    return Sweep(network.name, quantity, full, full_cost, curves, left_out)


def _step_costs(artifact: Artifact, quantity: str) -> Sequence[float] | None:
    """Of each step of segments with gates; None where that is not known of each."""
    network = artifact.manifest.network
    if artifact.costs is not None:
        return table_costs(network, artifact.costs, quantity)
    return macs_of_steps(network)


def _curves(
    artifact: Artifact, policy: str | None, sweeping: _Sweeping
) -> tuple[tuple[Curve, ...], dict[str, str]]:
    """Of the policy, or all of them; and why others have none."""
    curves, left_out = [], {}
    for name, entry in artifact.policies.items():
        if policy not in (None, name):
            continue
        made = from_json(entry.rule)
        why = _reason(made, entry)
        if why is not None:
            left_out[name] = why
            continue
        curves.append(sweeping.curve(name, entry, made))
    return tuple(curves), left_out


def network_costs(network: CompiledGraph, table: CostTable | None) -> dict[str, ExitCosts]:
    """Quantity -> what the pieces of a compiled network cost; MACs are always known."""
    return {"macs": ExitCosts.macs(network), **({} if table is None else budget_costs(table))}


def _reason(policy: ExitPolicy, entry: PolicyEntry) -> str | None:
    """Why a policy has no curve; None where it has."""
    if entry.offload is not None:
        return "sends samples to a server: what they cost here is not all they cost"
    if policy.online:
        return "learns while it runs: what it costs depends on the order of the samples"
    return None


def front(points: Sequence[OperatingPoint], quantity: str) -> list[OperatingPoint]:
    """The points that some budget of this quantity chooses, cheapest first.

    >>> points = [
    ...     OperatingPoint({}, a, 0, {"macs": m}, {"macs": m})
    ...     for a, m in ((.9, .5), (.89, .6), (.93, .8))
    ... ]
    >>> [point.accuracy for point in front(points, "macs")]
    [0.9, 0.93]
    """
    found: list[OperatingPoint] = []
    known = [point for point in points if quantity in point.at_most]
    for point in sorted(known, key=lambda p: (p.at_most[quantity], -p.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


@dataclass(frozen=True)
class _Sweeping:
    """Records by the gates' shift, for any policy."""

    artifact: Artifact
    at: Callable[[float], Recorded]
    costs: Mapping[str, ExitCosts]
    quantity: str

    def curve(self, name: str, entry: PolicyEntry, built: ExitPolicy) -> Curve:
        """The policy at its operating points; at its only setting where it has none."""
        stored = stored_points(self.artifact, name, entry)
        told = str(entry.report.get("auto", {}).get("chosen") or entry.report.get("rule", name))
        made_for = entry.report.get("budget")
        own = SweptPoint(self._evaluated(built), made_for, True)
        if not stored:
            return Curve(name, told, (own,), (None,) * len(SHARES))
        ahead = front(stored, self.quantity)
        known = {id(p): self._swept(p, entry) for p in ahead}
        points = list(known.values())
        if not any(point.built_in for point in points):
            points.append(own)
        points.sort(key=lambda point: point.report.costs[self.quantity].value)
        chosen = [self._chosen(ahead, share) for share in SHARES]
        at_shares = tuple(None if p is None else known.get(id(p)) for p in chosen)
        return Curve(name, told, tuple(points), at_shares)

    def _evaluated(self, policy: ExitPolicy) -> Report:
        return evaluate(policy, *self.at(policy.gate_shift))

    def _swept(self, point: OperatingPoint, entry: PolicyEntry) -> SweptPoint:
        report = self._evaluated(point.make())
        built_in = dict(point.policy) == dict(entry.rule)
        budget = in_words(self.quantity, point.at_most[self.quantity])
        return SweptPoint(report, point.budget or budget, built_in, point)

    def _chosen(self, points: Sequence[OperatingPoint], share: float) -> OperatingPoint | None:
        limit = share * self.costs[self.quantity].full_depth
        try:
            return choose(points, {self.quantity: limit})
        except OutOfReach:
            return None
