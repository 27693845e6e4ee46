"""What type a neutral operator's results have, from the types of its inputs and its attributes.

One small rule a group of operators. Hosts use it while they translate, head builders while they
build, and verification to check a graph's recorded types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import ceil, floor, prod
from typing import Any

import numpy as np

from eecompile.ir import Graph, Op, TensorType
from eecompile.operators import BINARY, OPERATORS, UNARY

__all__ = ["TypeMismatch", "broadcast", "check_types", "infer_types"]

Types = Sequence[TensorType | None]


class TypeMismatch(ValueError):
    """The operator does not accept inputs of these types."""


def infer_types(op: Op, inputs: Types) -> tuple[TensorType, ...]:
    """The types of the operator's outputs.

    Args:
        op: attributes must be in the neutral form (see `operators`).
        inputs: a type for each of `op.inputs`, None for an absent optional one.

    Raises:
        TypeMismatch: unknown operator, missing input, or shapes that do not fit.

    >>> x, w = TensorType("float32", (1, 3, 8, 8)), TensorType("float32", (4, 3, 3, 3))
    >>> conv = Op("c", "Conv", ("x", "w"), ("y",), dict(
    ...     strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), group=1))
    >>> str(infer_types(conv, [x, w])[0])
    'float32[1, 4, 4, 4]'
    """
    signature = OPERATORS.get(op.kind)
    if signature is None:
        raise TypeMismatch(f"`{op.kind}` is no neutral operator")
    if signature.inputs != ("*",):
        required = sum(not name.endswith("?") for name in signature.inputs)
        if not required <= len(inputs) <= len(signature.inputs) or None in inputs[:required]:
            wanted = ", ".join(signature.inputs)
            raise TypeMismatch(f"`{op.kind}` takes ({wanted}), found {len(inputs)} inputs")
    try:
        result = _RULES[op.kind](op, inputs)
    except (IndexError, KeyError) as error:
        raise TypeMismatch(f"`{op.kind}`: {type(error).__name__} {error}") from error
    if min(result.shape, default=0) < 0:
        raise TypeMismatch(f"`{op.kind}` of {_listed(inputs)} would have shape {result.shape}")
    return (result,)


def check_types(graph: Graph) -> list[str]:
    """Every operator whose recorded result type is not the inferred one, as sentences."""
    wrong = []
    for op in graph.ops:
        try:
            found = infer_types(op, [graph.types[name] if name else None for name in op.inputs])
        except TypeMismatch as error:
            wrong.append(f"`{op.name}`: {error}")
            continue
        recorded = tuple(graph.types[name] for name in op.outputs)
        if found != recorded:
            wrong.append(f"`{op.name}`: expected {_listed(found)}, found {_listed(recorded)}")
    return wrong


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape numpy's broadcasting gives.

    Raises:
        TypeMismatch: two dimensions differ and neither is 1.

    >>> broadcast((8, 1, 3), (5, 1))
    (8, 5, 3)
    """
    result: list[int] = []
    for dims in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        wide = {dim for dim in dims if dim != 1}
        if len(wide) > 1:
            listed = " and ".join(map(str, shapes))
            raise TypeMismatch(f"shapes {listed} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(reversed(result))


def _listed(types: Types) -> str:
    return "(" + ", ".join("absent" if t is None else str(t) for t in types) + ")"


def _need(condition: bool, op: Op, inputs: Types, why: str) -> None:
    if not condition:
        raise TypeMismatch(f"`{op.kind}` of {_listed(inputs)}: {why}")


Rule = Callable[[Op, Any], TensorType]  # Any: inputs that the signature requires are never None


def _same(op: Op, inputs: Any) -> TensorType:
    return inputs[0]  # type: ignore[no-any-return]


def _same_dtypes(op: Op, inputs: Types, first: int = 0) -> None:
    found = {t.dtype for t in inputs[first:] if t is not None}
    _need(len(found) == 1, op, inputs, "element types differ")


_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def _binary(op: Op, inputs: Any) -> TensorType:
    _same_dtypes(op, inputs)
    shape = broadcast(inputs[0].shape, inputs[1].shape)
    return TensorType("bool" if op.kind in _COMPARISONS else inputs[0].dtype, shape)


def _where(op: Op, inputs: Any) -> TensorType:
    _need(inputs[0].dtype == "bool", op, inputs, "the condition must be bool")
    _same_dtypes(op, inputs, 1)
    return TensorType(inputs[1].dtype, broadcast(*(t.shape for t in inputs)))


def _keep(op: Op, inputs: Any) -> TensorType:
    x, scores = inputs
    fits = len(x.shape) >= 2 and len(scores.shape) == 2 and scores.shape[0] == 1
    fits = fits and scores.dtype == x.dtype == "float32" and x.shape[1] % scores.shape[1] == 0
    _need(fits, op, inputs, "takes scores (1, groups) that divide the channels")
    return TensorType(x.dtype, x.shape)


def _reduced(shape: tuple[int, ...], axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
    kept = ((1 if i in axes else dim) for i, dim in enumerate(shape) if keepdims or i not in axes)
    return tuple(kept)


def _reduce(op: Op, inputs: Any) -> TensorType:
    axes: Any = op.attributes["axes"]
    _need(all(0 <= a < len(inputs[0].shape) for a in axes), op, inputs, f"axes {axes}")
    keepdims = bool(op.attributes["keepdims"])
    return TensorType(inputs[0].dtype, _reduced(inputs[0].shape, axes, keepdims))


def _arg(op: Op, inputs: Any) -> TensorType:
    axis, keepdims = op.attributes["axis"], bool(op.attributes["keepdims"])
    return TensorType("int64", _reduced(inputs[0].shape, (axis,), keepdims))  # type: ignore[arg-type]


def _windows(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """Positions of a window along each dimension; pads are (begins..., ends...)."""
    n = len(size)
    return tuple(
        (size[i] + pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(n)
    )


def _conv(op: Op, inputs: Any) -> TensorType:
    x, w = inputs[0], inputs[1]
    a: Any = op.attributes
    _need(len(x.shape) == len(w.shape) >= 3, op, inputs, "ranks differ")
    _need(x.shape[1] == w.shape[1] * a["group"], op, inputs, f"{a['group']} groups")
    _need(w.shape[0] % a["group"] == 0, op, inputs, f"{a['group']} groups")
    if len(inputs) > 2 and inputs[2] is not None:
        _need(inputs[2].shape == w.shape[:1], op, inputs, "bias of another length")
    spatial = _windows(x.shape[2:], w.shape[2:], a["strides"], a["pads"], a["dilations"])
    return TensorType(x.dtype, (x.shape[0], w.shape[0], *spatial))


def _conv_transpose(op: Op, inputs: Any) -> TensorType:
    x, w = inputs[0], inputs[1]
    a: Any = op.attributes
    _need(len(x.shape) == len(w.shape) >= 3, op, inputs, "ranks differ")
    _need(x.shape[1] == w.shape[0], op, inputs, "channels differ")
    n = len(x.shape) - 2
    spatial = tuple(
        (x.shape[2 + i] - 1) * a["strides"][i]
        + a["dilations"][i] * (w.shape[2 + i] - 1)
        + 1
        + a["output_padding"][i]
        - a["pads"][i]
        - a["pads"][n + i]
        for i in range(n)
    )
    return TensorType(x.dtype, (x.shape[0], w.shape[1] * a["group"], *spatial))


def _matmul(op: Op, inputs: Any) -> TensorType:
    a, b = inputs[0].shape, inputs[1].shape
    _same_dtypes(op, inputs)
    _need(len(a) > 0 and len(b) > 0, op, inputs, "a scalar")
    rows, columns = a[:-1][-1:], b[1:][-1:]
    _need(a[-1] == (b[-2] if len(b) > 1 else b[0]), op, inputs, "inner dimensions differ")
    return TensorType(inputs[0].dtype, (*broadcast(a[:-2], b[:-2]), *rows, *columns))


def _normalised(op: Op, inputs: Any) -> TensorType:
    channels = inputs[0].shape[1:2]
    _need(all(t.shape == channels for t in inputs[1:]), op, inputs, "parameters per channel")
    return inputs[0]  # type: ignore[no-any-return]


def _layer_normalised(op: Op, inputs: Any) -> TensorType:
    for parameter in inputs[1:]:
        if parameter is not None:
            wide = broadcast(inputs[0].shape, parameter.shape)
            _need(wide == inputs[0].shape, op, inputs, "parameters wider than the input")
    return inputs[0]  # type: ignore[no-any-return]


def _cast(op: Op, inputs: Any) -> TensorType:
    return TensorType(str(op.attributes["to"]), inputs[0].shape)


def _pool(op: Op, inputs: Any) -> TensorType:
    a: Any = op.attributes
    kernel, x = a["kernel_shape"], inputs[0]
    _need(len(x.shape) == len(kernel) + 2, op, inputs, f"kernel {kernel}")
    pads = list(a["pads"])
    for i, more in enumerate(a.get("extra") or ()):
        pads[len(kernel) + i] += more
    dilations = a.get("dilations", (1,) * len(kernel))
    spatial = _windows(x.shape[2:], kernel, a["strides"], pads, dilations)
    return TensorType(x.dtype, (*x.shape[:2], *spatial))


def _concat(op: Op, inputs: Any) -> TensorType:
    _same_dtypes(op, inputs)
    axis: Any = op.attributes["axis"]
    rest = {(*t.shape[:axis], *t.shape[axis + 1 :]) for t in inputs}
    _need(len(rest) == 1, op, inputs, "other dimensions differ")
    shape = list(inputs[0].shape)
    shape[axis] = sum(t.shape[axis] for t in inputs)
    return TensorType(inputs[0].dtype, tuple(shape))


def _depth_to_space(op: Op, inputs: Any) -> TensorType:
    n, c, h, w = inputs[0].shape
    block: Any = op.attributes["blocksize"]
    _need(c % block**2 == 0, op, inputs, f"blocks of {block}")
    return TensorType(inputs[0].dtype, (n, c // block**2, h * block, w * block))


def _space_to_depth(op: Op, inputs: Any) -> TensorType:
    n, c, h, w = inputs[0].shape
    block: Any = op.attributes["blocksize"]
    _need(h % block == 0 and w % block == 0, op, inputs, f"blocks of {block}")
    return TensorType(inputs[0].dtype, (n, c * block**2, h // block, w // block))


def _expand(op: Op, inputs: Any) -> TensorType:
    shape: Any = op.attributes["shape"]
    _need(broadcast(inputs[0].shape, shape) == shape, op, inputs, f"shape {shape}")
    return TensorType(inputs[0].dtype, shape)


def _gather(op: Op, inputs: Any) -> TensorType:
    axis: Any = op.attributes["axis"]
    data = inputs[0].shape
    _need(0 <= axis < len(data), op, inputs, f"axis {axis}")
    return TensorType(inputs[0].dtype, (*data[:axis], *inputs[1].shape, *data[axis + 1 :]))


def _gather_elements(op: Op, inputs: Any) -> TensorType:
    _need(len(inputs[0].shape) == len(inputs[1].shape), op, inputs, "ranks differ")
    return TensorType(inputs[0].dtype, inputs[1].shape)


def _one_hot(op: Op, inputs: Any) -> TensorType:
    axis: Any = op.attributes["axis"]
    shape = inputs[0].shape
    depth: Any = op.attributes["depth"]
    dtype = str(op.attributes.get("to", "float32"))
    return TensorType(dtype, (*shape[:axis], depth, *shape[axis:]))


def _pad(op: Op, inputs: Any) -> TensorType:
    pads: Any = op.attributes["pads"]
    shape = inputs[0].shape
    _need(len(pads) == 2 * len(shape), op, inputs, f"pads {pads}")
    padded = (dim + pads[i] + pads[len(shape) + i] for i, dim in enumerate(shape))
    return TensorType(inputs[0].dtype, tuple(padded))


def _reshape(op: Op, inputs: Any) -> TensorType:
    shape: Any = op.attributes["shape"]
    _need(prod(shape) == inputs[0].size, op, inputs, f"shape {shape}")
    return TensorType(inputs[0].dtype, shape)


def _resize(op: Op, inputs: Any) -> TensorType:
    scales: Any = op.attributes["scales"]
    shape = inputs[0].shape
    _need(len(scales) == len(shape), op, inputs, f"scales {scales}")
    sizes: Any = op.attributes.get("sizes")
    if sizes is None:
        pairs = zip(shape, scales, strict=True)
        sizes = tuple(floor(np.float32(dim) * np.float32(scale)) for dim, scale in pairs)
    return TensorType(inputs[0].dtype, sizes)


def _slice(op: Op, inputs: Any) -> TensorType:
    a: Any = op.attributes
    shape = list(inputs[0].shape)
    for start, end, axis, step in zip(a["starts"], a["ends"], a["axes"], a["steps"], strict=True):
        shape[axis] = max(0, ceil((end - start) / step))
    return TensorType(inputs[0].dtype, tuple(shape))


def _tile(op: Op, inputs: Any) -> TensorType:
    repeats: Any = op.attributes["repeats"]
    shape = inputs[0].shape
    _need(len(repeats) == len(shape), op, inputs, f"repeats {repeats}")
    return TensorType(inputs[0].dtype, tuple(np.multiply(shape, repeats).tolist()))


def _transpose(op: Op, inputs: Any) -> TensorType:
    perm: Any = op.attributes["perm"]
    shape = inputs[0].shape
    _need(sorted(perm) == list(range(len(shape))), op, inputs, f"perm {perm}")
    return TensorType(inputs[0].dtype, tuple(shape[axis] for axis in perm))


def _dequantise(op: Op, inputs: Any) -> TensorType:
    return TensorType(inputs[1].dtype, inputs[0].shape)


def _quantise(op: Op, inputs: Any) -> TensorType:
    zero_point = inputs[2] if len(inputs) > 2 else None
    return TensorType(zero_point.dtype if zero_point else "uint8", inputs[0].shape)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys((k for k in OPERATORS if k.startswith("Reduce")), _reduce),
    **dict.fromkeys(["Celu", "Clip", "CumSum", "Elu", "Gelu", "HardSigmoid", "LeakyRelu"], _same),
    **dict.fromkeys(["LogSoftmax", "Selu", "Softmax", "ThresholdedRelu"], _same),
    "BatchNormalization": _normalised,
    "GroupNormalization": _normalised,
    "InstanceNormalization": _normalised,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "AveragePool": _pool,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantise,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Keep": _keep,
    "LayerNormalization": _layer_normalised,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "OneHot": _one_hot,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
    "Transpose": _transpose,
    "Where": _where,
}
