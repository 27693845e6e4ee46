"""The policies of a build: fitted to their budgets, or as given, and what each achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eecompile.artifact import PolicyEntry
from eecompile.auto_policy import fit_auto, is_auto
from eecompile.compiled import CompiledGraph
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics
from eecompile.dsl.check_policies import needs_calibration
from eecompile.fitted_policy import CONFIDENCE, Calibration, FittedPolicy
from eecompile.forecast_report import forecast_report
from eecompile.guard_building import build_guard
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.policies import ExitPolicy, from_json, to_json
from eecompile.policy_fitting import DEFAULT_BUDGET, fit_policy
from eecompile.predicted_fitting import given_predicted
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord
from eecompile.report import policy_report
from eecompile.rule_family import given_policy
from eecompile.shift_fitting import Shifts, fit_shift
from eecompile.spec import Policy
from eecompile.split_fitting import fit_split
from eecompile.split_report import split_outcomes

__all__ = ["BuiltPolicy", "build_policies", "in_setting"]


@dataclass(frozen=True)
class BuiltPolicy:
    """A policy ready to decide, and how it came about as JSON.

    Attributes:
        settings: of the policy that keep an accuracy budget, its own first; only that where
            another quantity is limited.
        drop: accuracy the budget allows to lose, as a fraction; None where there is no such budget.
        offload, guard, halt: as in `PolicyEntry`.
    """

    policy: ExitPolicy
    report: Mapping[str, Any]
    settings: tuple[ExitPolicy, ...] = ()
    drop: float | None = None
    offload: Mapping[str, Any] | None = None
    guard: Mapping[str, Any] | None = None
    halt: Mapping[str, Any] | None = None

    @property
    def entry(self) -> PolicyEntry:
        """As the artifact keeps it."""
        return PolicyEntry(
            to_json(self.policy),
            self.report,
            offload=self.offload,
            guard=self.guard,
            halt=self.halt,
        )


def build_policies(
    written: Sequence[Policy],
    network: CompiledGraph,
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
    *,
    seed: int,
    shifts: Shifts | None = None,
) -> dict[str, BuiltPolicy]:
    """Each policy of the file, by name.

    Args:
        written: as in the file.
        network: whose exits they decide at.
        costs: quantity -> what pieces cost, every budget's among them.
        records: by split, with every exit's outputs; "calibrate" is fitted on, "test" reported on.
        seed: of everything random.
        shifts: the network at other shifts of its gates, where it has gates and there are data.

    Raises:
        CompileErrors: budgets that cannot be kept, or thresholds that cannot be fitted; all of
            them at once.
    """
    calibrate = records.get("calibrate")
    found: dict[str, BuiltPolicy] = {}
    problems = Diagnostics()
    for policy in written:
        try:
            if policy.split is not None:
                found[policy.name] = _split(policy, network, costs["macs"], records)
            elif shifts is not None and policy.rule is None and policy.halt is None:
                found[policy.name] = _shifted(policy, shifts, records)
            elif isinstance(calibrate, CalibrateRecord):
                fitted = _fit(policy, calibrate, costs, seed)
                found[policy.name] = _fitted(policy, fitted, costs, records)
            else:
                given = to_json(_given(policy, network))
                found[policy.name] = _reported(policy, given, None, [], costs, records)
            if policy.guard is not None:
                found[policy.name] = _guarded(policy, found[policy.name], costs["macs"], records)
        except CompileErrors as errors:
            problems.add(*errors.diagnostics)
    problems.raise_errors()
    return found


def _fit(
    written: Policy, calibrate: CalibrateRecord, costs: Mapping[str, ExitCosts], seed: int
) -> FittedPolicy:
    if is_auto(written.rule):
        return fit_auto(written.budget, calibrate, costs, seed=seed)
    return fit_policy(written.rule, written.budget, calibrate, costs, seed=seed)


def _shifted(written: Policy, shifts: Shifts, records: Mapping[str, Record]) -> BuiltPolicy:
    """A policy that saves by gates alone."""
    fitted = fit_shift(written.budget, shifts)
    splits = tuple(split for split in records if split != "fit")
    own = shifts.at(fitted.policy.gate_shift, splits)
    built = _fitted(written, fitted, own.costs, own.records)
    # Another shift's samples would have to be recorded anew: there is one setting.
    return replace(built, settings=(built.policy,))


def _guarded(
    written: Policy, built: BuiltPolicy, costs: ExitCosts, records: Mapping[str, Record]
) -> BuiltPolicy:
    """The policy with what watches it; `costs` are MACs."""
    rule, told = build_guard(written, built.policy, built.report["points"], costs, records)
    budget, begins = written.budget, told["test_macs_at_start"]
    if budget is not None and budget.quantity == "macs" and begins is not None:
        told["budget_missed_by"] = max(0.0, begins - budget.limit)
    return replace(built, guard=rule.to_json(), report={**built.report, "guard": told})


def in_setting(
    written: Policy,
    built: BuiltPolicy,
    setting: ExitPolicy,
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
) -> BuiltPolicy:
    """The policy in another of its settings, with that one's figures.

    Args:
        written: as in the file.
        built: as `build_policies` made it.
        setting: one of its settings.
        costs: as for `build_policies`.
        records: as for `build_policies`; "calibrate" among them.
    """
    calibrate = records["calibrate"]
    assert isinstance(calibrate, CalibrateRecord), "settings are fitted on calibration data"
    budget = written.budget or DEFAULT_BUDGET
    point = Calibration(calibrate, costs, budget, CONFIDENCE).point(setting)
    points = built.report["points"]
    made = _reported(written, to_json(setting), point.to_json(), points, costs, records)
    kept = {key: built.report[key] for key in ("auto",) if key in built.report}
    return replace(made, drop=built.drop, report={**made.report, **kept})


def _fitted(
    written: Policy,
    fitted: FittedPolicy,
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
) -> BuiltPolicy:
    points = [point.to_json() for point in fitted.points]
    policy = to_json(fitted.policy)
    built = _reported(written, policy, fitted.point.to_json(), points, costs, records)
    if fitted.comparison is not None:
        built = replace(built, report={**built.report, "auto": fitted.comparison})
    budget = written.budget or (DEFAULT_BUDGET if fitted.points else None)
    if budget is None or budget.quantity != "accuracy_drop":
        return built
    kept = [point.policy for point in fitted.points if point.accuracy_drop <= budget.limit]
    more = [other for other in (*kept, *map(to_json, fitted.others)) if other != policy]
    distinct = [other for k, other in enumerate(more) if other not in more[:k]]
    settings = (built.policy, *map(from_json, distinct))
    return replace(built, settings=settings, drop=budget.limit)


def _reported(
    written: Policy,
    policy: Mapping[str, Any],
    point: Mapping[str, Any] | None,
    points: Sequence[Mapping[str, Any]],
    costs: Mapping[str, ExitCosts],
    records: Mapping[str, Record],
) -> BuiltPolicy:
    """With what it does to held-out data: the artifact's own form of the policy."""
    ready, test = from_json(policy), records.get("test")
    held_out = evaluate(ready, test, costs) if isinstance(test, TestRecord) else None
    made = {"policy": policy, "point": point, "points": points}
    report = policy_report(written, made, held_out)
    if ready.forecasts:
        report["forecast"] = {
            split: forecast_report(ready, own)
            for split, own in records.items()
            if not isinstance(own, FitRecord)
        }
    return BuiltPolicy(ready, report, (ready,))


