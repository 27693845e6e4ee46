"""A learned score finds what is there to be found and keeps budgets of every kind."""

from dataclasses import replace
from functools import cache
from typing import TypeVar

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.fitted_policy import FittedPolicy
from eecompile.learned.candidates import candidates, schedule_candidate
from eecompile.learned.scores import CONFIDENCES, Seen, measure_weights, played
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.policies import LearnedScorePolicy, replay
from eecompile.policies.points import choose
from eecompile.policies.scores import SCORES
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord, Record, TestRecord
from eecompile.spec import Budget, Name, Rule, RuleTerm
from tests.budgets.records import COSTS, EXITS, made

R = TypeVar("R", bound=Record)

MODES = ("search", "quota")
ALL_COSTS = {
    **COSTS,
    "energy": ExitCosts((2e-4, 8e-4, 4e-4, 6e-4), (1e-4, 2e-5, 6e-5), 2e-3, "modelled"),
}
CALIBRATE, TEST = made(CalibrateRecord, 1, 800), made(TestRecord, 2, 6000)


def learned(mode: str, restarts: int = 1) -> Rule:
    return Rule(
        (RuleTerm("learned_score", None, {"thresholds": Name(mode), "restarts": restarts}),)
    )


@cache
def fitted(mode: str, quantity: str, limit: float, levels: bool = False) -> FittedPolicy:
    budget = Budget(quantity, limit)  # type: ignore[arg-type]
    return fit_policy(learned(mode), budget, CALIBRATE, ALL_COSTS, levels=levels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("quantity", "limit"),
    [("macs", 0.35), ("macs", 0.6), ("latency", 6e-3), ("energy", 1.2e-3)],
)
def test_a_cost_budget_is_used_up_and_holds_on_the_held_out_half(
    mode: str, quantity: str, limit: float
) -> None:
    found = fitted(mode, quantity, limit)
    assert 0.97 * limit < found.point.at_most[quantity] <= limit
    report = evaluate(found.policy, TEST, ALL_COSTS)
    assert report.missed_by(Budget(quantity, limit)) == 0  # type: ignore[arg-type]
    assert report.costs[quantity].value > 0.9 * limit


@pytest.mark.parametrize("mode", MODES)
def test_an_accuracy_budget_saves_and_holds(mode: str) -> None:
    found = fitted(mode, "accuracy_drop", 0.02)
    assert found.point.accuracy_drop <= 0.02
    assert found.point.costs["macs"] < (0.8 if mode == "search" else 0.9)
    assert evaluate(found.policy, TEST, ALL_COSTS).accuracy_drop.value <= 0.02


@pytest.mark.parametrize("mode", MODES)
def test_points_say_what_their_policies_cost_to_the_bit(mode: str) -> None:
    found = fitted(mode, "macs", 0.6, levels=True)
    for point in found.points:
        replayed = replay(point.make(), CALIBRATE.outputs(), CALIBRATE.final)
        for name, cost in ALL_COSTS.items():
            assert point.costs[name] == float(cost.of(replayed).mean())


@pytest.mark.parametrize("mode", MODES)
def test_there_is_a_point_for_every_tenth_of_the_range(mode: str) -> None:
    points = fitted(mode, "macs", 0.6, levels=True).points
    accuracies = []
    for percent in range(40, 101, 10):
        point = choose(points, {"macs": percent / 100})
        assert point.policy["kind"] == "learned_score"
        assert point.at_most["macs"] <= percent / 100
        held_out = evaluate(point.make(), TEST, ALL_COSTS)
        assert held_out.costs["macs"].value <= percent / 100
        accuracies.append(held_out.accuracy.value)
    assert accuracies[0] < accuracies[2] - 0.01
    assert points[-1].costs["macs"] == 1.0


@pytest.mark.parametrize("name", CONFIDENCES)
@pytest.mark.parametrize("limit", [0.35, 0.5, 0.7])
def test_never_much_worse_than_a_measure(name: str, limit: float) -> None:
    budget = Budget("macs", limit)
    rule = Rule((RuleTerm("confidence", name),))
    other = fit_policy(rule, budget, CALIBRATE, ALL_COSTS, levels=False)
    one, best = (
        evaluate(f.policy, TEST, ALL_COSTS).accuracy.value
        for f in (fitted("search", "macs", limit), other)
    )
    # Two standard errors of 6,000 samples of which 3 % go another way.
    assert one >= best - 2 * np.sqrt(0.03 / len(TEST))


