"""The clock rules of a build: checked against its costs, fitted where they can be, and replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eecompile.artifact import PolicyEntry
from eecompile.clock_rule import ClockRule
from eecompile.clocks.checks import check_rule
from eecompile.clocks.fitting import fit_start
from eecompile.clocks.outcomes import clock_outcomes
from eecompile.clocks.planning import clock_rule
from eecompile.cost_table import CostTable
from eecompile.diagnostics import Diagnostic, Diagnostics
from eecompile.policies import to_json
from eecompile.policy_building import BuiltPolicy
from eecompile.record import CalibrateRecord, Record, TestRecord
from eecompile.spec import Policy

__all__ = ["BuiltClocks", "build_clocks"]


@dataclass(frozen=True)
class BuiltClocks:
    """Policies with their clock rules, as the artifact keeps them, and what to warn of."""

    entries: Mapping[str, PolicyEntry]
    warnings: tuple[Diagnostic, ...]


def build_clocks(
    written: Sequence[Policy],
    policies: Mapping[str, BuiltPolicy],
    table: CostTable,
    records: Mapping[str, Record],
) -> BuiltClocks:
    """Each built policy with the rule its clocks are chosen by, where the file has one.

    Args:
        written: as in the file.
        policies: built, by name.
        table: costs at the clocks that may be used.
        records: by split; "calibrate" is fitted on, "test" reported on.

    Raises:
        CompileErrors: a deadline no clock can keep, a clock that is not there, or costs that are
            not known; all of them at once.
    """
    problems = Diagnostics()
    rules: dict[str, ClockRule] = {}
    for policy in written:
        rule = clock_rule(policy)
        if rule is not None and policy.name in policies:
            rules[policy.name] = rule
            place = policy.at("frequency" if policy.frequency is not None else "deadline")
            problems.add(*check_rule(rule, table, policy.at("deadline"), place))
    problems.raise_errors()
    entries = {name: built.entry for name, built in policies.items()}
    for name, rule in rules.items():
        entries[name] = _with_clock(policies[name], rule, table, records)
    return BuiltClocks(entries, problems.in_order())


def _with_clock(
    built: BuiltPolicy, rule: ClockRule, table: CostTable, records: Mapping[str, Record]
) -> PolicyEntry:
    calibrate, test = records.get("calibrate"), records.get("test")
    if isinstance(calibrate, CalibrateRecord):
        rule = fit_start(built.policy, calibrate, table, rule)
    report: dict[str, Any] = {
        "rule": str(rule),
        "board": table.board,
        "deadline_s": rule.deadline_s,
        "latency_provenance": _provenance(table, "provenance"),
        "energy_provenance": _provenance(table, "energy_provenance"),
        "test": None,
    }
    if isinstance(test, TestRecord):
        report["test"] = dict(
            clock_outcomes(built.policy, test.outputs(), test.final, test.labels, table, rule)
        )
    return PolicyEntry(to_json(built.policy), {**built.report, "clock": report}, rule.to_json())


def _provenance(table: CostTable, of: str) -> str | None:
    """Whether every cost is measured; None where there is none."""
    full = [table.full_depth(state) for state in range(len(table.states))]
    found = {getattr(cost, of) for cost in full if cost is not None} - {None}
    return None if not found else "measured" if found == {"measured"} else "modelled"
