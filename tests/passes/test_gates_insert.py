"""Gates in the source network: the same on both hosts, and the same as what they stand for."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.diagnostics import Diagnostics
from eecompile.gates import Gate, GatePlan, gate_graph, initial_parameters, parameter_shapes
from eecompile.gating import Gating
from eecompile.ir import Graph, TensorType
from eecompile.passes.base import Program
from eecompile.passes.cut_segments import cut
from eecompile.passes.host import HostError, HostGraph
from eecompile.passes.insert_gates import InsertGates, insert_gates
from eecompile.passes.plan_gates import plan_gates
from eecompile.passes.split_at_gates import split_at_gates
from eecompile.reference import evaluate, run_graph
from eecompile.segments import SHIFT
from eecompile.spec import HeadSpec, Model, Skip
from eecompile.text import parse_graph

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

from benchmarks.networks import export_onnx  # noqa: E402
from eecompile.passes.fx_host import FxHost, load_torch  # noqa: E402
from eecompile.passes.onnx_host import load_onnx  # noqa: E402
from tests.gates import modules  # noqa: E402
from tests.helpers import ROOT  # noqa: E402

Array = np.ndarray[Any, Any]


def layers(point: str, kind: str = "recurrent", **options: int) -> Skip:
    return Skip("layers", point, HeadSpec(kind, options))


def channels(point: str, kind: str = "squeeze", **options: int) -> Skip:
    return Skip("channels", point, HeadSpec(kind, options))


#: Every kind, blocks with gates of both sorts, a value that is masked twice (``conv2``).
RESNET = (
    layers("layer[12].*"),
    layers("layer3.1", "feedforward", hidden=4),
    layers("layer3.2", "fitted"),
    channels("layer*.1.conv1", "recurrent", groups=4),
    channels("layer*.2.conv2", groups=2),
    channels("layer1.0.conv2", "convolution", groups=16, width=4),
    channels("conv1", "recurrent", groups=2),
)
CASES = {
    "deeper_resnet": RESNET,
    "densenet": (layers("**"), channels("features.*.[12].conv*", groups=3)),
    "transformer": (layers("layers.*.*"), channels("patches", groups=8)),
}


class Network:
    """One network on both hosts, with its plan on each, and three inputs."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.name, module = name, getattr(modules, name)().eval()
        torch.save(module.state_dict(), folder / "weights.pth")
        # Transformers know where the patches of their picture are; to others its size is the same.
        shape = (1, 3, 32, 32) if name == "transformer" else (1, 3, 16, 16)
        export_onnx(module, shape, folder / "net.onnx", exporter="torchscript")
        entry = f"{ROOT / 'tests/gates/modules.py'}:{name}"
        type_ = TensorType("float32", shape)
        fx = load_torch(entry, folder / "weights.pth", {"image": type_}, ("logits",))
        self.hosts: dict[str, HostGraph] = {"fx": fx, "onnx": load_onnx(folder / "net.onnx")}
        self.plans = {kind: planned(host, CASES[name]) for kind, host in self.hosts.items()}
        generator = np.random.default_rng(4)
        self.inputs = generator.standard_normal((3, *shape[1:])).astype(np.float32)

    def gated(self, kind: str, parameters: dict[str, Array], shift: float = 0.0) -> HostGraph:
        host = self.hosts[kind].copy()
        assert insert_gates(host, self.plans[kind], parameters, shift) == ()
        return host

    def run(self, host: HostGraph) -> dict[str, Array]:
        rows = [host.run({"image": row[None]}) for row in self.inputs]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def planned(host: HostGraph, skips: tuple[Skip, ...]) -> GatePlan:
    found = Diagnostics()
    plan = plan_gates(Model("net", "torch", "", skips=skips), host, found)
    found.raise_errors()
    return plan


