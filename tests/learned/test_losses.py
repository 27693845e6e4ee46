"""EENet's losses by hand, their gradients by finite differences, quotas and their shift."""

from collections.abc import Callable

import numpy as np
import pytest

from eecompile.learned.candidates import shifted
from eecompile.learned.losses import (
    assignment_loss,
    budget_loss,
    exit_distribution,
    score_loss,
    score_weights,
)
from eecompile.learned.scheduler import Assignment, fit_schedule, scores_of
from eecompile.learned.scores import logistic_weights

GENERATOR = np.random.default_rng(0)


def slope_of(loss: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """By central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        found[place] = (loss(at + step) - loss(at - step)) / 2e-6
    return found


def test_score_loss_by_hand() -> None:
    q, right = np.array([0.8, 0.3, 0.6]), np.array([1, 0, 0])
    weights = np.array([0.5, 0.25, 0.25])
    by_hand = -(0.5 * np.log(0.8) + 0.25 * np.log(0.7) + 0.25 * np.log(0.4))
    loss, slope = score_loss(q, right, weights)
    assert loss == pytest.approx(by_hand, rel=1e-12)
    # d/dq of -w ln q, and of -w ln(1 - q)
    np.testing.assert_allclose(slope, [-0.5 / 0.8, 0.25 / 0.7, 0.25 / 0.4])


def test_assignment_loss_by_hand() -> None:
    """Wanted shares are q / sum q = (0.75, 0.25) and (0.5, 0.5); the mean is over n K = 4."""
    q = np.array([[0.9, 0.3], [0.4, 0.4]])
    r = np.array([[0.5, 0.5], [0.2, 0.8]])
    by_hand = (
        0.75 * np.log(0.75 / 0.5)
        + 0.25 * np.log(0.25 / 0.5)
        + 0.5 * np.log(0.5 / 0.2)
        + 0.5 * np.log(0.5 / 0.8)
    ) / 4
    assert assignment_loss(r, q)[0] == pytest.approx(by_hand, rel=1e-12)
    sharper = assignment_loss(r, q, 2.0)[0]
    assert sharper == pytest.approx(assignment_loss(r, q**2)[0], rel=1e-12)


def test_budget_loss_by_hand() -> None:
    """Mean cost (0.5 + 1) / 2 + ... = 1.6 against 1.28: a quarter too much."""
    r, costs = np.array([[0.4, 0.6], [0.4, 0.6]]), np.array([1.0, 2.0])
    assert budget_loss(r, costs, 1.28)[0] == pytest.approx(0.25, rel=1e-4)
    assert budget_loss(r, costs, 1.6)[0] == pytest.approx(0.0, abs=2e-3)


def test_distribution_and_weights_are_normalised_and_reach_every_corner() -> None:
    raw = np.array([[1e-9, 1.0, 1e-9], [0.2, 0.6, 0.2]])
    r = exit_distribution(raw)
    np.testing.assert_allclose(r.sum(1), 1.0)
    # A softmax of numbers between 0 and 1 could not exceed e / (e + 2).
    assert r[0, 1] > 0.99 > np.e / (np.e + 2)
    np.testing.assert_allclose(score_weights(r).sum(0), 1.0)


def test_gradients_are_those_of_the_losses() -> None:
    r = exit_distribution(GENERATOR.uniform(0.1, 1, (4, 3)))
    q, costs = GENERATOR.uniform(0.1, 0.9, (4, 3)), np.array([0.3, 0.6, 1.0])
    right, weights = GENERATOR.integers(0, 2, 4), GENERATOR.uniform(0, 1, 4)
    _, slope = score_loss(q[:, 0], right, weights)
    numeric = slope_of(lambda x: score_loss(x, right, weights)[0], q[:, 0])
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
    _, slope = assignment_loss(r, q)
    np.testing.assert_allclose(slope, slope_of(lambda x: assignment_loss(x, q)[0], r), rtol=1e-5)
    _, slope = budget_loss(r, costs, 0.5)
    numeric = slope_of(lambda x: budget_loss(x, costs, 0.5)[0], r)
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_gradient_of_the_assignment_reaches_every_parameter() -> None:
    x = [GENERATOR.normal(size=(6, size)) for size in (3, 4, 5)]
    assignment = Assignment.random([3, 4, 5], GENERATOR)
    q, costs = GENERATOR.uniform(0.1, 0.9, (6, 3)), np.array([0.3, 0.6, 1.0])
    row = assignment.packed()
    _, slope = assignment.loss(x, q, costs, 0.5)
    numeric = slope_of(lambda at: assignment.unpacked(at).loss(x, q, costs, 0.5)[0], row)
    np.testing.assert_allclose(slope, numeric, rtol=1e-3, atol=1e-9)
    assert (
        np.count_nonzero(slope) == len(row) == sum(p.size for la in assignment.layers for p in la)
    )


def test_earlier_scores_are_kept_from_0_to_1_for_later_exits() -> None:
    seen = [np.array([[2.0]]), np.array([[0.5]])]
    q, inputs = scores_of([np.array([3.0]), np.array([1.0, 1.0])], seen)
    assert q.tolist() == [[6.0, 1.5]]
    assert inputs[1].tolist() == [[0.5, 1.0]]


def test_the_scheduler_finds_what_tells_right_from_wrong_and_spends_the_budget() -> None:
    """Whether an exit is right follows from its second feature; the start looks at the first."""
    count = 400
    told = GENERATOR.uniform(0, 1, (count, 3))
    noise = GENERATOR.uniform(0, 1, (count, 3))
    seen = [np.stack([noise[:, k], told[:, k]], 1) for k in range(3)]
    right = told > 0.4
    costs = np.array([0.3, 0.6, 1.0])
    starts = [np.array([1.0, *[0.0] * (1 + k)]) for k in range(3)]
    made = fit_schedule(seen, right, costs, 0.5, starts, seed=0)
    again = fit_schedule(seen, right, costs, 0.5, starts, seed=0)
    for k, weights in enumerate(made.weights):
        assert weights[1] > 2 * abs(weights[0])
        np.testing.assert_array_equal(weights, again.weights[k])
    assert made.quotas.sum() == pytest.approx(1.0)
    assert made.quotas @ costs == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("shift", [-40.0, -1.0, 0.0, 1.0, 40.0])
def test_shifted_quotas_are_shares_and_cost_less_with_the_shift(shift: float) -> None:
    quotas, costs = np.array([0.1, 0.6, 0.3]), [0.2, 0.5, 1.0]
    found = shifted(quotas, costs, shift)
    assert found.sum() == pytest.approx(1.0)
    more = shifted(quotas, costs, shift + 1)
    assert more @ np.array(costs) < found @ np.array(costs)
    assert shifted(quotas, costs, 60.0)[0] > 0.999
    assert shifted(quotas, costs, -60.0)[2] > 0.999


def test_logistic_weights_are_a_minimum_and_scale_with_their_features() -> None:
    x = GENERATOR.normal(size=(200, 2)) * [1.0, 10.0]
    leave = (x[:, 0] + GENERATOR.normal(size=200) > 0).astype(float)
    found, at_0 = logistic_weights(x, leave, 1 - leave, 1.0)
    scaled, also_at_0 = logistic_weights(x * [1.0, 0.1], leave, 1 - leave, 1.0)
    np.testing.assert_allclose(found * [1.0, 10.0], scaled, rtol=1e-9)
    assert at_0 == pytest.approx(also_at_0, rel=1e-9)
    assert found[0] > 10 * abs(found[1])
    # With an intercept the chances add up to what was seen.
    assert (1 / (1 + np.exp(-(x @ found + at_0)))).sum() == pytest.approx(leave.sum(), rel=1e-6)
    constant, _ = logistic_weights(np.c_[x, np.ones(200)], leave, 1 - leave, 1.0)
    np.testing.assert_allclose(constant, [*found, 0.0], atol=1e-9)
