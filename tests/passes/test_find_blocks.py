"""What gates can leave out: found in networks of all families, the same on both hosts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.gates import ChannelPlace, Found, LayerBlock
from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.find_blocks import channel_places, layer_blocks
from eecompile.passes.host import HostGraph
from eecompile.reference import run_graph
from tests.gates.networks import RESIDUAL, host
from tests.helpers import ROOT, TextHost, random_inputs

_MODULES = ROOT / "tests/gates/modules.py"
#: Network -> the shape of its input, how it is exported, names of its blocks.
FAMILIES: dict[str, tuple[tuple[int, ...], str, list[str]]] = {
    "resnet": ((1, 3, 32, 32), "torchscript", ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
    "densenet": (
        (1, 3, 32, 32),
        "torchscript",
        [f"features.{stage}.{k}" for stage in (0, 2) for k in range(3)],
    ),
    "transformer": (
        (1, 3, 32, 32),
        "torchscript",
        [f"layers.{k}.{half}" for k in range(2) for half in ("self_attn", "linear2")],
    ),
    "mobilenet": ((1, 3, 32, 32), "torchscript", [f"features.{k}" for k in (1, 3, 5, 6)]),
    "post_norm": (
        (1, 8, 16),
        "torchscript",
        [f"layers.{k}.{half}" for k in range(2) for half in ("self_attn", "linear2")],
    ),
    "masked_encoder": (
        (1, 8, 4),
        "torchscript",
        [f"layer.{k}{half}" for k in range(2) for half in (".attention", "")],
    ),
    "convnext": ((1, 3, 8, 8), "torchscript", ["1", "2"]),
    "preactivated": ((1, 3, 8, 8), "dynamo", ["1", "2"]),
}


@cache
def hosts(name: str) -> tuple[HostGraph, HostGraph]:
    """The network in PyTorch and exported; its weights are random, and not the same in both."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from benchmarks.networks import export_onnx
    from eecompile.passes.fx_host import load_torch
    from eecompile.passes.onnx_host import load_onnx
    from tests.gates import modules

    shape, exporter, _ = FAMILIES[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_onnx(getattr(modules, name)(), shape, path, exporter=exporter)
        onnx = load_onnx(path)
    return load_torch(f"{_MODULES}:{name}", None, {"x": TensorType("float32", shape)}), onnx


def blocks_of(source: HostGraph) -> Found[LayerBlock]:
    return layer_blocks(source.graph(), source.points())


def places_of(source: HostGraph) -> Found[ChannelPlace]:
    return channel_places(source.graph(), source.points())


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_those_of_the_network_on_both_hosts(name: str) -> None:
    found = [blocks_of(source) for source in hosts(name)]
    for blocks in found:
        assert [block.name for block in blocks.places] == FAMILIES[name][2]
    ours, theirs = (
        [(b.name, b.type, b.macs, bool(b.otherwise)) for b in blocks.places] for blocks in found
    )
    assert ours == theirs
    assert found[0].refused == found[1].refused


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_can_really_be_removed(name: str) -> None:
    for source in hosts(name):
        for block in blocks_of(source).places:
            check_dominance(source.graph(), block)
            without(source.graph(), block)


@pytest.mark.parametrize("name", ["resnet", "densenet", "mobilenet"])
def test_entries_stand_before_all_of_their_blocks(name: str) -> None:
    for source in hosts(name):
        graph = source.graph()
        above = nx.immediate_dominators(flow(graph), "source")
        for block in blocks_of(source).places:
            value, chain = block.result, list[str]()
            while value != "source":
                value = above[value]
                chain.append(value)
            assert block.entry in chain


@pytest.mark.parametrize("name", FAMILIES)
def test_convolutions_are_the_same_on_both_hosts(name: str) -> None:
    ours, theirs = (places_of(source) for source in hosts(name))
    assert [(p.name, p.channels, p.type, p.macs, p.read_macs) for p in ours.places] == [
        (p.name, p.channels, p.type, p.macs, p.read_macs) for p in theirs.places
    ]
    assert ours.refused == theirs.refused


def test_half_a_transformer_layer_is_called_by_the_layer_too() -> None:
    for source in hosts("transformer"):
        assert all(
            block.name.startswith(block.aliases[0] + ".") for block in blocks_of(source).places
        )


def test_masks_that_go_past_a_block_are_read_by_it() -> None:
    for source in hosts("masked_encoder"):
        graph = source.graph()
        attention = blocks_of(source).places[0]
        made = {out for op in graph.ops if op.name in attention.ops for out in op.outputs}
        read = {v for op in graph.ops if op.name in attention.ops for v in op.inputs if v}
        beside = read - made - {attention.entry} - graph.constants.keys()
        assert len(beside) == 1


def test_an_activation_is_part_of_the_block_only_where_it_changes_nothing() -> None:
    found = layer_blocks(host().graph(), host().points())
    assert [(b.name, b.entry, b.branch, b.result, b.otherwise) for b in found.places] == [
        ("a.0", "x0", "f2", "x1", "x0"),
        ("a.2", "x2", "f5", "y", "x2"),
    ]
    # Where x may be negative, its ReLU would change it.
    changed = host(RESIDUAL.replace("= Relu(stem)", "= Tanh(stem)"))
    first = layer_blocks(changed.graph(), changed.points()).places[0]
    assert (first.result, first.otherwise) == ("s1", "x0")


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (
            ("", ""),
            "a.1",
            "shortcut is downsampled: float32[1, 4, 8, 8] is not float32[1, 8, 4, 4]",
        ),
        (
            ("d: float32[1, 8, 4, 4] = Conv(x1, ws; DOWN)", "d: float32[1, 8, 4, 4] = Neg(f3)"),
            "a.1",
            "nothing is multiplied in its branch, so nothing would be saved",
        ),
        (
            ("x2: float32[1, 8, 4, 4] = Relu(s2)", "x2: float32[1, 8, 4, 4] = Add(f3, s2)"),
            "a.1",
            "shortcut is downsampled: float32[1, 4, 8, 8] is not float32[1, 8, 4, 4]",
        ),
        (
            ("s1: float32[1, 4, 8, 8] = Add(f2, x0)", "s1: float32[1, 4, 8, 8] = Add(f2, r1)"),
            "a.0",
            "",
        ),
        (
            ("y: float32[1, 8, 4, 4] = Add(f5, x2)", "y: float32[1, 8, 4, 4] = Add(x2, x2)"),
            "a.2",
            "both sides of its sum are the same value",
        ),
        (
            ("-> (y: float32[1, 8, 4, 4])", "-> (y: float32[1, 8, 4, 4], r4: float32[1, 8, 4, 4])"),
            "a.2",
            "`r4` inside it is an output of the network",
        ),
        (
            (
                "f3: float32[1, 8, 4, 4] = Conv(x1, w3; HALF)",
                "l: float32[1, 4, 8, 8] = Mul(x1, r1)\nf3: float32[1, 8, 4, 4] = Conv(l, w3; HALF)",
            ),
            "a.0",
            "its inside is read outside the block at `l`",
        ),
    ],
)
def test_what_cannot_be_left_out_is_refused_with_its_reason(
    change: tuple[str, str], name: str, reason: str
) -> None:
    source = host(RESIDUAL.replace(*change))
    found = layer_blocks(source.graph(), source.points())
    assert found.refused.get(name, "") == reason


