"""One knob and a start are fitted to a budget on calibration data, and the limits of forecasts."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import inf
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.fitted_policy import Calibration, FittedPolicy
from eecompile.forecast_limits import forecast_limits
from eecompile.forecast_report import forecast_hits, forecast_report
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.policies import (
    ExitPolicy,
    NeverPolicy,
    PatiencePolicy,
    PredictedPolicy,
    replay,
    to_json,
)
from eecompile.policy_fitting import fit_policy
from eecompile.predicted_fitting import (
    _Fitting,
    _Setting,
    followed,
    given_predicted,
    scales,
)
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord
from eecompile.spec import Budget, Name, Rule, RuleTerm, Value

EXITS = tuple(f"e{k}" for k in range(1, 9))
COSTS = {
    "macs": ExitCosts((0.1,) * 8 + (0.2,), (0.002,) * 8, 1.0),
    "latency": ExitCosts((1e-3,) * 8 + (2e-3,), (1e-4,) * 8, 1e-2),
}
R = TypeVar("R", bound=Record)


def made(kind: type[R], seed: int, shift: float = 0.0, count: int = 1500) -> R:
    """A network whose exits see the class through noise that shrinks with depth."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, count)
    hardness = generator.exponential(size=(count, 1))
    common = generator.normal(size=(count, 5))

    def scores(noise: float) -> np.ndarray:
        # Exits of one network err alike.
        own = (common + 0.3 * generator.normal(size=(count, 5))) * noise * hardness
        logits = 6 * (np.eye(5)[labels] + own) / (1 + noise)
        centred = logits - logits.mean(axis=1, keepdims=True) + shift
        found: np.ndarray = centred.astype(np.float32)
        return found

    logits = {
        name: scores(noise) for name, noise in zip(EXITS, np.linspace(2.4, 0.5, 8), strict=True)
    }
    return kind(EXITS, labels, scores(0.3), {}, logits, {})


CALIBRATE, TEST = made(CalibrateRecord, 1), made(TestRecord, 2)
SHIFTED = made(CalibrateRecord, 1, shift=2.0)


def term(**options: Value) -> RuleTerm:
    words = {k: Name(v) if isinstance(v, str) else v for k, v in options.items()}
    return RuleTerm("predicted", None, words)


def fitted(
    budget: Budget | None, record: CalibrateRecord = CALIBRATE, **options: Value
) -> FittedPolicy:
    return fit_policy(Rule((term(**options),)), budget, record, COSTS)


def heads(policy: ExitPolicy, record: Record = TEST) -> float:
    return float(replay(policy, record.outputs(), record.final).evaluated.sum(axis=1).mean())


@pytest.mark.parametrize("forecast", ["fitted", "class_order", "sorted"])
@pytest.mark.parametrize("limit", [0.5, 0.7])
def test_a_cost_budget_is_kept_with_a_margin_and_used_up(forecast: str, limit: float) -> None:
    found = fitted(Budget("macs", limit), forecast=forecast)
    assert isinstance(found.policy, PredictedPolicy)
    assert limit - 0.02 < found.point.at_most["macs"] <= limit
    assert evaluate(found.policy, TEST, COSTS).missed_by(Budget("macs", limit)) == 0


def test_latency_budgets_are_in_seconds() -> None:
    found = fitted(Budget("latency", 6e-3))
    assert 5.8e-3 < found.point.at_most["latency"] <= 6e-3


def test_an_accuracy_budget_saves_cost_and_holds() -> None:
    found = fitted(Budget("accuracy_drop", 0.02))
    assert found.point.accuracy_drop <= 0.02
    assert found.point.costs["macs"] < 0.9
    assert evaluate(found.policy, TEST, COSTS).missed_by(Budget("accuracy_drop", 0.03)) == 0


def test_no_budget_means_half_a_percent() -> None:
    assert fitted(None).point == fitted(Budget("accuracy_drop", 0.005)).point


def test_forecasts_halve_the_heads_at_the_accuracy_and_cost_of_all_in_order() -> None:
    budget = Budget("macs", 0.5)
    ours, in_order = fitted(budget), fitted(budget, window=1)
    assert heads(ours.policy) <= 0.5 * heads(in_order.policy)
    accuracies = [evaluate(f.policy, TEST, COSTS).accuracy.value for f in (ours, in_order)]
    assert accuracies[0] >= accuracies[1] - 0.002


