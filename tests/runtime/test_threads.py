"""Real networks with exits: the answers are the same, to the bit, on any number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("torch")
pytest.importorskip("onnx")
from benchmarks import networks
from benchmarks.suite import lively
from eecompile.artifact import Contents, PolicyEntry, read_artifact, write_artifact
from eecompile.compiled import CompiledGraph
from eecompile.hardware import machine
from eecompile.ir import Graph, TensorType
from eecompile.manifest import TargetInfo
from eecompile.memory import plan_network, workspace_bytes
from eecompile.passes.base import PassManager
from eecompile.passes.onnx_host import load_onnx
from eecompile.passes.pipelines import segments_pipeline
from eecompile.policies import ThresholdPolicy, to_json
from eecompile.policies.scores import max_softmax
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from eecompile.targets.lowering import compile_functions
from eecompile.text import parse_graph
from tests.helpers import program_of

#: Network -> how many exits it gets, spread over its depth.
NETWORKS = {"resnet56": 6, "mobilenet_v2_small": 2, "vit_small": 2}
COUNT = 7


def head(feature: TensorType, classes: int, seed: int) -> Graph:
    """Mean over places, then a linear layer with random weights."""
    channels = feature.shape[1] if len(feature.shape) == 4 else feature.shape[-1]
    axes = "2, 3" if len(feature.shape) == 4 else "1,"
    shape = str(list(feature.shape))
    graph = parse_graph(f"""
graph head(feature: float32{shape}) -> (logits: float32[1, {classes}]) {{
    const w: float32[{channels}, {classes}] = splat(0.1)
    pooled: float32[1, {channels}] = ReduceMean(feature; axes=({axes}), keepdims=0)
    logits: float32[1, {classes}] = MatMul(pooled, w)
}}
""")
    weights = np.random.default_rng(seed).normal(0, 1 / channels, (channels, classes))
    return Graph(
        "head",
        graph.inputs,
        graph.outputs,
        graph.ops,
        {"w": weights.astype(np.float32)},
        graph.types,
    )


def points(graph: Graph, count: int) -> list[str]:
    """Values to leave at: results of residual sums, or else of activations, evenly spread."""
    sums = [
        op for op in graph.ops if op.kind == "Add" and not set(op.inputs) & set(graph.constants)
    ]
    found = [op.outputs[0] for op in sums if len(graph.types[op.outputs[0]].shape) >= 3]
    return [found[(i + 1) * len(found) // (count + 1)] for i in range(count)]


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose policy lets about as many samples go at each exit."""
    name = request.param
    out = tmp_path_factory.mktemp(name)
    path = out / "net.onnx"
    shape = networks.INPUT_SHAPES[name]
    networks.export_onnx(lively(name), shape, path, exporter="torchscript")
    graph = load_onnx(path).graph()
    (logits,) = graph.outputs
    classes = graph.types[logits].shape[1]
    taps = {f"exit{i}": value for i, value in enumerate(points(graph, NETWORKS[name]))}
    heads = {
        exit_: head(graph.types[value], classes, seed)
        for seed, (exit_, value) in enumerate(taps.items())
    }
    program = program_of(graph, taps, logits, classes)
    segments = PassManager(segments_pipeline(heads, {})).run(program).graph.segments
    assert segments is not None
    host = machine("host")
    compiled = compile_functions(segments.graphs(), host, plain=segments.shown)
    network = CompiledGraph.of(segments, compiled.functions)
    runner = Runner.of(Library(compiled.library, compiled.weights), network)
    found = runner.run_all(images(network), [e.functions[0].outputs[0][0] for e in network.exits])
    thresholds, staying = [], np.arange(COUNT)
    for scores in found.values():
        sure = max_softmax(scores.reshape(COUNT, -1))[staying]
        thresholds.append(float(np.sort(sure)[-1]))  # The surest of those that are left leaves.
        staying = staying[sure < thresholds[-1]]
    policy = ThresholdPolicy("max_softmax", thresholds)
    contents = Contents(
        version="0",
        target=TargetInfo("host", host.triple, host.features, 4),
        network=network,
        library=compiled.library,
        weights=compiled.weights,
        vectors={},
        segments_text="",
        source_text="",
        policies={"spread": PolicyEntry(to_json(policy))},
        default_policy="spread",
    )
    write_artifact(out / "net.artifact", contents)
    return out / "net.artifact"


def images(network: CompiledGraph) -> np.ndarray:
    ((_, type_),) = network.inputs
    rng = np.random.default_rng(0)
    return rng.standard_normal((COUNT, *type_.shape[1:])).astype(np.float32)


def answers(net: Session, x: np.ndarray) -> Mapping[str, np.ndarray]:
    """Everything a session says of some samples, one by one and together."""
    single = [net.run(image) for image in x]
    full = [net.full_depth(image) for image in x]
    batch, full_batch = net.run_batch(x), net.full_depth_batch(x)
    few = net.run_batch(x[:2])
    return {
        "logits": np.stack([answer.logits for answer in single]),
        "exits": np.array([net.exit_names.index(answer.exit) for answer in single]),
        "full": np.stack([answer.logits for answer in full]),
        "batch": batch.logits,
        "batch exits": batch.exits,
        "few": few.logits,
        "full batch": full_batch.logits,
    }


def test_the_number_of_threads_changes_no_bit(folder: Path) -> None:
    artifact = read_artifact(folder)
    x = images(artifact.manifest.network)
    expected = answers(Session(artifact, threads=1), x)
    np.testing.assert_array_equal(expected["logits"], expected["batch"])
    np.testing.assert_array_equal(expected["exits"], expected["batch exits"])
    np.testing.assert_array_equal(expected["full"], expected["full batch"])
    np.testing.assert_array_equal(expected["few"], expected["batch"][:2])
    assert len(set(expected["exits"])) == len(artifact.manifest.network.exits) + 1
    for threads in (2, 3, 4):
        found = answers(Session(artifact, threads=threads), x)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{name}, {threads} threads")


def test_clones_in_several_python_threads_answer_as_one(folder: Path) -> None:
    net = Session(read_artifact(folder), threads=2)
    x = images(net.manifest.network)
    expected = answers(net, x)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda clone: answers(clone, x), [net.clone() for _ in range(3)]):
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_answers_are_those_of_a_runner_that_keeps_every_value(folder: Path) -> None:
    net = Session(read_artifact(folder), threads=2)
    network = net.manifest.network
    x = images(network)
    names = [name for f in network.functions() for name, _ in f.outputs]
    kept = Runner.of(net.library, network).run_all(x, names, 2)
    full = net.full_depth_batch(x).logits
    np.testing.assert_array_equal(full, kept[network.output].reshape(full.shape))
    taken = net.run_batch(x)
    for row, index in enumerate(taken.exits[taken.exits < len(network.exits)]):
        scores = kept[network.exits[index].functions[0].outputs[0][0]].reshape(COUNT, -1)
        rows = np.flatnonzero(taken.exits == index)
        np.testing.assert_array_equal(taken.logits[rows], scores[rows], err_msg=str(row))


def test_a_whole_network_takes_less_memory_than_its_values(folder: Path) -> None:
    network = read_artifact(folder).manifest.network
    functions = network.functions()
    apart = network.inputs[0][1].nbytes + sum(t.nbytes for f in functions for _, t in f.outputs)
    apart += max(workspace_bytes(function, 1, 1) for function in functions)
    assert plan_network(network.inputs, functions, 1, 1).nbytes < apart
