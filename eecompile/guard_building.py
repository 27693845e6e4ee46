"""The guard of a built policy: which settings it may take, and how they differ on known data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.guard_rule import GuardRule, GuardSetting
from eecompile.policies import ExitPolicy, from_json, replay, to_json
from eecompile.record import CalibrateRecord, Record, TestRecord
from eecompile.spec import Policy

__all__ = ["build_guard"]

#: A setting differs by at most this share of what the one before it does: an audit asks all of
#: them, so that many would cost time, and near ones tell no more.
_STEP = 0.75
_MOST_SETTINGS = 8


def build_guard(
    written: Policy,
    policy: ExitPolicy,
    points: Sequence[Mapping[str, Any]],
    records: Mapping[str, Record],
) -> tuple[GuardRule, dict[str, Any]]:
    """What watches a policy, and what a person is told of it as JSON.

    Settings are operating points that let fewer samples leave early than the policy as it was
    built, each differing less from the network's own answers than the one before it.

    Args:
        written: as in the file, with a guard.
        policy: as it was built.
        points: its operating points as JSON.
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
    rule = GuardRule(guard.drop, guard.share, _ladder(policy, points, calibrate))
    test = records.get("test")
    start = sum(setting.differing > rule.drop for setting in rule.settings)
    held_out = None
    if isinstance(test, TestRecord):
        held_out = [_setting(from_json(s.policy), test).differing for s in rule.settings]
    report = {
        "drop": rule.drop,
        "share": rule.share,
        "settings": len(rule.settings),
        "start": start,
        "calibrate": [setting.differing for setting in rule.settings],
        "test": held_out,
    }
    return rule, report


def _ladder(
    policy: ExitPolicy, points: Sequence[Mapping[str, Any]], record: CalibrateRecord
) -> tuple[GuardSetting, ...]:
    """The policy, then ever more careful points; those that never leave early are no settings."""
    found = [_setting(policy, record)]
    for point in sorted(points, key=lambda point: float(point["costs"]["macs"])):
        setting = _setting(from_json(point["policy"]), record)
        careful = setting.differing <= _STEP * found[-1].differing
        stays = found[-1].exits[-1] <= setting.exits[-1] < 1
        if careful and stays and len(found) < _MOST_SETTINGS:
            found.append(setting)
    return tuple(found)


def _setting(policy: ExitPolicy, record: CalibrateRecord | TestRecord) -> GuardSetting:
    """What a policy does to the samples of a record."""
    replayed = replay(policy, record.outputs(), record.final)
    differing = replayed.labels != record.final.argmax(axis=1)
    exits = tuple(map(float, replayed.fractions()))
    return GuardSetting(to_json(policy), float(np.mean(differing)), exits)
