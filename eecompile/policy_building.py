"""The policies of a build: fitted to their budgets, or as given, and what each achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eecompile.artifact import PolicyEntry
from eecompile.compiled import CompiledGraph
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics
from eecompile.dsl.check_policies import needs_calibration
from eecompile.forecast_report import forecast_report
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.policies import ExitPolicy, from_json, to_json
from eecompile.policy_fitting import fit_policy
from eecompile.predicted_fitting import given_predicted
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord
from eecompile.report import policy_report
from eecompile.rule_family import given_policy
from eecompile.spec import Policy

__all__ = ["BuiltPolicy", "build_policies"]


@dataclass(frozen=True)
class BuiltPolicy:
    """A policy ready to decide, and how it came about as JSON."""

    policy: ExitPolicy
    report: Mapping[str, Any]

    @property
    def entry(self) -> PolicyEntry:
        """As the artifact keeps it."""
        return PolicyEntry(to_json(self.policy), self.report)


def build_policies(
    written: Sequence[Policy],
    network: CompiledGraph,
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
    *,
    seed: int,
) -> dict[str, BuiltPolicy]:
    """Each policy of the file, by name.

    Args:
        written: as in the file.
        network: whose exits they decide at.
        costs: quantity -> what pieces cost, every budget's among them.
        records: by split, with every exit's outputs; "calibrate" is fitted on, "test" reported on.
        seed: of everything random.

    Raises:
        CompileErrors: budgets that cannot be kept, or thresholds that cannot be fitted; all of
            them at once.
    """
    calibrate, test = records.get("calibrate"), records.get("test")
    found: dict[str, BuiltPolicy] = {}
    problems = Diagnostics()
    for policy in written:
        try:
            if isinstance(calibrate, CalibrateRecord):
                made = _fitted(policy, calibrate, costs, seed)
            else:
                made = _given(policy, network)
        except CompileErrors as errors:
            problems.add(*errors.diagnostics)
            continue
        # What is reported is what the artifact's own form of the policy does.
        ready = from_json(made["policy"])
        held_out = evaluate(ready, test, costs) if isinstance(test, TestRecord) else None
        report = policy_report(policy, made, held_out)
        if ready.forecasts:
            report["forecast"] = {
                split: forecast_report(ready, own)
                for split, own in records.items()
                if not isinstance(own, FitRecord)
            }
        found[policy.name] = BuiltPolicy(ready, report)
    problems.raise_errors()
    return found


def _fitted(
    written: Policy,
    calibrate: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    seed: int,
) -> dict[str, Any]:
    fitted = fit_policy(written.rule, written.budget, calibrate, costs, seed=seed)
    return {
        "policy": to_json(fitted.policy),
        "point": fitted.point.to_json(),
        "points": [point.to_json() for point in fitted.points],
    }


def _given(written: Policy, network: CompiledGraph) -> dict[str, Any]:
    """A policy without calibration data: all its thresholds have to be given."""
    if needs_calibration(written):
        message = f"Thresholds of policy `{written.name}` cannot be fitted"
        place = written.rule.span if written.rule else None
        why = "there are no calibration data for a network with one input and known classes"
        raise CompileErrors([Diagnostic("missing-data", message, place, notes=(why,))])
    if written.rule is not None and written.rule.terms[0].kind == "predicted":
        trained = {exit_.name: exit_.head is not None for exit_ in network.exits}
        forecasting = given_predicted(written.rule.terms[0], trained)
        return {"policy": to_json(forecasting), "point": None, "points": []}
    heads = [exit_.head is not None for exit_ in network.exits]
    class_means = [exit_.comparator is not None for exit_ in network.exits]
    policy = given_policy(written.rule, heads, class_means)
    return {"policy": to_json(policy), "point": None, "points": []}
