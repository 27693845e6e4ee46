"""Edits of an ONNX network: heads go in, the file that is saved runs, errors change nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from eecompile.diagnostics import DIAGNOSTICS
from eecompile.ir import Graph
from eecompile.passes.host import HostError
from eecompile.passes.onnx_host import OnnxHost, load_onnx
from eecompile.reference import run_graph
from eecompile.text import parse_graph

onnxruntime = pytest.importorskip("onnxruntime")

NETWORK = """
<ir_version: 8, opset_import: ["" : {opset}]>
net (float[1, 3, 8, 8] image) => (float[1, 4] logits)
<float[6, 3, 3, 3] w1, float[6, 6, 3, 3] w2, float[6, 4] fc>
{{
    [first_conv] a = Conv <pads: ints = [1, 1, 1, 1]> (image, w1)
    [first_relu] b = Relu (a)
    [second_conv] c = Conv <pads: ints = [1, 1, 1, 1]> (b, w2)
    [join] d = Add (b, c)
    [idle] unused = Relu (c)
    [drop] e = Identity (d)
    [pool] f = GlobalAveragePool (e)
    [flat] g = Flatten (f)
    [final] logits = MatMul (g, fc)
}}
"""

HEAD = """
graph head(feature: float32[1, 6, 8, 8]) -> (scores: float32[1, 4]) {
    const weight: float32[6, 4] = random(1)
    const bias: float32[4] = random(2)
    pooled: float32[1, 6] = ReduceMean(feature; axes=(2, 3), keepdims=0)
    product: float32[1, 4] = MatMul(pooled, weight)
    scores: float32[1, 4] = Add(product, bias)
}
"""


def network(tmp_path: Path, opset: int = 17) -> OnnxHost:
    model = parser.parse_model(NETWORK.format(opset=opset))
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "fc": (6, 4)}
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    for value in [v for v in model.graph.value_info if v.name in shapes]:
        model.graph.value_info.remove(value)
    onnx.save(model, tmp_path / "net.onnx")
    return load_onnx(tmp_path / "net.onnx")


def image() -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(1).random((1, 3, 8, 8), np.float32)}


def in_onnx_runtime(path: Path) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, image()), strict=True))


def with_head(host: OnnxHost, point: str, name: str, head: Graph) -> None:
    (value,) = host.splice(head, host.points()[point].value, f"exits.{name}")
    host.add_output(f"{name}.logits", value)


@pytest.mark.parametrize(
    ("opset", "attribute", "body"),
    [
        # Without it the average would have fewer windows.
        (
            9,
            "ceil_mode",
            """scores: float32[1, 6, 3, 3] = AveragePool(feature; kernel_shape=(3, 3),
                strides=(3, 3), pads=(0, 0, 0, 0), count_include_pad=0, extra=(1, 1))""",
        ),
        # Without it the scales, one a channel, would be those of nothing.
        (
            11,
            "axis",
            """const scale: float32[6] = random(0)
            const zero: int8[6] = random(1)
            whole: int8[1, 6, 8, 8] = QuantizeLinear(feature, scale, zero; axis=1)
            scores: float32[1, 6, 8, 8] = DequantizeLinear(whole, scale, zero; axis=1)""",
        ),
    ],
)
def test_attribute_that_matters_is_not_dropped(
    tmp_path: Path, opset: int, attribute: str, body: str
) -> None:
    host, size = network(tmp_path, opset), "3, 3" if attribute == "ceil_mode" else "8, 8"
    head = parse_graph(
        f"""graph head(feature: float32[1, 6, 8, 8]) -> (scores: float32[1, 6, {size}]) {{
            {body}
        }}"""
    )
    before = host.fingerprint()
    with pytest.raises(HostError, match=f"Attribute `{attribute}` of .* does not exist"):
        host.splice(head, "d", "exits.early")
    assert host.fingerprint() == before


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, 21])
def test_saved_network_returns_every_exits_logits(tmp_path: Path, opset: int) -> None:
    host, head = network(tmp_path, opset), parse_graph(HEAD)
    before = run_graph(host.graph(), image())
    with_head(host, "first_relu", "early", head)
    with_head(host, "join", "late", head)
    host.save(tmp_path / "out" / "net.onnx")
    found = in_onnx_runtime(tmp_path / "out" / "net.onnx")
    assert list(found) == ["logits", "early.logits", "late.logits"]
    np.testing.assert_allclose(found["logits"], before["logits"], atol=1e-5)
    taps = run_graph(host.graph().pruned(["b", "d"]), image())
    for tap, output in (("b", "early.logits"), ("d", "late.logits")):
        (by_hand,) = run_graph(head, {"feature": taps[tap]}).values()
        np.testing.assert_allclose(found[output], by_hand, atol=1e-5)


def test_saved_network_is_read_back_equal(tmp_path: Path) -> None:
    host = network(tmp_path)
    with_head(host, "join", "late", parse_graph(HEAD))
    host.save(tmp_path / "net.onnx")
    again = load_onnx(tmp_path / "net.onnx")
    assert again.graph() == host.graph()
    assert (
        again.outputs()
        == host.outputs()
        == {"logits": "logits", "late.logits": "exits.late/scores"}
    )
    assert again.fingerprint() == host.fingerprint()
    assert os.listdir(tmp_path) == ["net.onnx"], "no temporary file is left"


def test_spliced_operators_stand_under_their_prefix(tmp_path: Path) -> None:
    host = network(tmp_path)
    with_head(host, "b", "early", parse_graph(HEAD))
    scopes = [op.scope for op in host.graph().ops]
    assert scopes.count("exits.early") == 3
    assert host.points()["exits.early"].value == "exits.early/scores"


def test_edits_of_a_copy_leave_the_original_alone(tmp_path: Path) -> None:
    host = network(tmp_path)
    before, print_ = host.graph(), host.fingerprint()
    other = host.copy()
    with_head(other, "b", "early", parse_graph(HEAD))
    assert (host.graph(), host.fingerprint()) == (before, print_)
    assert other.fingerprint() != print_


def test_fingerprint_sees_weights(tmp_path: Path) -> None:
    host = network(tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.flat[0] += 1e-3
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w1"))
    onnx.save(model, tmp_path / "net.onnx")
    assert load_onnx(tmp_path / "net.onnx").fingerprint() != host.fingerprint()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda h: h.splice(parse_graph(HEAD), "nothing", "exits.a"), "Unknown value `nothing`"),
        (lambda h: h.splice(parse_graph(HEAD), "image", "exits.a"), "Expected `image` to be"),
        (lambda h: h.splice(parse_graph(HEAD), "b", "exits.early"), "`exits.early` is taken"),
        (lambda h: h.add_output("logits", "b"), "an output `logits` already"),
        (lambda h: h.add_output("c", "b"), "The name `c` is taken"),
        (lambda h: h.add_output("x", "w1.1"), "Unknown value `w1.1`"),
        (lambda h: h.replace_uses("b", "g"), "Expected `g` to be"),
        (lambda h: h.replace_uses("image", "zz"), "Unknown value `zz`"),
    ],
)
def test_edit_that_fails_changes_nothing(
    tmp_path: Path, edit: Callable[[OnnxHost], object], told: str
) -> None:
    host = network(tmp_path)
    host.splice(parse_graph(HEAD), "b", "exits.early")
    before, print_ = host.graph(), host.fingerprint()
    with pytest.raises(HostError, match=told) as raised:
        edit(host)
    assert raised.value.problems[0].kind in DIAGNOSTICS
    assert (host.graph(), host.fingerprint()) == (before, print_)


def test_head_that_needs_a_later_operator_set_is_refused(tmp_path: Path) -> None:
    host = network(tmp_path, opset=11)
    head = """
