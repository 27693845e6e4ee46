"""Foreign ONNX files: each gives ONNX Runtime's numbers, or is refused by node and operator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from eecompile.ir import TensorType
from eecompile.passes.host import HostError
from eecompile.passes.onnx_host import OnnxHost, load_onnx
from eecompile.reference import evaluate, run_graph
from eecompile.shapes import check_types
from tests.helpers import shared_data

onnxruntime = pytest.importorskip("onnxruntime")

FOLDER = shared_data(module=True) / "onnx"

IMAGE = TensorType("float32", (1, 3, 224, 224))

#: Files with dynamic dimensions, and what fixes them.
INPUTS = {
    "magika_standard_v1": {"bytes": TensorType("float32", (1, 1536))},
    "mobilenetv2_quant_static": {"input": IMAGE},
    "pfld_landmarks": {"input": TensorType("float32", (1, 3, 112, 112))},
    "ppocr_mobile_v2_cls": {"x": TensorType("float32", (1, 3, 48, 192))},
    "silero_vad_op18_ifless": {
        "input": TensorType("float32", (1, 576)),
        "sr": TensorType("int64", ()),
        "state": TensorType("float32", (2, 1, 128)),
    },
    "super_resolution_pt_2018": {"input": TensorType("float32", (1, 1, 224, 224))},
    "vnn_marabou_cifar10_large": {"x:0": TensorType("float32", (1, 32, 32, 3))},
    "vnn_vit_pgd_2_3_16": {"input": TensorType("float32", (1, 3, 32, 32))},
    "yunet_n_dynamic": {"input": TensorType("float32", (1, 3, 160, 160))},
}

#: What cannot be compiled: the nodes and operators that are to be named.
REFUSED = {
    "REJECT_qonnx_tfc_2w2a": ("Quant_13", "onnx.brevitas::Quant"),
    "silero_vad_op18_ifless": ("node_cond__1", "If"),
}

#: Compared layer by layer: see the test.
ROUNDED = "mobilenetv2_quant_static"

FILES = sorted(path.stem for path in FOLDER.glob("*.onnx"))


def load(name: str) -> OnnxHost:
    return load_onnx(FOLDER / f"{name}.onnx", INPUTS.get(name))


def sample(host: OnnxHost) -> dict[str, np.ndarray]:
    """Smooth random images: what a camera gives, not noise, so that networks answer."""
    rng = np.random.default_rng(0)
    found = {}
    for name, type_ in ((name, host.graph().types[name]) for name in host.graph().inputs):
        x = rng.random(type_.shape)
        if len(type_.shape) == 4:
            coarse = rng.random((*type_.shape[:2], 8, 8))
            x = coarse.repeat(-(-type_.shape[2] // 8), 2).repeat(-(-type_.shape[3] // 8), 3)
            x = x[:, :, : type_.shape[2], : type_.shape[3]]
        if name in ("bytes", "Input3"):  # raw bytes
            x = np.floor(x * 255)
        found[name] = x.astype(type_.dtype)
    return found


def test_all_files_are_looked_at() -> None:
    assert len(FILES) == 20


@pytest.mark.parametrize("name", [n for n in FILES if n not in REFUSED and n != ROUNDED])
def test_file_gives_the_numbers_of_onnx_runtime(name: str) -> None:
    host = load(name)
    graph, inputs = host.graph(), sample(host)
    assert check_types(graph) == []
    expected, found = host.run(inputs), run_graph(graph, inputs)
    for output, value in host.outputs().items():
        scale = max(1.0, float(np.abs(expected[output]).max()))
        np.testing.assert_allclose(
            found[value] / scale, expected[output] / scale, rtol=0, atol=1e-5, err_msg=output
        )


def test_rounded_layers_differ_by_one_step_at_most() -> None:
    """Each layer of a quantised network, given what ONNX Runtime gave the layer before.

    Rounding makes whole answers incomparable: ONNX Runtime's own, with and without its
    optimisations, differ by a tenth of the largest logit.
    """
    host = load(ROUNDED)
    graph, inputs = host.graph(), sample(host)
    layers = [op for op in graph.ops if op.kind == "QuantizeLinear"]
    model = onnx.load(FOLDER / f"{ROUNDED}.onnx")
    model.graph.output.extend(helper.make_empty_tensor_value_info(op.outputs[0]) for op in layers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    seen = dict(zip([o.name for o in model.graph.output], session.run(None, inputs), strict=True))
    values = {**graph.constants, **inputs}
    differing = total = 0
    for op in graph.ops:
        (values[op.outputs[0]],) = evaluate(
            op, [values[name] if name else None for name in op.inputs]
        )
        if op.kind == "QuantizeLinear":
            theirs = seen[op.outputs[0]]
            steps = np.abs(values[op.outputs[0]].astype(int) - theirs.astype(int))
            assert steps.max() <= 1, op.name
            differing, total = differing + int(steps.sum()), total + steps.size
            values[op.outputs[0]] = theirs
    assert len(layers) == 66
    assert differing <= 2e-4 * total
    np.testing.assert_allclose(values[graph.outputs[0]], seen["output"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusal_names_node_and_operator(name: str) -> None:
    with pytest.raises(HostError) as raised:
        load(name)
    node, operator = REFUSED[name]
    problem = raised.value.problems[0]
    assert (problem.kind, problem.node, problem.operator) == (
        "unsupported-operator",
        node,
        operator,
    )
    assert node in problem.message and operator in problem.message


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_dynamic_dimension_that_nothing_fixes_is_named(name: str) -> None:
    with pytest.raises(HostError) as raised:
        load_onnx(FOLDER / f"{name}.onnx")
    assert {problem.kind for problem in raised.value.problems} == {"missing-input"}
    assert "is not fixed: " in raised.value.problems[0].message


@pytest.mark.parametrize("name", ["dtln_model_1", "mnist_cntk_c_cxx", "shufflenet_v2_12_int8"])
def test_same_file_gives_the_same_graph(name: str) -> None:
    first, second = load(name), load(name)
    assert first.graph() == second.graph()
    assert list(first.graph().constants) == list(second.graph().constants)
    assert first.fingerprint() == second.fingerprint()
    assert list(first.points()) == list(second.points())


@pytest.mark.parametrize("name", [n for n in FILES if n not in REFUSED])
def test_names_are_unique_and_points_are_values(name: str) -> None:
    host = load(name)
    graph = host.graph()
    assert len({op.name for op in graph.ops}) == len(graph.ops)
    assert all(point.type == graph.types[point.value] for point in host.points().values())
    assert graph == replace(graph).pruned(), "no operator is left that only the translation made"
