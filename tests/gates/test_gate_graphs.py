"""What gates compute, and with what they start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eecompile.cost import graph_macs
from eecompile.diagnostics import Diagnostics
from eecompile.gates import GatePlan, gate_graph, initial_parameters, parameter_shapes
from eecompile.passes.plan_gates import plan_gates
from eecompile.reference import run_graph
from eecompile.segments import SHIFT
from eecompile.spec import HeadSpec, Model, Skip
from tests.gates.networks import host

Array = np.ndarray[Any, Any]
NO_SHIFT = np.zeros((1, 1), np.float32)
TOKENS = """graph net(x: float32[1, 5, 4]) -> (y: float32[1, 5, 4]) {
    const w: float32[4, 4] = random(1)
    f: float32[1, 5, 4] = MatMul(x, w) @ layer
    y: float32[1, 5, 4] = Add(x, f) @ layer
}"""


def plan(*skips: Skip, network: str = "") -> GatePlan:
    found = Diagnostics()
    source = host(network) if network else host()
    made = plan_gates(Model("net", "onnx", "", skips=skips), source, found)
    found.raise_errors()
    return made


def layers(point: str, kind: str, **options: int) -> Skip:
    return Skip("layers", point, HeadSpec(kind, options))


def channels(point: str, kind: str, **options: int) -> Skip:
    return Skip("channels", point, HeadSpec(kind, options))


def random_parameters(made: GatePlan) -> dict[str, Array]:
    generator = np.random.default_rng(5)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(made).items()
    }


KINDS = {
    "recurrent": (layers("a.*", "recurrent"), channels("a.*.conv1", "recurrent", groups=2)),
    "feedforward": (layers("a.*", "feedforward", hidden=3),),
    "fitted": (layers("a.*", "fitted"),),
    "squeeze": (channels("a.*.conv1", "squeeze", groups=4),),
    "convolution": (channels("a.*.conv1", "convolution", groups=4, width=3),),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gates_start_with_keeping_everything_whatever_they_read(kind: str, scale: float) -> None:
    made = plan(*KINDS[kind])
    parameters = initial_parameters(made, 7)
    assert {name: array.shape for name, array in parameters.items()} == parameter_shapes(made)
    generator = np.random.default_rng(0)
    state: dict[str, Array] = {}
    for gate in made.gates:
        graph = gate_graph(gate, parameters)
        assert gate.macs == graph_macs(graph)
        feature = scale * generator.standard_normal(gate.type.shape)
        given = {"x": feature.astype(np.float32), SHIFT[0]: NO_SHIFT, **state}
        found = run_graph(graph, {name: given[name] for name in graph.inputs})
        for scores in found.keys() & {"keep", "channels"}:
            assert found[scores].shape == (1, gate.groups if scores == "channels" else 1)
            assert (found[scores] >= 1).all()
        state = {f"before.{name}": found[name] for name in found.keys() & {"h", "c"}}


def test_a_parameter_does_not_depend_on_the_other_gates() -> None:
    one = initial_parameters(plan(layers("a.2", "recurrent")), 1)
    two = initial_parameters(plan(layers("a.*", "recurrent")), 1)
    assert one.keys() < two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    other = initial_parameters(plan(layers("a.2", "recurrent")), 2)
    name = "gates.a.2.embedding_weight"
    assert not np.array_equal(one[name], other[name])


def test_the_shared_cell_is_an_lstm() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    made = plan(layers("a.*", "recurrent", hidden=6, embedding=3))
    parameters = random_parameters(made)
    cell = torch.nn.LSTMCell(3, 6)
    shared = {name: torch.from_numpy(array) for name, array in parameters.items()}
    with torch.no_grad():
        cell.weight_ih.copy_(shared["gates.shared.input_weight"].T)
        cell.weight_hh.copy_(shared["gates.shared.state_weight"].T)
        cell.bias_ih.copy_(shared["gates.shared.cell_bias"])
        cell.bias_hh.zero_()
        state, found = None, dict[str, Array]()
        for gate in made.gates:
            x = np.random.default_rng(2).standard_normal(gate.type.shape).astype(np.float32)
            given = {"x": x, SHIFT[0]: np.full((1, 1), 0.25, np.float32)}
            given |= {f"before.{name}": array for name, array in found.items()}
            graph = gate_graph(gate, parameters)
            found = run_graph(graph, {name: given[name] for name in graph.inputs})
            own = [shared[f"gates.{gate.name}.embedding_{part}"] for part in ("weight", "bias")]
            state = cell(torch.from_numpy(x.mean((2, 3))) @ own[0] + own[1], state)
            bias = shared[f"gates.{gate.name}.keep_bias"]
            score = state[0] @ shared["gates.shared.keep_weight"] + bias
            np.testing.assert_allclose(found.pop("keep"), score - 0.25, rtol=1e-4, atol=1e-5)
    assert found == {}  # nobody reads the last gate's state


def test_a_squeeze_gate_is_two_layers_on_the_mean() -> None:
    made = plan(channels("a.2.conv1", "squeeze", groups=4, hidden=3))
    parameters = random_parameters(made)
    (gate,) = made.gates
    x = np.random.default_rng(3).standard_normal(gate.type.shape).astype(np.float32)
    found = run_graph(gate_graph(gate, parameters, shifted=False), {"x": x})["channels"]
    own = {name.removeprefix("gates.a.2.conv1."): a for name, a in parameters.items()}
    hidden = np.maximum(x.mean((2, 3)) @ own["hidden_weight"] + own["hidden_bias"], 0)
    expected = hidden @ own["channels_weight"] + own["channels_bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_gate_sees_every_other_pixel() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    made = plan(channels("a.0.conv1", "convolution", groups=2, width=3))
    parameters = random_parameters(made)
    (gate,) = made.gates
    x = np.random.default_rng(3).standard_normal(gate.type.shape).astype(np.float32)
    found = run_graph(gate_graph(gate, parameters, shifted=False), {"x": x})["channels"]
    own = {
        name.removeprefix("gates.a.0.conv1."): torch.from_numpy(a) for name, a in parameters.items()
    }
    conv = torch.nn.functional.conv2d
    y = conv(torch.from_numpy(x), own["first_weight"], own["first_bias"], stride=2).relu()
    y = conv(y, own["second_weight"], own["second_bias"], padding=1).mean((2, 3))
    expected = y @ own["channels_weight"] + own["channels_bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_tokens_are_averaged_over_the_sequence() -> None:
    made = plan(layers("layer", "fitted"), network=TOKENS)
    (gate,) = made.gates
    parameters = random_parameters(made)
    x = np.random.default_rng(3).standard_normal((1, 5, 4)).astype(np.float32)
    (found,) = run_graph(gate_graph(gate, parameters), {"x": x, SHIFT[0]: NO_SHIFT}).values()
    weight, bias = parameters["gates.layer.keep_weight"], parameters["gates.layer.keep_bias"]
    np.testing.assert_allclose(found, x.mean(1) @ weight + bias, rtol=1e-5, atol=1e-5)
