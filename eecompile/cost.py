"""What a piece of a network has to do: counted in its graph and in the kernels made for it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from operator import add
from typing import Any

from eecompile.checked_json import ObjectReader
from eecompile.ir import Graph, Op

__all__ = ["WIDE_BYTES", "Work", "graph_macs", "op_macs", "op_work"]

#: Sizes that the values a kernel touches are compared with: caches are of these sizes.
WIDE_BYTES = tuple(1 << power for power in range(16, 26))

_MOST = 1 << 62

#: Operators that compute nothing: their bytes are counted, their elements are not.
_MOVING = frozenset(
    "Concat DepthToSpace Expand Gather GatherElements OneHot Pad Reshape Slice SpaceToDepth Tile "
    "Transpose".split()
)
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "MatMul"))
#: Operators that visit what they read rather than what they write.
_READING = frozenset(
    "ArgMax ArgMin CumSum ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum".split()
)


@dataclass(frozen=True, slots=True)
class Work:
    """What one piece of a network computes and moves for one sample.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products, depthwise ones included.
        depthwise_macs: those of them that read each weight for one channel only.
        elements: elements that all other operators compute: those they write, of a pooling window
            those it holds, of a reduction those it reads.
        operations: vector instructions of arithmetic that its kernels take, a multiplication with
            the addition of its product as one.
        divisions: those of them that divide or take a root.
        accesses: vector instructions that load or store.
        kernels: kernels it is compiled to.
        value_bytes: values read and written by its kernels, weights apart.
        weight_bytes: weights read.
        wide_bytes: of `value_bytes` those of kernels whose values take more than each of
            `WIDE_BYTES`, in that order.
        lanes: float32 elements of the vectors that instructions are counted in.
    """

    macs: int = 0
    depthwise_macs: int = 0
    elements: int = 0
    operations: int = 0
    divisions: int = 0
    accesses: int = 0
    kernels: int = 0
    value_bytes: int = 0
    weight_bytes: int = 0
    wide_bytes: tuple[int, ...] = (0,) * len(WIDE_BYTES)
    lanes: int = 4

    def __add__(self, other: Work) -> Work:
        """Both, one after the other; of code for one machine, or of no instructions at all.

        >>> Work(macs=1, kernels=1) + Work(macs=2, kernels=1) == Work(macs=3, kernels=2)
        True
        """
        return Work(
            self.macs + other.macs,
            self.depthwise_macs + other.depthwise_macs,
            self.elements + other.elements,
            self.operations + other.operations,
            self.divisions + other.divisions,
            self.accesses + other.accesses,
            self.kernels + other.kernels,
            self.value_bytes + other.value_bytes,
            self.weight_bytes + other.weight_bytes,
            tuple(map(add, self.wide_bytes, other.wide_bytes)),
            max(self.lanes, other.lanes),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON value that `from_json` reads."""
        return {
            "macs": self.macs,
            "depthwise_macs": self.depthwise_macs,
            "elements": self.elements,
            "operations": self.operations,
            "divisions": self.divisions,
            "accesses": self.accesses,
            "kernels": self.kernels,
            "value_bytes": self.value_bytes,
            "weight_bytes": self.weight_bytes,
            "wide_bytes": list(self.wide_bytes),
            "lanes": self.lanes,
        }

    @classmethod
    def from_json(cls, entry: ObjectReader) -> Work:
        """The inverse of `to_json`.

        Raises:
            JsonError: the object holds no such counts; the message names the place.
        """
        macs = entry.whole("macs", _MOST)
        depthwise = entry.whole("depthwise_macs", macs)
        elements = entry.whole("elements", _MOST)
        operations = entry.whole("operations", _MOST)
        divisions = entry.whole("divisions", operations)
        accesses = entry.whole("accesses", _MOST)
        kernels = entry.whole("kernels", _MOST)
        values, weights = entry.whole("value_bytes", _MOST), entry.whole("weight_bytes", _MOST)
        wide = entry.items("wide_bytes", len(WIDE_BYTES))
        known = len(wide) == len(WIDE_BYTES) and all(type(n) is int for n in wide)
        if not known or sorted([0, *wide, values]) != [0, *reversed(wide), values]:
            count = len(WIDE_BYTES)
            entry.fail("wide_bytes", f"{count} whole numbers from `value_bytes` falling to 0")
        lanes = entry.whole("lanes", 1024, 1)
        entry.done()
        return cls(
            macs,
            depthwise,
            elements,
            operations,
            divisions,
            accesses,
            kernels,
            values,
            weights,
            tuple(wide),
            lanes,
        )


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


def op_work(op: Op, graph: Graph) -> Work:
    """What one operator computes; instructions, kernels and bytes are those of its kernel."""
    macs = op_macs(op, graph)
    if op.kind in _PRODUCTS:
        groups: Any = op.attributes.get("group", 1)
        slides = groups > 1 and graph.types[op.inputs[1]].shape[1] == 1
        return Work(macs=macs, depthwise_macs=macs if slides else 0)
    if op.kind in _MOVING:
        return Work()
    visited = op.inputs[0] if op.kind in _READING else op.outputs[0]
    window: Any = op.attributes.get("kernel_shape", ())
    elements = graph.types[visited].size * prod(window)
    return Work(elements=elements)


def graph_macs(graph: Graph) -> int:
    """Multiply-accumulates of a whole graph, for one sample."""
    return sum(op_macs(op, graph) for op in graph.ops)
