"""The halts of a build: checked against what pieces cost, and replayed on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics
from eecompile.halt_rule import HaltRule
from eecompile.halted_gates import GatedSteps, replay_halted
from eecompile.outcomes import ExitCosts, reported
from eecompile.policies import ExitPolicy, Replay, replay
from eecompile.policy_building import BuiltPolicy
from eecompile.record import Record, TestRecord
from eecompile.report import policy_report
from eecompile.runtime.halting import Halting
from eecompile.runtime.piece_costs import PieceCosts
from eecompile.spec import Budget, Policy

__all__ = ["BuiltHalts", "build_halts", "halt_rule"]

_NAMES = {"macs": "macs", "latency": "latency_s", "energy": "energy_j"}


@dataclass(frozen=True)
class BuiltHalts:
    """Policies with the limits of single samples, and warnings."""

    policies: Mapping[str, BuiltPolicy]
    warnings: tuple[Diagnostic, ...]


def halt_rule(budget: Budget) -> HaltRule:
    """What a budget of the language limits for each sample.

    >>> halt_rule(Budget("latency", 0.001, "each")).latency_s
    0.001
    """
    return HaltRule(**{_NAMES[budget.quantity]: budget.limit})


def build_halts(
    written: Sequence[Policy],
    policies: Mapping[str, BuiltPolicy],
    network: CompiledGraph,
    table: CostTable,
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
) -> BuiltHalts:
    """Each built policy with what a sample may spend, where the file limits that.

    Nothing is fitted to these limits: they can be others wherever the artifact runs.

    Args:
        written: as in the file.
        policies: built, by name.
        network: compiled.
        table: what its pieces cost on the target.
        costs: as for `build_policies`.
        records: by split; "test" is reported on.

    Raises:
        CompileErrors: no answer keeps a limit, or costs are not known; all of them at once.
    """
    found, problems = dict(policies), Diagnostics()
    pieces = PieceCosts(network, table)
    for policy in written:
        if policy.halt is None or policy.name not in policies:
            continue
        try:
            halting = Halting(halt_rule(policy.halt), pieces, policy.at("halt"))
        except CompileErrors as errors:
            problems.add(*errors.diagnostics)
            continue
        problems.add(*_needless(policy, halting, pieces))
        found[policy.name] = _with_halt(
            policy, policies[policy.name], halting, network, pieces, costs, records.get("test")
        )
    problems.raise_errors()
    return BuiltHalts(found, problems.in_order())


def _needless(written: Policy, halting: Halting, pieces: PieceCosts) -> list[Diagnostic]:
    """Whether there is nothing that a limit could stop."""
    ((name, limit),) = halting.rule.given.items()
    most = pieces.full_depth(name) + (pieces.all_heads(name) if written.rule else 0.0)
    if limit < most:
        return []
    full = str(HaltRule(**{name: most})).split("<= ")[1]
    return [
        Diagnostic(
            "needless-halt",
            f"Policy `{written.name}` halts at `{halting.rule}`, which no sample spends",
            written.at("halt"),
            f"the whole network takes {full}{' with all heads' if written.rule else ''}",
            severity="warning",
            help="allow less, or remove the halt",
        )
    ]


def _with_halt(
    written: Policy,
    built: BuiltPolicy,
    halting: Halting,
    network: CompiledGraph,
    pieces: PieceCosts,
    costs: Mapping[str, ExitCosts],
    test: Record | None,
) -> BuiltPolicy:
    """The policy with its limit, and its figures with it."""
    ((name, limit),) = halting.rule.given.items()
    exit_, cheapest = pieces.cheapest(name)
    told: dict[str, Any] = {
        "rule": str(halting.rule),
        "quantity": name,
        "limit": limit,
        "cheapest": {"exit": exit_, "cost": cheapest},
        "full_depth": pieces.full_depth(name),
        "provenance": pieces.provenance(name),
        "test": None,
    }
    report = dict(built.report)
    if isinstance(test, TestRecord):
        replayed, spent = _replayed(built.policy, halting, name, network, pieces, test)
        paid = {quantity: cost.of(replayed, "test") for quantity, cost in costs.items()}
        if network.gated:  # With steps of segments that were begun in vain.
            paid |= {quantity: spent for quantity, its in _NAMES.items() if its == name}
        held_out = reported(
            test,
            replayed.exit,
            replayed.correct(test.labels),
            paid,
            {quantity: cost.provenance for quantity, cost in costs.items()},
        )
        fitted = {"point": None, "points": report["points"]}
        report["test"] = policy_report(written, fitted, held_out)["test"]
        told["test"] = {"halted": float(replayed.halted.mean()), "worst": float(np.max(spent))}
    return replace(built, report={**report, "halt": told}, halt=halting.rule.to_json())


def _replayed(
    policy: ExitPolicy,
    halting: Halting,
    name: str,
    network: CompiledGraph,
    pieces: PieceCosts,
    test: TestRecord,
) -> tuple[Replay, np.ndarray]:
    """What becomes of samples, and what each spends of a quantity, as `HaltRule` has it.

    Energy is counted with nothing left out, as a session does.
    """
    limited = halting.expected(policy)
    needs = pieces.step_needs(timed=halting.timed)
    if not network.gated or not test.shares or needs is None or name == "energy_j":
        replayed = replay(limited, test.outputs(), test.final)
        return replayed, pieces.spent(name, replayed.exit, replayed.evaluated)
    steps = GatedSteps.of(network, needs.costs.tolist(), test.shares, len(test))
    (limit,) = limited.limits
    replayed, spent = replay_halted(policy, limit, steps, test.outputs(), test.final)
    return replayed, spent / (network.macs if name == "macs" else 1)
