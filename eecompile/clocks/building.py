"""The clock rules of a build: checked against its costs, fitted where they can be, and replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eecompile.artifact import PolicyEntry
from eecompile.clock_rule import ClockRule
from eecompile.clocks.checks import check_rule
from eecompile.clocks.fitting import FittedClocks, fit_clocks
from eecompile.clocks.outcomes import clock_outcomes, costs_of, outcome
from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.planning import clock_rule
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.diagnostics import Diagnostic, Diagnostics
from eecompile.figures import percent
from eecompile.outcomes import ExitCosts
from eecompile.policies import ExitPolicy
from eecompile.policy_building import BuiltPolicy, in_setting
from eecompile.policy_fitting import DEFAULT_BUDGET
from eecompile.record import CalibrateRecord, Record, TestRecord
from eecompile.runtime.paid import with_gates_run
from eecompile.runtime.scheduler import Scheduler
from eecompile.shift_fitting import Shifts
from eecompile.spec import Policy

__all__ = ["BuiltClocks", "build_clocks"]


@dataclass(frozen=True)
class BuiltClocks:
    """Policies with their clock rules: as they decide, as the artifact keeps them, and warnings."""

    policies: Mapping[str, ExitPolicy]
    entries: Mapping[str, PolicyEntry]
    warnings: tuple[Diagnostic, ...]


def build_clocks(
    written: Sequence[Policy],
    policies: Mapping[str, BuiltPolicy],
    network: CompiledGraph,
    table: CostTable,
    records: Mapping[str, Record],
    costs: Mapping[str, ExitCosts],
    shifts: Shifts | None = None,
) -> BuiltClocks:
    """Each built policy with the rule its clocks are chosen by, where the file has one.

    A policy with an accuracy budget is in the one of its settings that suits its clocks best: see
    `eecompile.clocks.fitting.fit_clocks`. Where gates decide it stays in its own.

    Args:
        written: as in the file.
        policies: built, by name.
        network: compiled.
        table: its costs at the clocks that may be used.
        records: by split; "calibrate" is fitted on, "test" reported on.
        costs: as for `build_policies`.
        shifts: likewise.

    Raises:
        CompileErrors: a deadline no clock can keep, a clock that is not there, or costs that are
            not known; all of them at once.
    """
    problems = Diagnostics()
    clocked: dict[str, _Clocked] = {}
    for policy in written:
        rule = clock_rule(policy)
        if rule is not None and policy.name in policies:
            one = _Clocked(policy, policies[policy.name], rule, network, table, None)
            clocked[policy.name] = one
            place = policy.at("frequency" if policy.frequency is not None else "deadline")
            problems.add(*check_rule(rule, one.at_most, policy.at("deadline"), place))
    problems.raise_errors()
    made = {name: built.policy for name, built in policies.items()}
    entries = {name: built.entry for name, built in policies.items()}
    splits = tuple(split for split in records if split != "fit")
    for name, one in clocked.items():
        own = records
        if shifts is not None:
            own = shifts.run(one.built.policy.gate_shift, splits)
        fitted = one.fitted(own, costs)
        problems.add(*fitted.warnings())
        made[name] = fitted.built.policy
        entries[name] = fitted.entry(own.get("test"))
    return BuiltClocks(made, entries, problems.in_order())


@dataclass(frozen=True)
class _Clocked:
    """A policy and its rule; `found` where they were fitted."""

    written: Policy
    built: BuiltPolicy
    rule: ClockRule
    network: CompiledGraph
    table: CostTable
    found: FittedClocks | None

    @property
    def at_most(self) -> CostTable:
        """What clocks are chosen by: samples of which gates leave nothing out."""
        return with_gates_run(self.network, self.table)

    def fitted(self, records: Mapping[str, Record], costs: Mapping[str, ExitCosts]) -> _Clocked:
        """The same in the setting, and with the start, that calibration data show to be best."""
        calibrate, built = records.get("calibrate"), self.built
        if not isinstance(calibrate, CalibrateRecord):
            return self
        paid = PaidCosts.of(self.network, self.table, calibrate.shares)
        # Where gates decide each sample has a course of its own: minutes for every setting.
        settings = built.settings if paid is None else built.settings[:1]
        found = fit_clocks(settings, calibrate, self.at_most, self.rule, built.drop, paid)
        if found.policy is not built.settings[0]:
            built = in_setting(self.written, built, found.policy, costs, records)
        return replace(self, built=built, rule=found.rule, found=found)

    def warnings(self) -> list[Diagnostic]:
        """Whether answers in time break the accuracy budget, whatever the setting."""
        found, deadline = self.found, self.written.deadline
        if found is None or found.kept or deadline is None:
            return []
        budget = self.written.budget or DEFAULT_BUDGET
        least = percent(found.drop_at_most, 2)
        fails = "no setting keeps" if found.settings > 1 else "its setting does not keep"
        return [
            Diagnostic(
                "infeasible-budget",
                f"Answers that the deadline forces break the budget of policy "
                f"`{self.written.name}`",
                self.written.at("deadline"),
                f"{fails} `{budget}` with `deadline {deadline}`",
                severity="warning",
                notes=(
                    f"the one taken loses least: {least} of accuracy, with a margin for the "
                    f"number of calibration samples, of which "
                    f"{percent(float(found.chosen.forced.mean()))} were answered early by force",
                ),
                help="allow more time, or more loss of accuracy",
            )
        ]

    def entry(self, test: Record | None) -> PolicyEntry:
        """As the artifact keeps it."""
        report = {
            "rule": str(self.rule),
            "board": self.table.board,
            "deadline_s": self.rule.deadline_s,
            "latency_provenance": self.table.latency_provenance,
            "energy_provenance": self.table.energy_provenance,
            "fitting": self.found and self._fitting(self.found),
            "test": self._held_out(test) if isinstance(test, TestRecord) else None,
        }
        entry = self.built.entry
        return replace(entry, report={**entry.report, "clock": report}, clock=self.rule.to_json())

    def _fitting(self, found: FittedClocks) -> dict[str, Any]:
        """What was chosen, with mean figures of the calibration data it was chosen on."""
        start = None if self.rule.start is None else self.table.states[self.rule.start]
        return {
            "settings": found.settings,
            "start": start and {"cluster": start.cluster, "frequency_hz": start.frequency_hz},
            "drop_at_most": found.drop_at_most,
            "drop_allowed": self.built.drop,
            "chosen": costs_of(found.chosen),
            "reference": costs_of(found.reference),
        }

    def _held_out(self, test: TestRecord) -> dict[str, Any]:
        scheduler = Scheduler(self.at_most, self.rule)
        paid = PaidCosts.of(self.network, self.table, test.shares)
        runs = clock_outcomes(self.built.policy, test, self.table, scheduler, paid)
        found = {name: outcome(run, test.labels) for name, run in runs.items()}
        missed_by = None
        if self.built.drop is not None:
            accuracies = [found[run]["accuracy"] for run in ("full_depth_top_clock", "chosen")]
            missed_by = max(0.0, accuracies[0] - accuracies[1] - self.built.drop)
        return {**found, "budget_missed_by": missed_by}