def told(kind: type[R], seed: int, count: int = 2000) -> R:
    """Two classes are always right at the first exit, two never; all look equally sure.

    Their confidence tells nothing, their class everything.
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    answers = np.where(labels < 2, labels, 5 - labels)  # 2 and 3 are taken for each other
    spread = generator.uniform(1, 6, (count, 1))
    early = (np.eye(4)[answers] * spread).astype(np.float32)
    return kind(
        ("early",), labels, (np.eye(4)[labels] * 8).astype(np.float32), {}, {"early": early}
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_only_the_class_tells_is_learned(mode: str) -> None:
    """Leaving with the easy classes costs half of the network for half of the samples."""
    costs = {"macs": ExitCosts((0.5, 0.5), (0.0,), 1.0)}
    calibrate, test = told(CalibrateRecord, 1), told(TestRecord, 2)
    found = fit_policy(learned(mode), Budget("macs", 0.8), calibrate, costs, levels=False)
    assert evaluate(found.policy, test, costs).accuracy.value > 0.99
    plain = Rule((RuleTerm("confidence", "max_softmax"),))
    other = fit_policy(plain, Budget("macs", 0.8), calibrate, costs, levels=False)
    assert evaluate(other.policy, test, costs).accuracy.value < 0.9


def test_points_are_told_by_samples_their_weights_had_no_part_in() -> None:
    """Nothing tells which answers are right: what 60 samples seem to tell is not believed."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    logits = generator.normal(size=(60, 2)).astype(np.float32)
    final = (9 * np.eye(2)[labels]).astype(np.float32)
    record = CalibrateRecord(("early",), labels, final, {}, {"early": logits})
    seen = Seen.of(record)
    right = seen.right[:, 0]

    def told_apart(score: np.ndarray) -> float:
        return float((score[right][:, None] > score[~right]).mean())

    for score in (
        next(one for one in candidates(seen, 0) if one.name == "gain"),
        schedule_candidate(seen, np.array([0.5, 1.0]), 0.75, 1, 0),
    ):
        assert told_apart(score.judged[0]) < told_apart(score.scores[0]) - 0.02


def test_equal_seeds_give_equal_fits() -> None:
    budget = Budget("macs", 0.5)
    one, other = (
        fit_policy(learned(mode), budget, CALIBRATE, COSTS, seed=3, levels=False)
        for mode in ("search", "search")
    )
    assert one.point == other.point


def test_measures_among_the_candidates_are_the_measures() -> None:
    seen = Seen.of(CALIBRATE)
    for name in CONFIDENCES:
        for score, outputs in zip(
            played(measure_weights(name, seen), seen), seen.outputs, strict=True
        ):
            np.testing.assert_array_equal(score, SCORES[name](outputs.logits))
    assert {one.name for one in candidates(seen, 0)} == {*CONFIDENCES, "right", "gain"}


def test_exits_with_class_means_only_are_never_taken() -> None:
    record = replace(CALIBRATE, logits={k: v for k, v in CALIBRATE.logits.items() if k != "late"})
    for mode in MODES:
        found = fit_policy(learned(mode), Budget("macs", 0.6), record, COSTS, levels=False)
        assert isinstance(found.policy, LearnedScorePolicy)
        assert found.policy.thresholds[EXITS.index("late")] == float("inf")
        assert found.policy.weights[EXITS.index("late")] is None


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_out_of_reach_names_what_can_be_kept(mode: str) -> None:
    with pytest.raises(CompileErrors) as raised:
        fitted(mode, "macs", 0.1)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.id == "infeasible-budget"
    assert "is 21 %" in diagnostic.notes[0]


@pytest.mark.parametrize(
    ("record", "expected"),
    [(made(CalibrateRecord, 1, 30), "too-few-samples"), (None, "one-class")],
)
def test_data_nothing_can_be_fitted_on_are_refused(
    record: CalibrateRecord | None, expected: str
) -> None:
    record = record or replace(CALIBRATE, labels=np.zeros_like(CALIBRATE.labels))
    with pytest.raises(CompileErrors) as raised:
        fit_policy(learned("search"), Budget("macs", 0.5), record, COSTS)
    assert expected in {diagnostic.id for diagnostic in raised.value.diagnostics}
