"""What each quantised ONNX operator becomes: dequantise, the float operator, quantise.

Both forms exporters write are read: QDQ (`QuantizeLinear`, `DequantizeLinear` around float
operators) and operator-oriented (`QLinearConv` ...), the latter also in ONNX Runtime's own domain.
"""

from __future__ import annotations

import numpy as np

from eecompile.passes.onnx_layers import average_pool_of, conv_of, product_of, transposed
from eecompile.passes.onnx_translate import Handler, Integers, Node, Refused

__all__ = ["MICROSOFT", "QUANTISED"]


def _linear(node: Node) -> str:
    if node.attribute("block_size", 0):
        raise Refused("`block_size`")
    rank, axis = len(node.shape()), node.attribute("axis", 1)
    # The axis counts only where there is a scale for each of its positions.
    axis = axis % rank if node.type(1).size > 1 else 0
    if node.kind == "DequantizeLinear":
        return _real(node, 0, axis)
    return node.add("QuantizeLinear", *filter(None, node.inputs), axis=axis)


def _real(node: Node, index: int, axis: int = 0) -> str:
    """The numbers that inputs `index` (quantised) to `index` + 2 (scale, zero point) stand for."""
    inputs = [name for name in node.inputs[index : index + 3] if name]
    scale = node.known(index + 1)
    if scale is None:
        return node.add("DequantizeLinear", *inputs, axis=axis)
    one = node.put(np.ones_like(scale))
    whole = node.add("DequantizeLinear", inputs[0], one, *inputs[2:], axis=axis)
    if scale.size > 1:
        trailing = (1,) * (len(node.shape(index)) - axis - 1)
        factor = node.put(scale.reshape((-1, *trailing)))
    else:
        factor = node.put(scale.reshape(()))
    integers = Integers(whole, scale.reshape(-1), axis)
    return node.set_integers(node.add("Mul", whole, factor), integers)


def _bias(node: Node, index: int) -> str:
    """An int32 bias, which counts in units of both operands' scales."""
    scale = node.constant(1, "scale").reshape(-1) * node.constant(4, "scale").reshape(-1)
    whole = node.cast(node.inputs[index], "float32")
    real = node.add("Mul", whole, node.put(scale.squeeze()))
    return node.set_integers(real, Integers(whole, scale, 0))


def quantised(node: Node, value: str, index: int, axis: int = 0) -> str:
    """`value` quantised by inputs `index` (scale) and `index` + 1 (zero point).

    A sum of products is scaled once, from its whole numbers to those of the result, as integer
    kernels do: two roundings would now and then give the neighbouring number.
    """
    inputs = [name for name in node.inputs[index : index + 2] if name]
    whole, scale = node.integers(value), node.known(index)
    if whole is None or not whole.summed or scale is None or scale.size > 1:
        return node.add("QuantizeLinear", value, *inputs, axis=axis)
    factor = whole.scale / scale.reshape(-1)
    trailing = (1,) * (len(node.type_of(value).shape) - whole.axis - 1)
    shape = (-1, *trailing) if factor.size > 1 else ()
    scaled = node.add("Mul", whole.value, node.put(factor.reshape(shape)))
    one = node.put(np.ones_like(scale))
    return node.add("QuantizeLinear", scaled, one, *inputs[1:], axis=axis)


def _qlinear_conv(node: Node) -> str:
    bias = _bias(node, 8) if node.has(8) else ""
    return quantised(node, conv_of(node, _real(node, 0), _real(node, 3), bias), 6)


def _qlinear_matmul(node: Node) -> str:
    columns = len(node.shape(3)) - 1
    return quantised(node, product_of(node, _real(node, 0), _real(node, 3, columns)), 6)


def _qgemm(node: Node) -> str:
    if node.attribute("alpha", 1.0) != 1:
        raise Refused("`alpha`")
    a, b = _real(node, 0), _real(node, 3, 0 if node.attribute("transB", 0) else 1)
    a = transposed(node, a) if node.attribute("transA", 0) else a
    b = transposed(node, b) if node.attribute("transB", 0) else b
    result = product_of(node, a, b)
    if node.has(6):
        result = node.add("Add", result, _bias(node, 6))
    return quantised(node, result, 7) if node.has(7) else result


