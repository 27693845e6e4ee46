"""`inspect` and `doctor`: what is in an artifact, and what this machine can do."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from eecompile.commands.placing import print_placing
from eecompile.commands.printing import print_exits, print_json
from eecompile.console import table
from eecompile.figures import hertz, joules, milliseconds, threads_in_words, written

if TYPE_CHECKING:
    from eecompile.cost_table import CostTable
    from eecompile.inspection import Inspection

__all__ = ["doctor", "inspect"]


def inspect(options: argparse.Namespace) -> int:
    """Show segments and exits of an artifact or a `.ee` file."""
    from eecompile.atomic import replaced_file
    from eecompile.inspection import inspect_path

    found = inspect_path(options.what, options.trusted)
    if options.svg is not None:
        replaced_file(options.svg, found.svg().encode())
    if options.json:
        print_json(options, found.to_json())
        return 0
    if options.ir:
        print(found.text, end="")
        return 0
    print(found.title)
    print_exits(found.rows)
    if found.placing:
        print_placing(found.placing)
    if found.gates:
        print("", *found.gate_lines, sep="\n")
        if found.gate_table is not None:
            table(*found.gate_table, left=3)
    _print_costs(found)
    if found.reports:
        print("", *found.policy_lines, sep="\n")
    if options.svg is not None:
        print(f"\npicture: {options.svg}")
    return 0


def _print_costs(found: Inspection) -> None:
    """Full depth at the ends of each cluster's clocks, and how policies choose among them."""
    if found.costs is not None and found.clocks:
        costs = found.costs
        where = f"board {costs.board}" if costs.device is None else costs.device
        count = len(costs.states)
        print(
            f"\nfull depth, {threads_in_words(costs.threads)}, {where}: "
            f"{len(found.clocks)} of {count} clock{'s' if count > 1 else ''}"
        )
        columns = ("cluster", "clock", "latency", "", "energy", "")
        table(columns, [_cost_row(costs, index) for index in found.clocks])
    if found.rule_lines:
        print("", *found.rule_lines, sep="\n")


def _cost_row(costs: CostTable, index: int) -> tuple[str, ...]:
    state, cost = costs.states[index], costs.full_depth(index)
    assert cost is not None, "only clocks with costs are shown"
    return (
        state.cluster,
        hertz(state.frequency_hz),
        milliseconds(cost.latency_s),
        cost.provenance,
        written(cost.energy_j, joules),
        cost.energy_provenance or "",
    )


def doctor(options: argparse.Namespace) -> int:
    """Say what works here, what does not, and how to get it; 2 if nothing can be built."""
    from eecompile.doctor.examination import examine

    findings = examine()
    if options.json:
        print_json(options, {"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            kind = "ok" if finding.ok else "warning" if finding.warning else "missing"
            print(f"{kind:<7}  {finding.what}: {finding.found}")
            for index, line in enumerate(finding.remedy.splitlines()):
                print(f"         {'->' if index == 0 else '  '} {line}")
    return 2 if any(finding.needed and not finding.ok for finding in findings) else 0