def test_what_is_part_of_one_operator_of_the_host_is_refused() -> None:
    source = host()
    points = {name: p for name, p in source.points().items() if p.value != "f5"}
    found = layer_blocks(source.graph(), points)
    assert found.refused["a.2"] == "`f5` is part of one operator of the network"


def test_readers_that_lead_to_no_output_are_none() -> None:
    source = host(RESIDUAL.replace("d: float32", "lost: float32[1, 4, 8, 8] = Neg(r1)\nd: float32"))
    assert "lost" in source.graph().types
    found = layer_blocks(source.graph(), source.points())
    assert [block.name for block in found.places] == ["a.0", "a.2"]


def test_channels_are_masked_behind_normalisation_and_activation() -> None:
    places = {place.name: place for place in places_of(host()).places}
    assert (places["a.0.conv1"].entry, places["a.0.conv1"].value) == ("x0", "r1")
    assert places["a.0.conv2"].value == "f2"  # a sum reads it next
    assert places["a.0.conv1"].read_macs == places["a.0.conv2"].macs
    assert places["a.0.conv2"].read_macs == 0
    shown = host(RESIDUAL.replace("-> (y:", "-> (d: float32[1, 8, 4, 4], y:"))
    refused = places_of(shown).refused
    assert refused == {"a.1.shortcut": "its result is an output of the network"}


def flow(graph: Graph) -> nx.DiGraph:
    edges = nx.DiGraph()
    edges.add_edges_from(("source", value) for value in graph.inputs)
    edges.add_edges_from((i, o) for op in graph.ops for o in op.outputs for i in op.inputs if i)
    edges.add_edges_from((value, "sink") for value in graph.outputs)
    return edges


def check_dominance(graph: Graph, block: LayerBlock) -> None:
    """Every way from inside the block to an output goes through its result."""
    edges = flow(graph)
    made = [out for op in graph.ops if op.name in block.ops for out in op.outputs]
    assert set(made) <= nx.descendants(edges, block.entry)
    behind = nx.immediate_dominators(edges.reverse(), "sink")
    for value in made:
        chain = [value]
        while chain[-1] in behind and chain[-1] not in (block.result, "sink"):
            chain.append(behind[chain[-1]])
        # What leads to no output at all has no such way.
        assert chain[-1] == block.result or value not in behind


