"""The threshold search against brute force, and the quota routine by hand."""

from itertools import product
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eecompile.operating_points import Search, Trial, hull, quota_thresholds


def f32(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def test_quota_thresholds_by_hand() -> None:
    first = f32([0.9, 0.8, 0.3, 0.2, 0.1])
    second = f32([0.1, 0.9, 0.6, 0.7, 0.5])
    # Two of five leave first (0.9, 0.8); of the three left the best at the second exit has 0.7.
    found = quota_thresholds([first, second], [0.4, 0.2])
    assert list(found) == pytest.approx([0.8, 0.7])


def test_an_exit_without_a_quota_is_out_of_reach() -> None:
    score = f32([0.5, 0.6])
    assert quota_thresholds([score, score], [0.0, 1.0]) == (inf, 0.5)


def test_quotas_of_distinct_scores_are_met_exactly() -> None:
    generator = np.random.default_rng(3)
    scores = [generator.permutation(1000).astype(np.float32) for _ in range(3)]
    thresholds = quota_thresholds(scores, [0.2, 0.3, 0.1])
    here = np.ones(1000, bool)
    for score, threshold, quota in zip(scores, thresholds, [200, 300, 100], strict=True):
        leaving = here & (score >= threshold)
        assert leaving.sum() == quota
        here &= ~leaving


def search(seed: int, count: int = 12, fixed: dict[int, float] | None = None) -> Search:
    """Three tests on two exits; half-rounded scores, so that there are ties."""
    generator = np.random.default_rng(seed)
    scores = [generator.random(count).round(1).astype(np.float32) for _ in range(3)]
    chances = [generator.random(count) for _ in range(3)]
    return Search(scores, [0, 0, 1], chances, [0.3, 0.6, 1.0], [0.02, 0.05], fixed)


def naive_trial(s: Search, thresholds: tuple[float, ...]) -> tuple[float, float]:
    cost = value = 0.0
    for n in range(s.count):
        for k, tests in enumerate(([0, 1], [2])):
            if all(thresholds[t] == inf for t in tests):
                continue
            cost += s.head_costs[k]
            if any(s.scores[t][n] >= thresholds[t] for t in tests):
                cost, value = cost + s.costs[k], value + s.chances[k][n]
                break
        else:
            cost, value = cost + s.costs[-1], value + s.chances[-1][n]
    return cost / s.count, value / s.count


choices = st.tuples(*[st.sampled_from([0.0, 0.2, 0.5, 0.8, inf])] * 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), choices)
def test_a_trial_is_what_a_loop_finds(seed: int, thresholds: tuple[float, ...]) -> None:
    s = search(seed)
    trial = s.trial(thresholds)
    assert (trial.cost, trial.value) == pytest.approx(naive_trial(s, thresholds))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), choices, st.floats(0.01, 5))
@example(306, (0.0, 0.2, 0.0), 0.5)
@example(107, (0.2, 0.2, 0.0), 2.0)
def test_no_single_threshold_improves_an_improved_vector(
    seed: int, start: tuple[float, ...], price: float
) -> None:
    s = search(seed)
    best = s.improved(start, price)
    reached = best.value - price * best.cost
    assert reached >= s.trial(start).value - price * s.trial(start).cost - 1e-9
    for t in range(3):
        for level in [*np.unique(s.scores[t]).tolist(), inf]:
            other = s.trial([level if i == t else v for i, v in enumerate(best.thresholds)])
            assert other.value - price * other.cost <= reached + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_the_chain_comes_close_to_brute_force(seed: int) -> None:
    s = search(seed)
    levels = [[*np.unique(score).tolist(), inf] for score in s.scores]
    every = [s.trial(vector) for vector in product(*levels)]
    chain = s.chain(0)
    for limit in (0.4, 0.6, 0.8, 1.1):
        best = max(t.value for t in hull(every) if t.cost <= limit)
        assert max(t.value for t in chain if t.cost <= limit) >= best - 0.02


def test_the_chain_reaches_both_ends() -> None:
    s = search(1)
    chain = s.chain(0)
    assert chain[0].cost == pytest.approx(0.32)
    assert chain == hull(chain)
    assert [t.cost for t in chain] == sorted(t.cost for t in chain)


def test_given_thresholds_stay() -> None:
    s = search(2, fixed={1: 0.7})
    assert {trial.thresholds[1] for trial in s.chain(0)} == {0.7}


def test_the_same_seed_gives_the_same_chain() -> None:
    assert search(4).chain(7) == search(4).chain(7)


def test_between_goes_from_one_trial_to_the_other() -> None:
    s = search(5)
    low, high = s.trial((inf, inf, 0.9)), s.trial((0.0, inf, 0.0))
    assert s.between(low, high, 0.0).cost == low.cost
    assert s.between(low, high, 1.0).cost == high.cost
    middle = s.between(low, high, 0.5)
    assert high.cost < middle.cost < low.cost


def test_the_hull_drops_what_lies_below_a_chord() -> None:
    trials = [Trial((), 0, 0), Trial((), 1, 0.4), Trial((), 2, 1), Trial((), 3, 1)]
    assert hull(trials) == [trials[0], trials[2]]
