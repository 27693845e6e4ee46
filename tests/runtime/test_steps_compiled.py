"""A compiled convolutional network with gates: it answers as masks in its graph do, everywhere."""

from __future__ import annotations

import functools
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.artifact import Contents, PolicyEntry, read_artifact, write_artifact
from eecompile.compiled import CompiledGraph
from eecompile.hardware import Machine, machine
from eecompile.ir import Graph, Op
from eecompile.manifest import TargetInfo
from eecompile.passes.base import PassManager
from eecompile.passes.pipelines import segments_pipeline
from eecompile.passes.split_at_gates import PlacedGate, SplitAtGates
from eecompile.policies import ThresholdPolicy, to_json
from eecompile.policies.scores import max_softmax
from eecompile.reference import evaluate, run_graph
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from eecompile.segments import SHIFT, SegmentGraph
from eecompile.targets.lowering import compile_functions, find_linkers
from eecompile.text import parse_graph
from tests.helpers import ROOT, program_of, python_on_arm

_CONV = "strides=(1,1), pads=(1,1,1,1), dilations=(1,1), group=1"
_IMAGE = "float32[1, 8, 6, 6]"
COUNT = 12


def _conv(name: str, source: str, module: str) -> str:
    return f"{name}: {_IMAGE} = Conv({source}, w{name}; {_CONV}) @ {module}"


#: Two residual blocks and a dense layer, whose new channels are put beside the old.
NET = f"""
graph net(image: float32[1, 3, 6, 6]) -> (y: float32[1, 5]) {{
    const ws: float32[8, 3, 3, 3] = random(1)
    {" ".join(f"const w{n}: float32[8, 8, 3, 3] = random({i})" for i, n in enumerate("fghkd"))}
    const v: float32[16, 5] = random(9)
    s: {_IMAGE} = Conv(image, ws; {_CONV}) @ stem
    b: {_IMAGE} = Relu(s) @ stem
    {_conv("f", "b", "one.first")}
    fr: {_IMAGE} = Relu(f) @ one.first
    {_conv("g", "fr", "one.second")}
    s1: {_IMAGE} = Add(b, g) @ one
    r1: {_IMAGE} = Relu(s1) @ one
    {_conv("h", "r1", "two.first")}
    hr: {_IMAGE} = Relu(h) @ two.first
    {_conv("k", "hr", "two.second")}
    s2: {_IMAGE} = Add(r1, k) @ two
    r2: {_IMAGE} = Relu(s2) @ two
    {_conv("d", "r2", "three")}
    n: {_IMAGE} = Relu(d) @ three
    c: float32[1, 16, 6, 6] = Concat(r2, n; axis=1) @ three
    m: float32[1, 16] = ReduceMean(c; axes=(2, 3), keepdims=0) @ fc
    y: float32[1, 5] = MatMul(m, v) @ fc
}}
"""


def _spread(width: int, seed: int) -> np.ndarray:
    """Weights whose products with positive features have both signs."""
    return np.random.default_rng(seed).standard_normal((8, width)).astype(np.float32)


def _gate(seed: int, before: bool = False, **outputs: int) -> Graph:
    """Scores from the mean over places; ``h`` and ``c`` are a state, which is added to the next."""
    lines, weights = [], {}
    for place, (name, width) in enumerate(outputs.items()):
        weights[f"w{name}"] = _spread(width, seed + place)
        lines += [
            f"const w{name}: float32[8, {width}] = splat(1.0)",
            f"p{name}: float32[1, {width}] = MatMul({'n' if before else 'm'}, w{name})",
            f"{name}: float32[1, {width}] = Sub(p{name}, gates.shift)",
        ]
    state = ""
    if before:
        state = ", before.h: float32[1, 8], before.c: float32[1, 8]"
        lines = [
            "a: float32[1, 8] = Mul(before.h, before.c)",
            "n: float32[1, 8] = Add(m, a)",
            *lines,
        ]
    made = ", ".join(f"{name}: float32[1, {width}]" for name, width in outputs.items())
    graph = parse_graph(
        f"graph gate(x: {_IMAGE}, gates.shift: float32[1, 1]{state}) -> ({made}) {{\n"
        "m: float32[1, 8] = ReduceMean(x; axes=(2, 3), keepdims=0)\n" + "\n".join(lines) + "\n}"
    )
    return Graph(graph.name, graph.inputs, graph.outputs, graph.ops, weights, graph.types)


