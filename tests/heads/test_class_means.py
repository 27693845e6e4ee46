"""E2CM by hand, and the safety of its one matrix product."""

from typing import Any

import numpy as np
import pytest

from eecompile.heads import ClassMeansHead
from eecompile.heads.logistic import mean_nll
from eecompile.ir import TensorType
from eecompile.reference import run_graph


def f32(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


# Class 0 at 0 and 2, class 1 at 10: means 1 and 10. Distances to mean 0: 1, 1, 9; to mean 1:
# 10, 8, 0. Scales over ALL samples: 11/3 and 18/3.
X = f32([[0], [2], [10]])
LABELS = np.array([0, 0, 1])


def test_means_and_scales_by_hand() -> None:
    found = ClassMeansHead().fit(X, LABELS, 2)
    np.testing.assert_allclose(found["means"], [[1], [10]])
    np.testing.assert_allclose(found["scale"], [11 / 3, 6], rtol=1e-6)


def test_confidence_by_hand() -> None:
    head = ClassMeansHead()
    found = head.logits(f32([[4]]), head.fit(X, LABELS, 2))
    # |4 - 1| / (11/3) and |4 - 10| / 6.
    np.testing.assert_allclose(found, [[-9 / 11, -1]], rtol=1e-5)
    confidence = np.exp(found[0]) / np.exp(found[0]).sum()
    np.testing.assert_allclose(confidence[0], 1 / (1 + np.exp(9 / 11 - 1)), rtol=1e-5)


def test_streaming_over_blocks_gives_the_means_of_all() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1000, 20000)).astype(np.float32)  # Several blocks.
    labels = generator.integers(0, 3, 1000)
    found = ClassMeansHead().fit(x, labels, 3)
    for k in range(3):
        np.testing.assert_allclose(found["means"][k], x[labels == k].mean(0), atol=1e-5)
    distances = np.stack([np.linalg.norm(x - mean, axis=1) for mean in found["means"]])
    np.testing.assert_allclose(found["scale"], distances.mean(1), rtol=1e-5)


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    """Features around 1,000 that differ by about 1: squared norms agree in six digits."""
    generator = np.random.default_rng(1)
    labels = np.arange(60) % 2
    x = (1000 + labels[:, None] + generator.normal(size=(60, 64)) * 0.1).astype(np.float32)
    head = ClassMeansHead()
    parameters = head.fit(x, labels, 2)
    exact = np.stack(
        [np.linalg.norm(x.astype(np.float64) - mean, axis=1) for mean in parameters["means"]], 1
    )
    feature = TensorType("float32", (1, 64))
    graph = head.graph(feature, parameters)
    found = [run_graph(graph, {"feature": one[None]})["class_means"][0] for one in x]
    np.testing.assert_allclose(found, -exact / parameters["scale"], rtol=1e-3)


def test_a_feature_at_a_mean_has_distance_zero_not_nan() -> None:
    head = ClassMeansHead()
    x = f32([[3, 4], [3, 4], [-1, 7], [-1, 7]])
    parameters = head.fit(x, np.array([0, 0, 1, 1]), 2)
    assert np.isfinite(head.logits(x, parameters)).all()
    assert head.logits(x, parameters).max() == pytest.approx(0, abs=1e-3)


def test_a_constant_feature_gives_no_answer_but_no_nan_either() -> None:
    head = ClassMeansHead()
    x = np.ones((4, 3), np.float32)
    parameters = head.fit(x, np.array([0, 1, 0, 1]), 2)
    assert not head.logits(x, parameters).any()


def test_the_temperature_makes_the_labels_likeliest_and_changes_no_answer() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, 400)
    x = (np.eye(4)[labels] * 2 + generator.normal(size=(400, 4))).astype(np.float32)
    head = ClassMeansHead()
    raw = head.fit(x[:200], labels[:200], 4)
    calibrated = head.calibrate(raw, x[200:], labels[200:])
    before, after = head.logits(x[200:], raw), head.logits(x[200:], calibrated)
    assert (before.argmax(1) == after.argmax(1)).all()
    losses = [mean_nll(before * np.float32(t), labels[200:]) for t in np.geomspace(1, 1000, 200)]
    assert mean_nll(after, labels[200:]) <= min(losses) + 1e-4
    # What calibrating again does not depend on: the temperature there was.
    again = head.calibrate(calibrated, x[200:], labels[200:])
    assert again["temperature"] == calibrated["temperature"]