graph head(feature: float32[1, 6, 8, 8]) -> (scores: float32[1, 6, 8, 8]) {
    scores: float32[1, 6, 8, 8] = HardSwish(feature)
}
"""
    with pytest.raises(
        HostError, match="`HardSwish` of `scores` does not exist in operator set 11"
    ):
        host.splice(parse_graph(head), "b", "exits.a")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_head_fits_a_network_of_another_precision(tmp_path: Path, dtype: str) -> None:
    network(tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element
    onnx.save(model, tmp_path / "other.onnx")
    host = load_onnx(tmp_path / "other.onnx")
    assert host.graph().types["image"].dtype == "float32"
    with_head(host, "join", "late", parse_graph(HEAD))
    host.save(tmp_path / "net.onnx")
    found = in_onnx_runtime(tmp_path / "net.onnx")
    assert {array.dtype.name for array in found.values()} == {"float32"}
    expected = run_graph(host.graph(), image())
    np.testing.assert_allclose(found["late.logits"], expected["exits.late/scores"], atol=1e-5)


def test_uses_of_a_value_are_replaced_but_for_its_replacements_own(tmp_path: Path) -> None:
    host = network(tmp_path)
    host.replace_uses("b", "d")  # d is computed from b
    graph = host.graph()
    assert graph.producer()["d"].inputs == ("b", "c")
    assert graph.producer()["c"].inputs[0] == "b"
    host.replace_uses("c", "a")
    assert host.graph().producer()["d"].inputs == ("b", "a")


def test_output_keeps_its_name_when_its_value_is_replaced(tmp_path: Path) -> None:
    host = network(tmp_path)
    (value,) = host.splice(parse_graph(HEAD), "b", "exits.early")
    host.replace_uses("logits", value)
    assert host.outputs() == {"logits": value}
    host.save(tmp_path / "net.onnx")
    expected = run_graph(host.graph(), image())[value]
    np.testing.assert_allclose(
        in_onnx_runtime(tmp_path / "net.onnx")["logits"], expected, atol=1e-5
    )


def test_unused_operators_and_weights_go_once(tmp_path: Path) -> None:
    host = network(tmp_path)
    assert not host.points()["idle"].leads_to_output
    assert host.points()["first_relu"].leads_to_output
    expected = host.run(image())
    assert host.remove_unused()
    assert "idle" not in host.points()
    assert not host.remove_unused()
    host.replace_uses("d", "b")
    assert host.remove_unused()
    model_weights = set(host.graph().constants)
    assert model_weights == {"w1", "fc"}
    assert expected["logits"].shape == host.run(image())["logits"].shape


def test_point_has_every_name_of_its_value(tmp_path: Path) -> None:
    point = network(tmp_path).points()["join"]
    assert (point.value, {point.name, *point.aliases}) == ("d", {"d", "join", "e", "drop"})


def test_without_onnx_runtime_onnx_itself_runs_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = network(tmp_path)
    expected = host.run(image())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = host.copy().run(image())
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-5)


#: Operators as heads may hold them, each saved, run by ONNX Runtime and compared.
EXPRESSED = """
float32[1, 6, 4, 4] = AveragePool(x; kernel_shape=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0),
    count_include_pad=0)
