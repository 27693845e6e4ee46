"""The runtime on code the real compiler made, against the numpy reference of every operator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import Contents, PolicyEntry, write_artifact
from eecompile.compiled import CompiledGraph
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.manifest import TargetInfo
from eecompile.passes.base import PassManager
from eecompile.passes.pipelines import segments_pipeline
from eecompile.policies import ExitOutputs, ThresholdPolicy, replay, to_json
from eecompile.policies.scores import max_softmax
from eecompile.reference import run_graph
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.vectors import make_vectors, shown_values, verify_artifact
from eecompile.segments import SegmentGraph
from eecompile.text import parse_graph
from tests.helpers import program_of

# Two tensors cross the second border: the residual and what is added to it later.
CONV = "strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=1"
NET = f"""
graph net(image: float32[1, 3, 9, 9]) -> (y: float32[1, 5]) {{
    const w0: float32[6, 3, 3, 3] = splat(0.1)
    const w1: float32[6, 6, 3, 3] = splat(0.1)
    const w2: float32[6, 5] = splat(0.1)
    a: float32[1, 6, 9, 9] = Conv(image, w0; {CONV})
    b: float32[1, 6, 9, 9] = Relu(a)
    c: float32[1, 6, 9, 9] = Conv(b, w1; {CONV})
    d: float32[1, 6, 9, 9] = Relu(c)
    e: float32[1, 6, 9, 9] = Add(d, b)
    p: float32[1, 6] = ReduceMean(e; axes=(2, 3), keepdims=0)
    y: float32[1, 5] = MatMul(p, w2)
}}
"""
HEAD = """
graph head(feature: float32[1, 6, 9, 9]) -> (logits: float32[1, 5]) {
    const w: float32[6, 5] = splat(0.1)
    pooled: float32[1, 6] = ReduceMean(feature; axes=(2, 3), keepdims=0)
    logits: float32[1, 5] = MatMul(pooled, w)
}
"""
COMPARATOR = """
graph comparator(feature: float32[1, 6, 9, 9]) -> (class_means: float32[1, 5]) {
    const w: float32[6, 5] = splat(0.1)
    pooled: float32[1, 6] = ReduceMean(feature; axes=(2, 3), keepdims=0)
    scores: float32[1, 5] = MatMul(pooled, w)
    far: float32[1, 5] = Abs(scores)
    class_means: float32[1, 5] = Neg(far)
}
"""


def with_random_weights(graph: Graph, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    constants = {
        name: (rng.standard_normal(array.shape) / 3).astype(np.float32)
        for name, array in sorted(graph.constants.items())
    }
    return Graph(graph.name, graph.inputs, graph.outputs, graph.ops, constants, graph.types)


@dataclass(frozen=True)
class Built:
    folder: Path
    segments: SegmentGraph
    images: np.ndarray
    values: dict[str, np.ndarray]  #: by the numpy reference
    policy: ThresholdPolicy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    lowering = pytest.importorskip("eecompile.targets.lowering", reason="needs apache-tvm")
    heads = {
        name: with_random_weights(parse_graph(HEAD), i) for i, name in enumerate(("early", "late"))
    }
    comparators = {"late": with_random_weights(parse_graph(COMPARATOR), 7)}
    network = with_random_weights(parse_graph(NET), 3)
    program = program_of(network, {"early": "b", "late": "d"}, "y", 5)
    done = PassManager(segments_pipeline(heads, comparators)).run(program).graph
    segments = done.segments
    assert segments is not None
    host = machine("host")
    plain = {"image", "y", *(name for e in segments.exits for g in e.graphs for name in g.outputs)}
    compiled = lowering.compile_functions(segments.graphs(), host, plain=plain)
    graph = CompiledGraph.of(segments, compiled.functions)
    images = np.random.default_rng(0).standard_normal((80, 3, 9, 9)).astype(np.float32)
    values: dict[str, list[np.ndarray]] = {}
    for image in images[:, None]:
        known = {"image": image}
        for part in segments.graphs():
            known |= run_graph(part, {name: known[name] for name in part.inputs})
        for name, array in known.items():
            values.setdefault(name, []).append(array)
    reference = {name: np.concatenate(arrays) for name, arrays in values.items()}
    # Even numbers of samples: the medians lie between two of them.
    early, late = (max_softmax(reference[f"{name}.logits"]) for name in ("early", "late"))
    first = float(np.median(early))
    policy = ThresholdPolicy("max_softmax", [first, float(np.median(late[early < first]))])
    library = Library(compiled.library, compiled.weights)
    shown = Runner.of(library, graph).run_all(images[:16], shown_values(graph))
    contents = Contents(
        version=ee.__version__,
        target=TargetInfo("host", host.triple, host.features),
        network=graph,
        library=compiled.library,
        weights=compiled.weights,
        vectors=make_vectors(
            graph, {"image": images[:16]}, shown, {"y": reference["y"][:16]}, {"fast": policy}
        ),
        segments_text="",
        source_text="",
        policies={"fast": PolicyEntry(to_json(policy))},
        default_policy="fast",
    )
    folder = tmp_path_factory.mktemp("compiled") / "out"
    write_artifact(folder, contents)
    return Built(folder, segments, images, reference, policy)


def test_every_exit_gives_the_reference_logits(built: Built) -> None:
    net = ee.load(built.folder)
    for index, name in enumerate(("early.logits", "late.logits")):
        thresholds = [0.0 if i == index else float("inf") for i in range(2)]
        net.set_policy(ThresholdPolicy("max_softmax", thresholds))
        found = net.run_batch(built.images)
        assert (found.exits == index).all() and (found.segments_run == index + 1).all()
        np.testing.assert_allclose(found.logits, built.values[name], atol=1e-4)
    np.testing.assert_allclose(
        net.full_depth_batch(built.images).logits, built.values["y"], atol=1e-4
    )


def test_decisions_are_those_of_the_replay_over_the_reference(built: Built) -> None:
    values = built.values
    outputs = [
        ExitOutputs(values["early.logits"]),
        ExitOutputs(values["late.logits"], values["late.class_means"]),
    ]
    expected = replay(built.policy, outputs, values["y"])
    assert len(set(expected.exit.tolist())) == 3, "all exits must be taken"
    net = ee.load(built.folder, threads=2)
    batch = net.run_batch(built.images)
    np.testing.assert_array_equal(batch.exits, expected.exit)
    np.testing.assert_allclose(batch.logits, expected.logits, atol=1e-4)
    macs = np.cumsum([segment.macs for segment in built.segments.segments])
    heads = expected.evaluated @ np.array([exit_.macs for exit_ in built.segments.exits])
    np.testing.assert_array_equal(batch.macs, macs[expected.exit] + heads)
    for row, image in enumerate(built.images):
        one = net.run(image)
        np.testing.assert_array_equal(one.logits, batch.logits[row])
        assert one.segments_run == batch.segments_run[row] == expected.exit[row] + 1


def test_its_own_vectors_verify(built: Built) -> None:
    found = verify_artifact(built.folder)
    assert found.ok and found.exits_agree and found.samples == 16
    assert found.max_abs_error < 1e-4
