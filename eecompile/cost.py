"""What a piece of a network has to do: counted from the graph, whatever machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from eecompile.ir import Graph, Op

__all__ = ["Work", "graph_macs", "op_macs"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one piece of a network computes and moves for one sample.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products, depthwise ones included.
        depthwise_macs: those of them that read each weight for one channel only.
        elements: elements written by all other operators that compute something.
        kernels: kernels it is compiled to.
        value_bytes: values read and written by its kernels, weights apart.
        weight_bytes: weights read.
    """

    macs: int = 0
    depthwise_macs: int = 0
    elements: int = 0
    kernels: int = 0
    value_bytes: int = 0
    weight_bytes: int = 0


def op_macs(op: Op, graph: Graph) -> int:
    """Multiply-accumulates of one operator, for one sample.

    Convolutions and matrix products count; pooling, normalisation, activations and data movement
    count 0, in the backbone and in heads alike (the usual convention of FLOP counters).
    """
    if op.kind in ("Conv", "ConvTranspose"):
        weight = graph.types[op.inputs[1]].shape
        # Conv visits every output once per tap of (C_in / group) x kernel; its transpose visits
        # every input once per tap of (C_out / group) x kernel. Weight is (C_out, C_in/g, ...) or
        # (C_in, C_out/g, ...), so dimension 1 onward is the number of taps in both.
        visited = op.outputs[0] if op.kind == "Conv" else op.inputs[0]
        return graph.types[visited].size * prod(weight[1:])
    if op.kind == "MatMul":
        return graph.types[op.outputs[0]].size * graph.types[op.inputs[0]].shape[-1]
    return 0


def graph_macs(graph: Graph) -> int:
    """Multiply-accumulates of a whole graph, for one sample."""
    return sum(op_macs(op, graph) for op in graph.ops)
