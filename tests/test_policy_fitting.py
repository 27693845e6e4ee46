"""Budgets are kept on the calibration data, used up, and never see the test data."""

from math import inf

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.outcomes import ExitCosts, Interval, evaluate, wilson
from eecompile.policies import EitherPolicy, PatiencePolicy, ThresholdPolicy, replay, to_json
from eecompile.policies.points import most_accurate
from eecompile.policy_fitting import FittedPolicy, fit_policy
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord
from eecompile.spec import Budget, Rule, RuleTerm
from tests.budgets.records import EXITS, made

COSTS = {
    "macs": ExitCosts((0.2, 0.3, 0.3, 0.2), (0.01, 0.01, 0.01), 1.0),
    "latency": ExitCosts((2e-3, 3e-3, 3e-3, 2e-3), (2e-4,) * 3, 1e-2),
}
SOFTMAX = Rule((RuleTerm("confidence", "max_softmax"),))
MEANS = Rule((RuleTerm("confidence", "class_means"),))
CALIBRATE = made(CalibrateRecord, 1, 3000)
TEST = made(TestRecord, 2, 3000)


def fitted(rule: Rule, budget: Budget | None, **options: float) -> FittedPolicy:
    return fit_policy(rule, budget, CALIBRATE, COSTS, **options)  # type: ignore[arg-type]


def fitted_limit(quantity: str, limit: float) -> FittedPolicy:
    return fitted(SOFTMAX, Budget(quantity, limit))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.7, 0.9])
def test_a_cost_budget_is_kept_with_a_margin_and_holds_on_unseen_data(limit: float) -> None:
    found = fitted_limit("macs", limit)
    assert found.point.costs["macs"] < found.point.at_most["macs"] <= limit
    report = evaluate(found.policy, TEST, COSTS)
    assert report.missed_by(Budget("macs", limit)) == 0
    assert report.costs["macs"].value == pytest.approx(found.point.costs["macs"], abs=0.03)


