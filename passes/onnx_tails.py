"""The rest of a network behind an exit, as an ONNX model that any server of ONNX models can run.

    border0, border1, ...  ->  [Cast | DequantizeLinear] [Transpose]  ->  later segments  ->  logits

Inputs and output have names that every server takes, whatever the network calls its values. What
travels as float16 or int8 is turned back into float32 by the model's first nodes. One sample a
request. What a device keeps channels last arrives so, and is turned by the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eecompile.ir import Graph, Op, TensorType
from eecompile.offload_rule import WireTensor
from eecompile.passes.onnx_emit import Unexpressible, emit
from eecompile.passes.onnx_host import OnnxHost
from eecompile.segments import SegmentGraph

__all__ = ["OUTPUT", "TailModel", "border_values", "tail_graph"]

#: Name of the output in every tail.
OUTPUT = "logits"
#: Operator sets tried, earliest first: an older server reads more of them. 17 is the first with
#: LayerNormalization; Mish needs 18, Gelu 20, GroupNormalization with a scale a channel 21.
_OPERATOR_SETS = (17, 18, 20, 21)


def border_values(segments: SegmentGraph, index: int) -> tuple[str, ...]:
    """What later segments read of what is there after segment `index`, in order of appearance.

    Network inputs among them: a segment may read the image again.
    """
    known = [name for name, _ in segments.inputs]
    for segment in segments.segments[: index + 1]:
        known += segment.graph.outputs
    read = {name for later in segments.segments[index + 1 :] for name in later.graph.inputs}
    return tuple(name for name in dict.fromkeys(known) if name in read)


def tail_graph(segments: SegmentGraph, index: int) -> Graph:
    """All segments after segment `index` as one graph; its only output is the network's answer."""
    later = [segment.graph for segment in segments.segments[index + 1 :]]
    ops: list[Op] = []
    constants: dict[str, np.ndarray] = {}
    types: dict[str, TensorType] = {}
    for graph in later:
        ops += graph.ops
        constants |= graph.constants
        types |= graph.types
    inputs = border_values(segments, index)
    merged = Graph(segments.name, inputs, (segments.output,), tuple(ops), constants, types)
    return merged.pruned()


@dataclass(frozen=True)
class TailModel:
    """A tail as a server loads it.

    Attributes:
        content: bytes of the ONNX file; the same for the same tail.
        digest: SHA-256 of it, in hexadecimal.
    """

    content: bytes = field(repr=False)
    digest: str

    @classmethod
    def of(
        cls,
        graph: Graph,
        inputs: Sequence[WireTensor],
        orders: Mapping[str, Sequence[int]] | None = None,
    ) -> TailModel:
        """The model that computes `graph` from what travels.

        Args:
            graph: of `tail_graph`.
            inputs: how each of its inputs travels.
            orders: of inputs that are laid out otherwise on the device: the dimension of `graph`
                that each dimension there holds. The model turns them, so that the device need not.

        Raises:
            Unexpressible: an operator is in no operator set that is tried.
        """
        problem: Unexpressible | None = None
        for opset in _OPERATOR_SETS:
            try:
                model = _model(graph, inputs, orders or {}, opset)
            except Unexpressible as why:
                problem = why
                continue
            onnx.checker.check_model(model)
            content = model.SerializeToString(deterministic=True)
            return cls(content, hashlib.sha256(content).hexdigest())
        assert problem is not None, "some operator set is tried"
        raise problem

    def runner(self) -> OnnxHost:
        """The model in ONNX Runtime, or in ONNX's own evaluator where that is not installed."""
        return OnnxHost(onnx.load_model_from_string(self.content), "tail")


def _model(
    graph: Graph, inputs: Sequence[WireTensor], orders: Mapping[str, Sequence[int]], opset: int
) -> onnx.ModelProto:
    wire = {tensor.value: tensor for tensor in inputs}
    (answer,) = graph.outputs
    if answer in wire or answer in graph.constants:  # nothing is left to compute
        raise Unexpressible(f"`{answer}` is there before the tail runs")
    names = {value: f"v/{value}" for value in graph.types} | {answer: OUTPUT}
    fronts: list[onnx.NodeProto] = []
    given: list[onnx.TensorProto] = []
    for value, tensor in wire.items():
        nodes, more = _restored(tensor, graph.types[value], orders.get(value))
        fronts, given = [*fronts, *nodes], [*given, *more]
        names[value] = nodes[-1].output[0] if nodes else tensor.name
    nodes, weights = emit(graph, names, "tail", opset)
    type_ = graph.types[answer]
    made = helper.make_graph(
        [*fronts, *nodes],
        "tail",
        [_info(wire[name].name, wire[name].dtype, wire[name].shape) for name in graph.inputs],
        [_info(OUTPUT, type_.dtype, type_.shape)],
        [*given, *weights],
    )
    sets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(sets)
    return helper.make_model(
        made, opset_imports=sets, ir_version=version, producer_name="eecompile"
    )


def _restored(
    tensor: WireTensor, type_: TensorType, order: Sequence[int] | None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that turn what travelled into what the network reads; none where it is that."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    name = tensor.name

    def add(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal name
        made = f"{tensor.name}.{kind.lower()}"
        nodes.append(helper.make_node(kind, [name, *more], [made], made, **attributes))
        name = made

    if tensor.scale > 0:
        for what, array in (
            ("scale", np.array(tensor.scale, np.float32)),
            ("zero", np.array(tensor.zero, np.int8)),
        ):
            weights.append(numpy_helper.from_array(array, f"{tensor.name}.{what}"))
        add("DequantizeLinear", *(weight.name for weight in weights))
    elif tensor.dtype != type_.dtype:
        add("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(type_.dtype)))
    if order is not None:
        add("Transpose", perm=[list(order).index(axis) for axis in range(len(order))])
    return nodes, weights


def _info(name: str, dtype: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, shape)