def test_fitted_forecasts_are_right_more_often_than_others_and_than_the_windows_end() -> None:
    rates = {}
    for forecast in ("fitted", "class_order", "sorted"):
        found = fitted(None, start="e2", beta=2.0, window=4, forecast=forecast).policy
        assert isinstance(found, PredictedPolicy)
        hits = {hit.exit: hit for hit in forecast_hits(found, TEST.outputs())}[1]
        rates[forecast] = hits.hits / hits.staying
        always = hits.beyond / hits.staying
    assert rates["fitted"] > max(rates["class_order"], rates["sorted"], always - 0.02)


def test_points_for_other_budgets_rise_in_cost_and_end_with_never() -> None:
    points = fitted(Budget("macs", 0.6)).points
    costs = [point.costs["macs"] for point in points]
    assert len(points) > 4
    assert costs == sorted(costs)
    assert isinstance(points[-1].make(), NeverPolicy)
    assert all(isinstance(point.make(), PredictedPolicy) for point in points[:-1])


def test_what_is_given_stays() -> None:
    found = fitted(Budget("macs", 0.7), start="e3", window=3).policy
    assert isinstance(found, PredictedPolicy)
    assert (found.first(), found.window) == (2, 3)
    found = fitted(Budget("macs", 0.7), beta=2.5).policy
    assert isinstance(found, PredictedPolicy)
    assert set(found.thresholds) == {2.5}
    both = fitted(None, start="e3", beta=2.5)
    assert both.points == ()
    assert isinstance(both.policy, PredictedPolicy)
    assert (both.policy.first(), set(both.policy.thresholds)) == (2, {2.5})
    with pytest.raises(CompileErrors, match="No setting of the policy keeps"):
        fitted(Budget("macs", 0.2), start="e3", beta=2.5)


def test_an_infeasible_budget_names_what_can_be_reached() -> None:
    with pytest.raises(CompileErrors) as raised:
        fitted(Budget("macs", 0.05))
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.id == "infeasible-budget"
    # All leave at the first exit: its segment and its head.
    assert "is 10.2 %" in diagnostic.notes[0]


@pytest.mark.parametrize("kind", [FitRecord, TestRecord])
def test_nothing_is_fitted_on_data_that_is_not_for_calibration(kind: type[Record]) -> None:
    with pytest.raises(InternalError, match=kind.__name__):
        fit_policy(Rule((term(),)), None, made(kind, 1, count=50), COSTS)  # type: ignore[arg-type]


def test_the_published_scale_is_the_mean_logit_and_needs_one() -> None:
    found = fitted(None, SHIFTED, scale="mean_logit", beta=3.0, start="e1", forecast="class_order")
    assert isinstance(found.policy, PredictedPolicy)
    means = [abs(float(SHIFTED.logits[e].mean(dtype=np.float64))) for e in EXITS]
    assert found.policy.thresholds == tuple(3.0 * mean for mean in means)
    assert (found.policy.activation, found.policy.kind_of_forecast) == ("logits", "class_order")
    with pytest.raises(CompileErrors) as raised:
        fitted(None, scale="mean_logit")
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.id, diagnostic.help) == ("bad-option", "use `scale: probability`")


def test_the_mean_is_taken_with_its_signs() -> None:
    rows = {"a": [[1, -4], [2, -5]], "c": [[1, 1], [1, 1]]}
    logits = {name: np.array(own, np.float32) for name, own in rows.items()}
    record = CalibrateRecord(("a", "b", "c"), np.zeros(2, int), logits["a"], {}, logits, {})
    assert scales("mean_logit", record) == [1.5, inf, 1.0]
    assert scales("probability", record) == [1.0, inf, 1.0]


def test_exits_without_trained_heads_are_left_out() -> None:
    logits = {name: CALIBRATE.logits[name] for name in EXITS if name != "e4"}
    means = {"e4": CALIBRATE.logits["e4"]}
    record = CalibrateRecord(EXITS, CALIBRATE.labels, CALIBRATE.final, {}, logits, means)
    policy = fitted(Budget("macs", 0.7), record).policy
    assert isinstance(policy, PredictedPolicy)
    assert policy.thresholds[3] == inf
    assert not replay(policy, record.outputs(), record.final).evaluated[:, 3].any()


