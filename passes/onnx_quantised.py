"""What each quantised ONNX operator becomes: dequantise, the float operator, quantise.

Both forms exporters write are read: QDQ (`QuantizeLinear`, `DequantizeLinear` around float
operators) and operator-oriented (`QLinearConv` ...), the latter also in ONNX Runtime's own domain.
"""

from __future__ import annotations

from eecompile.passes.onnx_layers import average_pool_of, conv_of
from eecompile.passes.onnx_translate import Handler, Node, Refused

__all__ = ["MICROSOFT", "QUANTISED"]


def _linear(node: Node) -> str:
    if node.attribute("block_size", 0):
        raise Refused("`block_size`")
    rank, axis = len(node.shape()), node.attribute("axis", 1)
    # The axis counts only where there is a scale for each of its positions.
    axis = axis % rank if node.type(1).size > 1 else 0
    return node.add(node.kind, *filter(None, node.inputs), axis=axis)


def _real(node: Node, x: int, axis: int = 0) -> str:
    """The numbers that inputs `x` (quantised), `x` + 1 (scale), `x` + 2 (zero point) stand for."""
    inputs = [name for name in node.inputs[x : x + 3] if name]
    return node.add("DequantizeLinear", *inputs, axis=axis)


def _quantised(node: Node, value: str, scale: int) -> str:
    """`value` quantised by inputs `scale` and `scale` + 1 (zero point)."""
    inputs = [name for name in node.inputs[scale : scale + 2] if name]
    return node.add("QuantizeLinear", value, *inputs, axis=0)


def _qlinear_conv(node: Node) -> str:
    bias = ""
    if node.has(8):  # int32, in units of both scales
        bias = node.add("Mul", node.cast(node.inputs[8], "float32"), _both_scales(node))
    x, w = _real(node, 0), _real(node, 3)
    return _quantised(node, conv_of(node, x, w, bias), 6)


def _both_scales(node: Node) -> str:
    """The scale of the accumulated products: that of input 1 times that of input 4."""
    scales = (node.reshape(node.inputs[i], (node.type(i).size,)) for i in (1, 4))
    return node.add("Mul", *scales)


def _qlinear_matmul(node: Node) -> str:
    columns = len(node.shape(3)) - 1
    product = node.add("MatMul", _real(node, 0), _real(node, 3, columns))
    return _quantised(node, product, 6)


def _qgemm(node: Node) -> str:
    columns = 0 if node.attribute("transB", 0) else 1
    a, b = _real(node, 0), _real(node, 3, columns)
    a = node.transpose(a, (1, 0)) if node.attribute("transA", 0) else a
    b = node.transpose(b, (1, 0)) if node.attribute("transB", 0) else b
    result = node.add("MatMul", a, b)
    alpha = float(node.attribute("alpha", 1.0))
    if node.has(6):
        bias = node.add("Mul", node.cast(node.inputs[6], "float32"), _both_scales(node))
        result = node.add("Add", result, bias)
    if alpha != 1:
        result = node.add("Mul", result, node.like(result, alpha))
    return _quantised(node, result, 7) if node.has(7) else result


def _qlinear_binary(node: Node) -> str:
    kind = node.kind.removeprefix("QLinear")
    return _quantised(node, node.add(kind, _real(node, 0), _real(node, 3)), 6)


def _qlinear_unary(node: Node) -> str:
    x = _real(node, 0)
    if node.kind == "QLinearLeakyRelu":
        y = node.add("LeakyRelu", x, alpha=float(node.attribute("alpha", 0.01)))
    elif node.kind == "QLinearSoftmax":
        y = node.add("Softmax", x, axis=node.axis(-1))
    else:
        y = node.add("Sigmoid", x)
    return _quantised(node, y, 3)


def _qlinear_pool(node: Node) -> str:
    if node.attribute("channels_last", 0):
        raise Refused("`channels_last`")
    x = _real(node, 0)
    if node.kind == "QLinearAveragePool":
        return _quantised(node, average_pool_of(node, x), 3)
    axes = tuple(range(2, len(node.shape())))
    return _quantised(node, node.add("ReduceMean", x, axes=axes, keepdims=1), 3)


def _qlinear_concat(node: Node) -> str:
    parts = [_real(node, i) for i in range(2, len(node.inputs), 3)]
    axis = node.axis(0, len(node.shape(2)))
    return _quantised(node, node.add("Concat", *parts, axis=axis), 0)


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