def random_parameters(plan: GatePlan) -> dict[str, Array]:
    """Such that gates decide this way and that."""
    generator = np.random.default_rng(1)
    found = {}
    for name, shape in parameter_shapes(plan).items():
        array = generator.standard_normal(shape) * (0.1 if name.endswith("bias") else 1)
        found[name] = array.astype(np.float32)
    return found


@cache
def made(name: str) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        return Network(name, Path(folder))


@pytest.fixture(params=CASES)
def network(request: pytest.FixtureRequest) -> Network:
    return made(request.param)


@pytest.fixture
def resnet() -> Network:
    return made("deeper_resnet")


def by_hand(
    source: Graph, plan: GatePlan, parameters: dict[str, Array], x: Array
) -> dict[str, Any]:
    """Runs the source's graph operator by operator, gates in between, blocks left out for real."""
    values: dict[str, Any] = {**source.constants, source.inputs[0]: x}
    scores: dict[str, Any] = {}
    left: dict[str, tuple[str, str]] = {}
    waiting = list(plan.gates)
    skipped: set[str] = set()
    mask = {gate.place.value: gate for gate in plan.gates if gate.place}

    def decide(last: Gate | None = None) -> None:
        """All gates whose feature is there, or those up to the `last`."""
        while waiting and waiting[0].feature in values and (last is None or last in waiting):
            gate = waiting.pop(0)
            run_gate(gate, values, scores, parameters)
            if gate.block and not (scores[f"{gate.name}.keep"] > 0).all():
                skipped.update(gate.block.ops)
                left[gate.block.result] = (gate.block.otherwise, gate.name)

    for op in source.ops:
        # A gate inside a block that is left out has no feature; it decides about nothing.
        decide()
        (out,) = op.outputs
        if op.name in skipped:
            if out in left:
                kept = left[out][0]
                shape = source.types[out].shape
                values[out] = values[kept] if kept else np.zeros(shape, np.float32)
            while waiting and waiting[0].feature == out and out not in values:
                waiting.pop(0)
            continue
        (values[out],) = evaluate(op, [values[v] if v else None for v in op.inputs])
        if out in mask:
            decide(mask[out])
            groups = scores[f"{mask[out].name}.channels"]
            size = source.types[out].shape[1] // groups.shape[1]
            wide = np.repeat(groups > 0, size, axis=1)
            values[out] = values[out] * wide.reshape(1, -1, *[1] * (values[out].ndim - 2))
    return {"answer": values[source.outputs[0]], **scores}


def run_gate(
    gate: Gate, values: dict[str, Any], scores: dict[str, Any], parameters: dict[str, Array]
) -> None:
    graph = gate_graph(gate, parameters)
    given = {"x": values[gate.feature], SHIFT[0]: np.zeros((1, 1), np.float32)}
    given |= {f"before.{n}": scores[f"{gate.before}.{n}"] for n in ("h", "c") if gate.before}
    found = run_graph(graph, {name: given[name] for name in graph.inputs})
    scores.update((f"{gate.name}.{name}", array) for name, array in found.items())


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_gates_as_they_start_change_nothing(network: Network, kind: str) -> None:
    plan = network.plans[kind]
    gated = network.run(network.gated(kind, initial_parameters(plan, 0)))
    source = network.run(network.hosts[kind])
    assert list(gated) == ["logits", *plan.outputs]
    np.testing.assert_array_equal(gated["logits"], source["logits"])
    for name, count in plan.outputs.items():
        np.testing.assert_array_equal(gated[name], np.ones((3, count), np.float32))