GATES = (
    PlacedGate("one", "b", _gate(2, keep=1, channels=4, h=8, c=8), "b", "r1", masked="fr"),
    PlacedGate("two", "r1", _gate(2, before=True, keep=1), "r1", "r2"),
    PlacedGate("two.first", "r1", _gate(1, channels=2), masked="hr"),
    PlacedGate("three", "r2", _gate(2, keep=1), "r2", "n", zeros=True),
)
BLOCKS = ("one", "two", "three")


def _head() -> Graph:
    graph = parse_graph(f"""
graph head(feature: {_IMAGE}) -> (logits: float32[1, 5]) {{
    const w: float32[8, 5] = random(3)
    m: float32[1, 8] = ReduceMean(feature; axes=(2, 3), keepdims=0)
    logits: float32[1, 5] = MatMul(m, w)
}}
""")
    weights = {"w": _spread(5, 40)}
    return Graph("head", graph.inputs, graph.outputs, graph.ops, weights, graph.types)


@functools.cache
def source() -> Graph:
    """The network, with weights that keep values about as large."""
    graph = parse_graph(NET)
    weights = {
        name: (np.random.default_rng(i).standard_normal(w.shape) / 6).astype(np.float32)
        for i, (name, w) in enumerate(graph.constants.items())
    }
    return Graph(graph.name, graph.inputs, graph.outputs, graph.ops, weights, graph.types)


@functools.cache
def segments() -> SegmentGraph:
    """It cut at its gates, with an exit behind the first block."""
    passes = (*segments_pipeline({"early": _head()}), SplitAtGates(GATES))
    found = PassManager(passes).run(program_of(source(), {"early": "one"}, "y", 5)).graph
    assert found.segments is not None
    return found.segments


def inputs(count: int = COUNT) -> np.ndarray:
    """Each with colours of its own, as gates look at means over places."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((count, 3, 6, 6)) + 3 * rng.standard_normal((count, 3, 1, 1))
    return values.astype(np.float32)


def masked(x: np.ndarray, shift: float) -> dict[str, np.ndarray]:
    """One sample through the graph with masks, and every gate's scores."""
    graph = source()
    values: dict[str, np.ndarray] = {**graph.constants, "image": x}
    by, scores = np.full((1, 1), shift, np.float32), dict[str, np.ndarray]()
    state: dict[str, np.ndarray] = {}
    left = list(GATES)
    for op in graph.ops:
        (values[op.outputs[0]],) = evaluate(op, [values[v] for v in op.inputs])
        for gate in GATES:
            if gate.masked == op.outputs[0]:
                values[gate.masked] = _kept(values[gate.masked], scores[f"{gate.name}.channels"])
            if gate.result == op.outputs[0] and not scores[f"{gate.name}.keep"] > 0:
                other = np.zeros_like(values[gate.result])
                values[gate.result] = other if gate.zeros else values[gate.entry]
        for gate in [g for g in left if g.feature == op.outputs[0]]:
            left.remove(gate)
            given = {"x": values[gate.feature], SHIFT[0]: by, **state}
            found = run_graph(gate.graph, {v: given[v] for v in gate.graph.inputs})
            scores |= {f"{gate.name}.{name}": score for name, score in found.items()}
            if "h" in found:
                state = {f"before.{name}": found[name] for name in ("h", "c")}
    return values | scores


