"""The bandit: against its formulas written down anew, hand-computed cases, and what it may know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf, log, nan, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.policies.split_bandit import Rewards, SplitBandit, UcbOptions

#: Two exits and the end; numbers that floats hold exactly.
REWARDS = Rewards((0.25, 0.5, 1.0), (1.0, 1.0, 1.0), (0.75, 0.875), price=0.5)


class Formulas:
    """SplitEE from its formulas: every sum is taken anew over all samples so far."""

    def __init__(self, rewards: Rewards, options: UcbOptions) -> None:
        self.rewards, self.options = rewards, options
        self.samples: list[tuple[int, list[float | None], float | None]] = []

    def observed(self) -> list[list[tuple[int, float]]]:
        """Per arm, the samples it was observed at and the rewards."""
        found: list[list[tuple[int, float]]] = [[] for _ in self.rewards.spent]
        known: list[list[tuple[int, float]]] = [[] for _ in self.rewards.thresholds]
        for at, (split, confidences, final) in enumerate(self.samples):
            arms = range(split + 1) if self.options.observations == "side" else [split]
            for arm in arms:
                reward = self.reward(at, arm, confidences, final, known)
                if reward is not None:
                    found[arm].append((at, reward))
        return found

    def reward(
        self,
        at: int,
        arm: int,
        confidences: list[float | None],
        final: float | None,
        known: list[list[tuple[int, float]]],
    ) -> float | None:
        r = self.rewards
        cost = r.weight * r.spent[arm]
        if arm == len(r.thresholds):
            return None if final is None else final - cost
        mine = confidences[arm]
        assert mine is not None, "the head of an observed arm ran"
        if mine >= r.thresholds[arm]:
            return mine - cost
        if final is not None:
            known[arm].append((at, final))
        elif self.options.unknown == "impute" and known[arm]:
            weights = [self.options.discount ** (at - when) for when, _ in known[arm]]
            total = sum(w * value for w, (_, value) in zip(weights, known[arm], strict=True))
            final = total / sum(weights)
        return None if final is None else final - cost - r.weight * r.price

    def indices(self) -> list[float]:
        """Of each arm; infinite where nothing is known."""
        now = len(self.samples) - 1
        fade = self.options.discount
        rounds = sum(fade ** (now - at) for at in range(now + 1))
        indices = []
        for seen in self.observed():
            count = sum(fade ** (now - at) for at, _ in seen)
            if not seen:
                indices.append(inf)
                continue
            mean = sum(fade ** (now - at) * reward for at, reward in seen) / count
            bonus = sqrt(max(log(rounds), 0) / count)
            indices.append(mean + self.options.exploration * bonus)
        return indices


options = st.builds(
    UcbOptions,
    observations=st.sampled_from(["own", "side"]),
    unknown=st.sampled_from(["skip", "impute"]),
    discount=st.sampled_from([1.0, 0.9]),
    exploration=st.sampled_from([0.0, 0.3, 1.0]),
    weight=st.sampled_from([0.5, 1.0]),
)


@settings(deadline=None, max_examples=40)
@given(options, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_choices_are_those_of_the_formulas(chosen: UcbOptions, exits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    spent = tuple(np.sort(random.random(exits + 1)).tolist())
    limits = tuple(random.uniform(0.3, 0.9, exits).tolist())
    rewards = Rewards(spent, (1.0,) * (exits + 1), limits, 0.3, chosen.weight)
    bandit, formulas = SplitBandit(rewards, chosen), Formulas(rewards, chosen)
    for _ in range(30):
        arm = bandit.choose()
        indices = formulas.indices()
        assert indices[arm] == pytest.approx(max(indices), abs=1e-9)
        if indices[arm] == inf:
            assert arm == indices.index(inf)
        confidences: list[float | None] = list(random.random(exits).tolist())
        first = 0 if chosen.observations == "side" else arm
        told = [c if first <= at <= arm else None for at, c in enumerate(confidences)]
        left = arm < exits and confidences[arm] >= limits[arm]
        final = None if left else float(random.random())
        bandit.learn(arm, told, final)
        formulas.samples.append((arm, told, final))


def bandit(**given: Any) -> SplitBandit:
    return SplitBandit(REWARDS, UcbOptions(**{"unknown": "skip", **given}))


def told(learner: SplitBandit, samples: Sequence[tuple[int, list[float | None], Any]]) -> None:
    for arm, confidences, final in samples:
        learner.learn(arm, confidences, final)


def test_each_arm_is_played_once_in_order_then_the_best_bound() -> None:
    learner = bandit(exploration=0.0)
    chosen = []
    for final in (1.0, 1.0, 1.0, 1.0):
        chosen.append(learner.choose())
        learner.learn(chosen[-1], [0.5, 0.5], final)
    # Offloading is worth 1 - 0.25 - 0.5 = 0.25 at the first exit, nothing elsewhere.
    assert chosen == [0, 1, 2, 0]
    assert learner.sums == [0.5, 0.0, 0.0]
    assert learner.counts == [2, 1, 1]


def test_equal_bounds_go_to_the_lowest_arm() -> None:
    learner = bandit(exploration=0.0)
    told(learner, [(0, [0.5, None], 1.0), (1, [None, 1.0], None), (2, [None, None], 1.0)])
    assert learner.sums == [0.25, 0.5, 0.0]
    told(learner, [(0, [0.75, None], None)] * 1)  # 0.5: the mean is 0.375
    told(learner, [(0, [0.875, None], None)] * 2)  # 0.625 twice: the mean is 0.5
    assert learner.sums[0] / learner.counts[0] == learner.sums[1] / learner.counts[1]
    assert learner.choose() == 0
    assert learner.best == 0


def test_exploration_makes_up_for_small_counts() -> None:
    learner = bandit(exploration=1.0)
    told(learner, [(0, [1.0, None], None)] * 7)  # 0.75 each
    told(learner, [(1, [None, 1.0], None), (2, [None, None], 1.0)])
    # log(9) = 2.197: 0.75 + 0.560, 0.5 + 1.482, 0 + 1.482
    assert learner.choose() == 1
    assert bandit_with(learner, exploration=0.1).choose() == 0


def bandit_with(learner: SplitBandit, **given: Any) -> SplitBandit:
    other = bandit(**given)
    other.remember(learner.memory())
    return other


def test_own_observations_are_of_the_split_only() -> None:
    learner = bandit()
    learner.learn(1, [0.9, 0.9], 1.0)
    assert learner.counts == [0, 1, 0]


def test_side_observations_are_of_all_splits_up_to_it() -> None:
    learner = bandit(observations="side")
    learner.learn(1, [0.75, 0.5], 1.0)
    assert learner.counts == [1, 1, 0]
    assert learner.sums == [0.75 - 0.25, 1.0 - 0.5 - 0.5, 0.0]


def test_the_end_is_observed_with_all_exits() -> None:
    learner = bandit(observations="side")
    learner.learn(2, [0.5, 0.875], 0.75)
    assert learner.counts == [1, 1, 1]
    assert learner.sums == [0.75 - 0.25 - 0.5, 0.875 - 0.5, 0.75 - 1.0]


def test_what_nobody_computed_is_skipped() -> None:
    learner = bandit(observations="side")
    learner.learn(1, [0.5, 0.875], None)  # unsure at the first exit, left at the second
    assert learner.counts == [0, 1, 0]


def test_what_nobody_computed_is_imputed_from_samples_unsure_at_the_same_exit() -> None:
    learner = bandit(observations="side", unknown="impute")
    learner.learn(1, [0.5, 0.875], None)
    assert learner.counts == [0, 1, 0], "nothing is known yet"
    learner.learn(2, [0.5, 0.875], 0.5)
    learner.learn(2, [0.5, 0.875], 1.0)
    learner.learn(2, [0.75, 0.875], 0.0)  # sure at the first exit: of no matter to it
    before = learner.sums[0]
    learner.learn(1, [0.5, 0.875], None)
    assert learner.sums[0] - before == 0.75 - 0.25 - 0.5
    learner.learn(1, [0.5, 0.875], None)
    assert learner.sums[0] - before == 2 * (0.75 - 0.25 - 0.5), "what is imputed is not known"


@pytest.mark.parametrize("unknown", ["skip", "impute"])
def test_nothing_is_learned_from_what_cannot_be_known(unknown: str) -> None:
    """Two networks that differ only where no device can look teach the same."""
    random = np.random.default_rng(5)
    learners = [bandit(observations="side", unknown=unknown) for _ in range(2)]
    for _ in range(200):
        seen, finals = random.random(2).tolist(), random.random(2).tolist()
        arm = learners[0].choose()
        sure = arm < 2 and seen[arm] >= REWARDS.thresholds[arm]
        for learner, hidden in zip(learners, finals, strict=True):
            assert learner.choose() == arm
            ran = [c if at <= arm else hidden for at, c in enumerate(seen)]
            learner.learn(arm, ran, None if sure else finals[0])
    assert learners[0].memory() == learners[1].memory()


def test_a_server_that_was_asked_in_vain_costs_the_whole_network() -> None:
    learner = bandit(observations="side")
    learner.learn(0, [0.5], 0.75, here=True)
    assert learner.sums == [0.75 - 1.0 - 0.5, 0.0, 0.0]


def test_whether_a_server_would_have_answered_is_taken_from_those_that_were_asked() -> None:
    learner = bandit(observations="side")
    told(learner, [(1, [0.75, 0.5], 1.0), (1, [0.75, 0.5], 1.0)])
    learner.learn(1, [0.75, 0.5], 1.0, here=True)
    learner.learn(0, [0.5], 1.0, here=True)
    before = learner.sums[0]
    learner.learn(2, [0.5, 1.0], 1.0)  # not sent; two of four that were had no answer
    assert learner.sums[0] - before == 1.0 - (0.5 * 0.25 + 0.5 * 1.0) - 0.5


@pytest.mark.parametrize("confidence", [nan, inf])
def test_confidences_that_are_no_numbers_are_not_remembered(confidence: float) -> None:
    learner = bandit(observations="side")
    learner.learn(2, [0.75, confidence], confidence)
    assert learner.counts == [1, 0, 0]
    learner.learn(0, [nan], 1.0)
    assert learner.sums == [0.5 + 0.25, 0.0, 0.0], "one that is no number is not sure"


def test_a_discount_forgets() -> None:
    learner = bandit(discount=0.5)
    told(learner, [(0, [0.75, None], None), (0, [0.75, None], None), (1, [None, 0.875], None)])
    assert learner.rounds == 1.75
    assert learner.counts == [0.75, 1.0, 0.0]
    assert learner.sums == [0.375, 0.375, 0.0]


def test_what_was_learned_survives_as_json() -> None:
    random = np.random.default_rng(3)
    for discount in (1.0, 0.99):
        options = UcbOptions("side", "impute", discount)
        first, again = SplitBandit(REWARDS, options), SplitBandit(REWARDS, options)
        for step in range(300):
            if step == 150:
                again.remember(json.loads(json.dumps(first.memory())))
            seen, final, arm = random.random(2).tolist(), random.random(), first.choose()
            sure = arm < 2 and seen[arm] >= REWARDS.thresholds[arm]
            first.learn(arm, seen, None if sure else final)
            if step >= 150:
                assert again.choose() == arm
                again.learn(arm, seen, None if sure else final)
        assert again.memory() == first.memory()


@pytest.mark.parametrize(
    "damage",
    [
        {"rounds": -1.0},
        {"rounds": None},
        {"rounds": nan},
        {"rounds": 1.0},
        {"counts": [1.0, 1.0]},
        {"counts": [1.0, 1.0, "1"]},
        {"counts": [1.0, True, 1.0]},
        {"counts": [-1.0, 1.0, 1.0]},
        {"counts": {"0": 1.0}},
        {"sums": [inf, 0.0, 0.0]},
        {"sums": [100.0, 0.0, 0.0]},
        {"sums": None},
        {"asked": 9.0},
        {"asked": "1"},
        {"vain": -1.0},
        {"vain": 3.0},
        {"known_counts": [9.0, 0.0]},
        {"known_sums": [0.5]},
        {"known_sums": [3.0, 0.0]},
    ],
    ids=str,
)
def test_damaged_memory_is_refused_and_changes_nothing(damage: dict[str, Any]) -> None:
    learner = bandit(observations="side")
    told(learner, [(2, [0.5, 0.5], 0.75), (1, [0.5, 0.5], 0.75), (0, [0.75], None)])
    before = learner.memory()
    with pytest.raises(ValueError, match="|".join((*next(iter(damage)).split("_"), "counts"))):
        learner.remember({**before, **damage})
    assert learner.memory() == before
    learner.remember(before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"discount": 0.0},
        {"discount": 1.5},
        {"exploration": -1.0},
        {"weight": nan},
        {"observations": "all"},
        {"unknown": "guess"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UcbOptions(**wrong)
