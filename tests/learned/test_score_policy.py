"""A learned score decides alike alone, in a batch and in a replay, and survives JSON."""

import json
from math import inf
from typing import Any

import numpy as np
import pytest

from eecompile.policies import (
    EXIT,
    EitherPolicy,
    ExitOutputs,
    LearnedScorePolicy,
    ThresholdPolicy,
    from_json,
    replay,
    to_json,
)
from eecompile.policies.learned_score import (
    MEASURES,
    MOST_CLASSES,
    features,
    probabilities_used,
)
from eecompile.policies.scores import SCORES

EXITS, COUNT = 3, 120
GENERATOR = np.random.default_rng(1)


def logits(classes: int, count: int = COUNT) -> np.ndarray:
    """From undecided to so sure that the largest probability is 1."""
    strength = GENERATOR.choice([0.1, 1.0, 8.0, 200.0], (count, 1))
    return np.asarray(GENERATOR.normal(size=(count, classes)) * strength, np.float32)


def random_policy(classes: int, thresholds: list[float]) -> LearnedScorePolicy:
    size = probabilities_used(classes) + len(MEASURES)
    weights = []
    for k in range(EXITS):
        before = np.where(np.arange(EXITS) < k, GENERATOR.normal(size=EXITS), 0)
        weights.append([*GENERATOR.normal(size=size), *before])
    return LearnedScorePolicy(weights, thresholds)


def one_measure(name: str, classes: int) -> list[float]:
    row = [0.0] * (probabilities_used(classes) + len(MEASURES) + EXITS)
    row[MEASURES.index(name) - len(MEASURES) - EXITS] = 1.0
    return row


@pytest.mark.parametrize("classes", [2, 3, 10, MOST_CLASSES, 1000])
def test_features_are_finite_and_the_measures_have_their_own_bits(classes: int) -> None:
    values = logits(classes)
    found = features(values)
    used = probabilities_used(classes)
    assert found.dtype == np.float32 and found.shape == (COUNT, used + len(MEASURES))
    assert np.isfinite(found).all()
    for place, name in enumerate(("max_softmax", "entropy", "margin")):
        np.testing.assert_array_equal(found[:, used + place], SCORES[name](values))
    exact = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    shown = exact if classes <= MOST_CLASSES else -np.sort(-exact, 1)[:, :used]
    np.testing.assert_allclose(found[:, :used], shown, atol=1e-6)
    rest = -np.log(np.maximum(1 - exact.max(1), np.exp(-11.5)))
    np.testing.assert_allclose(found[:, used + 3], rest, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_alone_in_batches_and_in_a_replay_every_bit_is_the_same(classes: int) -> None:
    outputs = [ExitOutputs(logits(classes)) for _ in range(EXITS)]
    policy = random_policy(classes, [0.0] * EXITS)
    state = policy.start(COUNT)
    together = [policy.score(k, seen.logits, state) for k, seen in enumerate(outputs)]
    medians = [float(np.median(score)) for score in together]
    policy = LearnedScorePolicy(policy.weights, medians)
    for n in range(COUNT):
        own = policy.start(1)
        for k, seen in enumerate(outputs):
            (score,) = policy.score(k, seen.logits[n : n + 1], own)
            assert score == together[k][n]
    expected = replay(policy, outputs, logits(classes))
    assert len(np.unique(expected.exit)) == EXITS + 1
    for k, score in enumerate(together):
        reached = expected.exit >= k
        left = score >= np.float32(policy.thresholds[k])
        np.testing.assert_array_equal((expected.exit == k)[reached], left[reached])


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_single_weight_is_the_measure_itself(name: str) -> None:
    outputs = [ExitOutputs(logits(10)) for _ in range(EXITS)]
    final = logits(10)
    thresholds = [0.9, inf, 0.5]
    row = one_measure(name, 10)
    learned = LearnedScorePolicy([row, None, row], thresholds)
    assert learned.start(5) is None
    one, other = (
        replay(policy, outputs, final) for policy in (learned, ThresholdPolicy(name, thresholds))
    )
    np.testing.assert_array_equal(one.exit, other.exit)
    np.testing.assert_array_equal(one.evaluated, other.evaluated)


def test_scores_of_exits_that_do_not_run_are_nothing() -> None:
    """The third exit's score is the first one's: 0 for all where the first has no threshold."""
    size = probabilities_used(2) + len(MEASURES)
    look_back = [*[0.0] * size, 1.0, 0.0, 0.0]
    first = one_measure("max_softmax", 2)
    outputs = [ExitOutputs(np.array([[0, 4], [0, 0.1]], np.float32))] * EXITS
    final = np.zeros((2, 2), np.float32)
    running = LearnedScorePolicy([first, None, look_back], [1.5, inf, 0.9])
    assert replay(running, outputs, final).exit.tolist() == [2, 3]
    assert replay(running, outputs, final).evaluated.tolist() == [[True, False, True]] * 2
    skipped = LearnedScorePolicy([first, None, look_back], [inf, inf, 0.9])
    assert skipped.first() == 2
    assert replay(skipped, outputs, final).exit.tolist() == [3, 3]


def test_json_gives_an_equal_policy() -> None:
    policy = random_policy(10, [0.5, inf, 0.25])
    again = from_json(json.loads(json.dumps(to_json(policy))))
    assert isinstance(again, LearnedScorePolicy)
    assert to_json(again) == to_json(policy)
    outputs = [ExitOutputs(logits(10)) for _ in range(EXITS)]
    one, other = (replay(p, outputs, logits(10)) for p in (policy, again))
    np.testing.assert_array_equal(one.exit, other.exit)


def test_beside_another_rule_an_exit_without_weights_is_passed() -> None:
    learned = LearnedScorePolicy([None, one_measure("margin", 10), None], [inf, 2.0, inf])
    other = ThresholdPolicy("max_softmax", [2.0, 2.0, 2.0])
    policy = EitherPolicy([learned, other])
    outputs = ExitOutputs(logits(10, 4))
    assert policy.decide(0, outputs, policy.start(4)).tolist() == [1] * 4
    assert learned.decide(1, ExitOutputs(np.eye(4, 10, dtype=np.float32)), None)[0] != EXIT


@pytest.mark.parametrize(
    ("weights", "thresholds", "told"),
    [
        ([None], [0.5], "threshold and no weights"),
        ([[1.0] * 12], [0.5, 0.5], "1 rows of weights for 2 exits"),
        ([[1.0] * 3], [0.5], "no row of numbers"),
        ([[float("nan")] * 12], [0.5], "no row of numbers"),
        ([[1.0] * 12], [0.5], "not there yet"),
    ],
)
def test_damaged_weights_are_refused(weights: Any, thresholds: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LearnedScorePolicy(weights, thresholds)
