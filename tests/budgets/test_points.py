"""Operating points: choosing another budget later loses nothing against a build for it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from eecompile.fitted_policy import Calibration, FittedPolicy, table_of
from eecompile.outcomes import evaluate
from eecompile.policies import to_json
from eecompile.policies.points import OperatingPoint, OutOfReach, choose
from eecompile.policy_fitting import _Fitting, fit_policy
from eecompile.record import CalibrateRecord
from eecompile.rule_family import families
from eecompile.spec import Budget
from tests.budgets.records import COSTS, RULES, made

CALIBRATE = made(CalibrateRecord, 1)
BUDGETS = {
    "macs": Budget("macs", 0.8),
    "latency": Budget("latency", 7e-3),
    "accuracy drop": Budget("accuracy_drop", 0.02),
}
#: Patience alone has a setting for each count, and no more.
OPEN = [name for name in RULES if name != "patience"]


@cache
def fitted(name: str, budget: Budget) -> FittedPolicy:
    return fit_policy(RULES[name], budget, CALIBRATE, COSTS)


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("built_for", BUDGETS)
def test_another_budget_loses_nothing_against_a_build_for_it(name: str, built_for: str) -> None:
    points = fitted(name, BUDGETS[built_for]).points
    for other in (Budget("macs", 0.6), Budget("latency", 6e-3)):
        rebuilt = fitted(name, other).point
        chosen = choose(points, {other.quantity: other.limit})
        assert chosen.at_most[other.quantity] <= other.limit
        assert chosen.accuracy == pytest.approx(rebuilt.accuracy, abs=0.0011)
        assert chosen.accuracy >= rebuilt.accuracy
    strict = Budget("accuracy_drop", 0.01)
    rebuilt, chosen = fitted(name, strict).point, choose(points, {"accuracy_drop": 0.01})
    assert chosen.accuracy_drop <= 0.01
    assert chosen.costs["macs"] == pytest.approx(rebuilt.costs["macs"], abs=0.005)


@pytest.mark.parametrize("name", RULES)
def test_there_is_a_point_for_every_budget_in_reach(name: str) -> None:
    found = fitted(name, BUDGETS["accuracy drop"])
    least = min(point.at_most["macs"] for point in found.points)
    for percent in range(40, 101, 10):
        if percent / 100 < least:
            assert name == "patience"
            continue
        point = choose(found.points, {"macs": percent / 100})
        assert point.at_most["macs"] <= percent / 100 + 1e-9
        if "patien" not in name and name != "predicted" and percent < 90:
            assert point.at_most["macs"] > percent / 100 - 0.1, "the budget is used up"


@pytest.mark.parametrize("name", RULES)
def test_points_know_every_quantity_and_do_what_they_say(name: str) -> None:
    found = fitted(name, BUDGETS["latency"])
    assert found.point.budget == "mean latency <= 7 ms"
    assert found.point in found.points
    for point in found.points[:: max(1, len(found.points) // 6)]:
        assert set(point.costs) == set(point.at_most) == set(COSTS)
        report = evaluate(point.make(), CALIBRATE, COSTS)
        assert report.accuracy.value == point.accuracy
        for quantity, cost in point.costs.items():
            assert report.costs[quantity].value == pytest.approx(cost, rel=1e-12)
            assert cost <= point.at_most[quantity]


@pytest.mark.parametrize("name", RULES)
def test_points_stand_from_cheap_to_careful_and_none_is_of_no_use(name: str) -> None:
    *points, last = fitted(name, BUDGETS["macs"]).points
    costs = [point.costs["macs"] for point in points]
    assert costs == sorted(costs)
    if "patien" not in name:
        assert last.accuracy_drop == 0
        taken = evaluate(last.make(), CALIBRATE, COSTS).exits
        assert taken[-1][1] == 1.0, "the last never leaves early"
    for one in points:
        for other in points:
            better = one.accuracy >= other.accuracy and one.accuracy_drop <= other.accuracy_drop
            cheaper = all(one.at_most[q] <= other.at_most[q] for q in COSTS)
            less = all(one.costs[q] <= other.costs[q] for q in COSTS)
            assert one is other or not (better and cheaper and less)


@pytest.mark.parametrize("name", [name for name in RULES if name != "predicted"])
def test_the_search_sees_what_the_policy_does(name: str) -> None:
    judge = Calibration(CALIBRATE, COSTS, BUDGETS["macs"])
    for family in families(RULES[name], CALIBRATE):
        fitting = _Fitting(family, judge, 0)
        course = fitting.course("latency")
        for trial, point in list(zip(course.chain, course.points, strict=True))[::5]:
            assert point == judge.point(family.policy(trial.thresholds))


def test_given_thresholds_leave_nothing_to_choose() -> None:
    assert fit_policy(None, None, CALIBRATE, COSTS).points == ()


def point(accuracy: float, macs: float, latency: float = 1.0) -> OperatingPoint:
    costs = {"macs": macs, "latency": latency}
    return OperatingPoint({"at": macs, "s": latency}, accuracy, 0.95 - accuracy, costs, costs)


def test_a_table_keeps_what_some_budget_would_take() -> None:
    last = point(0.95, 1.0)
    slow, quick, poor = point(0.9, 0.5, 0.9), point(0.9, 0.6, 0.4), point(0.89, 0.6, 0.9)
    assert table_of([quick, poor, last, slow, slow], last) == (slow, quick, last)


def test_a_better_and_dearer_point_still_stands_before_the_last() -> None:
    last, dear = point(0.95, 1.0), point(0.96, 1.02)
    assert table_of([last, dear], last) == (dear, last)


@pytest.mark.parametrize(
    ("limits", "accuracy"),
    [
        ({"macs": 0.7}, 0.9),
        ({"macs": 1.0}, 0.95),
        ({"accuracy_drop": 0.06}, 0.9),
        ({"accuracy_drop": 0.06, "latency": 0.5}, 0.9),
        ({"macs": 0.9, "latency": 0.5}, 0.9),
        ({"accuracy_drop": 0.0}, 0.95),
    ],
)
def test_a_budget_chooses_the_best_that_keeps_it(limits: dict[str, float], accuracy: float) -> None:
    points = [point(0.8, 0.3, 0.3), point(0.9, 0.6, 0.4), point(0.95, 1.0)]
    assert choose(points, limits).accuracy == accuracy


def test_rounding_does_not_break_a_budget() -> None:
    assert choose([point(0.9, 0.1 + 0.2)], {"macs": 0.3}).accuracy == 0.9


@pytest.mark.parametrize(
    ("points", "limits", "quantity", "least"),
    [
        ([], {"macs": 0.5}, None, None),
        ([point(0.8, 0.3)], {"macs": 0.2}, "macs", 0.3),
        ([point(0.8, 0.3)], {"energy": 0.2}, "energy", None),
        ([point(0.8, 0.3), point(0.95, 1.0)], {"macs": 0.5, "accuracy_drop": 0.1}, "accuracy_drop",
         pytest.approx(0.15)),
    ],
)  # fmt: skip
def test_a_budget_out_of_reach_says_what_is_in_reach(
    points: list[OperatingPoint], limits: dict[str, float], quantity: str | None, least: object
) -> None:
    with pytest.raises(OutOfReach) as raised:
        choose(points, limits)
    assert (raised.value.quantity, raised.value.least) == (quantity, least)


def test_points_survive_json() -> None:
    for found in fitted("either", BUDGETS["macs"]).points:
        assert OperatingPoint.from_json(found.to_json()) == found
        assert to_json(found.make()) == dict(found.policy)


def test_the_same_seed_gives_the_same_table() -> None:
    one, other = (fit_policy(RULES["softmax"], None, CALIBRATE, COSTS) for _ in range(2))
    assert [p.to_json() for p in one.points] == [p.to_json() for p in other.points]
    assert np.isfinite([p.accuracy_drop for p in one.points]).all()