def without(graph: Graph, block: LayerBlock) -> Graph:
    """The graph with the block left out; fails where something still needs what is in it."""
    left = [op for op in graph.ops if op.name not in block.ops]
    shape = graph.types[block.result].shape
    constants = dict(graph.constants)
    if block.otherwise:
        # Right behind what it copies: `left` need not be in order where the result stood.
        at = max((i + 1 for i, op in enumerate(left) if block.otherwise in op.outputs), default=0)
        copy = Op("copy", "Reshape", (block.otherwise,), (block.result,), {"shape": shape})
        left.insert(at, copy)
    else:
        constants[block.result] = np.zeros(shape, np.float32)
    known = {*graph.inputs, *constants}
    for op in left:
        assert known.issuperset(filter(None, op.inputs)), f"{op.name} needs what was left out"
        known.update(op.outputs)
    assert known.issuperset(graph.outputs)
    return replace(graph, ops=tuple(left), constants=constants)


def masked(graph: Graph, block: LayerBlock) -> Graph:
    """The graph with the branch multiplied by 0."""
    ops = []
    for op in graph.ops:
        ops.append(op)
        if block.branch in op.outputs:
            ops[-1] = replace(op, outputs=("unmasked",))
            ops.append(Op("mask", "Mul", ("unmasked", "nothing"), (block.branch,)))
    constants = {**graph.constants, "nothing": np.zeros((), np.float32)}
    types = {
        **graph.types,
        "nothing": TensorType("float32", ()),
        "unmasked": graph.types[block.branch],
    }
    return replace(graph, ops=tuple(ops), constants=constants, types=types)


WIDTH = 4


@st.composite
def residual_networks(draw: st.DrawFn, across: bool = True) -> Graph:
    """Networks of sums, joins of channels and products, with reads `across` blocks at random."""
    values = {"x": WIDTH, "z": WIDTH}
    ops: list[Op] = []
    constants: dict[str, np.ndarray] = {}

    def add(kind: str, *read: str, width: int, **attributes: int) -> str:
        name = f"v{len(ops)}"
        ops.append(Op(name, kind, read, (name,), attributes))
        values[name] = width
        return name

    def product(value: str, width: int) -> str:
        size = (values[value], width)
        constants.setdefault(
            f"w{size}",
            np.random.default_rng(size).standard_normal(size).astype("float32"),
        )
        return add("MatMul", value, f"w{size}", width=width)

    def any_of(width: int) -> str:
        return draw(st.sampled_from([v for v, w in values.items() if w == width]))

    last = "x"
    for _ in range(draw(st.integers(1, 4))):
        width = values[last]
        kinds = ["residual", "relu", "dense", "shrink"] + ["across"] * across
        kind = draw(st.sampled_from(kinds))
        if kind in ("residual", "relu"):
            start = add("Relu", last, width=width) if kind == "relu" else last
            branch = product(add(draw(st.sampled_from(["Tanh", "Neg"])), start, width=width), width)
            if across and draw(st.booleans()):
                branch = add("Sub", branch, any_of(width), width=width)
            pair = draw(st.permutations([start, branch]))
            last = add("Add", *pair, width=width)
            last = add("Relu", last, width=width) if kind == "relu" else last
        elif kind == "dense":
            new = product(last, 2)
            last = add("Concat", last, new, width=width + 2, axis=1)
        elif kind == "across":
            last = add("Add", last, any_of(width), width=width)
        else:
            last = product(last, WIDTH)
    shown = draw(st.lists(st.sampled_from([op.name for op in ops]), max_size=int(across)))
    outputs = tuple(dict.fromkeys([last, *shown]))
    types = {v: TensorType("float32", (1, w)) for v, w in values.items()}
    types |= {name: TensorType.of(array) for name, array in constants.items()}
    return Graph("net", ("x", "z"), outputs, tuple(ops), constants, types)


@settings(max_examples=80, deadline=None)
@given(residual_networks())
def test_leaving_a_block_out_is_the_same_as_multiplying_its_branch_by_zero(graph: Graph) -> None:
    found = layer_blocks(graph, TextHost(graph).points())
    names = [block.name for block in found.places]
    assert len(set(names)) == len(names)
    inputs = random_inputs(graph)
    for block in found.places:
        check_dominance(graph, block)
        left, zeroed = without(graph, block), masked(graph, block)
        ours, theirs = run_graph(left, inputs), run_graph(zeroed, inputs)
        for name in graph.outputs:
            np.testing.assert_array_equal(ours[name], theirs[name])


@settings(max_examples=40, deadline=None)
@given(residual_networks(across=False))
def test_where_nothing_is_read_across_every_block_is_found(graph: Graph) -> None:
    found = layer_blocks(graph, TextHost(graph).points())
    joins = [op for op in graph.ops if op.kind in ("Add", "Concat")]
    assert len(found.places) == len(joins)
    assert found.refused == {}