float32[1, 6, 3, 3] = AveragePool(x; kernel_shape=(3, 3), strides=(3, 3), pads=(0, 0, 0, 0),
    count_include_pad=0, extra=(1, 1))
float32[1, 6, 4, 4] = MaxPool(x; kernel_shape=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0),
    dilations=(1, 1))
float32[1, 6] = ReduceSum(x; axes=(2, 3), keepdims=0)
float32[1, 6, 1, 1] = ReduceMax(x; axes=(2, 3), keepdims=1)
float32[6, 64] = Reshape(x; shape=(6, 64))
float32[1, 8, 8, 6] = Transpose(x; perm=(0, 2, 3, 1))
float32[1, 6, 8, 8] = Clip(x; min=0.0, max=6.0)
float32[1, 6, 8, 8] = Clip(x; min=-inf, max=0.5)
float32[1, 6, 8, 8] = Softmax(x; axis=1)
float32[1, 6, 8, 8] = LogSoftmax(x; axis=3)
float32[1, 2, 8, 4] = Slice(x; starts=(1, 7), ends=(3, -1), axes=(1, 3), steps=(1, -2))
float32[1, 6, 10, 9] = Pad(x; pads=(0, 0, 1, 0, 0, 0, 1, 1), mode="constant", value=2.0)
float32[2, 6, 8, 8] = Expand(x; shape=(2, 6, 8, 8))
float32[1, 12, 8, 8] = Tile(x; repeats=(1, 2, 1, 1))
float32[1, 6, 8, 8] = CumSum(x; axis=3, exclusive=1, reverse=1)
int64[1, 8, 8] = ArgMax(x; axis=1, keepdims=0, select_last_index=0)
int32[1, 6, 8, 8] = Cast(x; to="int32")
float32[1, 6, 16, 16] = Resize(x; mode="linear", scales=(1.0, 1.0, 2.0, 2.0),
    coordinate_transformation_mode="half_pixel", nearest_mode="floor", cubic_coeff_a=-0.75)
float32[1, 6, 12, 4] = Resize(x; mode="nearest", scales=(1.0, 1.0, 1.5, 0.5),
    coordinate_transformation_mode="asymmetric", nearest_mode="floor", cubic_coeff_a=-0.75,
    sizes=(1, 6, 12, 4))
float32[1, 6, 8, 8] = Gelu(x; approximate="tanh")
float32[1, 6, 8, 8] = HardSigmoid(x; alpha=0.2, beta=0.5)
float32[1, 6, 8, 8] = Mod(x, x)
float32[1, 24, 4, 4] = SpaceToDepth(x; blocksize=2)
"""


def _told(line: str) -> str:
    return line.partition(" = ")[2].split(")")[0]


@pytest.mark.parametrize("line", re.split(r"\n(?=\w)", EXPRESSED.strip()), ids=_told)
def test_operator_means_the_same_in_onnx(tmp_path: Path, line: str) -> None:
    type_, _, made = line.partition(" = ")
    text = f"graph head(x: float32[1, 6, 8, 8]) -> (y: {type_}) {{ y: {type_} = {made} }}"
    host, head = network(tmp_path, opset=21), parse_graph(text)
    (value,) = host.splice(head, "b", "exits.a")
    host.add_output("a.y", value)
    host.save(tmp_path / "net.onnx")
    tap = run_graph(host.graph().pruned(["b"]), image())["b"]
    found = in_onnx_runtime(tmp_path / "net.onnx")["a.y"]
    expected = run_graph(head, {"x": tap})["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-5)