def test_more_budget_buys_accuracy() -> None:
    accuracies = [fitted_limit("macs", limit).point.accuracy for limit in (0.25, 0.4, 0.6, 0.8)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > accuracies[0] + 0.05


def test_a_tight_budget_is_used_up() -> None:
    assert fitted_limit("macs", 0.4).point.at_most["macs"] > 0.39


def test_latency_budgets_are_in_seconds() -> None:
    found = fitted_limit("latency", 5e-3)
    assert 4.5e-3 < found.point.at_most["latency"] <= 5e-3


def test_an_accuracy_budget_saves_cost_and_holds() -> None:
    found = fitted_limit("accuracy_drop", 0.01)
    assert found.point.accuracy_drop <= 0.01
    assert found.point.costs["macs"] < 0.9
    assert evaluate(found.policy, TEST, COSTS).missed_by(Budget("accuracy_drop", 0.02)) == 0


def test_no_budget_means_half_a_percent() -> None:
    assert fitted(SOFTMAX, None).point == fitted_limit("accuracy_drop", 0.005).point


def test_no_fixed_quota_beats_the_search() -> None:
    """The same share leaving everywhere, the same threshold everywhere: both are worse."""
    found = fitted_limit("macs", 0.5)
    for threshold in np.linspace(0.3, 0.999, 40):
        policy = ThresholdPolicy("max_softmax", [threshold] * 3)
        replayed = replay(policy, CALIBRATE.outputs(), CALIBRATE.final)
        if COSTS["macs"].of(replayed).mean() <= found.point.costs["macs"]:
            assert replayed.correct(CALIBRATE.labels).mean() <= found.point.accuracy + 0.002


def test_an_infeasible_budget_names_what_can_be_reached() -> None:
    with pytest.raises(CompileErrors) as raised:
        fitted_limit("macs", 0.1)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.id == "infeasible-budget"
    assert "`mean macs <= 10 %`" in diagnostic.message
    # Everything leaves at the first exit: its segment and its head.
    assert "is 21 %" in diagnostic.notes[0]
    assert fitted_limit("macs", 0.2101).point.costs["macs"] == pytest.approx(0.21)


@pytest.mark.parametrize("kind", [FitRecord, TestRecord])
def test_nothing_is_fitted_on_data_that_is_not_for_calibration(kind: type[Record]) -> None:
    with pytest.raises(InternalError, match=kind.__name__):
        fit_policy(SOFTMAX, None, made(kind, 1, 100), COSTS)  # type: ignore[arg-type]


def test_given_thresholds_stay_and_need_no_budget() -> None:
    rule = Rule((RuleTerm("confidence", "entropy", threshold=0.6),))
    found = fitted(rule, None)
    assert to_json(found.policy)["thresholds"] == [0.6] * 3
    assert found.points == ()
    with pytest.raises(CompileErrors, match="infeasible-budget"):
        fitted(rule, Budget("macs", 0.25))


def test_class_means_use_the_exits_that_have_them() -> None:
    found = fitted(MEANS, Budget("macs", 0.7))
    thresholds = to_json(found.policy)["thresholds"]
    assert thresholds[1] is None
    assert evaluate(found.policy, TEST, COSTS).exits[1][1] == 0


def test_a_trained_heads_rule_passes_over_exits_with_class_means_only() -> None:
    bare = CalibrateRecord(
        EXITS,
        CALIBRATE.labels,
        CALIBRATE.final,
        {},
        {"late": CALIBRATE.logits["late"]},
        {**CALIBRATE.class_means, "middle": CALIBRATE.logits["middle"]},
    )
    found = fit_policy(SOFTMAX, Budget("macs", 0.95), bare, COSTS)
    assert to_json(found.policy)["thresholds"][:2] == [None, None]


def test_either_test_may_pass() -> None:
    rule = Rule((RuleTerm("confidence", "class_means"), RuleTerm("confidence", "max_softmax")))
    found = fitted(rule, Budget("macs", 0.5))
    assert isinstance(found.policy, EitherPolicy)
    assert found.point.at_most["macs"] <= 0.5
    assert found.point.accuracy >= fitted_limit("macs", 0.5).point.accuracy - 0.005


def test_patience_is_counted_out() -> None:
    found = fitted(Rule((RuleTerm("patience"),)), Budget("macs", 0.95))
    assert isinstance(found.policy, PatiencePolicy)
    given = fitted(Rule((RuleTerm("patience", options={"count": 2}),)), None)
    assert to_json(given.policy)["count"] == 2


def test_patience_or_confidence_is_replayed_as_it_was_searched() -> None:
    rule = Rule((RuleTerm("patience", options={"count": 2}), RuleTerm("confidence", "margin")))
    found = fitted(rule, Budget("macs", 0.6))
    assert found.point.at_most["macs"] <= 0.6


def test_decisions_off_cost_what_the_backbone_costs() -> None:
    found = fit_policy(None, None, CALIBRATE, COSTS)
    assert found.point.costs == {"macs": pytest.approx(1.0), "latency": pytest.approx(1e-2)}
    assert found.point.accuracy_drop == 0


def test_the_same_seed_gives_the_same_policy() -> None:
    one, other = (fitted_limit("macs", 0.45) for _ in range(2))
    assert to_json(one.policy) == to_json(other.policy)
    assert [p.to_json() for p in one.points] == [p.to_json() for p in other.points]


def test_operating_points_serve_other_budgets() -> None:
    points = fitted_limit("macs", 0.5).points
    chosen = most_accurate(points, "macs", 0.8)
    assert chosen is not None
    assert chosen.accuracy >= fitted_limit("macs", 0.8).point.accuracy - 0.01
    report = evaluate(chosen.make(), CALIBRATE, COSTS)
    assert report.costs["macs"].value == pytest.approx(chosen.costs["macs"])
    assert report.accuracy.value == chosen.accuracy


def test_a_report_is_paired_counted_and_sums_to_one() -> None:
    policy = ThresholdPolicy("max_softmax", [0.9, inf, 0.8])
    report = evaluate(policy, TEST, COSTS)
    replayed = replay(policy, TEST.outputs(), TEST.final)
    right = replayed.labels == TEST.labels
    assert report.accuracy.value == right.mean()
    assert report.accuracy.low < right.mean() < report.accuracy.high
    assert sum(share for _, share, _ in report.exits) == pytest.approx(1)
    assert [name for name, _, _ in report.exits] == [*EXITS, "final"]
    assert report.exits[1] == ("middle", 0.0, None)
    drop = report.full_depth_accuracy.value - report.accuracy.value
    assert report.accuracy_drop.value == pytest.approx(drop)
    # Head 0 is paid by all, head 1 by none, head 2 by those that did not leave first.
    left = replayed.exit
    paid = np.select([left == 0, left == 2], [0.21, 0.82], 1.02)
    assert report.costs["macs"].value == pytest.approx(paid.mean())


def test_what_is_missed_is_told() -> None:
    report = evaluate(ThresholdPolicy("max_softmax", [2.0, 2.0, 2.0]), TEST, COSTS)
    assert report.missed_by(Budget("macs", 0.9)) == pytest.approx(0.13)
    assert report.missed_by(Budget("energy", 1.0)) == 0
    assert report.measured(Budget("energy", 1.0)) is None


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    samples = generator.random((400, 200)) < 0.9
    covered = [w.low <= 0.9 <= w.high for w in (wilson(int(row.sum()), 200) for row in samples)]
    assert 0.92 <= np.mean(covered) <= 0.98
    means = [Interval.of_mean(row.astype(float)) for row in samples]
    assert 0.9 <= np.mean([m.low <= 0.9 <= m.high for m in means]) <= 0.98
