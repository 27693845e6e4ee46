"""Each rule by itself, on outputs small enough to follow by hand."""

from math import inf
from typing import Any

import numpy as np
import pytest

from eecompile.policies import (
    EXIT,
    ClassMeansPolicy,
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    HaltedPolicy,
    LearnedScorePolicy,
    NeverPolicy,
    PatiencePolicy,
    PredictedPolicy,
    SpendingLimit,
    SplitCosts,
    SplitPolicy,
    ThresholdPolicy,
    UcbOptions,
    from_json,
    to_json,
)
from eecompile.policies.points import OperatingPoint, cheapest, most_accurate
from eecompile.policies.scores import SCORES, entropy, margin, max_softmax


def f32(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def logits(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


SURE, UNSURE = [0.9, 0.06, 0.04], [0.4, 0.35, 0.25]


@pytest.mark.parametrize("score", SCORES)
def test_scores_rank_a_sure_answer_above_an_unsure_one(score: str) -> None:
    sure, unsure = SCORES[score](logits(SURE, UNSURE))
    assert 0 <= unsure < sure <= 1


def test_scores_equal_their_definitions() -> None:
    p = np.array([SURE, UNSURE])
    z = logits(SURE, UNSURE)
    np.testing.assert_allclose(max_softmax(z), p.max(1), rtol=1e-6)
    np.testing.assert_allclose(margin(z), [0.84, 0.05], rtol=1e-5)
    np.testing.assert_allclose(
        entropy(z), 1 + (p * np.log(p)).sum(1) / np.log(3), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_one_sample_have_the_bits_they_have_in_a_batch(score: str) -> None:
    z = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32) * 5
    together = SCORES[score](z)
    alone = np.concatenate([SCORES[score](z[i : i + 1]) for i in range(len(z))])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("score", SCORES)
def test_scores_stay_finite_for_huge_logits(score: str) -> None:
    z = f32([[1e38, -1e38, 0], [1e30, 1e30, 1e30]])
    assert np.isfinite(SCORES[score](z)).all()


def test_a_threshold_is_reached_by_a_score_that_equals_it() -> None:
    z = logits([0.5, 0.5])
    at = float(max_softmax(z)[0])
    assert ThresholdPolicy("max_softmax", [at]).decide(0, ExitOutputs(z), None).tolist() == [EXIT]
    above = float(np.nextafter(np.float32(at), np.float32(1)))
    assert ThresholdPolicy("max_softmax", [above]).decide(0, ExitOutputs(z), None).tolist() == [1]


def test_an_exit_out_of_reach_is_not_evaluated() -> None:
    policy = ThresholdPolicy("max_softmax", [inf, 0.8, inf])
    assert policy.first() == 1
    decisions = policy.decide(1, ExitOutputs(logits(SURE, UNSURE)), None)
    assert decisions.tolist() == [EXIT, 3]


def test_class_means_decide_and_answer_by_the_comparator() -> None:
    policy = ClassMeansPolicy([0.8])
    outputs = ExitOutputs(logits(UNSURE, SURE), logits(SURE, UNSURE))
    assert policy.decide(0, outputs, None).tolist() == [EXIT, 1]
    assert policy.answer(0, outputs) is outputs.class_means


def test_class_means_never_leave_where_there_is_no_comparator() -> None:
    assert ClassMeansPolicy([0.0]).decide(0, ExitOutputs(logits(SURE)), None).tolist() == [1]


def test_patience_counts_confirmations_in_a_row() -> None:
    policy = PatiencePolicy(2, 5)
    state = policy.start(1)
    answers = [0, 0, 1, 1, 1]
    seen = [np.eye(2, dtype=np.float32)[[answer]] for answer in answers]
    decisions = [int(policy.decide(k, ExitOutputs(z), state)[0]) for k, z in enumerate(seen)]
    assert decisions == [1, 2, 3, 4, EXIT]


def test_patience_keeps_the_state_of_those_that_stay() -> None:
    policy = PatiencePolicy(1, 3)
    state = policy.start(3)
    policy.decide(0, ExitOutputs(np.eye(3, dtype=np.float32)), state)
    assert policy.select(state, np.array([2])).tolist() == [[2, 0]]


def test_either_leaves_where_one_rule_would_and_evaluates_what_one_wants() -> None:
    policy = EitherPolicy(
        [ClassMeansPolicy([inf, 0.8]), ThresholdPolicy("max_softmax", [0.8, inf])]
    )
    assert policy.first() == 0
    state = policy.start(2)
    outputs = ExitOutputs(logits(SURE, UNSURE), logits(SURE, SURE))
    assert policy.decide(0, outputs, state).tolist() == [EXIT, 1]
    assert policy.decide(1, outputs, state).tolist() == [EXIT, EXIT]
    assert policy.answer(1, outputs) is outputs.logits


POLICIES = [
    ThresholdPolicy("entropy", [0.25, inf, 0.7]),
    ClassMeansPolicy([inf, 0.1, 0.2]),
    PatiencePolicy(2, 3),
    NeverPolicy(3, gate_shift=-0.5),
    PredictedPolicy([2.0, inf, 3.0], 0, 2, forecast="fitted", limits=[[inf], None, [0.0]]),
    EitherPolicy([ClassMeansPolicy([0.5, inf, 0.1]), ThresholdPolicy("margin", [0.9, 0.8, 0.7])]),
    # Weights of 2 probabilities, 5 measures and 2 earlier scores, an exit each.
    LearnedScorePolicy([None, [0.5, 0, 0, 0, 0, 1, 0, 0.25, 0]], [inf, 0.5]),
    SplitPolicy(
        *("margin", [0.5, inf], [0]), SplitCosts((0.5, 0.8, 1.0), (0.1, 0.1), 0.3), UcbOptions()
    ),
    HaltedPolicy(PatiencePolicy(1, 2), [SpendingLimit(0.7, [0.5, 0.2, 0.3], [0.1, 0.0])]),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_policies_survive_json(policy: ExitPolicy) -> None:
    import json

    again = from_json(json.loads(json.dumps(to_json(policy), allow_nan=False)))
    assert type(again) is type(policy)
    assert to_json(again) == to_json(policy)
    assert again.first() == policy.first()


def test_every_kind_of_policy_is_tried_here() -> None:
    # Other tests bring policies of their own, which register themselves too.
    shipped = {k for k, p in ExitPolicy.kinds.items() if p.__module__.startswith("eecompile.")}
    assert {policy.kind for policy in POLICIES} == shipped


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": "psychic"},
        {"kind": "threshold"},
        {"kind": "patience", "count": None},
        {"kind": "patience", "count": 1, "exits": 10**9},
    ],
    ids=str,
)
def test_json_of_no_policy_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="polic"):
        from_json(value)


def test_operating_points_are_chosen_by_what_they_are_sure_to_keep() -> None:
    points = [
        OperatingPoint(
            {"kind": "never", "exits": n}, accuracy, drop, {"macs": m}, {"macs": m + 0.1}
        )
        for n, (accuracy, drop, m) in enumerate([(0.8, 0.1, 0.3), (0.9, 0.02, 0.5), (0.92, 0, 0.9)])
    ]
    assert most_accurate(points, "macs", 0.7) is points[1]
    assert most_accurate(points, "macs", 0.35) is None
    assert most_accurate(points, "latency", 1.0) is None
    assert cheapest(points, "macs", 0.05) is points[1]
    assert cheapest(points, "macs", -0.01) is None
    assert OperatingPoint.from_json(points[0].to_json()) == points[0]
    assert points[1].make().first() == 1