def _qlinear_binary(node: Node) -> str:
    a, b = _real(node, 0), _real(node, 3)
    whole_a, whole_b, scale = node.integers(a), node.integers(b), node.known(6)
    if whole_a is None or whole_b is None or scale is None:
        kind = node.kind.removeprefix("QLinear")
        return quantised(node, node.add(kind, a, b), 6)
    # Scaled from the operands' whole numbers to the result's at once, as ONNX Runtime does.
    if node.kind == "QLinearMul":
        product = node.add("Mul", whole_a.value, whole_b.value)
        ratios = [(whole_a.scale * whole_b.scale / scale.reshape(-1), product)]
    else:
        ratios = [(w.scale / scale.reshape(-1), w.value) for w in (whole_a, whole_b)]
    terms = [node.add("Mul", value, node.put(r.reshape(()))) for r, value in ratios]
    total = terms[0] if len(terms) == 1 else node.add("Add", *terms)
    one = node.put(np.ones_like(scale))
    return node.add("QuantizeLinear", total, one, *filter(None, node.inputs[7:8]), axis=0)


def _qlinear_unary(node: Node) -> str:
    x = _real(node, 0)
    if node.kind == "QLinearLeakyRelu":
        y = node.add("LeakyRelu", x, alpha=float(node.attribute("alpha", 0.01)))
    elif node.kind == "QLinearSoftmax":
        y = node.add("Softmax", x, axis=node.axis(-1))
    else:
        y = node.add("Sigmoid", x)
    return quantised(node, y, 3)


def _qlinear_pool(node: Node) -> str:
    if node.attribute("channels_last", 0):
        raise Refused("`channels_last`")
    x = _real(node, 0)
    if node.kind == "QLinearAveragePool":
        return quantised(node, average_pool_of(node, x), 3)
    axes = tuple(range(2, len(node.shape())))
    return quantised(node, node.add("ReduceMean", x, axes=axes, keepdims=1), 3)


def _qlinear_concat(node: Node) -> str:
    parts = [_real(node, i) for i in range(2, len(node.inputs), 3)]
    axis = node.axis(0, len(node.shape(2)))
    return quantised(node, node.add("Concat", *parts, axis=axis), 0)


def _dynamic_quantize(node: Node) -> tuple[str, str, str]:
    x = node.inputs[0]
    zero, axes = node.like(x, 0), tuple(range(len(node.shape())))
    low = node.add("Min", node.add("ReduceMin", x, axes=axes, keepdims=0), zero)
    high = node.add("Max", node.add("ReduceMax", x, axes=axes, keepdims=0), zero)
    scale = node.add("Div", node.add("Sub", high, low), node.like(x, 255))
    shift = node.add("Round", node.add("Div", node.add("Neg", low), scale))
    point = node.cast(node.add("Clip", shift, min=0.0, max=255.0), "uint8")
    return node.add("QuantizeLinear", x, scale, point, axis=0), scale, point


def _centred(node: Node, value: int, zero_point: int, axis: int) -> str:
    """An integer input less its zero point, as float32 (exact to 24 bits)."""
    x = node.cast(node.inputs[value], "float32")
    if not node.has(zero_point):
        return x
    zero = node.cast(node.inputs[zero_point], "float32")
    if node.type_of(zero).size > 1:  # one along `axis`
        shape = [1] * len(node.shape(value))
        shape[axis] = -1
        zero = node.reshape(zero, [node.type_of(zero).size if d == -1 else d for d in shape])
    else:
        zero = node.reshape(zero, ())
    return node.add("Sub", x, zero)


def _matmul_integer(node: Node) -> str:
    a = _centred(node, 0, 2, len(node.shape(0)) - 2)
    b = _centred(node, 1, 3, len(node.shape(1)) - 1)
    return node.cast(node.add("MatMul", a, b), "int32")


def _conv_integer(node: Node) -> str:
    return node.cast(conv_of(node, _centred(node, 0, 2, 0), _centred(node, 1, 3, 0), ""), "int32")


def _fast_gelu(node: Node) -> str:
    x = node.add("Add", node.inputs[0], node.inputs[1]) if node.has(1) else node.inputs[0]
    return node.add("Gelu", x, approximate="tanh" if node.kind == "FastGelu" else "none")


QUANTISED: dict[str, Handler] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _linear,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _linear,
}

#: Operators of ONNX Runtime's own domain that its quantiser and optimiser write.
MICROSOFT: dict[str, Handler] = {
    "BiasGelu": _fast_gelu,
    "DequantizeLinear": _linear,
    "FastGelu": _fast_gelu,
    "Gelu": _fast_gelu,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_binary,
    "QLinearAveragePool": _qlinear_pool,
    "QLinearConcat": _qlinear_concat,
    "QLinearGlobalAveragePool": _qlinear_pool,
    "QLinearLeakyRelu": _qlinear_unary,
    "QLinearMul": _qlinear_binary,
    "QLinearSigmoid": _qlinear_unary,
    "QLinearSoftmax": _qlinear_unary,
    "QuantizeLinear": _linear,
}
