"""What every neutral operator computes, in numpy alone: the definition that kernels are held to.

Float32 in, float32 out. Element-wise functions, reductions and normalisations are computed in
float64 and rounded once; convolutions and matrix products accumulate in float32 through BLAS. It
needs no compiler, framework or exchange format, so it serves folding, tests and a build's check of
the code it made. `operators.py` states the semantics in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.ir import Graph, Op
from eecompile.reference_resize import resize
from eecompile.reference_windows import (
    average_pool,
    conv,
    conv_transpose,
    max_pool,
    padded,
    per_channel,
)

__all__ = ["evaluate", "run_graph"]

#: Any, because numpy's stubs give most results here a wider type than they have.
Array = Any
Attributes = Mapping[str, Any]


def evaluate(op: Op, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The results of one operator, one array for each of its outputs.

    Args:
        op: its kind and attributes count, its value names do not.
        inputs: one for each of `op.inputs`, None where an optional one is absent.

    Raises:
        KeyError: `op.kind` is not a neutral operator.
    """
    function = _FUNCTIONS[op.kind]
    with np.errstate(all="ignore"):
        result = function(op.attributes, *inputs)
    return [np.ascontiguousarray(result).reshape(np.shape(result))]


def run_graph(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    watch: Callable[[Op, list[np.ndarray]], list[np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """Every output of `graph` by name, for one value of each of its inputs.

    Args:
        graph: what to run.
        inputs: by name.
        watch: called with each operator and its results; what it returns is used in their place.
    """
    values: dict[str, Array] = {**graph.constants, **inputs}
    last_use = {name: op for op in graph.ops for name in op.inputs}
    kept = {*graph.outputs, *graph.constants}
    for op in graph.ops:
        results = evaluate(op, [values[name] if name else None for name in op.inputs])
        results = results if watch is None else watch(op, results)
        values.update(zip(op.outputs, results, strict=True))
        for name in {*op.inputs} - kept:
            if last_use[name] is op:  # Wide networks would not fit in memory otherwise.
                values.pop(name, None)
    return {name: values[name] for name in graph.outputs}


# --- Element-wise ---------------------------------------------------------------------------------


def _precisely(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of the attributes and arrays, computed in float64, rounded to the first's type."""

    def rounded(attributes: Attributes, x: Array, *others: Array) -> Array:
        wide = [np.asarray(array, np.float64) for array in (x, *others)]
        return np.asarray(function(attributes, *wide)).astype(x.dtype)

    return rounded


def _as_is(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda attributes, *arrays: function(*arrays)


_scalar_erf = np.frompyfunc(math.erf, 1, 1)


def _erf(x: Array) -> Array:
    return np.asarray(_scalar_erf(x), np.float64)


def _sigmoid(x: Array) -> Array:
    # One exponential of -|x| cannot overflow on either side.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(attributes: Attributes, x: Array) -> Array:
    if attributes["approximate"] == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    magnitude = np.abs(a) // np.where(b == 0, 1, np.abs(b))
    return (np.sign(a) * np.sign(b) * magnitude).astype(a.dtype)


def _modulo(a: Array, b: Array) -> Array:
    return np.fmod(a, b) if a.dtype.kind == "f" else np.mod(a, b)


def _clip(attributes: Attributes, x: Array) -> Array:
    low, high = attributes["min"], attributes["max"]
    if x.dtype.kind != "f":
        info = np.iinfo(x.dtype)
        low, high = max(low, info.min), min(high, info.max)
    return np.minimum(np.maximum(x, np.array(low, x.dtype)), np.array(high, x.dtype))


def _cast(attributes: Attributes, x: Array) -> Array:
    return x != 0 if attributes["to"] == "bool" else x.astype(attributes["to"])


_UNARY_PRECISE: dict[str, Callable[[Array], Array]] = {
    "Cos": np.cos,
    "Erf": _erf,
    "Exp": np.exp,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Log": np.log,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Reciprocal": lambda x: 1 / x,
    "Sigmoid": _sigmoid,
    "Sin": np.sin,
    "Softplus": _softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}

_SAME_TYPE: dict[str, Callable[..., Array]] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "Round": np.rint,
    "Sign": np.sign,
    "Add": np.add,
    "And": np.logical_and,
    "Div": _divide,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "MatMul": np.matmul,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": _modulo,
    "Mul": np.multiply,
    "Or": np.logical_or,
    "PRelu": lambda a, b: np.where(a >= 0, a, a * b),
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype),
    "Sub": np.subtract,
    "Where": np.where,
    "Xor": np.logical_xor,
}

_PARAMETRIC: dict[str, Callable[[Attributes, Array], Array]] = {
    "Celu": lambda k, x: np.maximum(x, 0) + np.minimum(0, k["alpha"] * np.expm1(x / k["alpha"])),
    "Elu": lambda k, x: np.where(x < 0, k["alpha"] * np.expm1(x), x),
    "Gelu": _gelu,
    "HardSigmoid": lambda k, x: np.clip(k["alpha"] * x + k["beta"], 0, 1),
    "LeakyRelu": lambda k, x: np.where(x < 0, k["alpha"] * x, x),
    "Selu": lambda k, x: k["gamma"] * np.where(x > 0, x, k["alpha"] * np.expm1(x)),
    "ThresholdedRelu": lambda k, x: np.where(x > k["alpha"], x, 0),
}


# --- Normalisation and reduction ------------------------------------------------------------------


def _batch_norm(
    k: Attributes, x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> Array:
    parameters = (scale, bias, mean, variance)
    scale, bias, mean, variance = (per_channel(v, x.ndim) for v in parameters)
    return (x - mean) / np.sqrt(variance + k["epsilon"]) * scale + bias


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)


def _layer_norm(k: Attributes, x: Array, scale: Array, bias: Array | float = 0.0) -> Array:
    return _standardised(x, tuple(range(k["axis"], x.ndim)), k["epsilon"]) * scale + bias


def _instance_norm(k: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    normal = _standardised(x, tuple(range(2, x.ndim)), k["epsilon"])
    return normal * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def _group_norm(k: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    grouped = x.reshape(x.shape[0], k["num_groups"], -1)
    normal = _standardised(grouped, (2,), k["epsilon"]).reshape(x.shape)
    return normal * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduced(k: Attributes, x: Array) -> Array:
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        result = function(wide, axis=tuple(k["axes"]), keepdims=bool(k["keepdims"]))
        return np.asarray(result).astype(x.dtype)

    return reduced


def _arg(function: Callable[..., Array]) -> Callable[..., Array]:
    def position(k: Attributes, x: Array) -> Array:
        axis, keepdims = k["axis"], bool(k["keepdims"])
        if not k["select_last_index"]:
            return function(x, axis=axis, keepdims=keepdims).astype(np.int64)
        found = function(np.flip(x, axis), axis=axis, keepdims=keepdims)
        return (x.shape[axis] - 1 - found).astype(np.int64)

    return position


def _cumulative_sum(k: Attributes, x: Array) -> Array:
    axis = k["axis"]
    ordered = np.flip(x, axis) if k["reverse"] else x
    wide = np.float64 if x.dtype.kind == "f" else x.dtype
    total = np.cumsum(ordered, axis=axis, dtype=wide)
    total = (total - ordered if k["exclusive"] else total).astype(x.dtype)
    return np.flip(total, axis) if k["reverse"] else total


def _log_softmax(k: Attributes, x: Array) -> Array:
    shifted = x - x.max(axis=k["axis"], keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=k["axis"], keepdims=True))


# --- Moving data ----------------------------------------------------------------------------------


def _depth_to_space(k: Attributes, x: Array) -> Array:
    n, c, h, w = x.shape
    size = k["blocksize"]
    if k["mode"] == "DCR":
        blocks = x.reshape(n, size, size, c // size**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // size**2, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(k: Attributes, x: Array) -> Array:
    n, c, h, w = x.shape
    size = k["blocksize"]
    blocks = x.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * size**2, h // size, w // size)


def _nearest_valid(indices: Array, extent: int) -> Array:
    wrapped: Array = np.where(indices < 0, indices + extent, indices)
    return np.clip(wrapped, 0, extent - 1).astype(np.int64)


def _gather(k: Attributes, data: Array, indices: Array) -> Array:
    return np.take(data, _nearest_valid(indices, data.shape[k["axis"]]), axis=k["axis"])


def _gather_elements(k: Attributes, data: Array, indices: Array) -> Array:
    axis = k["axis"]
    # Only along `axis` do indices reach over all of data; elsewhere they may cover a part of it.
    part = tuple(
        slice(None) if d == axis else slice(extent) for d, extent in enumerate(indices.shape)
    )
    return np.take_along_axis(data[part], _nearest_valid(indices, data.shape[axis]), axis=axis)


def _one_hot(k: Attributes, indices: Array) -> Array:
    depth, rank = k["depth"], indices.ndim + 1
    wrapped: Array = np.where(indices < 0, indices + depth, indices)
    positions = np.arange(depth).reshape(-1, *(1,) * (rank - 1 - k["axis"]))
    hot = np.expand_dims(wrapped, k["axis"]) == positions
    values: Array = np.where(hot, k["on_value"], k["off_value"])
    return values.astype(k.get("to", "float32"))


def _pad(k: Attributes, x: Array) -> Array:
    if k["mode"] == "constant":
        return padded(x, k["pads"], k["value"])
    cropped = padded(x, [min(p, 0) for p in k["pads"]], 0)
    begins, ends = k["pads"][: x.ndim], k["pads"][x.ndim :]
    amounts = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    return np.pad(cropped, amounts, mode=k["mode"])


def _slice(k: Attributes, x: Array) -> Array:
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(k["starts"], k["ends"], k["axes"], k["steps"], strict=True):
        # -1 as the end of a backward walk is "before the first": numpy writes that None.
        bound = None if step < 0 and end == -1 else end
        index[axis] = slice(start, bound, step) if start >= 0 else slice(0, 0)
    return x[tuple(index)]


# --- Quantisation ---------------------------------------------------------------------------------


def _along(values: Array, axis: int, rank: int) -> Array:
    """Quantisation parameters, to be broadcast: one value, or one for each step along `axis`."""
    return values.reshape(()) if values.size == 1 else values.reshape(-1, *(1,) * (rank - 1 - axis))


def _dequantize(k: Attributes, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    zero = np.zeros(1, x.dtype) if zero_point is None else zero_point
    difference = x.astype(np.int64) - _along(zero, k["axis"], x.ndim).astype(np.int64)
    return (difference.astype(np.float32) * _along(scale, k["axis"], x.ndim)).astype(np.float32)


def _quantize(k: Attributes, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    zero = np.zeros(1, np.uint8) if zero_point is None else zero_point
    info = np.iinfo(zero.dtype)
    scaled = np.rint(x / _along(scale, k["axis"], x.ndim)).astype(np.float64)
    shifted = scaled + _along(zero, k["axis"], x.ndim)
    return np.clip(shifted, info.min, info.max).astype(zero.dtype)


def _keep(k: Attributes, x: Array, scores: Array) -> Array:
    kept = np.repeat(scores[0] > 0, x.shape[1] // scores.shape[1])
    return np.where(kept.reshape(-1, *(1,) * (x.ndim - 2)), x, np.float32(0))


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    **{kind: _precisely(lambda k, x, f=f: f(x)) for kind, f in _UNARY_PRECISE.items()},
    **{kind: _as_is(function) for kind, function in _SAME_TYPE.items()},
    **{kind: _precisely(function) for kind, function in _PARAMETRIC.items()},
    "Clip": _clip,
    "Cast": _cast,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "BatchNormalization": _precisely(_batch_norm),
    "LayerNormalization": _precisely(_layer_norm),
    "InstanceNormalization": _precisely(_instance_norm),
    "GroupNormalization": _precisely(_group_norm),
    "ReduceMax": _reduction(np.max),
    "ReduceMean": _reduction(np.mean),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "CumSum": _cumulative_sum,
    "LogSoftmax": _precisely(_log_softmax),
    "Softmax": _precisely(lambda k, x: np.exp(_log_softmax(k, x))),
    "Concat": lambda k, *arrays: np.concatenate(arrays, axis=k["axis"]),
    "DepthToSpace": _depth_to_space,
    "Expand": lambda k, x: np.broadcast_to(x, k["shape"]),
    "Keep": _keep,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": lambda k, x: x.reshape(k["shape"]),
    "Resize": resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Tile": lambda k, x: np.tile(x, k["repeats"]),
    "Transpose": lambda k, x: x.transpose(k["perm"]),
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}
