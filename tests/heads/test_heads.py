"""What holds for every head: its graph computes what was fitted, and a refit gives equal bits."""

from math import prod

import numpy as np
import pytest

from eecompile.cost import graph_macs
from eecompile.heads import HEADS, Head, HeadJob, HeadMismatch, fit_heads, make_head
from eecompile.ir import TensorType
from eecompile.reference import run_graph
from eecompile.shapes import check_types

MAP = TensorType("float32", (1, 6, 8, 8))
SMALL = TensorType("float32", (1, 6, 4, 4))
TOKENS = TensorType("float32", (1, 5, 12))
VECTOR = TensorType("float32", (1, 12))
CLASSES = 3

CASES = [
    ("linear", {}, MAP),
    ("linear", {"pool": 1}, MAP),
    ("linear", {"pool": 3}, MAP),
    ("linear", {"pool": "raw"}, MAP),
    ("linear", {}, TOKENS),
    ("linear", {"pool": "first"}, TOKENS),
    ("linear", {}, VECTOR),
    ("class_means", {}, MAP),
    ("class_means", {"pool": 2, "metric": "euclidean"}, MAP),
    ("class_means", {"pool": "mean"}, TOKENS),
    ("conv", {"channels": 12, "layers": 2}, SMALL),
    ("conv", {"channels": 4, "layers": 1, "kernel": 2, "pool": 3}, SMALL),
    ("bag_of_features", {"codewords": 8}, SMALL),
    ("bag_of_features", {"codewords": 8, "window": 4}, SMALL),
]
NEEDS_TORCH = ("conv", "bag_of_features")


def samples(feature: TensorType, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Features whose classes differ in mean, away from zero as after a ReLU."""
    generator = np.random.default_rng(5)
    labels = np.arange(count) % CLASSES
    wide = (CLASSES, feature.shape[1], *(1 for _ in feature.shape[2:]))
    centres = generator.random(wide) * 3 + generator.random((CLASSES, *feature.shape[1:])) * 2
    noise = generator.normal(size=(count, *feature.shape[1:]))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def recorded(head: Head, x: np.ndarray) -> np.ndarray:
    """What recording gives: one sample at a time through the head's feature graph."""
    graph = head.feature_graph(TensorType("float32", (1, *x.shape[1:])))
    assert (graph.inputs, graph.outputs) == (("feature",), ("recorded",))
    return np.concatenate([run_graph(graph, {"feature": one[None]})["recorded"] for one in x])


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{len(case[2].shape)}d")
def case(request: pytest.FixtureRequest) -> tuple[Head, TensorType]:
    kind, options, feature = request.param
    if kind in NEEDS_TORCH:
        pytest.importorskip("torch", reason="torch fits this head")
    return make_head(kind, options), feature


def test_every_kind_of_head_is_tried_here() -> None:
    assert {kind for kind, _, _ in CASES} == set(HEADS)


def test_a_heads_graph_computes_its_logits(case: tuple[Head, TensorType]) -> None:
    head, feature = case
    x, labels = samples(feature)
    features = recorded(head, x)
    parameters = head.calibrate(
        head.fit(features, labels, CLASSES, seed=0), features[:30], labels[:30]
    )
    graph = head.graph(feature, parameters)
    assert (graph.inputs, graph.outputs) == (("feature",), (head.output,))
    assert check_types(graph) == []
    assert str(graph.types[head.output]) == f"float32[1, {CLASSES}]"
    assert graph_macs(graph) >= CLASSES  # Its cost is counted.
    alone = np.concatenate([run_graph(graph, {"feature": one[None]})[head.output] for one in x])
    np.testing.assert_allclose(head.logits(features, parameters), alone, rtol=1e-4, atol=1e-4)
    assert (alone.argmax(1) == labels).mean() > 0.9


def test_a_refit_gives_equal_bits(case: tuple[Head, TensorType]) -> None:
    head, feature = case
    x, labels = samples(feature)
    features = recorded(head, x)
    first, second = (head.fit(features, labels, CLASSES, seed=3) for _ in range(2))
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def test_options_say_how_to_make_the_head_again(case: tuple[Head, TensorType]) -> None:
    head, _ = case
    assert make_head(head.kind, head.options) == head


@pytest.mark.parametrize(
    ("kind", "options", "feature", "why"),
    [
        ("linear", {"pool": 9}, MAP, "larger map than 8 x 8"),
        ("linear", {"pool": "first"}, MAP, "sequence of tokens"),
        ("conv", {}, TOKENS, "needs a map"),
        ("conv", {"layers": 4, "kernel": 2, "pool": 5}, MAP, "leave 4 x 4"),
        ("bag_of_features", {}, VECTOR, "needs a map"),
        ("bag_of_features", {"window": 9}, MAP, "window 9 is larger"),
    ],
)
def test_a_head_refuses_what_it_cannot_read(
    kind: str, options: dict[str, object], feature: TensorType, why: str
) -> None:
    with pytest.raises(HeadMismatch, match=why):
        make_head(kind, options).feature_graph(feature)


def test_heads_fitted_side_by_side_are_those_fitted_alone() -> None:
    x, labels = samples(MAP)
    jobs = {}
    for pool in (1, 2, 4):
        head = make_head("linear", {"pool": pool})
        jobs[f"p{pool}"] = HeadJob(head, recorded(head, x))
    told: list[tuple[str, str]] = []
    together = fit_heads(jobs, labels, CLASSES, workers=3, progress=lambda *what: told.append(what))
    for name, job in jobs.items():
        alone = job.head.fit(job.recorded, labels, CLASSES, seed=0)
        assert alone["weight"].tobytes() == together[name]["weight"].tobytes()
    assert {name for name, _ in told} == set(jobs)


def test_pooled_features_cost_no_multiplications() -> None:
    head = make_head("linear", {"pool": 2})
    assert graph_macs(head.feature_graph(MAP)) == 0
    assert prod(head.feature_graph(MAP).types["recorded"].shape) == 6 * 2 * 2
