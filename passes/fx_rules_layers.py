"""Rules of the FX host for normalisation, activations and resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eecompile.passes.fx_builder import (
    Builder,
    Rules,
    Untranslatable,
    Value,
)

__all__ = ["LAYER_RULES"]

LAYER_RULES = Rules()
on = LAYER_RULES.on

#: The constants of SELU (Klambauer et al. 2017), as torch has them.
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


# --- normalisation --------------------------------------------------------------------------------


def _or_full(b: Builder, x: Value | None, channels: int, fill: float) -> Value:
    return x if x is not None else b.constant(np.full(channels, fill, np.float32))


@on("batch_norm.default")
def batch_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool = False,
) -> Value:
    """Batch normalisation by running statistics."""
    if training or mean is None or variance is None:
        raise Untranslatable("normalisation by the batch's own statistics")
    channels = x.shape[1]
    scale, shift = _or_full(b, weight, channels, 1), _or_full(b, bias, channels, 0)
    return b.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=epsilon)


@on("_native_batch_norm_legit_no_training.default#")
def native_batch_norm(
    b: Builder,
    index: int,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    momentum: float,
    epsilon: float,
) -> Value:
    """The same, after decomposition."""
    if index:
        raise Untranslatable("saved statistics")
    return batch_norm(b, x, weight, bias, mean, variance, False, momentum, epsilon)


@on("instance_norm.default")
def instance_norm(
    b: Builder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    own_statistics: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> Value:
    """Normalisation of each channel of each sample."""
    if not own_statistics:
        return batch_norm(b, x, weight, bias, mean, variance, False, momentum, epsilon)
    channels = x.shape[1]
    scale, shift = _or_full(b, weight, channels, 1), _or_full(b, bias, channels, 0)
    return b.op("InstanceNormalization", x, scale, shift, epsilon=epsilon)


@on("group_norm.default")
def group_norm(
    b: Builder,
    x: Value,
    groups: int,
    weight: Value | None,
    bias: Value | None,
    epsilon: float,
    cudnn: bool,
) -> Value:
    """Normalisation of groups of channels."""
    channels = x.shape[1]
    scale, shift = _or_full(b, weight, channels, 1), _or_full(b, bias, channels, 0)
    return b.op("GroupNormalization", x, scale, shift, epsilon=epsilon, num_groups=groups)


@on("layer_norm.default")
def layer_norm(
    b: Builder,
    x: Value,
    shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    epsilon: float,
    cudnn: bool = False,
) -> Value:
    """Normalisation over the last dimensions."""
    scale = weight if weight is not None else b.constant(np.ones(tuple(shape), np.float32))
    return b.op("LayerNormalization", x, scale, bias, axis=x.ndim - len(shape), epsilon=epsilon)


@on("native_layer_norm.default#")
def native_layer_norm(b: Builder, index: int, *arguments: Any) -> Value:
    """The same, after decomposition."""
    if index:
        raise Untranslatable("saved statistics")
    return layer_norm(b, *arguments)


@on("rms_norm.default")
def rms_norm(
    b: Builder, x: Value, shape: Sequence[int], weight: Value | None, epsilon: float | None
) -> Value:
    """X / sqrt(mean(x^2) + epsilon) weight."""
    axes = range(x.ndim - len(shape), x.ndim)
    square = b.reduce("ReduceMean", b.op("Mul", x, x), axes, True)
    epsilon = float(np.finfo(np.float32).eps) if epsilon is None else epsilon
    y = b.op("Div", x, b.op("Sqrt", b.binary("Add", square, epsilon, x.dtype)))
    return b.op("Mul", y, weight) if weight is not None else y


# --- activations ----------------------------------------------------------------------------------


@on("relu6.default")
def relu6(b: Builder, x: Value) -> Value:
    """Clipped to 0 ... 6."""
    return hardtanh(b, x, 0, 6)


@on("hardtanh.default")
def hardtanh(b: Builder, x: Value, low: float, high: float) -> Value:
    """Clipped."""
    return b.op("Clip", x, min=float(low), max=float(high))


@on("hardsigmoid.default")
def hardsigmoid(b: Builder, x: Value) -> Value:
    """clip(x / 6 + 1 / 2, 0, 1)."""
    return b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@on("silu.default")
def silu(b: Builder, x: Value) -> Value:
    """X sigmoid(x)."""
    return b.op("Mul", x, b.op("Sigmoid", x))


@on("gelu.default")
def gelu(b: Builder, x: Value, approximate: str) -> Value:
    """Gaussian error linear unit."""
    return b.op("Gelu", x, approximate=approximate)


@on("elu.default")
def elu(b: Builder, x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    """Exponential linear unit, SELU among them."""
    if scale == input_scale == 1:
        return b.op("Elu", x, alpha=float(alpha))
    if input_scale != 1:
        raise Untranslatable("an input scale")
    return b.op("Selu", x, alpha=float(alpha), gamma=float(scale))


@on("selu.default")
def selu(b: Builder, x: Value) -> Value:
    """Scaled exponential linear unit."""
    return b.op("Selu", x, alpha=_SELU_ALPHA, gamma=_SELU_GAMMA)


@on("celu.default")
def celu(b: Builder, x: Value, alpha: float) -> Value:
    """Continuously differentiable exponential linear unit."""
    return b.op("Celu", x, alpha=float(alpha))


@on("leaky_relu.default")
def leaky_relu(b: Builder, x: Value, slope: float) -> Value:
    """X, or slope x where x < 0."""
    return b.op("LeakyRelu", x, alpha=float(slope))


@on("prelu.default")
def prelu(b: Builder, x: Value, weight: Value) -> Value:
    """The same with a trained slope for each channel."""
    channel = b.reshape(weight, (weight.shape[0], *[1] * max(0, x.ndim - 2)))
    return b.op("PRelu", x, channel)


@on("softplus.default")
def softplus(b: Builder, x: Value, beta: float, threshold: float) -> Value:
    """log(1 + e^(beta x)) / beta. Above the threshold torch returns x; from 20 on that is equal."""
    if threshold < 20:
        raise Untranslatable(f"a threshold of {threshold}")
    if beta == 1:
        return b.op("Softplus", x)
    y = b.op("Softplus", b.binary("Mul", x, beta, x.dtype))
    return b.binary("Div", y, beta, x.dtype)


@on("log_sigmoid.default")
def log_sigmoid(b: Builder, x: Value) -> Value:
    """-softplus(-x)."""
    return b.op("Neg", b.op("Softplus", b.op("Neg", x)))


@on("threshold.default")
def threshold(b: Builder, x: Value, bound: float, value: float) -> Value:
    """X where it is above the bound, else the value."""
    if value == 0:
        return b.op("ThresholdedRelu", x, alpha=float(bound))
    above = b.binary("Greater", x, bound, x.dtype)
    return b.op("Where", above, x, b.constant(value, x.dtype))


@on("glu.default")
def glu(b: Builder, x: Value, dim: int) -> Value:
    """One half times the sigmoid of the other."""
    axis = dim % x.ndim
    half = x.shape[axis] // 2
    gate = b.op("Sigmoid", b.slice(x, axis, half, 2 * half))
    return b.op("Mul", b.slice(x, axis, 0, half), gate)


def _softmax(kind: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, dim: int, _: Any) -> Value:
        return b.op(kind, b.cast(x, b.out.dtype), axis=dim % x.ndim)

    return rule


on("softmax.int", "_softmax.default")(_softmax("Softmax"))
on("log_softmax.int", "_log_softmax.default")(_softmax("LogSoftmax"))


# --- resizing -------------------------------------------------------------------------------------


def _resize(
    b: Builder,
    x: Value,
    scales: Sequence[float | None] | None,
    mode: str,
    positions: str,
    nearest: str,
) -> Value:
    spatial = x.ndim - 2
    sizes = zip(x.shape[2:], b.out.shape[2:], strict=True)
    # A scale the source gave is the one positions are computed with, whatever the extents.
    given = scales or [None] * spatial
    all_scales = [s or out / size for s, (size, out) in zip(given, sizes, strict=True)]
    return b.op(
        "Resize",
        x,
        mode=mode,
        scales=(1.0, 1.0, *map(float, all_scales)),
        coordinate_transformation_mode=positions,
        nearest_mode=nearest,
        cubic_coeff_a=-0.75,
        sizes=b.out.shape,
    )


def _nearest(positions: str, rounding: str) -> tuple[Callable[..., Value], Callable[..., Value]]:
    def vec(b: Builder, x: Value, size: Any, scales: Any) -> Value:
        return _resize(b, x, scales, "nearest", positions, rounding)

    def default(b: Builder, x: Value, size: Any, *scales: float | None) -> Value:
        return _resize(b, x, scales, "nearest", positions, rounding)

    return vec, default


def _smooth(mode: str) -> tuple[Callable[..., Value], Callable[..., Value]]:
    def vec(b: Builder, x: Value, size: Any, corners: bool, scales: Any) -> Value:
        positions = "align_corners" if corners else "half_pixel"
        return _resize(b, x, None if corners else scales, mode, positions, "floor")

    def default(b: Builder, x: Value, size: Any, corners: bool, *scales: float | None) -> Value:
        return vec(b, x, size, corners, scales)

    return vec, default


for _name, (_vec, _default) in {
    "nearest1d": _nearest("asymmetric", "floor"),
    "nearest2d": _nearest("asymmetric", "floor"),
    "_nearest_exact1d": _nearest("half_pixel", "round_prefer_ceil"),
    "_nearest_exact2d": _nearest("half_pixel", "round_prefer_ceil"),
    "linear1d": _smooth("linear"),
    "bilinear2d": _smooth("linear"),
    "bicubic2d": _smooth("cubic"),
}.items():
    _prefix = "_upsample" if _name.startswith("_") else "upsample_"
    on(f"{_prefix}{_name}.vec")(_vec)
    on(f"{_prefix}{_name}.default")(_default)
