"""Operators whose form changed between operator sets, and ONNX Runtime's own quantised ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from eecompile.passes.onnx_host import load_onnx
from eecompile.reference import run_graph

pytest.importorskip("onnxruntime")

#: Operator set, output type, body with input x: float[1, 4, 6, 5].
OLD = [
    (7, "float[1, 4, 6, 5]", "y = Softmax (x)"),
    (7, "float[1, 4, 6, 5]", "y = Softmax <axis = 2> (x)"),
    (12, "float[1, 4, 6, 5]", "y = LogSoftmax <axis = -1> (x)"),
    (13, "float[1, 4, 6, 5]", "y = Softmax <axis = 1> (x)"),
    (7, "float[1, 4, 6, 5]", "y = Clip <min = -0.5, max = 0.5> (x)"),
    (10, "float[1, 4, 6, 5]", "y = Clip <max = 0.25> (x)"),
    (7, "float[1, 2, 6, 3]", "y = Slice <axes=[3, 1], starts=[-4, 1], ends=[-1, 3]> (x)"),
    (7, "float[1, 4, 8, 6]", "y = Pad <pads=[0,0,1,0,0,0,1,1], value=1.5> (x)"),
    (7, "float[1, 4, 8, 7]", 'y = Pad <pads=[0,0,1,1,0,0,1,1], mode="reflect"> (x)'),
    (7, "float[1, 4, 12, 15]", "y = Upsample <scales=[1.0, 1.0, 2.0, 3.0]> (x)"),
    (7, "float[1, 4, 12, 10]", 'y = Upsample <mode="linear", scales=[1.0,1.0,2.0,2.0]> (x)'),
    (7, "float[4, 6, 5]", "y = Squeeze <axes=[0]> (x)"),
    (7, "float[4, 6, 5]", "y = Squeeze (x)"),
    (11, "float[1, 4, 6, 1, 5]", "y = Unsqueeze <axes=[-2]> (x)"),
    (7, "float[1, 1, 6, 1]", "y = ReduceSum <axes=[1, 3]> (x)"),
    (11, "float[1, 4]", "y = ReduceMean <axes=[-1, -2], keepdims=0> (x)"),
    (17, "float[1, 4, 6]", "y = ReduceL2 <axes=[3], keepdims=0> (x)"),
    (7, "float[1, 4, 1, 1]", "y = ReduceLogSumExp <axes=[2, 3]> (x)"),
    (7, "float[1, 1, 6, 5]", "a, b = Split <axis=1, split=[3, 1]> (x)  y = Identity (b)"),
    (9, "float[1, 2, 6, 5]", "a, b = Split <axis=1> (x)  y = Sub (a, b)"),
    (18, "float[1, 2, 6, 5]", "a, y = Split <axis=1, num_outputs=2> (x)"),
    (7, "float[1, 4, 6, 1]", "y, i = TopK <k=1> (x)"),
    (7, "int64[1, 1, 6, 5]", "v, y = TopK <k=1, axis=1> (x)"),
    (7, "float[1, 4, 6, 5]", "y = Dropout <ratio=0.5> (x)"),
    (8, "float[1, 4, 6, 5]", "y = Sum (x, x, x)"),
    (8, "float[1, 4, 6, 5]", "a = Relu (x)  b = Abs (x)  y = Mean (x, a, b)"),
    (7, "float[24, 5]", "y = Flatten <axis=3> (x)"),
    (10, "float[1, 4, 4, 3]", "y = AveragePool <kernel_shape=[2, 2], strides=[2, 2],"
     " ceil_mode=1, pads=[1, 1, 0, 0]> (x)"),
    (10, "float[1, 4, 3, 3]", "y = MaxPool <kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1> (x)"),
    (11, "float[1, 4, 3, 3]",
     'y = AveragePool <kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"> (x)'),
    (7, "float[1, 4, 3, 3]",
     'y = MaxPool <kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"> (x)'),
    (9, "float[1, 4, 6, 5]", "y = LRN <size=3, alpha=0.5, beta=0.75, bias=2.0> (x)"),
    (8, "float[1, 4, 6, 5]", "y = PRelu (x, slope)"),
    (17, "float[1, 4, 6, 5]", "y = LayerNormalization <axis=-2> (x, tail)"),
    (12, "float[1, 4, 5, 5]", 'y = Einsum <equation="bchw,bchv->bcwv"> (x, x)'),
    (12, "float[4, 6, 1]", 'y = Einsum <equation="bchw,w->chb"> (x, ones)'),
]  # fmt: skip

CONSTANTS = f"""
<float[4, 1, 1] slope = {{0.1, 0.2, -0.3, 2.0}},
 float[6, 5] tail = {{{", ".join(str(i / 10) for i in range(30))}}},
 float[5] ones = {{1.0, 1.0, 1.0, 1.0, 1.0}}>