def _kept(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return evaluate(Op("k", "Keep", ("x", "s"), ("y",)), [x, scores])[0]


def contents(target: Machine) -> tuple[Contents, float]:
    """An artifact for a machine, and a threshold that half of the samples pass."""
    compiled = compile_functions(segments().graphs(), target, plain=segments().shown)
    network = CompiledGraph.of(segments(), compiled.functions)
    early = np.concatenate([_early(masked(x[None], 0.0)) for x in inputs()])
    sure = np.sort(max_softmax(early))
    threshold = float((sure[COUNT // 2 - 1] + sure[COUNT // 2]) / 2)
    found: dict[str, Any] = {
        "version": "0",
        "target": TargetInfo(target.name, target.triple, target.features, 2),
        "network": network,
        "library": compiled.library,
        "weights": compiled.weights,
        "vectors": {},
        "segments_text": "",
        "source_text": "",
        "policies": {"half": PolicyEntry(to_json(ThresholdPolicy("max_softmax", [threshold])))},
        "default_policy": "half",
    }
    return Contents(**found), threshold


def _early(values: dict[str, np.ndarray]) -> np.ndarray:
    (found,) = run_graph(_head(), {"feature": values["r1"]}).values()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gated") / "out"
    write_artifact(out, contents(machine("host"))[0])
    return out


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_a_runner_gives_what_masks_give(folder: Path, shift: float) -> None:
    artifact = read_artifact(folder)
    network = artifact.manifest.network
    runner = Runner.of(Library(artifact.library, artifact.weights), network)
    x = inputs()
    found = runner.run_gated(x, [network.output], shift=shift)
    expected = [masked(one[None], shift) for one in x]
    for row, values in enumerate(expected):
        np.testing.assert_allclose(found.values[network.output][row], values["y"][0], atol=1e-4)
        for name in BLOCKS:
            assert found.shares[f"{name}.keep"][row] == (values[f"{name}.keep"] > 0).item()
        assert found.shares["one.channels"][row] == (values["one.channels"] > 0).mean()
        inner = (values["two.first.channels"] > 0).mean() * (values["two.keep"] > 0).item()
        assert found.shares["two.first.channels"][row] == inner
        conv = 8 * 8 * 9 * 36
        one = (1 + 2 * found.shares["one.channels"][row] * found.shares["one.keep"][row]) * conv
        assert found.macs[row, 0] == one - conv + 3 * 8 * 9 * 36 + 8 * (1 + 4 + 8 + 8)
    ways = {tuple(found.shares[f"{name}.keep"][row] for name in BLOCKS) for row in range(COUNT)}
    assert len(ways) >= 4
    for threads in (2, 3):
        again = runner.run_gated(x, [network.output], threads, shift=shift)
        np.testing.assert_array_equal(again.values[network.output], found.values[network.output])
        np.testing.assert_array_equal(again.macs, found.macs)


def test_all_kept_is_the_source_network(folder: Path) -> None:
    artifact = read_artifact(folder)
    network = artifact.manifest.network
    runner = Runner.of(Library(artifact.library, artifact.weights), network)
    x = inputs()
    found = runner.run_all(x, [network.output])[network.output]
    for row, one in enumerate(x):
        expected = run_graph(source(), {"image": one[None]})["y"]
        np.testing.assert_allclose(found[row], expected[0], atol=1e-4)
    given = runner.run_gated(x, [network.output], keeps={})
    np.testing.assert_array_equal(given.values[network.output], found)
    assert set(given.macs[:, -1].tolist()) == {network.macs}


def test_sessions_answer_alike_one_by_one_together_and_on_threads(folder: Path) -> None:
    x, artifact = inputs(), read_artifact(folder)
    nets = [Session(artifact, threads=threads) for threads in (1, 2, 3)]
    expected = nets[0].run_batch(x)
    assert 0 < (expected.exits == 0).sum() < COUNT
    for net in nets:
        batch = net.run_batch(x)
        singles = [net.run(one) for one in x]
        for name in ("logits", "exits", "macs", "blocks_run"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), name)
        np.testing.assert_array_equal([a.logits for a in singles], expected.logits)
        assert [a.macs for a in singles] == expected.macs.tolist()
        assert [a.blocks_run for a in singles] == expected.blocks_run.tolist()  # type: ignore[union-attr]
        full = net.full_depth_batch(x)
        np.testing.assert_array_equal([net.full_depth(one).logits for one in x], full.logits)
        assert set(full.macs.tolist()) == {artifact.manifest.network.macs}
    for row, one in enumerate(x):
        values = masked(one[None], 0.0)
        logits = _early(values) if expected.exits[row] == 0 else values["y"]
        np.testing.assert_allclose(expected.logits[row], logits[0], atol=1e-4)


def test_gates_decide_alike_on_aarch64(arm: Path, tmp_path: Path, folder: Path) -> None:
    target = machine("arm-cpu")
    if not find_linkers(target):
        pytest.skip("needs a linker for aarch64")
    made, threshold = contents(target)
    write_artifact(tmp_path / "arm", made)
    np.save(tmp_path / "x.npy", inputs())
    policy = ThresholdPolicy("max_softmax", [threshold])
    (tmp_path / "policy.json").write_text(json.dumps(to_json(policy)))
    script = ROOT / "tests" / "arm" / "run.py"
    arguments = [tmp_path / "arm", tmp_path / "policy.json", tmp_path / "x.npy"]
    python_on_arm(arm, script, *arguments, tmp_path / "found.npz", COUNT)
    expected = Session(read_artifact(folder), threads=1).run_batch(inputs())
    with np.load(tmp_path / "found.npz") as found:
        assert str(found["machine"]) == "aarch64" or platform.machine() == "aarch64"
        np.testing.assert_array_equal(found["batch_exits"], expected.exits)
        np.testing.assert_array_equal(found["macs"], expected.macs)
        np.testing.assert_array_equal(found["batch_macs"], expected.macs)
        np.testing.assert_allclose(found["batch_logits"], expected.logits, atol=1e-4)
        np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4)
