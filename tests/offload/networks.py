"""The demo network cut at its exits, its tails, and what they should answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

import eecompile.demo
from eecompile.build_options import BuildOptions
from eecompile.offload_rule import Border, OffloadRule, Tail, WireTensor
from eecompile.passes.onnx_tails import OUTPUT, TailModel, tail_graph
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.planning import cut, prepare
from eecompile.reference import run_graph
from eecompile.segments import SegmentGraph
from eecompile.server_folder import VERSION

FILE = Path(eecompile.demo.__file__).parent / "digits.ee"


@cache
def segments() -> SegmentGraph:
    prepared = prepare(FILE, BuildOptions())
    return cut(prepared.host, prepared.spec.model, backbone_pipeline(), [], None)


@cache
def values(seed: int = 0) -> dict[str, np.ndarray]:
    """Every value that crosses a border, of one sample; the network's answer among them."""
    net, rng = segments(), np.random.default_rng(seed)
    known = {n: rng.standard_normal(t.shape).astype(t.dtype) for n, t in net.inputs}
    for segment in net.segments:
        known |= run_graph(segment.graph, {n: known[n] for n in segment.graph.inputs})
    return known


def logits(seed: int = 0) -> np.ndarray:
    return values(seed)[segments().output]


@cache
def tails(border: Border = "float32") -> dict[int, tuple[Tail, bytes]]:
    """By exit: what is sent, and the model that answers."""
    net, found = segments(), {}
    for index, exit_ in enumerate(net.exits):
        graph = tail_graph(net, index)
        wire = []
        for number, name in enumerate(graph.inputs):
            sent = WireTensor(name, f"border{number}", graph.types[name].shape, "float32")
            if border != "float32":
                step = float(np.float32(np.abs(values()[name]).max() / 100))
                scale = step if border == "int8" else 0.0
                sent = WireTensor(name, sent.name, sent.shape, border, scale)
            wire.append(sent)
        model = TailModel.of(graph, wire)
        output = WireTensor(net.output, OUTPUT, graph.types[net.output].shape, "float32")
        name = f"digits-{exit_.name}-{model.digest[:12]}"
        tail = Tail(exit_.name, name, VERSION, tuple(wire), output)
        found[index] = (tail, model.content)
    return found


def rule(
    *urls: str,
    border: Border = "float32",
    timeout_s: float = 20.0,
    retries: int = 0,
    first: int = 0,
) -> OffloadRule:
    """A rule that sends from the exits from number `first` on."""
    chosen = {index: tail for index, (tail, _) in tails(border).items() if index >= first}
    return OffloadRule(urls, border, timeout_s, retries, chosen)