def _split(
    written: Policy, network: CompiledGraph, costs: ExitCosts, records: Mapping[str, Record]
) -> BuiltPolicy:
    """A policy that shares the work with a server."""
    calibrate = records.get("calibrate")
    if not isinstance(calibrate, CalibrateRecord):
        calibrate = None
        _check_given(written)
    names = network.exit_names[:-1]
    means = written.rule is not None and written.rule.terms[0].measure == "class_means"
    heads = [exit_.comparator if means else exit_.head for exit_ in network.exits]
    usable = [head is not None for head in heads]
    policy = fit_split(written, names, usable, costs, calibrate)
    split, point, held_out = split_outcomes(policy, names, records)
    made: dict[str, Any] = {"policy": to_json(policy), "point": point and point.to_json()}
    report = policy_report(written, made | {"points": []}, held_out)
    return BuiltPolicy(policy, report | {"split": split}, (policy,))


def _check_given(written: Policy) -> None:
    """Refuses what would have to be fitted where there are no calibration data."""
    if needs_calibration(written):
        message = f"Thresholds of policy `{written.name}` cannot be fitted"
        place = written.rule.span if written.rule else None
        why = "there are no calibration data for a network with one input and known classes"
        raise CompileErrors([Diagnostic("missing-data", message, place, notes=(why,))])


def _given(written: Policy, network: CompiledGraph) -> ExitPolicy:
    """A policy without calibration data: all its thresholds have to be given."""
    _check_given(written)
    if written.rule is not None and written.rule.terms[0].kind == "predicted":
        trained = {exit_.name: exit_.head is not None for exit_ in network.exits}
        return given_predicted(written.rule.terms[0], trained)
    heads = [exit_.head is not None for exit_ in network.exits]
    class_means = [exit_.comparator is not None for exit_ in network.exits]
    return given_policy(written.rule, heads, class_means)
