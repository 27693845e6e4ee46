"""Replay against a loop that does to one sample at a time what the runtime does."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.policies import (
    EXIT,
    ClassMeansPolicy,
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    NeverPolicy,
    PatiencePolicy,
    ThresholdPolicy,
    replay,
)


def f32(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def naive(
    policy: ExitPolicy, exits: Sequence[ExitOutputs], final: np.ndarray
) -> tuple[list[int], np.ndarray, np.ndarray]:
    left, answers = [], []
    evaluated = np.zeros((len(final), len(exits)), bool)
    for n in range(len(final)):
        state, k = policy.start(1), policy.first()
        answer = final[n]
        while k < len(exits):
            seen = exits[k]
            means = seen.class_means
            one = ExitOutputs(seen.logits[n : n + 1], None if means is None else means[n : n + 1])
            evaluated[n, k] = True
            decision = int(policy.decide(k, one, state)[0])
            if decision == EXIT:
                answer = policy.answer(k, one)[0]
                break
            state, k = policy.select(state, np.array([0])), decision
        left.append(k)
        answers.append(answer)
    return left, np.array(answers), evaluated


class JumpPolicy(ExitPolicy):
    """Samples go to different exits next and remember where they have been."""

    kind: ClassVar[str] = "test-jump"

    def start(self, count: int) -> Any:
        return np.zeros(count, np.int64)

    def select(self, state: Any, kept: np.ndarray) -> Any:
        return state[kept]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        answers = outputs.logits.argmax(axis=1)
        state += answers + index
        jump = np.minimum(index + 1 + answers % 2, 4)
        return np.where(state % 5 == 4, EXIT, jump)

    def parameters(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "JumpPolicy":
        return cls()


ExitPolicy.kinds.pop(JumpPolicy.kind)  # Known to this file only.

thresholds = st.lists(
    st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.7, float("inf")]), min_size=4, max_size=4
)
policies = st.one_of(
    st.builds(ThresholdPolicy, st.sampled_from(["max_softmax", "entropy", "margin"]), thresholds),
    st.builds(ClassMeansPolicy, thresholds),
    st.builds(PatiencePolicy, st.integers(1, 3), st.just(4)),
    st.builds(NeverPolicy, st.just(4)),
    st.builds(
        lambda a, b, count: EitherPolicy(
            [ClassMeansPolicy(a), ThresholdPolicy("margin", b), PatiencePolicy(count, 4)]
        ),
        thresholds,
        thresholds,
        st.integers(1, 3),
    ),
    st.builds(JumpPolicy),
)


@settings(max_examples=80, deadline=None)
@given(policies, st.integers(0, 2**32 - 1))
def test_replay_equals_one_sample_at_a_time(policy: ExitPolicy, seed: int) -> None:
    generator = np.random.default_rng(seed)

    def scores() -> np.ndarray:
        return generator.normal(size=(40, 3)).astype(np.float32)

    exits = [ExitOutputs(scores(), scores() if k != 2 else None) for k in range(4)]
    final = scores()
    replayed = replay(policy, exits, final)
    left, answers, evaluated = naive(policy, exits, final)
    assert replayed.exit.tolist() == left
    assert replayed.logits.tobytes() == answers.tobytes()
    assert (replayed.evaluated == evaluated).all()


def test_replay_reports_shares_and_right_answers() -> None:
    exits = [ExitOutputs(f32([[9, 0], [0.1, 0], [0, 9], [0, 0.1]]))]
    final = f32([[0, 1], [0, 1], [1, 0], [1, 0]])
    replayed = replay(ThresholdPolicy("max_softmax", [0.9]), exits, final)
    assert replayed.fractions().tolist() == [0.5, 0.5]
    assert replayed.labels.tolist() == [0, 1, 1, 0]
    assert replayed.correct(np.array([0, 1, 0, 1])).tolist() == [True, True, False, False]


def test_replay_leaves_the_recorded_logits_alone() -> None:
    final = np.zeros((3, 2), np.float32)
    exits = [ExitOutputs(np.ones((3, 2), np.float32))]
    replay(ThresholdPolicy("max_softmax", [0.0]), exits, final)
    assert not final.any()


@pytest.mark.parametrize("exits", [0, 3])
def test_decisions_off_gives_the_networks_own_answers_and_evaluates_nothing(exits: int) -> None:
    final = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    outputs = [ExitOutputs(final + 1)] * exits
    replayed = replay(NeverPolicy(exits), outputs, final)
    assert replayed.logits.tobytes() == final.tobytes()
    assert not replayed.evaluated.any()