@pytest.mark.parametrize("forecast", ["fitted", "class_order", "sorted"])
def test_the_search_sees_what_the_policy_does(forecast: str) -> None:
    """Decisions recorded once per beta, against the policy itself."""
    setting = _Setting(term(forecast=forecast), CALIBRATE)
    outputs = CALIBRATE.outputs()
    for beta in (0.5, 1.5, 3.0):
        due = setting.recorded(beta)
        for start in (0, 3, 7):
            left, evaluated = followed(start, due, len(EXITS))
            other = replay(setting.policy(start, beta), outputs, CALIBRATE.final)
            np.testing.assert_array_equal(left, other.exit)
            np.testing.assert_array_equal(evaluated, other.evaluated)


def test_the_search_is_not_beaten_by_any_setting_of_its_kind() -> None:
    """Every start, many betas: none saves more within the budget than by noise."""
    budget = Budget("accuracy_drop", 0.02)
    found = fitted(budget)
    judge, setting = Calibration(CALIBRATE, COSTS, budget, 0.95), _Setting(term(), CALIBRATE)
    points = [
        judge.point(setting.policy(start, beta))
        for start in range(8)
        for beta in np.linspace(1, 5, 15)
    ]
    best = judge.best(points)
    assert best is not None
    assert found.point.costs["macs"] <= best.costs["macs"] + 0.01


def brute_force(jumps: np.ndarray, window: int) -> int:
    """The most hits of forecasts that never fall, by trying them all."""
    count = len(jumps)
    return max(
        sum(
            int((jumps[a:b] == jump + 1).sum())
            for jump, (a, b) in enumerate(zip((0, *cuts), (*cuts, count), strict=True))
        )
        for cuts in combinations_with_replacement(range(count + 1), window - 1)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9))
def test_limits_have_the_most_hits_there_can_be(seed: int, window: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    peaks = {k: generator.random(count) * (k + 2) for k in range(4)}
    thresholds = [1.0, 1.5, 2.0, 2.5]
    limits = forecast_limits(peaks, thresholds, window)
    policy = PredictedPolicy(thresholds, 0, window, forecast="fitted", limits=limits)
    for k in range(4):
        staying = np.flatnonzero(peaks[k] < thresholds[k])
        order = staying[np.argsort(-peaks[k][staying])]
        leaves = [
            next((j for j in range(k + 1, 4) if peaks[j][s] >= thresholds[j]), 4) for s in order
        ]
        jumps = np.minimum(np.array(leaves, int) - k, window)
        forecast = policy._forecast.jumps(k, peaks[k][order])
        assert (np.diff(forecast) >= 0).all(), "forecasts rise as the peak falls"
        assert int((forecast == jumps).sum()) == brute_force(jumps, window)


def test_a_rule_that_needs_no_data_is_made_without() -> None:
    policy = given_predicted(
        term(start="b", beta=3, forecast="sorted", window=2), {"a": True, "b": True, "c": False}
    )
    assert to_json(policy) == {
        "kind": "predicted", "thresholds": [3.0, 3.0, None], "start": 1, "window": 2,
        "activation": "probability", "forecast": "sorted",
    }  # fmt: skip


def test_the_report_counts_heads_and_hits() -> None:
    policy = fitted(None, start="e2", beta=2.0).policy
    assert isinstance(policy, PredictedPolicy)
    report = forecast_report(policy, TEST)
    assert report is not None
    assert (report["start"], report["window"]) == ("e2", 8)
    assert report["heads"] == heads(policy)
    assert report["heads_in_order"] == heads(policy.in_order()) > 2 * report["heads"]
    hits = forecast_hits(policy, TEST.outputs())
    assert [row["exit"] for row in report["starts"]] == [EXITS[hit.exit] for hit in hits]
    assert report["starts"][1]["n"] == hits[1].staying
    assert report["starts"][1]["hits"] == hits[1].hits / hits[1].staying
    assert forecast_report(PatiencePolicy(1, 8), TEST) is None


def test_the_knobs_grid_reaches_from_all_leaving_to_nearly_none() -> None:
    judge = Calibration(CALIBRATE, COSTS, Budget("macs", 0.5), 0.95)
    fitting = _Fitting(_Setting(term(), CALIBRATE), [0], None, judge)
    grid = fitting._grid()
    left = [
        float((fitting.setting.policy(0, beta).confident(0, CALIBRATE.outputs()[0])).mean())
        for beta in (grid[0], grid[-1])
    ]
    assert left[0] == 1.0
    assert left[1] < 0.01
