"""What stands in for channels that fitted gates leave out: in both hosts, and compiled."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.cache import Cache
from eecompile.compiled import CompiledGraph
from eecompile.compiling import compile_graphs
from eecompile.diagnostics import Diagnostics
from eecompile.gates import GatePlan, gate_graph, parameter_shapes
from eecompile.gating import Gating
from eecompile.hardware import machine
from eecompile.ir import TensorType
from eecompile.passes.base import PassManager, Program
from eecompile.passes.host import HostGraph
from eecompile.passes.insert_gates import insert_gates
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.passes.plan_gates import plan_gates
from eecompile.reference import evaluate, run_graph
from eecompile.runtime.runner import Runner
from eecompile.segments import SegmentGraph
from eecompile.spec import Exit, HeadSpec, Model, Output, Skip
from tests.gates.networks import host as text_host
from tests.helpers import ROOT

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent

CASES: dict[str, tuple[Skip, ...]] = {
    "chain": (Skip("channels", "[02]", HeadSpec("fitted", {"groups": 4})),),
    "residual": (
        Skip("layers", "a.*", HeadSpec("fitted", {})),
        Skip("channels", "a.*.conv1", HeadSpec("fitted", {"groups": 2})),
    ),
    "resnet20": (
        Skip("layers", "layer2.*", HeadSpec("fitted", {})),
        Skip("channels", "layer*.*.conv1", HeadSpec("fitted", {"groups": 4})),
    ),
}


@cache
def hosts(name: str) -> dict[str, HostGraph]:
    if name == "residual":
        return {"text": text_host()}
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
    from benchmarks.networks import INPUT_SHAPES, NETWORKS, export_onnx
    from eecompile.passes.fx_host import load_torch
    from eecompile.passes.onnx_host import load_onnx
    from tests.gates_fitted.modules import chain

    torch.manual_seed(0)
    shape: tuple[int, ...] = (1, 3, 8, 8)
    entry, make = f"{HERE}/modules.py:chain", chain
    if name != "chain":
        entry = f"{ROOT / 'benchmarks' / 'networks.py'}:{name}"
        make, shape = NETWORKS[name], INPUT_SHAPES[name]
    module = make().eval()
    with tempfile.TemporaryDirectory() as folder:
        weights, file = Path(folder) / "weights.pth", Path(folder) / "net.onnx"
        torch.save(module.state_dict(), weights)
        export_onnx(module, shape, file, exporter="torchscript")
        type_ = TensorType("float32", shape)
        return {
            "fx": load_torch(entry, weights, {"image": type_}, ("logits",)),
            "onnx": load_onnx(file),
        }


def model(name: str, *exits: str) -> Model:
    made = tuple(Exit(f"e{i}", point, HeadSpec("linear", {})) for i, point in enumerate(exits))
    output = Output("logits", 10)
    return Model("net", "torch", "", output=output, exits=made, skips=CASES[name])


def planned(name: str, host: HostGraph) -> GatePlan:
    found = Diagnostics()
    plan = plan_gates(model(name), host, found)
    found.raise_errors()
    return plan


def parameters_of(plan: GatePlan) -> dict[str, Array]:
    """Such that gates decide this way and that, and what they leave out counts."""
    generator = np.random.default_rng(1)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(plan).items()
    }


def images(host: HostGraph, count: int = 3) -> Array:
    graph = host.graph()
    shape = (count, *graph.types[graph.inputs[0]].shape[1:])
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


def by_hand(host: HostGraph, plan: GatePlan, parameters: dict[str, Array], x: Array) -> Array:
    """The network's answer, operator by operator; gates decide where their features are there."""
    graph = host.graph()
    values: dict[str, Any] = {**graph.constants, graph.inputs[0]: x}
    kept: dict[str, Array] = {}
    waiting = list(plan.gates)
    skipped: dict[str, str | None] = {}
    for op in graph.ops:
        for gate in [g for g in waiting if g.feature in values]:
            waiting.remove(gate)
            made = gate_graph(gate, parameters, shifted=False)
            found = run_graph(made, {"x": values[gate.feature]})
            kept |= {f"{gate.name}.{name}": array[0] > 0 for name, array in found.items()}
            if gate.block and not kept[f"{gate.name}.keep"].all():
                skipped |= dict.fromkeys(gate.block.ops)
                skipped[next(o.name for o in graph.ops if gate.block.result in o.outputs)] = (
                    gate.block.otherwise
                )
        (out,) = op.outputs
        if op.name in skipped:
            stands = skipped[op.name]
            values[out] = (
                np.zeros(graph.types[out].shape, np.float32) if stands is None else (values[stands])
            )
            continue
        (values[out],) = evaluate(op, [values[v] if v else None for v in op.inputs])
        for gate in plan.gates:
            if gate.place and gate.place.reader and gate.place.reader.value == out:
                left = ~kept[f"{gate.name}.channels"]
                more = parameters[f"gates.{gate.name}.left_out"][left].sum(0)
                values[out] = values[out] + more[:, None, None]
        for gate in plan.gates:
            if gate.place and gate.place.value == out:
                mask = kept[f"{gate.name}.channels"]
                mask = np.repeat(mask, values[out].shape[1] // len(mask))
                values[out] = values[out] * mask[:, None, None]
    return values[graph.outputs[0]]  # type: ignore[no-any-return]


def steps_of(host: HostGraph, name: str, gating: Gating, *exits: str) -> SegmentGraph:
    program = Program(host.copy(), model(name, *exits))
    result = PassManager(backbone_pipeline(gating.placed)).run(program)
    assert result.graph.segments is not None
    return result.graph.segments


@pytest.mark.parametrize("name", ["chain", "resnet20"])
def test_masks_of_every_host_give_what_is_written_down(name: str) -> None:
    answers = []
    for host in hosts(name).values():
        plan = planned(name, host)
        assert any(gate.place and gate.place.reader for gate in plan.gates)
        parameters = parameters_of(plan)
        masked = host.copy()
        insert_gates(masked, plan, parameters)
        expected = [by_hand(host, plan, parameters, row[None]) for row in images(host)]
        output, source = next(iter(host.outputs())), host.graph().inputs[0]
        found = [masked.run({source: row[None]}) for row in images(host)]
        for row, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(row[output], other, rtol=1e-3, atol=1e-3)
        decided = {float(v) for row in found for n in plan.outputs for v in row[n].flat}
        assert decided == {0.0, 1.0}
        answers.append(np.concatenate([row[output] for row in found]))
    np.testing.assert_allclose(answers[0], answers[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name, exits",
    [("chain", ()), ("chain", ("1",)), ("residual", ()), ("resnet20", ("layer2.1",))],
)
def test_compiled_steps_give_what_masks_give(name: str, exits: tuple[str, ...]) -> None:
    *_, host = hosts(name).values()
    plan = planned(name, host)
    parameters = parameters_of(plan)
    segments = steps_of(host, name, Gating(plan, parameters), *exits)
    graphs = segments.graphs()
    here = machine("host")
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_graphs(graphs, here, segments.shown, Cache(Path(folder)))
    runner = Runner.of(compiled.load(), CompiledGraph.of(segments, compiled.functions))
    found = runner.run_gated({segments.inputs[0][0]: images(host)}, [segments.output], 1)
    expected = [by_hand(host, plan, parameters, row[None]) for row in images(host)]
    answers = found.values[segments.output].reshape(len(expected), -1)
    np.testing.assert_allclose(
        answers, np.concatenate(expected).reshape(len(expected), -1), rtol=1e-3, atol=1e-3
    )
    full = runner.run_gated({segments.inputs[0][0]: images(host)}, [segments.output], 1, keeps={})
    assert (found.macs[:, -1] < full.macs[:, -1]).any()


def test_nothing_is_added_where_everything_is_kept() -> None:
    host = hosts("chain")["onnx"]
    plan = planned("chain", host)
    parameters = parameters_of(plan)
    for name, array in parameters.items():
        if not name.endswith("left_out"):
            array[...] = name.endswith("bias")
    masked = host.copy()
    insert_gates(masked, plan, parameters)
    x = {host.graph().inputs[0]: images(host, 1)}
    name = next(iter(host.outputs()))
    np.testing.assert_array_equal(masked.run(x)[name], host.run(x)[name])


def test_a_value_that_others_read_too_has_no_reader() -> None:
    host = text_host()
    plan = planned("residual", host)
    readers = {g.place.name: g.place.reader for g in plan.gates if g.place}
    assert {name: reader and reader.value for name, reader in readers.items()} == {
        "a.0.conv1": "f2",
        "a.1.conv1": None,
        "a.2.conv1": "f5",
    }


def test_what_stands_in_is_added_behind_convolutions_that_skip_channels() -> None:
    from eecompile.targets.lowering.compile import _laid_out, _simpler

    (host,) = hosts("residual").values()
    plan = planned("residual", host)
    seen = set()
    for segment in steps_of(host, "residual", Gating(plan, parameters_of(plan))).segments:
        for step in segment.steps:
            if step.gate or not step.channels or step.channels.startswith("a.1"):
                continue  # Of the block that halves the map, a sum reads what is gated.
            (laid,) = _laid_out([_simpler(step.graph)], (*step.graph.inputs, *step.graph.outputs))
            (gate,) = (op for op in laid.graph.ops if op.kind == "Keep")
            assert gate.attributes["unread"]
            listed = {op.name for op in laid.graph.ops if op.kind == "Conv" and len(op.inputs) == 4}
            seen |= {name for name in listed if name in ("f2", "f5")}
    assert seen == {"f2", "f5"}
