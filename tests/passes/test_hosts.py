"""The same passes on both hosts: one network gives one segment graph, which computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eecompile.cost import graph_macs
from eecompile.exit_table import borders
from eecompile.ir import Graph, TensorType
from eecompile.passes.base import PassManager, Program
from eecompile.passes.host import HostGraph
from eecompile.passes.pipelines import segments_pipeline
from eecompile.passes.propose_points import propose_points
from eecompile.spec import Exit, HeadSpec, Input, Model, Output
from eecompile.text import parse_graph, print_segments
from tests.helpers import run_segments

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

ROOT = Path(__file__).parent.parent.parent
CASES = {
    "resnet20": "dynamo",
    "densenet_small": "torchscript",
    "vit_small": "torchscript",
    "mlp": "torchscript",
}
#: Points past which a shortcut goes, so that two tensors cross; for the others those proposed.
INSIDE_BLOCKS = {"vit_small": ["layers.0.norm2", "layers.1.linear1", "layers.2.self_attn"]}


@dataclass(frozen=True)
class Network:
    """One network through both hosts, cut at the same points."""

    fx: Program
    onnx: Program
    input: np.ndarray


def head(feature: TensorType, output: str) -> Graph:
    """A linear head with ten classes on the feature averaged over all but its channels."""
    shape = feature.shape
    axes, channels = {4: ("(2, 3)", shape[1]), 3: ("(1,)", shape[-1]), 2: ("", shape[-1])}[
        len(shape)
    ]
    source = "pooled" if axes else "feature"
    pool = f"pooled: float32[1, {channels}] = ReduceMean(feature; axes={axes}, keepdims=0)"
    return parse_graph(
        f"""graph head(feature: {feature}) -> ({output}: float32[1, 10]) {{
            const w: float32[{channels}, 10] = random(1)
            {pool if axes else ""}
            {output}: float32[1, 10] = MatMul({source}, w)
        }}"""
    )


def points_of(host: HostGraph, name: str) -> list[str]:
    answer = next(iter(host.outputs().values()))
    proposed = propose_points(host.graph(), host.points(), answer, 4)
    return INSIDE_BLOCKS.get(name) or [candidate.name for candidate in proposed]


def cut(host: HostGraph, name: str, type_: TensorType) -> Program:
    points = points_of(host, name)
    exits = tuple(Exit(f"exit{i}", point, HeadSpec("linear")) for i, point in enumerate(points))
    types = {exit_.name: host.points()[exit_.point].type for exit_ in exits}
    model = Model(
        name,
        "onnx",
        "",
        inputs=(Input("picture", type_),),
        output=Output("scores", 10),
        exits=exits,
    )
    heads = {exit_: head(feature, "logits") for exit_, feature in types.items()}
    comparators = {exit_: head(feature, "class_means") for exit_, feature in types.items()}
    steps = segments_pipeline(heads, comparators)
    return PassManager(steps).run(Program(host, model)).graph


@pytest.fixture(scope="module", params=CASES)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    from benchmarks.networks import INPUT_SHAPES, NETWORKS, export_onnx
    from eecompile.passes.fx_host import load_torch
    from eecompile.passes.onnx_host import load_onnx

    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    torch.save(module.state_dict(), folder / "weights.pth")
    export_onnx(module, INPUT_SHAPES[name], folder / "net.onnx", exporter=CASES[name])
    type_ = TensorType("float32", INPUT_SHAPES[name])
    entry = f"{ROOT / 'benchmarks' / 'networks.py'}:{name}"
    fx = load_torch(entry, folder / "weights.pth", {"picture": type_})
    picture = np.random.default_rng(0).standard_normal(type_.shape).astype("float32")
    return Network(cut(fx, name, type_), cut(load_onnx(folder / "net.onnx"), name, type_), picture)


def test_both_hosts_give_the_same_segments(network: Network) -> None:
    assert network.fx.segments is not None and network.onnx.segments is not None
    assert network.fx.exits
    crossing = [len(border) for border in borders(network.onnx.segments)]
    assert crossing == [1 + (network.fx.model.name in INSIDE_BLOCKS)] * len(network.fx.exits)
    assert print_segments(network.fx.segments) == print_segments(network.onnx.segments)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_segments_compute_what_the_host_computes(network: Network, kind: str) -> None:
    program: Program = getattr(network, kind)
    assert program.segments is not None
    source = next(iter(program.input_names()))
    whole = program.host.run({source: network.input})
    parts = run_segments(program.segments.graphs(), {"picture": network.input})
    parts[next(iter(whole))] = parts["scores"]
    assert len(whole) == 1 + 2 * len(program.exits)
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=0, atol=1e-4)


def test_no_work_is_added_to_the_backbone(network: Network) -> None:
    for program in (network.fx, network.onnx):
        assert program.segments is not None
        answer = next(iter(program.network_outputs().values()))
        assert program.segments.macs == graph_macs(program.host.graph().pruned((answer,)))
