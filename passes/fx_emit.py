"""Neutral operators as ATen calls in a torch.fx graph: how heads get into a PyTorch network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.host import HostError, Problem

__all__ = ["EMITTED", "Emitter", "add_state", "has_attribute", "remove_module", "training_flag"]

Rule = Callable[["Emitter", Op], fx.Node]
#: Neutral operator -> what writes it.
EMITTED: dict[str, Rule] = {}


class _Inexpressible(Exception):
    """The operator, with these attributes, is not written in ATen here; the message says why."""


def training_flag(graph: fx.Graph) -> fx.Node:
    """The node that reads the module's `training` attribute, made where there is none."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == "training":
            found: fx.Node = node
            return found
    with graph.inserting_before(next(iter(graph.nodes))):
        flag: fx.Node = graph.create_node("get_attr", "training", name="training")
    return flag


def add_state(module: nn.Module, path: str, array: np.ndarray, trainable: bool) -> None:
    """Puts an array into a module as parameter or buffer, intermediate modules made as needed."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    tensor = torch.from_numpy(np.array(array, copy=True))
    if trainable:
        module.register_parameter(last, nn.Parameter(tensor))
    else:
        module.register_buffer(last, tensor)


@dataclass
class Emitter:
    """Writes one neutral graph into a graph module, behind a node.

    Attributes:
        module: the graph module.
        source: the neutral graph.
        prefix: module path for weights and scopes.
        flexible: whether the leading dimension, 1 in the neutral graph, is any batch here.
        nodes: value of the neutral graph -> node.
    """

    module: fx.GraphModule
    source: Graph
    prefix: str
    flexible: bool
    nodes: dict[str, fx.Node]

    def emit(self, after: fx.Node) -> tuple[fx.Node, ...]:
        """Emits every operator behind `after`; the nodes of the graph's outputs.

        Raises:
            HostError: an operator has no rule, or not with its attributes; one problem for each.
                The module is as it was.
        """
        self._before = set(self.module.graph.nodes)
        problems = []
        self._statistics = {
            name
            for op in self.source.ops
            if op.kind == "BatchNormalization"
            for name in op.inputs[3:]
        }
        self._last = after
        for name in self.source.constants:
            self._constant(name)
        for op in self.source.ops:
            try:
                if op.kind not in EMITTED:
                    raise _Inexpressible("")
                node = EMITTED[op.kind](self, op)
            except _Inexpressible as error:
                problems.append(_problem(op, str(error)))
                node = after
            self.nodes[op.outputs[0]] = node
        if problems:
            self.undo()
            raise HostError(*problems)
        return tuple(self.nodes[name] for name in self.source.outputs)

    def undo(self) -> None:
        """Takes back everything `emit` added."""
        for node in reversed([n for n in self.module.graph.nodes if n not in self._before]):
            self.module.graph.erase_node(node)
        remove_module(self.module, self.prefix)

    # --- what rules use ---------------------------------------------------------------------------

    def call(self, overload: str, *arguments: Any, **keywords: Any) -> fx.Node:
        """A new call of an ATen overload, named without ``aten.``."""
        name, kind = overload.split(".")
        function = getattr(getattr(torch.ops.aten, name), kind)
        label = f"{self.prefix}.{name}"
        return self._insert("call_function", function, label, arguments, keywords)

    def args(self, op: Op) -> list[fx.Node | None]:
        """The nodes of the operator's inputs, None where one is absent."""
        return [self.nodes[name] if name else None for name in op.inputs]

    def type(self, name: str) -> TensorType:
        """The type of a value of the neutral graph."""
        return self.source.types[name]

    def batch_shape(self, op: Op) -> tuple[int, ...]:
        """The operator's `shape`, -1 for the leading dimension where that is the batch."""
        shape: Any = op.attributes["shape"]
        old = self.type(op.inputs[0]).shape
        keep = self.flexible and old[:1] == (1,) and shape[:1] == (1,)
        return (-1, *shape[1:]) if keep else shape

    def _insert(
        self, kind: str, target: Any, name: str, arguments: Any = (), keywords: Any = None
    ) -> fx.Node:
        graph = self.module.graph
        anchor = self._last.next if self._last.op == "placeholder" else None
        while anchor is not None and anchor.op == "placeholder":
            anchor = anchor.next
        with graph.inserting_before(anchor) if anchor else graph.inserting_after(self._last):
            node = graph.create_node(kind, target, tuple(arguments), keywords or {}, name=name)
        node.meta["scope"] = self.prefix
        self._last = node
        return node

    def _constant(self, name: str) -> None:
        array = self.source.constants[name]
        clean = "".join(c if c.isalnum() else "_" for c in name)
        path, number = f"{self.prefix}.{clean}", 1
        while has_attribute(self.module, path):
            number += 1
            path = f"{self.prefix}.{clean}_{number}"
        # A lone number is a setting (an epsilon, a temperature), running statistics are measured.
        trainable = array.dtype.kind == "f" and array.ndim > 0 and name not in self._statistics
        add_state(self.module, path, array, trainable)
        self.nodes[name] = self._insert("get_attr", path, path)


