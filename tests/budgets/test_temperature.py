"""The temperature of a head: confidences become honest, answers stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eecompile.diagnostics import Source
from eecompile.dsl.check import check
from eecompile.dsl.parser import parse
from eecompile.heads import Head, make_head
from eecompile.heads.logistic import mean_nll
from eecompile.heads.temperature import likeliest_scale
from eecompile.ir import TensorType
from eecompile.reference import run_graph

CLASSES = 4


def features(seed: int, count: int, shape: tuple[int, ...] = (6, 2, 2)) -> tuple[Any, Any]:
    """Few samples of many features, so that what is fitted on them is too sure of itself."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(9).normal(size=(CLASSES, *shape))
    noise = generator.normal(size=(count, *shape)) * 1.6
    return (centres[labels] + noise).astype(np.float32), labels


def fitted(head: Head) -> dict[str, np.ndarray]:
    images, labels = features(1, 60)
    recorder = head.feature_graph(TensorType.of(images))
    rows = run_graph(recorder, {"feature": images})[recorder.outputs[0]]
    return head.fit(rows, labels, CLASSES, seed=0)


def rows_of(head: Head, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = features(seed, 400)
    recorder = head.feature_graph(TensorType.of(images))
    return run_graph(recorder, {"feature": images})[recorder.outputs[0]], labels


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"pool": 2}),
        ("class_means", {"pool": 2}),
        ("conv", {"channels": 4, "layers": 1}),
        ("bag_of_features", {"codewords": 8}),
    ],
)
def test_a_fitted_temperature_is_more_honest_and_answers_alike(
    kind: str, options: dict[str, Any]
) -> None:
    if kind in ("conv", "bag_of_features"):
        pytest.importorskip("torch")
    plain, scaled = (make_head(kind, options | {"temperature": t}) for t in ("none", "fitted"))
    parameters = fitted(plain)
    recorded, labels = rows_of(plain, 2)
    held_out, truth = rows_of(plain, 3)
    kept = plain.calibrate(parameters, recorded, labels)
    better = scaled.calibrate(parameters, recorded, labels)
    before, after = plain.logits(held_out, kept), scaled.logits(held_out, better)
    np.testing.assert_array_equal(before, plain.logits(held_out, parameters))
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    factor = (after / before)[np.abs(before) > 0.1]
    np.testing.assert_allclose(factor, factor[0], rtol=1e-3)
    losses = [mean_nll(logits, truth) for logits in (before, after)]
    assert losses[1] < losses[0]
    images, _ = features(3, 400)
    graph = scaled.graph(TensorType.of(images), better)
    (made,) = run_graph(graph, {"feature": images}).values()
    np.testing.assert_allclose(made, after, rtol=1e-3, atol=1e-4)


def test_an_overconfident_head_is_cooled_to_what_it_is_right_about() -> None:
    head = make_head("linear", {"pool": 2, "temperature": "fitted"})
    parameters = fitted(head)
    recorded, labels = rows_of(head, 2)
    logits = head.logits(recorded, head.calibrate(parameters, recorded, labels))
    sure = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (sure / sure.sum(axis=1, keepdims=True)).max(axis=1)
    right = logits.argmax(axis=1) == labels
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.04)


@pytest.mark.parametrize("true", [0.2, 1.0, 7.0])
def test_the_scale_is_found(true: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)).astype(np.float32)
    chances = np.exp(true * logits)
    chances /= chances.sum(axis=1, keepdims=True)
    labels = (generator.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert likeliest_scale(logits, labels, 0.01, 100) == pytest.approx(true, rel=0.05)


def test_a_scale_stays_in_its_bounds() -> None:
    logits = np.eye(2, dtype=np.float32) / 100
    assert likeliest_scale(logits, np.array([0, 1]), 0.01, 100) == pytest.approx(100, rel=2e-3)
    assert likeliest_scale(logits, np.array([1, 0]), 0.01, 100) == pytest.approx(0.01, rel=2e-3)


FILE = """eecompile 1
model net {{
    source onnx "net.onnx"
    input image: float32[1, 3, 32, 32]
    output logits: classes(10)
    exit early after "layer1" head linear(temperature: {value})
}}
data d {{ fit "fit.npz" {calibrate} }}
"""


@pytest.mark.parametrize(
    ("value", "calibrate", "ids"),
    [
        ("fitted", 'calibrate "c.npz"', []),
        ("none", "", []),
        ("fitted", "", ["missing-data"]),
        ("hot", 'calibrate "c.npz"', ["bad-option"]),
    ],
)
def test_the_language_knows_it(value: str, calibrate: str, ids: list[str], tmp_path: Any) -> None:
    for name in ("net.onnx", "fit.npz", "c.npz"):
        (tmp_path / name).touch()
    spec, found = parse(Source("x.ee", FILE.format(value=value, calibrate=calibrate)))
    found.raise_errors()
    problems = check(replace(spec, folder=str(tmp_path)), None)
    assert [one.id for one in problems] == ids