"""


def check(tmp_path: Path, text: str, x: np.ndarray, tolerance: float) -> set[str]:
    model = parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    onnx.save(model, tmp_path / "net.onnx")
    host = load_onnx(tmp_path / "net.onnx")
    (expected,) = host.run({"x": x}).values()
    (found,) = run_graph(host.graph(), {"x": x}).values()
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance
    )
    assert len(np.unique(expected)) > 1, "an answer that is all the same tests nothing"
    return {op.kind for op in host.graph().ops}


@pytest.mark.parametrize(("opset", "result", "body"), OLD, ids=lambda v: str(v)[:50])
def test_old_form_means_what_onnx_runtime_takes_it_for(
    tmp_path: Path, opset: int, result: str, body: str
) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    net (float[1, 4, 6, 5] x) => ({result} y)
    {CONSTANTS}
    {{ {body} }}
    """
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype(np.float32)
    check(tmp_path, text, x, 1e-5)


#: Results of uint8 operators on q, quantised from x with scale 0.02 and zero point 128.
MICROSOFT = [
    "r = com.microsoft.QLinearAdd (q, s, z, q, s, z, t, u)",
    "r = com.microsoft.QLinearMul (q, s, z, q, s, z, t, u)",
    "r = com.microsoft.QLinearSigmoid (q, s, z, sigmoid, zero)",
    "r = com.microsoft.QLinearLeakyRelu <alpha = 0.1> (q, s, z, t, u)",
    "r = com.microsoft.QLinearGlobalAveragePool (q, s, z, t, u)",
    "r = com.microsoft.QLinearAveragePool <kernel_shape=[2, 2], strides=[2, 2]> (q, s, z, t, u)",
    "r = com.microsoft.QLinearConcat <axis=1> (t, u, q, s, z, q, s, z)",
    "r = com.microsoft.QLinearSoftmax <axis=-1, opset=13> (q, s, z, sigmoid, zero)",
    "r = MaxPool <kernel_shape=[2, 2]> (q)",
]


@pytest.mark.parametrize("body", MICROSOFT, ids=lambda body: body.split("(")[0][4:40])
def test_quantised_operator_gives_the_same_numbers(tmp_path: Path, body: str) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[1, 4, 6, 5] x) => (uint8[a, b, c, d] r)
    <float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.05}}, uint8 u = {{120}},
     float sigmoid = {{0.00390625}}, uint8 zero = {{0}}>
    {{
        q = QuantizeLinear (x, s, z)
        {body}
    }}
    """
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype(np.float32)
    # ONNX Runtime uses tables for the first two, and scales before it averages in the third.
    step = any(kind in body for kind in ("Sigmoid", "Softmax", "QLinearAveragePool"))
    check(tmp_path, text, x, int(step))


@pytest.mark.parametrize("opset", [11, 18])
def test_dynamically_quantised_product(tmp_path: Path, opset: int) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    net (float[3, 4] x) => (float[3, 2] y)
    <int8[4, 2] w = {{1, -2, 3, 4, -50, 6, 127, 8}}, float scale = {{0.03}}, int8 zero = {{1}}>
    {{
        q, s, z = DynamicQuantizeLinear (x)
        p = MatMulInteger (q, w, z, zero)
        f = Cast <to = 1> (p)
        k = Mul (s, scale)
        y = Mul (f, k)
    }}
    """
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    kinds = check(tmp_path, text, x, 1e-4)
    assert {"QuantizeLinear", "MatMul"} <= kinds


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layer_is_unrolled(tmp_path: Path, kind: str, gates: int, direction: str) -> None:
    rng, hidden, directions = np.random.default_rng(0), 5, 2 if direction == "bidirectional" else 1
    shapes = {
        "w": (directions, gates * hidden, 3),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
    }
    options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = onnx.helper.make_node(
        kind, ["x", *shapes], ["y"], direction=direction, hidden_size=hidden, **options
    )
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    kinds = {"x": (6, 2, 3), "y": (6, directions, 2, hidden)}
    x_type, y_type = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in kinds.items()
    )
    graph = onnx.helper.make_graph([node], "net", [x_type], [y_type], weights)
    opset = onnx.helper.make_opsetid("", 14)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "n")
    host = load_onnx(tmp_path / "n")
    x = rng.standard_normal(kinds["x"]).astype(np.float32)
    (expected,) = host.run({"x": x}).values()
    (found,) = run_graph(host.graph(), {"x": x}).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)