def remove_module(module: nn.Module, path: str) -> None:
    """Removes a submodule and the parents it leaves empty."""
    parts = path.split(".")
    while parts:
        parent = module
        for name in parts[:-1]:
            parent = parent.get_submodule(name) if name in parent._modules else nn.Module()
        child = parent._modules.get(parts[-1])
        if child is None or (len(parts) < len(path.split(".")) and [*child.state_dict()]):
            return
        del parent._modules[parts[-1]]
        parts.pop()


def has_attribute(module: nn.Module, path: str) -> bool:
    """Whether the module path leads to anything."""
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _problem(op: Op, reason: str) -> Problem:
    message = f"Operator `{op.kind}` of a head cannot be written in PyTorch"
    return Problem("bad-head", message + (f": {reason}" if reason else ""), op.name, op.kind)


# --- rules ----------------------------------------------------------------------------------------


def _on(*kinds: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        EMITTED.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def _direct(overload: str) -> Rule:
    return lambda e, op: e.call(overload, *e.args(op))


_DIRECT = {
    "Abs": "abs.default",
    "Add": "add.Tensor",
    "And": "logical_and.default",
    "Ceil": "ceil.default",
    "Cos": "cos.default",
    "Equal": "eq.Tensor",
    "Erf": "erf.default",
    "Exp": "exp.default",
    "Floor": "floor.default",
    "Greater": "gt.Tensor",
    "GreaterOrEqual": "ge.Tensor",
    "HardSwish": "hardswish.default",
    "Less": "lt.Tensor",
    "LessOrEqual": "le.Tensor",
    "Log": "log.default",
    "MatMul": "matmul.default",
    "Max": "maximum.default",
    "Min": "minimum.default",
    "Mish": "mish.default",
    "Mul": "mul.Tensor",
    "Neg": "neg.default",
    "Not": "logical_not.default",
    "Or": "logical_or.default",
    "Pow": "pow.Tensor_Tensor",
    "Reciprocal": "reciprocal.default",
    "Relu": "relu.default",
    "Round": "round.default",
    "Sigmoid": "sigmoid.default",
    "Sign": "sign.default",
    "Sin": "sin.default",
    "Softplus": "softplus.default",
    "Sqrt": "sqrt.default",
    "Sub": "sub.Tensor",
    "Tanh": "tanh.default",
    "Where": "where.self",
    "Xor": "logical_xor.default",
}
EMITTED.update({kind: _direct(overload) for kind, overload in _DIRECT.items()})


def _with(overload: str, *names: str) -> Rule:
    return lambda e, op: e.call(overload, *e.args(op), *(op.attributes[name] for name in names))


EMITTED.update(
    {
        "Celu": _with("celu.default", "alpha"),
        "Elu": _with("elu.default", "alpha"),
        "LeakyRelu": _with("leaky_relu.default", "alpha"),
        "Tile": _with("repeat.default", "repeats"),
        "Transpose": _with("permute.default", "perm"),
    }
)


def _reduction(overload: str) -> Rule:
    def rule(e: Emitter, op: Op) -> fx.Node:
        axes: Any = op.attributes["axes"]
        return e.call(overload, *e.args(op), list(axes), bool(op.attributes["keepdims"]))

    return rule


EMITTED["ReduceMax"] = _reduction("amax.default")
EMITTED["ReduceMean"] = _reduction("mean.dim")
EMITTED["ReduceMin"] = _reduction("amin.default")
EMITTED["ReduceSum"] = _reduction("sum.dim_IntList")


@_on("Div")
def _div(e: Emitter, op: Op) -> fx.Node:
    if e.type(op.inputs[0]).dtype.startswith("float"):
        return e.call("div.Tensor", *e.args(op))
    return e.call("div.Tensor_mode", *e.args(op), rounding_mode="trunc")


@_on("Mod")
def _mod(e: Emitter, op: Op) -> fx.Node:
    floating = e.type(op.inputs[0]).dtype.startswith("float")
    return e.call("fmod.Tensor" if floating else "remainder.Tensor", *e.args(op))


@_on("PRelu")
def _prelu(e: Emitter, op: Op) -> fx.Node:
    x, slope = e.args(op)
    return e.call("where.self", e.call("ge.Scalar", x, 0), x, e.call("mul.Tensor", x, slope))


@_on("Softsign")
def _softsign(e: Emitter, op: Op) -> fx.Node:
    (x,) = e.args(op)
    return e.call("div.Tensor", x, e.call("add.Tensor", e.call("abs.default", x), 1.0))


@_on("Clip")
def _clip(e: Emitter, op: Op) -> fx.Node:
    low, high = op.attributes["min"], op.attributes["max"]
    kind = float if e.type(op.inputs[0]).dtype == "float32" else int
    bounds = (None if low == -inf else kind(low), None if high == inf else kind(high))  # type: ignore[arg-type]
    if bounds == (None, None):
        raise _Inexpressible("it has no bounds")
    return e.call("clamp.default", *e.args(op), *bounds)


@_on("Cast")
def _cast(e: Emitter, op: Op) -> fx.Node:
    return e.call("to.dtype", *e.args(op), getattr(torch, str(op.attributes["to"])))


@_on("Gelu")
def _gelu(e: Emitter, op: Op) -> fx.Node:
    return e.call("gelu.default", *e.args(op), approximate=op.attributes["approximate"])


@_on("HardSigmoid")
def _hard_sigmoid(e: Emitter, op: Op) -> fx.Node:
    (x,) = e.args(op)
    alpha: Any = op.attributes["alpha"]
    if abs(alpha - 1 / 6) < 1e-6 and op.attributes["beta"] == 0.5:
        return e.call("hardsigmoid.default", x)
    line = e.call("add.Tensor", e.call("mul.Tensor", x, alpha), op.attributes["beta"])
    return e.call("clamp.default", line, 0.0, 1.0)


@_on("Selu")
def _selu(e: Emitter, op: Op) -> fx.Node:
    return e.call("elu.default", *e.args(op), op.attributes["alpha"], op.attributes["gamma"])


@_on("ThresholdedRelu")
def _thresholded_relu(e: Emitter, op: Op) -> fx.Node:
    return e.call("threshold.default", *e.args(op), op.attributes["alpha"], 0.0)


def _symmetric(op: Op, rank: int) -> list[int] | None:
    pads: Any = op.attributes["pads"]
    return list(pads[:rank]) if pads[:rank] == pads[rank:] else None


def _padded(e: Emitter, x: fx.Node | None, op: Op, value: float) -> fx.Node:
    """`x` with the operator's own padding put around it."""
    pads: Any = op.attributes["pads"]
    rank = len(pads) // 2
    torch_order = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
    return e.call("constant_pad_nd.default", x, torch_order, value)


@_on("Conv")
def _conv(e: Emitter, op: Op) -> fx.Node:
    x, w, *bias = e.args(op)
    rank = len(e.type(op.inputs[1]).shape) - 2
    a: Any = op.attributes
    pads = _symmetric(op, rank)
    if pads is None:
        x, pads = _padded(e, x, op, 0.0), [0] * rank
    b = bias[0] if bias else None
    overload = f"conv{rank}d.default"
    return e.call(overload, x, w, b, list(a["strides"]), pads, list(a["dilations"]), a["group"])


@_on("ConvTranspose")
def _conv_transpose(e: Emitter, op: Op) -> fx.Node:
    x, w, *bias = e.args(op)
    rank = len(e.type(op.inputs[1]).shape) - 2
    a: Any = op.attributes
    pads = _symmetric(op, rank)
    if pads is None:
        raise _Inexpressible("its padding is uneven")
    overload = "conv_transpose1d.default" if rank == 1 else "conv_transpose2d.input"
    more = (list(a["output_padding"]), a["group"], list(a["dilations"]))
    return e.call(overload, x, w, bias[0] if bias else None, list(a["strides"]), pads, *more)


@_on("BatchNormalization")
def _batch_norm(e: Emitter, op: Op) -> fx.Node:
    x, scale, bias, mean, variance = e.args(op)
    flag = training_flag(e.module.graph)
    epsilon = op.attributes["epsilon"]
    arguments = (x, scale, bias, mean, variance, flag, 0.1, epsilon, False)
    return e.call("batch_norm.default", *arguments)


@_on("LayerNormalization")
def _layer_norm(e: Emitter, op: Op) -> fx.Node:
    x, scale, *bias = e.args(op)
    axis: Any = op.attributes["axis"]
    shape = e.type(op.inputs[0]).shape[axis:]
    if any(e.type(name).shape != shape for name in op.inputs[1:] if name):
        raise _Inexpressible("its parameters are broadcast")
    b = bias[0] if bias else None
    return e.call("layer_norm.default", x, list(shape), scale, b, op.attributes["epsilon"], False)


@_on("GroupNormalization")
def _group_norm(e: Emitter, op: Op) -> fx.Node:
    x, scale, bias = e.args(op)
    groups, epsilon = op.attributes["num_groups"], op.attributes["epsilon"]
    return e.call("group_norm.default", x, groups, scale, bias, epsilon, False)


@_on("InstanceNormalization")
def _instance_norm(e: Emitter, op: Op) -> fx.Node:
    x, scale, bias = e.args(op)
    epsilon = op.attributes["epsilon"]
    return e.call("instance_norm.default", x, scale, bias, None, None, True, 0.1, epsilon, False)


@_on("MaxPool")
def _max_pool(e: Emitter, op: Op) -> fx.Node:
    (x,) = e.args(op)
    a: Any = op.attributes
    rank = len(a["kernel_shape"])
    if rank > 2 or e.type(op.inputs[0]).dtype != "float32":
        raise _Inexpressible(f"torch has none in {rank} dimensions of {e.type(op.inputs[0])}")
    pads = _symmetric(op, rank)
    # torch takes at most half of the window as padding.
    if pads is None or any(2 * p > k for p, k in zip(pads, a["kernel_shape"], strict=True)):
        x, pads = _padded(e, x, op, -inf), [0] * rank
    window = (list(a["kernel_shape"]), list(a["strides"]), pads, list(a["dilations"]))
    return e.call(f"max_pool{rank}d.default", x, *window)


@_on("AveragePool")
def _average_pool(e: Emitter, op: Op) -> fx.Node:
    (x,) = e.args(op)
    a: Any = op.attributes
    rank = len(a["kernel_shape"])
    pads = _symmetric(op, rank)
    if rank > 2 or any(a.get("extra", ())) or any(d != 1 for d in a.get("dilations", ())):
        raise _Inexpressible("its windows are none of torch's")
    if pads is None:
        if not a["count_include_pad"]:
            raise _Inexpressible("its padding is uneven and not counted")
        x, pads = _padded(e, x, op, 0.0), [0] * rank
    counted = bool(a["count_include_pad"])
    window = (list(a["kernel_shape"]), list(a["strides"]), pads)
    return e.call(f"avg_pool{rank}d.default", x, *window, False, counted)


def _argument(overload: str) -> Rule:
    def rule(e: Emitter, op: Op) -> fx.Node:
        if op.attributes["select_last_index"]:
            raise _Inexpressible("it wants the last of equals")
        return e.call(overload, *e.args(op), op.attributes["axis"], bool(op.attributes["keepdims"]))

    return rule


EMITTED["ArgMax"] = _argument("argmax.default")
EMITTED["ArgMin"] = _argument("argmin.default")


@_on("CumSum")
def _cumsum(e: Emitter, op: Op) -> fx.Node:
    if op.attributes["exclusive"] or op.attributes["reverse"]:
        raise _Inexpressible("it is exclusive or reversed")
    return e.call("cumsum.default", *e.args(op), op.attributes["axis"])


EMITTED["Softmax"] = _with("softmax.int", "axis")
EMITTED["LogSoftmax"] = _with("log_softmax.int", "axis")


@_on("Concat")
def _concat(e: Emitter, op: Op) -> fx.Node:
    return e.call("cat.default", e.args(op), op.attributes["axis"])


@_on("DepthToSpace")
def _depth_to_space(e: Emitter, op: Op) -> fx.Node:
    if op.attributes["mode"] != "CRD":
        raise _Inexpressible("its order of channels is not torch's")
    return e.call("pixel_shuffle.default", *e.args(op), op.attributes["blocksize"])


@_on("Reshape")
def _reshape(e: Emitter, op: Op) -> fx.Node:
    return e.call("reshape.default", *e.args(op), list(e.batch_shape(op)))


@_on("Expand")
def _expand(e: Emitter, op: Op) -> fx.Node:
    return e.call("expand.default", *e.args(op), list(e.batch_shape(op)))


@_on("Gather")
def _gather(e: Emitter, op: Op) -> fx.Node:
    data, _ = e.args(op)
    axis: Any = op.attributes["axis"]
    indices, shape = _indices(e, op), e.type(op.outputs[0]).shape
    if len(e.type(op.inputs[1]).shape) == 1:
        return e.call("index_select.default", data, axis, indices)
    flat = e.call("reshape.default", indices, [-1])
    chosen = e.call("index_select.default", data, axis, flat)
    keep = e.flexible and axis > 0 and shape[:1] == (1,)
    return e.call("reshape.default", chosen, [-1, *shape[1:]] if keep else list(shape))


@_on("GatherElements")
def _gather_elements(e: Emitter, op: Op) -> fx.Node:
    data, _ = e.args(op)
    return e.call("gather.default", data, op.attributes["axis"], _indices(e, op))


def _indices(e: Emitter, op: Op) -> fx.Node | None:
    """The operator's indices, counted from the beginning as torch wants them."""
    node, known = e.args(op)[1], e.source.constants.get(op.inputs[1])
    if known is not None and known.min(initial=0) >= 0:
        return node
    axis: Any = op.attributes["axis"]
    return e.call("remainder.Scalar", node, e.type(op.inputs[0]).shape[axis])


@_on("Pad")
def _pad(e: Emitter, op: Op) -> fx.Node:
    a: Any = op.attributes
    rank = len(a["pads"]) // 2
    padded = [i for i in range(rank) if a["pads"][i] or a["pads"][rank + i]]
    first = min(padded, default=rank)
    pads = [p for i in reversed(range(first, rank)) for p in (a["pads"][i], a["pads"][rank + i])]
    if a["mode"] == "constant":
        return e.call("constant_pad_nd.default", *e.args(op), pads, a["value"])
    names: Mapping[str, str] = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if rank not in (3, 4) or first < 2 or min(pads) < 0:
        raise _Inexpressible(f"mode {a['mode']} on these dimensions")
    pads += [0] * (2 * (rank - 2) - len(pads))
    return e.call("pad.default", *e.args(op), pads, names[a["mode"]])


@_on("Slice")
def _slice(e: Emitter, op: Op) -> fx.Node:
    (node,) = e.args(op)
    a: Any = op.attributes
    for start, end, axis, step in zip(a["starts"], a["ends"], a["axes"], a["steps"], strict=True):
        if step < 0:
            last = e.type(op.inputs[0]).shape[axis] - 1
            node = e.call("flip.default", node, [axis])
            start, end, step = last - start, last - end, -step
        node = e.call("slice.Tensor", node, axis, start, end, step)
    if node is None or not a["axes"]:
        raise _Inexpressible("it has no axes")
    return node
