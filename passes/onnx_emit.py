"""Neutral operators back to ONNX nodes, in whatever operator set the model has.

A head is put together with onnx-graphsurgeon. The user's own model is not taken through it: it
drops the metadata of nodes, which is where exporters keep module paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from eecompile.ir import Graph, Op, TensorType

__all__ = ["Unexpressible", "emit", "set_scope"]


class Unexpressible(ValueError):
    """An operator has no equivalent in the model's operator set."""


def emit(
    graph: Graph, names: Mapping[str, str], prefix: str, opset: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and initializers that compute `graph`.

    Args:
        graph: what to express.
        names: its value names -> names in the model.
        prefix: module path recorded for the nodes, and what their names begin with.
        opset: version of the default domain.

    Raises:
        Unexpressible: an operator needs a later operator set.
    """
    graph, names = _without_keep(graph, names)
    writer = _Writer(graph, names, prefix, opset)
    for op in graph.ops:
        try:
            _EMIT.get(op.kind, _plain)(writer, op)
        except onnx.defs.SchemaError as error:
            raise Unexpressible(
                f"Operator `{op.kind}` of `{op.name}` does not exist in operator set {opset}"
            ) from error
    made = gs.export_onnx(writer.surgeon, do_type_check=False).graph
    for node in made.node:
        set_scope(node, prefix)
    weights = {tensor.name: tensor for tensor in made.initializer}
    for output in graph.outputs:  # a constant that is handed on as it is has no user
        if output in graph.constants:
            array = np.asarray(graph.constants[output])
            weights[names[output]] = onnx.numpy_helper.from_array(array, names[output])
    return list(made.node), list(weights.values())


def set_scope(node: onnx.NodeProto, scope: str) -> None:
    """Records the node's module path the way PyTorch's exporter does."""
    if scope:
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", str(["", scope, node.name])


def _without_keep(graph: Graph, names: Mapping[str, str]) -> tuple[Graph, Mapping[str, str]]:
    """The graph with each ``Keep`` written as the choice between its channels and zeros."""
    if all(op.kind != "Keep" for op in graph.ops):
        return graph, names
    ops: list[Op] = []
    types, constants, names = dict(graph.types), dict(graph.constants), dict(names)
    for op in graph.ops:
        if op.kind != "Keep":
            ops.append(op)
            continue
        (x, scores), (out,) = op.inputs, op.outputs
        shape, groups = types[x].shape, types[scores].shape[1]
        own = {part: f"{out}/{part}" for part in ("zero", "kept", "groups", "runs", "channels")}
        names.update((value, f"{names[out]}/{part}") for part, value in own.items())
        constants[own["zero"]] = np.zeros((), np.float32)
        types[own["zero"]] = TensorType("float32", ())
        size = shape[1] // groups
        wide = (1, shape[1], *(1 for _ in shape[2:]))
        steps: list[tuple[str, str, tuple[str, ...], dict[str, Any], tuple[int, ...]]] = [
            ("kept", "Greater", (scores, own["zero"]), {}, (1, groups)),
            ("groups", "Reshape", (own["kept"],), {"shape": (1, groups, 1)}, (1, groups, 1)),
            ("runs", "Expand", (own["groups"],), {"shape": (1, groups, size)}, (1, groups, size)),
            ("channels", "Reshape", (own["runs"],), {"shape": wide}, wide),
        ]
        for part, kind, read, attributes, extents in steps:
            value = own[part]
            ops.append(Op(f"{op.name}/{part}", kind, read, (value,), attributes))
            types[value] = TensorType("bool", extents)
        ops.append(Op(op.name, "Where", (own["channels"], x, own["zero"]), (out,)))
    return replace(graph, ops=tuple(ops), types=types, constants=constants), names


class _Writer:
    def __init__(self, graph: Graph, names: Mapping[str, str], prefix: str, opset: int) -> None:
        self.graph, self.names, self.prefix, self.opset = graph, names, prefix, opset
        self.surgeon = gs.Graph(opset=opset, name=prefix)
        self._tensors: dict[str, gs.Tensor] = {}
        self._constants = {names[k]: np.asarray(v) for k, v in graph.constants.items()}

    def dtype(self, value: str) -> str:
        return self.graph.types[value].dtype

    def rank(self, value: str) -> int:
        return len(self.graph.types[value].shape)

    def parameter(self, op: Op, what: str, value: Any, dtype: str = "int64") -> str:
        """An initializer that holds what is an attribute to us."""
        name = f"{self.prefix}/{op.name}.{what}"
        self._tensors[name] = gs.Constant(name, np.array(value, dtype))
        return name

    def tensor(self, name: str) -> gs.Tensor:
        """The tensor called `name` in the model; the same object for the same name."""
        if not name:
            return gs.Variable.empty()
        if name not in self._tensors:
            constant = self._constants.get(name)
            made = gs.Variable(name) if constant is None else gs.Constant(name, constant)
            self._tensors[name] = made
        return self._tensors[name]

    def node(self, op: Op, extra: Sequence[str] = (), **attributes: Any) -> None:
        """A node with the operator's inputs and `extra` ones.

        Attributes the schema lacks are dropped where they hold what it means without them.

        Raises:
            Unexpressible: an attribute that matters does not exist in the operator set.
        """
        schema = onnx.defs.get_schema(op.kind, self.opset, "")
        kept: dict[str, Any] = {}
        for name, value in attributes.items():
            if name in schema.attributes:
                kept[name] = list(value) if isinstance(value, tuple) else value
            elif name not in _NEUTRAL or np.any(np.asarray(value) != _NEUTRAL[name]):
                raise Unexpressible(
                    f"Attribute `{name}` of `{op.name}` does not exist in operator set {self.opset}"
                )
        inputs = [self.names[name] if name else "" for name in op.inputs]
        self.surgeon.nodes.append(
            gs.Node(
                op.kind,
                f"{self.prefix}/{op.name}",
                kept,
                [self.tensor(name) for name in (*inputs, *extra)],
                [self.tensor(self.names[name]) for name in op.outputs],
            )
        )


#: Values of attributes that mean the same as their absence in operator sets that lack them.
_NEUTRAL: dict[str, Any] = {"dilations": 1, "select_last_index": 0, "fmod": 0, "mode": "DCR"}


def _plain(writer: _Writer, op: Op) -> None:
    attributes: dict[str, Any] = dict(op.attributes)
    if op.kind == "Cast":
        attributes["to"] = helper.np_dtype_to_tensor_dtype(np.dtype(str(attributes["to"])))
    elif op.kind == "Mod":
        attributes["fmod"] = int(writer.dtype(op.inputs[0]) == "float32")
    elif op.kind == "AveragePool" and np.any(attributes.pop("extra", 0)):
        attributes["ceil_mode"] = 1
    elif op.kind in ("Softmax", "LogSoftmax") and writer.opset < 13:
        if attributes["axis"] != writer.rank(op.inputs[0]) - 1:
            raise Unexpressible(
                f"Operator `{op.kind}` of `{op.name}` along an inner axis needs operator set 13"
            )
    elif op.kind in ("QuantizeLinear", "DequantizeLinear") and (
        writer.graph.types[op.inputs[1]].size == 1
    ):
        attributes.pop("axis")
    writer.node(op, **attributes)


def _reduce(writer: _Writer, op: Op) -> None:
    since = 13 if op.kind == "ReduceSum" else 18
    keepdims = op.attributes["keepdims"]
    if writer.opset < since:
        writer.node(op, axes=op.attributes["axes"], keepdims=keepdims)
    else:
        writer.node(op, [writer.parameter(op, "axes", op.attributes["axes"])], keepdims=keepdims)


def _clip(writer: _Writer, op: Op) -> None:
    limits: dict[str, Any] = dict(op.attributes)
    bounds = {name: limit for name, limit in limits.items() if np.isfinite(limit)}
    if writer.opset < 11:
        writer.node(op, **bounds)
        return
    dtype = writer.dtype(op.inputs[0])
    extra = [
        writer.parameter(op, k, bounds[k], dtype) if k in bounds else "" for k in ("min", "max")
    ]
    writer.node(op, extra)


def _shaped_by(attribute: str) -> Callable[[_Writer, Op], None]:
    """An operator whose one attribute is ONNX's second input."""

    def emit_(writer: _Writer, op: Op) -> None:
        writer.node(op, [writer.parameter(op, attribute, op.attributes[attribute])])

    return emit_


def _cumsum(writer: _Writer, op: Op) -> None:
    rest = {k: v for k, v in op.attributes.items() if k != "axis"}
    writer.node(op, [writer.parameter(op, "axis", op.attributes["axis"])], **rest)


def _one_hot(writer: _Writer, op: Op) -> None:
    a: Any = op.attributes
    values = [a["off_value"], a["on_value"]]
    extra = [
        writer.parameter(op, "depth", a["depth"]),
        writer.parameter(op, "values", values, a.get("to", "float32")),
    ]
    writer.node(op, extra, axis=a["axis"])


def _pad(writer: _Writer, op: Op) -> None:
    a: Any = op.attributes
    if writer.opset < 11:
        writer.node(op, pads=a["pads"], mode=a["mode"], value=float(a["value"]))
        return
    dtype = writer.dtype(op.inputs[0])
    extra = [
        writer.parameter(op, "pads", a["pads"]),
        writer.parameter(op, "value", a["value"], dtype),
    ]
    writer.node(op, extra, mode=a["mode"])


def _resize(writer: _Writer, op: Op) -> None:
    a: dict[str, Any] = dict(op.attributes)
    if writer.opset < 11:
        raise Unexpressible(f"Operator `Resize` of `{op.name}` needs operator set 11")
    scales, sizes = a.pop("scales"), a.pop("sizes", None)
    empty = writer.parameter(op, "roi", [], "float32")
    if sizes is None:
        extra = [empty, writer.parameter(op, "scales", scales, "float32")]
    else:
        none = writer.parameter(op, "scales", [], "float32") if writer.opset < 13 else ""
        extra = [empty, none, writer.parameter(op, "sizes", sizes)]
    writer.node(op, extra, **a)


def _slice(writer: _Writer, op: Op) -> None:
    a: Any = op.attributes
    shape = writer.graph.types[op.inputs[0]].shape
    # Our end of -1 is before the first element; to ONNX it is the last one.
    ends = [
        end if end >= 0 else -shape[axis] - 1
        for end, axis in zip(a["ends"], a["axes"], strict=True)
    ]
    if writer.opset < 10:
        if any(step != 1 for step in a["steps"]):
            raise Unexpressible(f"Operator `Slice` of `{op.name}` with steps needs operator set 10")
        writer.node(op, starts=a["starts"], ends=tuple(ends), axes=a["axes"])
        return
    writer.node(
        op,
        [
            writer.parameter(op, "starts", a["starts"]),
            writer.parameter(op, "ends", ends),
            writer.parameter(op, "axes", a["axes"]),
            writer.parameter(op, "steps", a["steps"]),
        ],
    )


def _group_normalization(writer: _Writer, op: Op) -> None:
    if writer.opset < 21:  # before, scale and bias were one a group
        raise Unexpressible(f"Operator `GroupNormalization` of `{op.name}` needs operator set 21")
    _plain(writer, op)


_EMIT: dict[str, Callable[[_Writer, Op], None]] = {
    **{f"Reduce{name}": _reduce for name in ("Max", "Mean", "Min", "Prod", "Sum")},
    "Clip": _clip,
    "CumSum": _cumsum,
    "Expand": _shaped_by("shape"),
    "GroupNormalization": _group_normalization,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _shaped_by("shape"),
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _shaped_by("repeats"),
}
