"""`exit when auto`: the best rule for the budget, chosen within the calibration data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eecompile.auto_policy import (
    _cross_validated,
    _folds,
    comparison_lines,
    fit_auto,
    rules_for,
)
from eecompile.diagnostics import CompileErrors
from eecompile.fitted_policy import Calibration
from eecompile.policies import replay, to_json
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget
from tests.budgets.records import COSTS, RULES, made, rule

CALIBRATE = made(CalibrateRecord, 1, 700)
MACS = Budget("macs", 0.6)


@pytest.fixture(scope="module")
def chosen() -> object:
    return fit_auto(MACS, CALIBRATE, COSTS)


def test_the_best_on_held_out_parts_is_taken_and_fitted_on_all(chosen) -> None:  # type: ignore[no-untyped-def]
    table = chosen.comparison
    rows = table["candidates"]
    assert (table["chosen"], table["compared"], table["quantity"]) == (
        rows[0]["rule"],
        "accuracy",
        "macs",
    )
    assert rows[0]["behind"] is None
    kept = [row["accuracy"] for row in rows if row["kept"]]
    assert kept == sorted(kept, reverse=True)
    for row in rows[1:]:
        if row["kept"]:
            assert row["behind"]["value"] == pytest.approx(rows[0]["accuracy"] - row["accuracy"])
            assert row["behind"]["low"] <= row["behind"]["value"] <= row["behind"]["high"]
    winner = next(own for own in rules_for(CALIBRATE) if str(own) == table["chosen"])
    again = fit_policy(winner, MACS, CALIBRATE, COSTS)
    assert to_json(again.policy) == to_json(chosen.policy)
    assert again.points == chosen.points
    assert chosen.point.at_most["macs"] <= 0.6


def test_every_rule_the_exits_allow_is_a_candidate(chosen) -> None:  # type: ignore[no-untyped-def]
    listed = {str(own) for own in RULES.values()} - {str(RULES["patient or sure"])}
    assert {row["rule"] for row in chosen.comparison["candidates"]} == listed | {"learned_score"}
    bare = replace(CALIBRATE, class_means={})
    assert not any("class_means" in str(own) for own in rules_for(bare))
    heads = {name: CALIBRATE.logits[name] for name in CALIBRATE.exits}
    untrained = replace(CALIBRATE, logits={}, class_means=heads)
    assert [str(own) for own in rules_for(untrained)] == ["confidence(class_means)", "patience"]


def test_each_sample_is_judged_by_what_was_fitted_without_it() -> None:
    judge = Calibration(CALIBRATE, COSTS, MACS)
    found = _cross_validated(rule("margin"), judge, seed=3)
    assert found is not None
    seen = np.zeros(len(CALIBRATE), int)
    for fitting, judging in _folds(len(CALIBRATE), 3):
        assert not set(fitting) & set(judging)
        seen[judging] += 1
        part = CALIBRATE.rows(judging)
        own = CALIBRATE.rows(fitting)
        policy = fit_policy(rule("margin"), MACS, own, COSTS, seed=3, levels=False).policy
        right = replay(policy, part.outputs(), part.final).correct(part.labels)
        np.testing.assert_array_equal(right, found.right[judging])
    assert (seen == 1).all()


def test_an_accuracy_budget_takes_the_cheapest() -> None:
    found = fit_auto(Budget("accuracy_drop", 0.02), CALIBRATE, COSTS)
    assert found.comparison is not None
    assert found.comparison["compared"] == "cost"
    costs = [row["cost"] for row in found.comparison["candidates"] if row["kept"]]
    assert costs == sorted(costs)
    assert found.point.accuracy_drop <= 0.02


def test_latencies_rank_rules_by_what_their_heads_take() -> None:
    found = fit_auto(Budget("latency", 7e-3), CALIBRATE, COSTS)
    assert found.comparison is not None
    assert found.comparison["quantity"] == "latency"
    assert found.point.at_most["latency"] <= 7e-3


def test_what_cannot_keep_the_budget_is_left_out() -> None:
    found = fit_auto(Budget("macs", 0.4), CALIBRATE, COSTS)
    assert found.comparison is not None
    left_out = {row["rule"]: row for row in found.comparison["candidates"] if row["why"]}
    assert left_out["patience"]["why"] == "cannot keep the budget"
    assert left_out["patience"]["strictest"] > 0.4
    assert "    patience" in "\n".join(comparison_lines(found.comparison))


def test_where_none_can_the_range_in_reach_is_named() -> None:
    with pytest.raises(CompileErrors) as raised:
        fit_auto(Budget("macs", 0.1), CALIBRATE, COSTS)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.id == "infeasible-budget"
    assert "is 21 %" in diagnostic.notes[0]
    assert "the whole network costs 100 %" in diagnostic.notes[1]


def test_a_rule_that_is_best_by_far_is_found() -> None:
    """Logits whose scale is noise: how sure a head is says nothing, what it says is right."""
    generator = np.random.default_rng(0)
    count = 1200
    labels = generator.integers(0, 5, count)
    sure = generator.random(count) < 0.6
    wrong = (labels + 1 + generator.integers(0, 4, count)) % 5
    said = np.where(sure, labels, np.where(generator.random(count) < 0.5, labels, wrong))
    logits = np.eye(5)[said] * generator.uniform(1, 9, (count, 1))
    means = np.eye(5)[said] * np.where(sure, 9.0, 1.0)[:, None]
    final = np.eye(5)[labels] * 9
    record = CalibrateRecord(
        ("early",),
        labels,
        final.astype(np.float32),
        {},
        {"early": logits.astype(np.float32)},
        {"early": means.astype(np.float32)},
    )
    costs = {"macs": replace(COSTS["macs"], segments=(0.3, 0.7), heads=(0.01,))}
    found = fit_auto(Budget("macs", 0.65), record, costs)
    assert found.comparison is not None
    assert "class_means" in found.comparison["chosen"]
    behind = {row["rule"]: row["behind"] for row in found.comparison["candidates"]}
    assert behind["confidence(max_softmax)"]["low"] > 0.02


def test_the_same_seed_chooses_the_same(chosen) -> None:  # type: ignore[no-untyped-def]
    again = fit_auto(MACS, CALIBRATE, COSTS)
    assert again.comparison == chosen.comparison
    assert to_json(again.policy) == to_json(chosen.policy)


def test_the_choice_is_told_line_by_line(chosen) -> None:  # type: ignore[no-untyped-def]
    first, *lines = comparison_lines(chosen.comparison)
    assert first.endswith(chosen.comparison["chosen"])
    assert len(lines) == len(chosen.comparison["candidates"])
    assert "behind" not in lines[0]
    assert "points" in lines[1]
