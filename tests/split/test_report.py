"""What is reported of a split policy, against its replayed streams."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eecompile.policies import SplitCosts, SplitPolicy, UcbOptions, replay_stream
from eecompile.record import CalibrateRecord, FitRecord, TestRecord
from eecompile.report import held_out_lines, policy_report
from eecompile.spec import Budget, Policy, Rule, RuleTerm
from eecompile.split_report import split_lines, split_outcomes

COSTS = SplitCosts((0.25, 0.75, 1.0), (0.125, 0.0625), price=0.25)
EXITS = ("early", "late")


def policy() -> SplitPolicy:
    return SplitPolicy("max_softmax", (0.7, 0.8), (0, 1), COSTS, UcbOptions("side"))


def records() -> dict[str, FitRecord | CalibrateRecord | TestRecord]:
    random = np.random.default_rng(0)
    found: dict[str, FitRecord | CalibrateRecord | TestRecord] = {}
    for kind, count in ((FitRecord, 10), (CalibrateRecord, 200), (TestRecord, 300)):
        labels = random.integers(0, 3, count)
        hot = 3 * np.eye(3, dtype=np.float32)[labels]
        early, late, final = (
            hot * share + random.standard_normal((count, 3)).astype(np.float32)
            for share in (0.4, 0.7, 1.0)
        )
        found[kind.split] = kind(EXITS, labels, final, {}, {"early": early, "late": late})
    return found


def test_figures_are_those_of_a_stream_that_starts_without_knowledge() -> None:
    made, own = policy(), records()
    split, point, report = split_outcomes(made, EXITS, own)
    test = own["test"]
    replayed = replay_stream(policy(), test.outputs(), test.final)
    assert point is not None and report is not None
    assert made.counts == {0: 0, 1: 0, 2: 0}, "the policy itself has learned nothing"
    assert report.accuracy.value == (replayed.labels == test.labels).mean()
    device = replayed.cost - 0.25 * replayed.offloaded
    assert report.costs["macs"].value == pytest.approx(device.mean())
    assert split["test"]["mean_cost"]["value"] == pytest.approx(replayed.cost.mean())
    assert split["test"]["offloaded"]["value"] == replayed.offloaded.mean()
    assert split["test"]["shares"]["early"] == (replayed.split == 0).mean()
    assert sum(split["test"]["shares"].values()) == pytest.approx(1.0)
    assert split["calibrate"]["n"] == 200
    assert "fit" not in split
    json.dumps(split, allow_nan=False)


def test_splits_are_told_with_their_costs_and_thresholds() -> None:
    split, point, report = split_outcomes(policy(), EXITS, {})
    assert (point, report, split["test"]) == (None, None, None)
    assert split["splits"] == [
        {"name": "early", "cost": 0.375, "threshold": pytest.approx(0.7)},
        {"name": "late", "cost": 0.9375, "threshold": pytest.approx(0.8)},
        {"name": "final", "cost": 1.1875, "threshold": None},
    ]
    assert split_lines(split) == []


def test_a_person_reads_where_samples_were_split_and_what_it_cost() -> None:
    written = Policy(
        "share", Rule((RuleTerm("confidence", "max_softmax"),)), Budget("accuracy_drop", 0.5)
    )
    split, point, report = split_outcomes(policy(), EXITS, records())
    assert point is not None
    made = {"policy": point.policy, "point": point.to_json(), "points": []}
    lines = held_out_lines("share", policy_report(written, made, report) | {"split": split}, 1)
    told = " ".join(lines)
    sent = 100 * split["test"]["offloaded"]["value"]
    assert f"{sent:.1f} % sent on" in told
    assert f"in the end at `{split['test']['best']}`" in told
    assert "budget kept" in told
