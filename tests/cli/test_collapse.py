"""Policies that keep their budget by answers that are worth nothing are told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eecompile.collapse import collapse_warnings
from eecompile.outcomes import wilson
from eecompile.spec import Policy
from tests.cli.calls import Call, edited

LABELS = np.arange(1000) % 4


def report(right: int, full: int) -> dict[str, Any]:
    """Of so many right answers of 1,000."""
    found = {"accuracy": wilson(right, 1000), "full_depth_accuracy": wilson(full, 1000)}
    return {"test": {name: vars(interval) for name, interval in found.items()}}


def warned(**reports: dict[str, Any]) -> list[str]:
    written = [Policy(name, None) for name in reports]
    return [found.message for found in collapse_warnings(written, reports, LABELS)]


def test_accuracy_not_above_the_commonest_class_is_told() -> None:
    (message,) = warned(good=report(600, 900), poor=report(262, 900), untested={"test": None})
    assert message.startswith("Policy `poor` answers 26.2 % of the held-out samples rightly")
    assert message.endswith("commonest class always would (25.0 %)")


def test_a_network_that_knows_nothing_is_not_the_policy_s_fault() -> None:
    assert warned(poor=report(250, 262)) == []


def test_a_build_tells_of_gates_that_leave_out_what_matters(call: Call, demo: Path) -> None:
    edited(
        demo,
        ("exit early", 'skip layers "layer*.*" gate fitted\n    exit early'),
        ("policy quick { exit when confidence(max_softmax)", "policy hasty {"),
        ("budget accuracy drop <= 0.5 %", "budget mean macs <= 30 %"),
    )
    done = call("build", demo, "-o", demo.parent / "hasty", "--json")
    assert done.status == 0
    hasty = done.json["policies"]["hasty"]["test"]
    assert hasty["accuracy"]["low"] < 0.2 and hasty["budget_missed_by"] == 0.0
    assert done.err.count("warning[collapsed-accuracy]") == 1
    assert "Policy `hasty` answers" in done.err
