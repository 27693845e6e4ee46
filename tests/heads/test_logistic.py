"""The solver against scikit-learn's, and its independence of how data are stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.heads.logistic import fit_logistic, mean_nll, stratified_split


def f32(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def problem(features: int = 12, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of very different scale, four overlapping classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, count)
    mixing = generator.normal(size=(features, features))
    x = (generator.normal(size=(count, features)) + np.eye(4, features)[labels] * 2) @ mixing
    return (x * np.geomspace(0.01, 100, features) + 5).astype(np.float32), labels


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_minimum_is_that_of_another_solver(penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = problem()
    found = fit_logistic(x, labels, 4, seed=0, penalties=[penalty])
    z = (x - x.mean(0)) / x.std(0)
    other = linear_model.LogisticRegression(C=1 / (penalty * len(x)), max_iter=5000, tol=1e-8)
    theirs = other.fit(z, labels).decision_function(z)
    ours = found(x)
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=0.05
    )
    assert mean_nll(ours, labels) == pytest.approx(mean_nll(theirs, labels), abs=1e-3)


def test_more_features_than_have_their_curvature_estimated_are_fitted_too() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(120) % 2
    x = generator.normal(size=(120, 2100)).astype(np.float32)
    x[:, 7] += labels * 6
    linear = fit_logistic(x, labels, 2, seed=0)
    assert (linear(x).argmax(1) == labels).mean() > 0.95


def test_a_memory_mapped_file_gives_the_bits_an_array_gives(tmp_path: Path) -> None:
    x, labels = problem()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, other = (fit_logistic(data, labels, 4, seed=0) for data in (x, mapped))
    assert one.weight.tobytes() == other.weight.tobytes()


def test_a_constant_feature_gets_a_finite_weight() -> None:
    x, labels = problem()
    x[:, 3] = 7
    linear = fit_logistic(x, labels, 4, seed=0)
    assert np.isfinite(linear.weight).all()


def test_noise_is_penalised_more_than_signal() -> None:
    """The penalty is chosen on samples held out: with pure noise, the strongest is best."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=(300, 100)).astype(np.float32)
    noise = fit_logistic(x, generator.integers(0, 3, 300), 3, seed=0)
    labels = np.arange(300) % 3
    x[:, 0] += labels * 4
    signal = fit_logistic(x, labels, 3, seed=0)
    assert np.abs(noise.weight).max() < np.abs(signal.weight).max() / 3


def test_too_few_samples_to_hold_any_out_are_fitted_all_the_same() -> None:
    x = f32([[0, 0], [1, 1]])
    linear = fit_logistic(x, np.array([0, 1]), 2, seed=0)
    assert linear(x).argmax(1).tolist() == [0, 1]


def test_a_split_holds_out_the_same_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    kept, out = stratified_split(labels, 0.2, 0)
    assert np.bincount(labels[out]).tolist() == [10, 4, 1]
    assert sorted([*kept, *out]) == list(range(75))
