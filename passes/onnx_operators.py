"""What each ONNX operator becomes: arithmetic, reductions, and what runs along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from eecompile.operators import BINARY, UNARY
from eecompile.passes.onnx_translate import Handler, Node, Refused, neutral_dtype

__all__ = ["OPERATORS", "named_axes"]

# -- element-wise ------------------------------------------------------------------------------


def _unary(node: Node) -> str:
    return node.add(node.kind, node.inputs[0])


def _binary(node: Node) -> str:
    a, b = node.inputs
    if node.kind == "Pow":  # the one whose operands may differ in type
        b = node.cast(b, node.type(0).dtype)
    if node.kind == "Mod":
        return _mod(node)
    return node.add(node.kind, a, b)


def _mod(node: Node) -> str:
    """The remainder has the sign of the divisor, or with `fmod` that of the dividend."""
    a, b = node.inputs
    whole, fmod = node.type(0).dtype != "float32", bool(node.attribute("fmod", 0))
    if whole and fmod:
        quotient = node.add("Div", a, b)
    elif whole or fmod:
        return node.add("Mod", a, b)
    else:
        quotient = node.add("Floor", node.add("Div", a, b))
    return node.add("Sub", a, node.add("Mul", quotient, b))


def _variadic(node: Node) -> str:
    kind = {"Sum": "Add", "Mean": "Add"}.get(node.kind, node.kind)
    result = node.inputs[0]
    for other in node.inputs[1:]:
        result = node.add(kind, result, other)
    if node.kind == "Mean":
        result = node.add("Mul", result, node.like(result, 1 / len(node.inputs)))
    return result


def _with_numbers(kind: str, **defaults: float) -> Handler:
    """An operator whose float attributes have these defaults."""

    def handler(node: Node) -> str:
        numbers = {name: float(node.attribute(name, d)) for name, d in defaults.items()}
        return node.add(kind, node.inputs[0], **numbers)

    return handler


def _cast(node: Node) -> str:
    if node.kind == "CastLike":
        return node.cast(node.inputs[0], node.type(1).dtype)
    return node.cast(node.inputs[0], neutral_dtype(node.attribute("to")))


def _clip(node: Node) -> str:
    x = node.inputs[0]
    bounds = {"min": -np.inf, "max": np.inf}
    if node.version < 11:
        numbers = {name: float(node.attribute(name, d)) for name, d in bounds.items()}
        return node.add("Clip", x, **numbers)
    low, high = (
        node.known(i) if node.has(i) else np.array(bounds[name])
        for i, name in ((1, "min"), (2, "max"))
    )
    if low is not None and high is not None:
        return node.add("Clip", x, min=float(low.reshape(())), max=float(high.reshape(())))
    if node.has(1):
        x = node.add("Max", x, node.inputs[1])
    return node.add("Min", x, node.inputs[2]) if node.has(2) else x


def _gelu(node: Node) -> str:
    return node.add("Gelu", node.inputs[0], approximate=node.attribute("approximate", "none"))


def _where(node: Node) -> str:
    return node.add("Where", *node.inputs)


def _swish(node: Node) -> str:
    x, alpha = node.inputs[0], float(node.attribute("alpha", 1.0))
    scaled = x if alpha == 1 else node.add("Mul", x, node.like(x, alpha))
    return node.add("Mul", x, node.add("Sigmoid", scaled))


def _trilu(node: Node) -> str:
    rows, columns = node.shape()[-2:]
    k = node.ints(1, "diagonal")[0] if node.has(1) else 0
    everywhere = np.ones((rows, columns), bool)
    mask = np.triu(everywhere, k) if node.attribute("upper", 1) else np.tril(everywhere, k)
    return node.add("Where", node.put(mask), node.inputs[0], node.like(node.inputs[0], 0))


def _softmax(node: Node) -> str:
    x, shape = node.inputs[0], node.shape()
    if node.version >= 13:
        return node.add(node.kind, x, axis=node.axis(-1))
    axis = node.axis(1)
    if axis == len(shape) - 1:
        return node.add(node.kind, x, axis=axis)
    # Before opset 13 everything from `axis` on is one dimension.
    flat = node.reshape(x, (prod(shape[:axis]), prod(shape[axis:])))
    return node.reshape(node.add(node.kind, flat, axis=1), shape)


# -- reductions --------------------------------------------------------------------------------


def named_axes(node: Node, since: int) -> tuple[int, ...] | None:
    """The named axes, sorted; None where none are named. An input from opset `since` on."""
    if node.version >= since:
        axes = node.ints(1, "axes") if node.has(1) else None
    else:
        axes = node.attribute("axes")
    if axes is None:
        return None
    rank = len(node.shape())
    if any(not -rank <= axis < rank for axis in axes):
        raise Refused(f"axes {tuple(axes)} are out of range for rank {rank}")
    return tuple(sorted({axis % rank for axis in axes}))


def _reduce(node: Node) -> str:
    x, shape = node.inputs[0], node.shape()
    axes = named_axes(node, 13 if node.kind == "ReduceSum" else 18)
    if not axes and node.attribute("noop_with_empty_axes", 0):
        if node.kind not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"):
            raise Refused("`noop_with_empty_axes` without axes")
        return x
    if not shape:  # a scalar is reduced as the vector of its one element
        return node.reshape(_reduction(node, node.reshape(x, (1,)), (0,), 1), ())
    axes = axes or tuple(range(len(shape)))
    return _reduction(node, x, axes, int(node.attribute("keepdims", 1)))


def _reduction(node: Node, x: str, axes: Sequence[int], keepdims: int) -> str:
    def reduced(kind: str, value: str, keepdims: int = keepdims) -> str:
        return node.add(kind, value, axes=tuple(axes), keepdims=keepdims)

    if node.kind == "ReduceLogSumExp":
        highest = reduced("ReduceMax", x, 1)
        total = reduced("ReduceSum", node.add("Exp", node.add("Sub", x, highest)))
        return node.add(
            "Add", node.add("Log", total), node.reshape(highest, node.type_of(total).shape)
        )
    if node.kind in ("ReduceL2", "ReduceSumSquare"):
        total = reduced("ReduceSum", node.add("Mul", x, x))
        return node.add("Sqrt", total) if node.kind == "ReduceL2" else total
    if node.kind == "ReduceL1":
        return reduced("ReduceSum", node.add("Abs", x))
    if node.kind == "ReduceLogSum":
        return node.add("Log", reduced("ReduceSum", x))
    return reduced(node.kind, x)


def _global_pool(node: Node) -> str:
    kind = "ReduceMean" if node.kind == "GlobalAveragePool" else "ReduceMax"
    axes = tuple(range(2, len(node.shape())))
    return node.add(kind, node.inputs[0], axes=axes, keepdims=1)


def _arg(node: Node) -> str:
    return node.add(
        node.kind,
        node.inputs[0],
        axis=node.axis(0),
        keepdims=int(node.attribute("keepdims", 1)),
        select_last_index=int(node.attribute("select_last_index", 0)),
    )


def _top_k(node: Node) -> list[str]:
    k = node.ints(1, "count")[0] if node.version >= 10 else node.attribute("k")
    if k != 1:
        raise Refused(f"the {k} first elements; the first is")
    axis, largest = node.axis(-1), bool(node.attribute("largest", 1))
    x = node.inputs[0]
    value = node.add("ReduceMax" if largest else "ReduceMin", x, axes=(axis,), keepdims=1)
    place = {"axis": axis, "keepdims": 1, "select_last_index": 0}
    return [value, node.add("ArgMax" if largest else "ArgMin", x, **place)]


def _cumsum(node: Node) -> str:
    (axis,) = node.ints(1, "axis")
    return node.add(
        "CumSum",
        node.inputs[0],
        axis=axis % len(node.shape()),
        exclusive=int(node.attribute("exclusive", 0)),
        reverse=int(node.attribute("reverse", 0)),
    )


OPERATORS: dict[str, Handler] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _variadic),
    **{f"Reduce{name}": _reduce for name in ("Max", "Mean", "Min", "Prod", "Sum")},
    **{f"Reduce{name}": _reduce for name in ("L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Cast": _cast,
    "CastLike": _cast,
    "Celu": _with_numbers("Celu", alpha=1.0),
    "Clip": _clip,
    "CumSum": _cumsum,
    "Elu": _with_numbers("Elu", alpha=1.0),
    "Gelu": _gelu,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "HardSigmoid": _with_numbers("HardSigmoid", alpha=0.2, beta=0.5),
    "LeakyRelu": _with_numbers("LeakyRelu", alpha=0.01),
    "LogSoftmax": _softmax,
    "Selu": _with_numbers("Selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Softmax": _softmax,
    "Swish": _swish,
    "ThresholdedRelu": _with_numbers("ThresholdedRelu", alpha=1.0),
    "Trilu": _trilu,
    "TopK": _top_k,
    "Where": _where,
}
