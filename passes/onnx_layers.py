"""What each ONNX operator becomes: convolutions, products, pooling, normalisation, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np

from eecompile.passes.onnx_translate import Handler, Integers, Node, Refused

__all__ = ["LAYERS", "average_pool_of", "conv_of", "product_of", "transposed", "windows"]


def windows(
    node: Node, size: Sequence[int], kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and pads (begins..., ends...) of a sliding window, `auto_pad` resolved."""
    n = len(kernel)
    strides = node.attribute("strides", (1,) * n)
    dilations = node.attribute("dilations", (1,) * n)
    mode = node.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return strides, dilations, node.attribute("pads", (0,) * 2 * n)
    if mode == "VALID":
        return strides, dilations, (0,) * 2 * n
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    totals = [
        max((-(-size[i] // strides[i]) - 1) * strides[i] + reach[i] - size[i], 0) for i in range(n)
    ]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    first, last = (less, more) if mode == "SAME_UPPER" else (more, less)
    return strides, dilations, (*first, *last)


def _conv(node: Node) -> str:
    bias = node.inputs[2] if node.has(2) else ""
    return conv_of(node, node.inputs[0], node.inputs[1], bias)


def conv_of(node: Node, x: str, w: str, bias: str) -> str:
    """The convolution of `x` with the node's attributes."""
    shape, kernel = node.type_of(x).shape, node.type_of(w).shape[2:]
    if len(shape) not in (3, 4):
        raise Refused(f"input of rank {len(shape)}; 1-D and 2-D convolutions are")
    strides, dilations, pads = windows(node, shape[2:], kernel)

    def conv(x: str, w: str, bias: str) -> str:
        return node.add(
            "Conv",
            *((x, w, bias) if bias else (x, w)),
            strides=strides,
            pads=pads,
            dilations=dilations,
            group=int(node.attribute("group", 1)),
        )

    whole_x, whole_w = node.integers(x), node.integers(w)
    if whole_x is None or whole_w is None or not _scalable(whole_x, whole_w, 0):
        return conv(x, w, bias)
    # One scale an output channel; over N, C, H, W it is (C, 1, 1).
    scale = whole_x.scale * whole_w.scale
    whole_bias = node.integers(bias) if bias else None
    inner = whole_bias is not None and np.allclose(whole_bias.scale, scale, rtol=1e-5)
    total = conv(whole_x.value, whole_w.value, whole_bias.value if inner and whole_bias else "")
    trailing = (1,) * (len(shape) - 2)
    result = node.add("Mul", total, node.put(scale.reshape((-1, *trailing))))
    if not bias or inner:
        return node.set_integers(result, Integers(total, scale, 1, summed=True))
    return node.add("Add", result, node.reshape(bias, (node.type_of(bias).size, *trailing)))


def _scalable(a: Integers, b: Integers, axis: int) -> bool:
    """Whether a sum of products can be scaled afterwards: `b` may have a scale along `axis`."""
    whole = not a.summed and not b.summed
    return whole and a.scale.size == 1 and (b.scale.size == 1 or b.axis == axis)


def product_of(node: Node, a: str, b: str) -> str:
    """The matrix product of two values."""
    whole_a, whole_b = node.integers(a), node.integers(b)
    columns = len(node.type_of(b).shape) - 1
    if whole_a is None or whole_b is None or not _scalable(whole_a, whole_b, columns):
        return node.add("MatMul", a, b)
    total = node.add("MatMul", whole_a.value, whole_b.value)
    scale = whole_a.scale * whole_b.scale
    result = node.add("Mul", total, node.put(scale.squeeze()))
    axis = len(node.type_of(result).shape) - 1
    return node.set_integers(result, Integers(total, scale, axis, summed=True))


def transposed(node: Node, matrix: str) -> str:
    """The transpose of a matrix."""
    result = node.transpose(matrix, (1, 0))
    if (whole := node.integers(matrix)) is not None:
        value = node.transpose(whole.value, (1, 0))
        node.set_integers(result, Integers(value, whole.scale, 1 - whole.axis))
    return result


def _conv_transpose(node: Node) -> str:
    shape, kernel = node.shape(), node.shape(1)[2:]
    n = len(kernel)
    if len(shape) not in (3, 4):
        raise Refused(f"input of rank {len(shape)}; 1-D and 2-D convolutions are")
    strides = node.attribute("strides", (1,) * n)
    dilations = node.attribute("dilations", (1,) * n)
    padding = node.attribute("output_padding", (0,) * n)
    pads = node.attribute("pads", (0,) * 2 * n)
    mode, wanted = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    full = [
        (shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + padding[i]
        for i in range(n)
    ]
    if mode == "VALID":
        pads = (0,) * 2 * n
    elif wanted is not None or mode != "NOTSET":
        target = wanted or [shape[2 + i] * strides[i] for i in range(n)]
        totals = [max(full[i] - target[i], 0) for i in range(n)]
        padding = tuple(p + max(target[i] - full[i], 0) for i, p in enumerate(padding))
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        # ONNX puts the odd element at the end for SAME_UPPER only.
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    return node.add(
        "ConvTranspose",
        *filter(None, node.inputs),
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=int(node.attribute("group", 1)),
        output_padding=padding,
    )


def _matmul(node: Node) -> str:
    return product_of(node, *node.inputs)


def _gemm(node: Node) -> str:
    a, b = node.inputs[:2]
    a = transposed(node, a) if node.attribute("transA", 0) else a
    b = transposed(node, b) if node.attribute("transB", 0) else b
    result = _scaled(node, product_of(node, a, b), node.attribute("alpha", 1.0))
    if not node.has(2):
        return result
    bias = _scaled(node, node.inputs[2], node.attribute("beta", 1.0))
    return node.add("Add", result, bias)


def _scaled(node: Node, x: str, factor: float) -> str:
    return x if factor == 1 else node.add("Mul", x, node.like(x, factor))


def _max_pool(node: Node) -> str:
    if node.uses_output(1):
        raise Refused("only without its indices is")
    strides, dilations, pads, missing = _pool_windows(node)
    n = len(missing)
    pads = (*pads[:n], *(pad + more for pad, more in zip(pads[n:], missing, strict=True)))
    return node.add(
        "MaxPool",
        node.inputs[0],
        kernel_shape=node.attribute("kernel_shape"),
        strides=strides,
        pads=pads,
        dilations=dilations,
    )


def _average_pool(node: Node) -> str:
    return average_pool_of(node, node.inputs[0])


def average_pool_of(node: Node, x: str) -> str:
    """The average pooling of `x` with the node's attributes."""
    strides, dilations, pads, missing = _pool_windows(node)
    return node.add(
        "AveragePool",
        x,
        kernel_shape=node.attribute("kernel_shape"),
        strides=strides,
        pads=pads,
        count_include_pad=int(node.attribute("count_include_pad", 0)),
        extra=missing,
        dilations=dilations,
    )


def _pool_windows(
    node: Node,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations, pads, and what `ceil_mode` lacks at the ends."""
    kernel, size = node.attribute("kernel_shape"), node.shape()[2:]
    n = len(kernel)
    if len(size) != n or n > 2:
        raise Refused(f"input of rank {len(size) + 2}; 1-D and 2-D pooling are")
    strides, dilations, pads = windows(node, size, kernel)
    missing = [0] * n
    for i in range(n if node.attribute("ceil_mode", 0) else 0):
        reach = (kernel[i] - 1) * dilations[i] + 1
        padded = size[i] + pads[i] + pads[n + i]
        count = -(-(padded - reach) // strides[i]) + 1
        if (count - 1) * strides[i] >= size[i] + pads[i]:
            count -= 1  # a window that would start in the padding at the end
        missing[i] = max(0, (count - 1) * strides[i] + reach - padded)
    return strides, dilations, pads, tuple(missing)


def _batch_normalization(node: Node) -> str:
    if node.attribute("training_mode", 0) or any(map(node.uses_output, range(1, 5))):
        raise Refused("only with running statistics is")
    if not node.attribute("spatial", 1):
        raise Refused("`spatial` of 0")
    epsilon = float(node.attribute("epsilon", 1e-5))
    return node.add("BatchNormalization", *node.inputs[:5], epsilon=epsilon)


def _layer_normalization(node: Node) -> list[str]:
    x, *parameters = (name for name in node.inputs if name)
    epsilon, axis = float(node.attribute("epsilon", 1e-5)), node.axis(-1)
    result = node.add("LayerNormalization", x, *parameters, axis=axis, epsilon=epsilon)
    if not node.uses_output(1) and not node.uses_output(2):
        return [result]
    axes = tuple(range(axis, len(node.shape())))
    mean = node.add("ReduceMean", x, axes=axes, keepdims=1)
    centred = node.add("Sub", x, mean)
    variance = node.add("ReduceMean", node.add("Mul", centred, centred), axes=axes, keepdims=1)
    shifted = node.add("Add", variance, node.like(x, epsilon))
    return [result, mean, node.add("Reciprocal", node.add("Sqrt", shifted))]


def _instance_normalization(node: Node) -> str:
    epsilon = float(node.attribute("epsilon", 1e-5))
    return node.add("InstanceNormalization", *node.inputs, epsilon=epsilon)


def _group_normalization(node: Node) -> str:
    x, *parameters = node.inputs
    groups, channels = node.attribute("num_groups"), node.shape()[1]
    if node.version < 21:  # one scale and bias a group
        parameters = [
            node.put(np.repeat(node.constant(i, "scale and bias"), channels // groups))
            for i in (1, 2)
        ]
    epsilon = float(node.attribute("epsilon", 1e-5))
    return node.add("GroupNormalization", x, *parameters, epsilon=epsilon, num_groups=groups)


def _rms_normalization(node: Node) -> str:
    x, scale = node.inputs
    axes = tuple(range(node.axis(-1), len(node.shape())))
    mean = node.add("ReduceMean", node.add("Mul", x, x), axes=axes, keepdims=1)
    shifted = node.add("Add", mean, node.like(x, node.attribute("epsilon", 1e-5)))
    return node.add("Mul", node.add("Div", x, node.add("Sqrt", shifted)), scale)


def _lp_normalization(node: Node) -> str:
    x, axis, p = node.inputs[0], node.axis(-1), node.attribute("p", 2)
    if p not in (1, 2):
        raise Refused(f"`p` of {p}")
    powers = node.add("Mul", x, x) if p == 2 else node.add("Abs", x)
    norm = node.add("ReduceSum", powers, axes=(axis,), keepdims=1)
    norm = node.add("Sqrt", norm) if p == 2 else norm
    # Nothing but zeros stays nothing but zeros.
    return node.add("Div", x, node.add("Max", norm, node.like(x, float(np.finfo(np.float32).tiny))))


def _mean_variance_normalization(node: Node) -> str:
    x, axes = node.inputs[0], node.attribute("axes", (0, 2, 3))
    axes = tuple(sorted(axis % len(node.shape()) for axis in axes))
    centred = node.add("Sub", x, node.add("ReduceMean", x, axes=axes, keepdims=1))
    variance = node.add("ReduceMean", node.add("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = node.add("Add", node.add("Sqrt", variance), node.like(x, 1e-9))
    return node.add("Div", centred, deviation)


def _local_response_normalization(node: Node) -> str:
    x, shape, size = node.inputs[0], node.shape(), node.attribute("size")
    # Channels as rows of an image: the sum over `size` of them is a pooling window.
    flat = (shape[0], 1, shape[1], node.type(0).size // (shape[0] * shape[1]))
    mean = node.add(
        "AveragePool",
        node.reshape(node.add("Mul", x, x), flat),
        kernel_shape=(size, 1),
        strides=(1, 1),
        pads=((size - 1) // 2, 0, size - 1 - (size - 1) // 2, 0),
        count_include_pad=1,
    )
    scaled = _scaled(node, node.reshape(mean, shape), float(node.attribute("alpha", 1e-4)))
    shifted = node.add("Add", scaled, node.like(x, float(node.attribute("bias", 1.0))))
    power = node.add("Pow", shifted, node.like(x, float(node.attribute("beta", 0.75))))
    return node.add("Div", x, power)


# -- resizing ----------------------------------------------------------------------------------


def _resize(node: Node) -> str:
    for name, only in (("antialias", 0), ("exclude_outside", 0)):
        if node.attribute(name, only) != only:
            raise Refused(f"`{name}`")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("`keep_aspect_ratio_policy`")
    shape = node.shape()
    axes = [axis % len(shape) for axis in node.attribute("axes", tuple(range(len(shape))))]
    where = 1 if node.version < 11 else 2
    sizes = node.ints(3, "sizes") if node.has(3) else ()
    if sizes:
        full = list(shape)
        for axis, size in zip(axes, sizes, strict=True):
            full[axis] = size
        scales = [new / old for new, old in zip(full, shape, strict=True)]
        return _resized(node, scales, tuple(full))
    given = node.constant(where, "scales").reshape(-1).tolist()
    if len(given) != len(axes):
        raise Refused(f"{len(given)} scales for {len(axes)} axes")
    scales = [1.0] * len(shape)
    for axis, scale in zip(axes, given, strict=True):
        scales[axis] = scale
    return _resized(node, scales, None)


def _upsample(node: Node) -> str:
    given = node.attribute("scales")
    scales = node.constant(1, "scales").reshape(-1).tolist() if given is None else given
    return _resized(node, scales, None)


def _resized(node: Node, scales: Sequence[float], sizes: tuple[int, ...] | None) -> str:
    shape = node.shape()
    mode = {"bilinear": "linear"}.get(
        node.attribute("mode", "nearest"), node.attribute("mode", "nearest")
    )
    if node.version < 11:  # Upsample and the first Resize: asymmetric, to the lower neighbour
        transformation, nearest = "asymmetric", "floor"
        if node.kind == "Resize" and mode == "nearest" and min(scales) < 1:
            raise Refused("downsampling to the nearest before opset 11")
    else:
        transformation = node.attribute("coordinate_transformation_mode", "half_pixel")
        nearest = node.attribute("nearest_mode", "round_prefer_floor")
    if transformation in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        raise Refused(f"`coordinate_transformation_mode` of `{transformation}`")
    result = sizes or tuple(
        floor(np.float32(dim) * np.float32(scale)) for dim, scale in zip(shape, scales, strict=True)
    )
    if result == shape and all(scale == 1 for scale in scales):
        return node.inputs[0]
    attributes: dict[str, Any] = {"sizes": sizes} if sizes else {}
    return node.add(
        "Resize",
        node.inputs[0],
        mode=mode,
        scales=tuple(float(scale) for scale in scales),
        coordinate_transformation_mode=transformation,
        nearest_mode=nearest,
        cubic_coeff_a=float(node.attribute("cubic_coeff_a", -0.75)),
        **attributes,
    )


def _einsum(node: Node) -> str:
    if len(node.inputs) != 2:
        raise Refused(f"{len(node.inputs)} operands; two are")
    equation = node.attribute("equation").replace(" ", "")
    left, _, out = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not out or any(len(set(t)) != len(t) for t in (*terms, out)):
        raise Refused(f"the equation `{equation}`")
    a, b = terms
    both = [c for c in a if c in b and c in out]
    summed = [c for c in a if c in b and c not in out]
    rows = [c for c in a if c not in b]
    columns = [c for c in b if c not in a]
    if any(c not in out for c in rows + columns):
        raise Refused(f"the equation `{equation}`")
    dims = dict(zip(a + b, node.shape(0) + node.shape(1), strict=True))

    def arranged(value: str, term: str, *groups: list[str]) -> str:
        order = [term.index(c) for group in groups for c in group]
        sizes = [int(np.prod([dims[c] for c in group], dtype=int)) for group in groups[1:]]
        return node.reshape(node.transpose(value, order), (*(dims[c] for c in groups[0]), *sizes))

    product = node.add(
        "MatMul",
        arranged(node.inputs[0], a, both, rows, summed),
        arranged(node.inputs[1], b, both, summed, columns),
    )
    flat = both + rows + columns
    return node.transpose(
        node.reshape(product, [dims[c] for c in flat]), [flat.index(c) for c in out]
    )


LAYERS: dict[str, Handler] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
    "Resize": _resize,
    "Upsample": _upsample,
}
