"""Which ATen calls each neutral operator is written as; `fx_emit.Emitter` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from eecompile.ir import Op
from eecompile.passes.fx_state import training_flag

if TYPE_CHECKING:
    from eecompile.passes.fx_emit import Emitter

__all__ = ["EMITTED", "Inexpressible"]

Rule = Callable[["Emitter", Op], fx.Node]
#: Neutral operator -> what writes it.
EMITTED: dict[str, Rule] = {}


class Inexpressible(Exception):
    """The operator, with these attributes, is not written in ATen here; the message says why."""


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


@_on("Keep")
def _keep(e: Emitter, op: Op) -> fx.Node:
    """A mask of exactly 0 and 1 whose gradient is that of the score's sigmoid.

    Source: straight-through gradients as of SkipNet (arXiv 1711.09485) and DDI (1907.04523).
    """
    x, scores = e.args(op)
    shape, groups = e.type(op.inputs[0]).shape, e.type(op.inputs[1]).shape[1]
    probability = e.call("sigmoid.default", scores)
    through = e.call("sub.Tensor", probability, e.call("detach.default", probability))  # 0
    kept = e.call("gt.Scalar", scores, 0.0)
    mask = e.call("where.self", kept, e.call("add.Tensor", through, 1.0), through)
    if 1 < groups < shape[1]:
        mask = e.call("repeat_interleave.self_int", mask, shape[1] // groups, 1)
    for _ in shape[2:]:
        mask = e.call("unsqueeze.default", mask, -1)
    return e.call("mul.Tensor", x, mask)


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
        raise Inexpressible("it has no bounds")
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
        raise Inexpressible("its padding is uneven")
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
        raise Inexpressible("its parameters are broadcast")
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
        raise Inexpressible(f"torch has none in {rank} dimensions of {e.type(op.inputs[0])}")
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
        raise Inexpressible("its windows are none of torch's")
    if pads is None:
        if not a["count_include_pad"]:
            raise Inexpressible("its padding is uneven and not counted")
        x, pads = _padded(e, x, op, 0.0), [0] * rank
    counted = bool(a["count_include_pad"])
    window = (list(a["kernel_shape"]), list(a["strides"]), pads)
    return e.call(f"avg_pool{rank}d.default", x, *window, False, counted)


def _argument(overload: str) -> Rule:
    def rule(e: Emitter, op: Op) -> fx.Node:
        if op.attributes["select_last_index"]:
            raise Inexpressible("it wants the last of equals")
        return e.call(overload, *e.args(op), op.attributes["axis"], bool(op.attributes["keepdims"]))

    return rule


EMITTED["ArgMax"] = _argument("argmax.default")
EMITTED["ArgMin"] = _argument("argmin.default")


@_on("CumSum")
def _cumsum(e: Emitter, op: Op) -> fx.Node:
    if op.attributes["exclusive"] or op.attributes["reverse"]:
        raise Inexpressible("it is exclusive or reversed")
    return e.call("cumsum.default", *e.args(op), op.attributes["axis"])


EMITTED["Softmax"] = _with("softmax.int", "axis")
EMITTED["LogSoftmax"] = _with("log_softmax.int", "axis")


@_on("Concat")
def _concat(e: Emitter, op: Op) -> fx.Node:
    return e.call("cat.default", e.args(op), op.attributes["axis"])


@_on("DepthToSpace")
def _depth_to_space(e: Emitter, op: Op) -> fx.Node:
    if op.attributes["mode"] != "CRD":
        raise Inexpressible("its order of channels is not torch's")
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
        raise Inexpressible(f"mode {a['mode']} on these dimensions")
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
        raise Inexpressible("it has no axes")
    return node