def test_both_hosts_and_the_source_with_its_blocks_left_out_give_the_same(network: Network) -> None:
    results = {}
    for kind, plan in network.plans.items():
        parameters = random_parameters(plan)
        results[kind] = network.run(network.gated(kind, parameters))
        hand = [
            by_hand(network.hosts[kind].graph(), plan, parameters, row[None])
            for row in network.inputs
        ]
        answers = np.concatenate([row["answer"] for row in hand])
        np.testing.assert_allclose(results[kind]["logits"], answers, rtol=1e-3, atol=1e-4)
        for name in plan.outputs:
            for index, row in enumerate(hand):
                if name in row:  # of gates inside blocks that were left out there is none
                    np.testing.assert_array_equal(results[kind][name][index], row[name][0] > 0)
    ours, theirs = results.values()
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-3, atol=1e-4)
    decided = set()
    for name in network.plans["fx"].outputs:
        np.testing.assert_array_equal(ours[name], theirs[name])
        decided |= set(ours[name].reshape(-1))
    assert decided == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_steps_that_are_left_out_give_what_masks_give(network: Network, kind: str) -> None:
    plan, graph = network.plans[kind], network.hosts[kind].graph()
    parameters = random_parameters(plan)
    masked = network.run(network.gated(kind, parameters))
    whole = cut(
        graph, (), name="net", inputs={graph.inputs[0]: "image"}, outputs={"out": graph.outputs[0]}
    )
    (segment,) = split_at_gates(whole, graph, Gating(plan, parameters).placed).segments
    for index, row in enumerate(network.inputs):
        values: dict[str, Any] = {"image": row[None], SHIFT[0]: np.zeros((1, 1), np.float32)}
        for step in segment.steps:
            if not step.keep or values[step.keep] > 0:
                values |= run_graph(step.graph, {name: values[name] for name in step.graph.inputs})
            elif not step.gate:
                for name in step.graph.outputs:
                    zeros = np.zeros(step.graph.types[name].shape, np.float32)
                    values[name] = values[step.otherwise] if step.otherwise else zeros
        np.testing.assert_allclose(values["out"][0], masked["logits"][index], rtol=1e-3, atol=1e-4)


