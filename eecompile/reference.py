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
from numpy.lib.stride_tricks import sliding_window_view

from eecompile.ir import Graph, Op

__all__ = ["evaluate", "run_graph"]

Array = np.ndarray[Any, Any]


def evaluate(op: Op, inputs: Sequence[Array | None]) -> list[Array]:
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


def run_graph(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every output of `graph` by name, for one value of each of its inputs."""
    values: dict[str, Array] = {**graph.constants, **inputs}
    last_use = {name: op for op in graph.ops for name in op.inputs}
    kept = {*graph.outputs, *graph.constants}
    for op in graph.ops:
        results = evaluate(op, [values[name] if name else None for name in op.inputs])
        values.update(zip(op.outputs, results, strict=True))
        for name in {*op.inputs} - kept:
            if last_use[name] is op:  # Wide networks would not fit in memory otherwise.
                values.pop(name, None)
    return {name: values[name] for name in graph.outputs}


Attributes = Mapping[str, Any]


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


# --- Multiply-accumulate and pooling --------------------------------------------------------------


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    """`x` padded (cropped where negative) over its trailing dimensions."""
    rank = len(pads) // 2
    begins, ends = (0,) * (x.ndim - rank) + tuple(pads[:rank]), pads[rank:]
    ends = (0,) * (x.ndim - rank) + tuple(ends)
    kept = tuple(
        slice(max(0, -b), dim - max(0, -e)) for dim, b, e in zip(x.shape, begins, ends, strict=True)
    )
    amounts = [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)]
    return np.pad(x[kept], amounts, constant_values=np.array(value).astype(x.dtype))


def _windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """A view (N, C, out..., kernel...) of the windows of `x` (N, C, in...)."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = (*strides, *dilations)
    return view[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def _correlate(
    x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int
) -> Array:
    """Grouped cross-correlation of an already padded `x`, w: (C_out, C_in / group, kernel...)."""
    windows = _windows(x, w.shape[2:], strides, dilations)
    batch, channels, extents = x.shape[0], x.shape[1], windows.shape[2 : x.ndim]
    columns = np.moveaxis(windows, range(2, x.ndim), range(-len(extents), 0))
    columns = columns.reshape(batch, group, channels // group * math.prod(w.shape[2:]), -1)
    rows = w.reshape(1, group, w.shape[0] // group, -1)
    return np.matmul(rows, columns).reshape(batch, w.shape[0], *extents)


def _with_bias(y: Array, b: Array | None) -> Array:
    return y if b is None else y + _per_channel(b, y.ndim)


def _per_channel(values: Array, rank: int) -> Array:
    return values.reshape(-1, *(1,) * (rank - 2))


def _conv(k: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    padded = _padded(x, k["pads"], 0)
    return _with_bias(_correlate(padded, w, k["strides"], k["dilations"], k["group"]), b)


def _conv_transpose(k: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    # A transposed convolution is a convolution with the flipped kernel over `x` spread by strides.
    spatial = x.shape[2:]
    rank = len(spatial)
    spread = np.zeros(
        x.shape[:2] + tuple((n - 1) * s + 1 for n, s in zip(spatial, k["strides"], strict=True)),
        x.dtype,
    )
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in k["strides"]))] = x
    reach = [(n - 1) * d for n, d in zip(w.shape[2:], k["dilations"], strict=True)]
    begins = [r - p for r, p in zip(reach, k["pads"][:rank], strict=True)]
    ends = [r - p + o for r, p, o in zip(reach, k["pads"][rank:], k["output_padding"], strict=True)]
    group = k["group"]
    flipped = np.flip(w, axis=tuple(range(2, w.ndim)))
    flipped = flipped.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    flipped = flipped.reshape(w.shape[1] * group, w.shape[0] // group, *w.shape[2:])
    padded = _padded(spread, begins + ends, 0)
    return _with_bias(_correlate(padded, flipped, (1,) * rank, k["dilations"], group), b)


def _max_pool(k: Attributes, x: Array) -> Array:
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = _padded(x, k["pads"], lowest)
    windows = _windows(padded, k["kernel_shape"], k["strides"], k["dilations"])
    return windows.max(axis=tuple(range(x.ndim, windows.ndim)))


def _average_pool(k: Attributes, x: Array) -> Array:
    rank = x.ndim - 2
    pads, extra = k["pads"], (0,) * rank + tuple(k.get("extra") or (0,) * rank)
    dilations = k.get("dilations") or (1,) * rank
    counted = _padded(np.ones((1, 1, *x.shape[2:])), pads, float(k["count_include_pad"]))

    def sums(padded: Array) -> Array:
        windows = _windows(_padded(padded, extra, 0), k["kernel_shape"], k["strides"], dilations)
        return windows.sum(axis=tuple(range(x.ndim, windows.ndim)), dtype=np.float64)

    return (sums(_padded(x, pads, 0)) / sums(counted)).astype(x.dtype)


# --- Normalisation and reduction ------------------------------------------------------------------


def _batch_norm(
    k: Attributes, x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> Array:
    parameters = (scale, bias, mean, variance)
    scale, bias, mean, variance = (_per_channel(v, x.ndim) for v in parameters)
    return (x - mean) / np.sqrt(variance + k["epsilon"]) * scale + bias


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)


def _layer_norm(k: Attributes, x: Array, scale: Array, bias: Array | float = 0.0) -> Array:
    return _standardised(x, tuple(range(k["axis"], x.ndim)), k["epsilon"]) * scale + bias


def _instance_norm(k: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    normal = _standardised(x, tuple(range(2, x.ndim)), k["epsilon"])
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


def _group_norm(k: Attributes, x: Array, scale: Array, bias: Array) -> Array:
    grouped = x.reshape(x.shape[0], k["num_groups"], -1)
    normal = _standardised(grouped, (2,), k["epsilon"]).reshape(x.shape)
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


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
    wrapped = np.where(indices < 0, indices + extent, indices)
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
    wrapped = np.where(indices < 0, indices + depth, indices)
    positions = np.arange(depth).reshape(-1, *(1,) * (rank - 1 - k["axis"]))
    hot = np.expand_dims(wrapped, k["axis"]) == positions
    return np.where(hot, k["on_value"], k["off_value"]).astype(k.get("to", "float32"))


def _pad(k: Attributes, x: Array) -> Array:
    if k["mode"] == "constant":
        return _padded(x, k["pads"], k["value"])
    cropped = _padded(x, [min(p, 0) for p in k["pads"]], 0)
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


def _resize(k: Attributes, x: Array) -> Array:
    scales = k["scales"]
    result, whole = x.astype(np.float64), k.get("sizes")
    for axis, scale in enumerate(scales):
        extent = x.shape[axis]
        size = whole[axis] if whole else int(np.float32(extent) * np.float32(scale))
        if size == extent and scale == 1:
            continue
        positions = _resize_positions(k, extent, size, scale)
        result = _interpolated(k, result, axis, positions)
    return result.astype(x.dtype)


def _resize_positions(k: Attributes, extent: int, size: int, scale: float) -> Array:
    """Where in the input each of `size` results lies, float64[size]."""
    i = np.arange(size, dtype=np.float64)
    match k["coordinate_transformation_mode"]:
        case "asymmetric":
            return i / scale
        case "align_corners":
            return i * (extent - 1) / (size - 1) if size > 1 else i * 0
        case "pytorch_half_pixel" if size == 1:
            return i * 0
        case "half_pixel_symmetric":
            return extent / 2 * (1 - size / (scale * extent)) + (i + 0.5) / scale - 0.5
        case _:
            return (i + 0.5) / scale - 0.5


def _interpolated(k: Attributes, x: Array, axis: int, positions: Array) -> Array:
    """`x` at fractional `positions` along `axis`, the nearest element standing for outside."""
    taps: list[tuple[Array, Array | float]]
    if k["mode"] == "nearest":
        taps = [(_nearest(positions, k["nearest_mode"]), 1.0)]
    else:
        low = np.floor(positions)
        t = positions - low
        if k["mode"] == "linear":
            taps = [(low, 1 - t), (low + 1, t)]
        else:
            taps = [
                (low + offset, _cubic(np.abs(t - offset), k["cubic_coeff_a"]))
                for offset in range(-1, 3)
            ]
    shape = (-1, *(1,) * (x.ndim - 1 - axis))
    total: Any = 0
    for index, weight in taps:
        picked = np.take(x, np.clip(index, 0, x.shape[axis] - 1).astype(np.int64), axis=axis)
        total = total + picked * np.reshape(weight, shape if np.ndim(weight) else ())
    return np.asarray(total)


def _nearest(positions: Array, mode: str) -> Array:
    # Scales are often quotients rounded to float32: ties and whole numbers must survive that.
    snapped = np.round(positions, 4)
    match mode:
        case "floor":
            return np.floor(snapped)
        case "ceil":
            return np.ceil(snapped)
        case "round_prefer_ceil":
            return np.floor(snapped + 0.5)
        case _:
            return np.ceil(snapped - 0.5)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel. Source: R. Keys, Cubic convolution interpolation, 1981, eq. 4, free `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, far)


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


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    **{kind: _precisely(lambda k, x, f=f: f(x)) for kind, f in _UNARY_PRECISE.items()},
    **{kind: _as_is(function) for kind, function in _SAME_TYPE.items()},
    **{kind: _precisely(function) for kind, function in _PARAMETRIC.items()},
    "Clip": _clip,
    "Cast": _cast,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
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
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": lambda k, x: x.reshape(k["shape"]),
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Tile": lambda k, x: np.tile(x, k["repeats"]),
    "Transpose": lambda k, x: x.transpose(k["perm"]),
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}
