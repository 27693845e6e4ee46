"""The guard of a built policy: which settings it may take, and how they differ on known data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isinf
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.guard_rule import RESERVE, GuardRule, GuardSetting
from eecompile.outcomes import ExitCosts
from eecompile.policies import ExitPolicy, from_json, replay, to_json
from eecompile.policies.base import EXIT
from eecompile.policies.steps import StepsPolicy
from eecompile.policies.steps import to_json as limits_to_json
from eecompile.record import CalibrateRecord, Record, TestRecord
from eecompile.spec import Policy

__all__ = ["build_guard"]

#: A setting differs by at most this share of what the one before it does: an audit asks all of
#: them, so that many would cost time, and near ones tell no more.
_STEP = 0.75
_MOST_SETTINGS = 6
#: Of the samples that an exit would take, those it still takes in settings beside the fitted ones.
_KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
#: How thresholds are looked for: how far above the fitted ones, and how closely.
_FARTHEST, _HALVINGS = 1e6, 24


def build_guard(
    written: Policy,
    policy: ExitPolicy,
    points: Sequence[Mapping[str, Any]],
    costs: ExitCosts,
    records: Mapping[str, Record],
) -> tuple[GuardRule, dict[str, Any]]:
    """What watches a policy, and what a person is told of it as JSON.

    Settings let fewer samples leave early than the policy as it was built, each differing less
    from the network's own answers than the one before it. They are operating points, and, where
    the policy has a threshold per exit, what it is with higher ones: points are chosen for
    accuracy, and once that is the network's own none are left that differ less.

    Args:
        written: as in the file, with a guard.
        policy: as it was built.
        points: its operating points as JSON.
        costs: MACs.
        records: "calibrate" tells how settings differ; "test" is reported on.

    Raises:
        CompileErrors: the policy has no operating points.
    """
    guard, calibrate = written.guard, records.get("calibrate")
    assert guard is not None, "only policies with a guard come here"
    if not points or not isinstance(calibrate, CalibrateRecord):
        raise CompileErrors(
            [
                Diagnostic(
                    "nothing-to-fit",
                    f"The guard of `{written.name}` has no settings to choose from",
                    written.at("guard"),
                    "takes a more careful setting when too many answers differ",
                    notes=("the policy has no operating points that were fitted",),
                    help="give it calibration data and leave a threshold out, or remove the guard",
                )
            ]
        )
    rule = GuardRule(guard.drop, guard.share, _ladder(policy, points, costs, calibrate))
    test = records.get("test")
    start = sum(setting.differing > RESERVE * rule.drop for setting in rule.settings)
    held_out = begins = None
    if isinstance(test, TestRecord):
        tried = [_setting_and_cost(from_json(s.policy), costs, test) for s in rule.settings]
        held_out = [setting.differing for setting, _ in tried]
        # Past the last setting nothing leaves early; an audited sample runs all heads, too.
        unaudited = [*(macs for _, macs in tried), costs.full_depth][start]
        audited = costs.full_depth + sum(costs.heads)
        begins = rule.share * audited + (1 - rule.share) * unaudited
    report = {
        "drop": rule.drop,
        "share": rule.share,
        "settings": len(rule.settings),
        "start": start,
        "calibrate": [setting.differing for setting in rule.settings],
        "test": held_out,
        "test_macs_at_start": begins,
    }
    return rule, report


def _ladder(
    policy: ExitPolicy,
    points: Sequence[Mapping[str, Any]],
    costs: ExitCosts,
    record: CalibrateRecord,
) -> tuple[GuardSetting, ...]:
    """The policy, then ever more careful ones; those that never leave early are no settings."""
    (first, least), *others = (
        _setting_and_cost(one, costs, record)
        for one in (
            policy,
            *(from_json(point["policy"]) for point in points),
            *_tightened(policy, record),
        )
    )
    found = [first]
    for setting, cost in sorted(others, key=lambda one: one[1]):
        careful = setting.differing <= _STEP * found[-1].differing
        stays = found[-1].exits[-1] <= setting.exits[-1] < 1
        if careful and stays and cost > least and len(found) < _MOST_SETTINGS:
            found.append(setting)
    return tuple(found)


def _tightened(policy: ExitPolicy, record: CalibrateRecord) -> Iterator[ExitPolicy]:
    """The policy with higher thresholds; nothing where it has none."""
    if isinstance(policy, StepsPolicy):
        for kept in _KEPT:
            limits = [
                limit if isinf(limit) else _higher(policy, k, kept, record)
                for k, limit in enumerate(policy.thresholds)
            ]
            yield _with(policy, limits)


def _with(policy: StepsPolicy, limits: Sequence[float]) -> ExitPolicy:
    """The same rule with other thresholds."""
    return type(policy).from_parameters(
        {**policy.parameters(), "thresholds": limits_to_json(limits)}
    )


def _higher(policy: StepsPolicy, exit_: int, kept: float, record: CalibrateRecord) -> float:
    """The threshold at which an exit takes a part of the samples that it would take of all."""
    outputs = record.outputs()[exit_]

    def taken(limit: float) -> int:
        limits = [inf] * len(policy.thresholds)
        limits[exit_] = limit
        one = _with(policy, limits)
        return int((one.decide(exit_, outputs, one.start(len(record))) == EXIT).sum())

    low = policy.thresholds[exit_]
    wanted, step = kept * taken(low), 1.0
    while step < _FARTHEST and taken(low + step) > wanted:
        step *= 2
    for _ in range(_HALVINGS):
        step /= 2
        if taken(low + step) > wanted:
            low += step
    return low + step


def _setting_and_cost(
    policy: ExitPolicy, costs: ExitCosts, record: CalibrateRecord | TestRecord
) -> tuple[GuardSetting, float]:
    """What a policy does to the samples of a record, and what one of them costs."""
    replayed = replay(policy, record.outputs(), record.final)
    differing = replayed.labels != record.final.argmax(axis=1)
    exits = tuple(map(float, replayed.fractions()))
    setting = GuardSetting(to_json(policy), float(np.mean(differing)), exits)
    return setting, float(costs.of(replayed).mean())