def test_a_batch_is_decided_about_sample_by_sample(network: Network) -> None:
    host = network.gated("fx", random_parameters(network.plans["fx"]))
    one_by_one, together = network.run(host), host.run({"image": network.inputs})
    for name in network.plans["fx"].outputs:
        np.testing.assert_array_equal(together[name], one_by_one[name])
    np.testing.assert_allclose(together["logits"], one_by_one["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_shift_leaves_out_more(resnet: Network, kind: str) -> None:
    parameters = initial_parameters(resnet.plans[kind], 0)
    for shift, kept in ((0.5, 1.0), (4.0, 0.0)):
        found = resnet.run(resnet.gated(kind, parameters, shift))
        assert {float(v) for n in resnet.plans[kind].outputs for v in found[n].flat} == {kept}


def test_an_exported_gated_network_runs_in_onnx_runtime(resnet: Network, tmp_path: Path) -> None:
    import onnxruntime

    host = resnet.gated("onnx", random_parameters(resnet.plans["onnx"]))
    expected = host.run({"image": resnet.inputs[:1]})
    host.save(tmp_path / "gated.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "gated.onnx")
    found = session.run(None, {"image": resnet.inputs[:1]})
    assert [output.name for output in session.get_outputs()] == list(expected)
    for array, name in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


def test_a_gated_module_is_saved_and_loaded(tmp_path: Path) -> None:
    type_ = TensorType("float32", (1, 3, 8, 8))
    host = load_torch(f"{ROOT / 'tests/gates/modules.py'}:preactivated", None, {"x": type_})
    plan = planned(host, (layers("[12]"), channels("2.conv", groups=2)))
    insert_gates(host, plan, random_parameters(plan))
    pictures = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    expected = host.run({"x": pictures})
    host.save(tmp_path / "gated.pt2")
    with torch.no_grad():
        found = torch.export.load(tmp_path / "gated.pt2").module()(torch.from_numpy(pictures))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_translated_view_computes_the_same(resnet: Network, kind: str) -> None:
    host = resnet.gated(kind, random_parameters(resnet.plans[kind]))
    graph = host.graph()
    found = run_graph(graph, {graph.inputs[0]: resnet.inputs[:1]})
    expected = host.run({"image": resnet.inputs[:1]})
    for name, value in host.outputs().items():
        np.testing.assert_allclose(found[value], expected[name], rtol=1e-3, atol=1e-4)


def gradients(host: FxHost) -> dict[str, Array]:
    """Of the gates' parameters, those that have none left out."""
    return {
        name: parameter.grad.numpy()
        for name, parameter in host.module.named_parameters()
        if name.startswith("gates.") and parameter.grad is not None
    }


def test_masks_pass_gradients_straight_through(resnet: Network) -> None:
    plan = resnet.plans["fx"]
    parameters = random_parameters(plan)
    host = resnet.gated("fx", parameters)
    assert isinstance(host, FxHost)
    found = host.module(torch.from_numpy(resnet.inputs))
    gate = next(gate for gate in reversed(plan.gates) if gate.kind.kind == "fitted")
    found[f"{gate.name}.keep"].sum().backward()
    slope_of = gradients(host)[f"gates.{gate.name}.keep_bias"]
    # Its score is the only thing that the bias is added to: the sigmoid's slope, sample by sample.
    scores = np.concatenate(
        [
            by_hand(resnet.hosts["fx"].graph(), plan, parameters, row[None])[f"{gate.name}.keep"]
            for row in resnet.inputs
        ]
    )
    slope = 1 / (1 + np.exp(-scores)) * (1 - 1 / (1 + np.exp(-scores)))
    np.testing.assert_allclose(slope_of, [slope.sum()], rtol=1e-3)


def test_every_parameter_trains_and_shared_ones_are_one(resnet: Network) -> None:
    plan = resnet.plans["fx"]
    host = resnet.gated("fx", initial_parameters(plan, 0))
    assert isinstance(host, FxHost)
    trainable = {name for name, _ in host.module.named_parameters() if name.startswith("gates.")}
    assert trainable == set(parameter_shapes(plan))
    reads = [n for n in host.module.graph.nodes if n.target == "gates.shared.input_weight"]
    assert len(reads) == 1
    found = host.module(torch.from_numpy(resnet.inputs))
    sum(found[name].sum() for name in ("logits", *plan.outputs)).backward()
    silent = {name for name, slopes in gradients(host).items() if not slopes.any()}
    # Layers before a last one of zeros get their first gradient in the second step.
    assert gradients(host).keys() == trainable
    assert all("hidden_" in name or "first_" in name or "second_" in name for name in silent)


def test_parameters_are_read_back(resnet: Network) -> None:
    plan, source = resnet.plans["fx"], resnet.hosts["fx"]
    parameters = random_parameters(plan)
    host = resnet.gated("fx", parameters)
    assert isinstance(host, FxHost) and isinstance(source, FxHost)
    found, own = host.weights(), source.weights()
    assert found.keys() >= parameters.keys() | own.keys()
    for name, array in (own | parameters).items():
        np.testing.assert_array_equal(found[name], array)
    name = "layer1.0.conv1.weight"
    changed = {name: own[name] * 2, "gates.layer1.0.embedding_bias": np.ones(10)}
    host.set_weights(changed)
    for other, array in (own | parameters | changed).items():
        np.testing.assert_array_equal(host.weights()[other], array)
    for wrong, told in (("nothing", "is not there"), (name, "has shape [16, 16, 3, 3]")):
        with pytest.raises(HostError, match="Weight") as raised:
            host.set_weights({wrong: np.zeros(3, np.float32)})
        assert told in str(raised.value)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_pass_changes_nothing_the_second_time(resnet: Network, kind: str) -> None:
    plan = resnet.plans[kind]
    step = InsertGates(plan, initial_parameters(plan, 0))
    program = Program(resnet.hosts[kind].copy(), Model("net", "torch", ""))
    assert step.run(program).modified
    before = program.host.fingerprint()
    again = step.run(program)
    assert not again.modified
    assert [skip.reason for skip in again.skips] == ["inserted already"] * len(plan.gates)
    assert program.host.fingerprint() == before


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_names_that_are_taken_are_refused_and_nothing_is_changed(
    resnet: Network, kind: str
) -> None:
    plan = resnet.plans[kind]
    host = resnet.hosts[kind].copy()
    gate = plan.gates[0]
    wrong = replace(gate, type=TensorType("float32", (1, 5, 2, 2)))
    before = host.fingerprint()
    parameters = initial_parameters(GatePlan((wrong,)), 0)
    with pytest.raises(HostError):
        insert_gates(host, GatePlan((wrong,)), parameters)
    assert host.fingerprint() == before


TWO = """graph two(a: float32[1, 16, 16, 16], b: float32[1, 16, 16, 16]) -> (y: float32[1, 2]) {
    const w: float32[16, 2] = random(1)
    s: float32[1, 16, 16, 16] = Add(a, b)
    p: float32[1, 16] = ReduceMean(s; axes=(2, 3), keepdims=0)
    y: float32[1, 2] = MatMul(p, w)
}"""


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_graphs_of_several_inputs_share_the_weights_they_name(resnet: Network, kind: str) -> None:
    host, graph = resnet.hosts[kind].copy(), parse_graph(TWO)
    places = [host.points()[name].value for name in ("layer1.0", "layer1.2")]
    for index, (a, b) in enumerate((places, places[::-1])):
        (value,) = host.splice(graph, {"a": a, "b": b}, f"sums.s{index}", {"w": "sums.weight"})
        host.add_output(f"y{index}", value)
    found = host.run({"image": resnet.inputs[:1]})
    np.testing.assert_array_equal(found["y0"], found["y1"])
    values = run_graph(
        resnet.hosts[kind].graph().pruned(places),
        {resnet.hosts[kind].graph().inputs[0]: resnet.inputs[:1]},
    )
    mean = (values[places[0]] + values[places[1]]).mean((2, 3))
    np.testing.assert_allclose(found["y0"], mean @ graph.constants["w"], rtol=1e-3, atol=1e-4)
    if isinstance(host, FxHost):
        assert [n for n in host.weights() if n.startswith("sums")] == ["sums.weight"]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_a_refused_graph_leaves_no_weight_behind(resnet: Network, kind: str) -> None:
    host, graph = resnet.hosts[kind].copy(), parse_graph(TWO)
    value = host.points()["layer1.0"].value
    both = {"a": value, "b": value}
    # Torch has no argument of the last maximum, ONNX no such normalisation before set 21.
    refused = parse_graph(
        TWO.replace("(y: float32[1, 2])", "(z: int64[1, 1])").replace(
            "y: float32[1, 2] = MatMul(p, w)",
            "y: float32[1, 2] = MatMul(p, w)\n"
            "z: int64[1, 1] = ArgMax(y; axis=1, keepdims=1, select_last_index=1)",
        )
        if kind == "fx"
        else TWO.replace("(y: float32[1, 2])", "(z: float32[1, 2])").replace(
            "y: float32[1, 2] = MatMul(p, w)",
            "const one: float32[2] = splat(1.0)\ny: float32[1, 2] = MatMul(p, w)\n"
            "z: float32[1, 2] = GroupNormalization(y, one, one; epsilon=0.1, num_groups=1)",
        )
    )
    taken = "linear.bias" if kind == "fx" else value
    before = host.fingerprint()
    for wrong, given, weights, told in (
        (graph, {"a": value}, {}, "Graph `two` reads a, b"),
        (graph, {**both, "b": "nothing"}, {}, "nothing"),
        (graph, {**both, "b": host.points()["layer2.0"].value}, {}, "float32[1, 32, 8, 8]"),
        (graph, both, {"w": taken}, taken),
        (refused, both, {"w": "sums.weight"}, "ArgMax" if kind == "fx" else "GroupNormalization"),
    ):
        with pytest.raises(HostError) as raised:
            host.splice(wrong, given, "sums.s", weights)
        assert told in str(raised.value)
        assert host.fingerprint() == before
