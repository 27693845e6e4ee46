"""Networks that others trained and exported, through the whole build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from benchmarks.foreign import NETWORKS, labelled_images, real_inputs, write_file
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import BuildOptions, BuildReport, build
from eecompile.ir import TensorType
from eecompile.passes.onnx_host import load_onnx
from eecompile.roundings import Follower
from tests.helpers import shared_data

onnxruntime = pytest.importorskip("onnxruntime")
DATA = shared_data(module=True)

#: Small ones of each kind; `benchmarks/foreign.py` builds all of them.
BUILT = ["dtln_model_1", "magika_standard_v1", "mnist_cntk_c_cxx", "onnx2c_mnist_pytorch"]
REFUSED = {
    "REJECT_qonnx_tfc_2w2a": ("onnx.brevitas::Quant", "Quant_13"),
    "silero_vad_op18_ifless": ("If", "node_cond__1"),
}
#: Exits at module paths, with token sequences; at tensor names of an NHWC network.
EXITS = {
    "vnn_vit_pgd_2_3_16": (
        "output output: classes(10)\n"
        'exit a after "0" head linear comparator class_means\n'
        'exit b after "1.0.1" head class_means(pool: first)\n',
        "mean [0.4914, 0.4822, 0.4465] std [0.2023, 0.1994, 0.2010]",
    ),
    "vnn_marabou_cifar10_large": (
        "output logits: classes(10)\n"
        'exit a after "sequential_2/conv2d_4/Relu:0" head linear(pool: 2)'
        " comparator class_means(pool: 4)\n"
        'exit b after "sequential_2/flatten_2/Reshape:0" head class_means\n',
        "",
    ),
}


def _build(path: Path, folder: Path, emit: Path | None = None) -> BuildReport:
    options = BuildOptions(output=folder / "net.artifact", emit=emit, threads=1)
    return build(path, options, Steps(0, True), Cache(folder / "cache"))


def _engine(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _rows(inputs: dict[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    return [{n: array[row : row + 1] for n, array in inputs.items()} for row in range(count)]


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_gives_every_output_of_the_source(name: str, tmp_path: Path) -> None:
    report = _build(write_file(tmp_path, DATA, name), tmp_path)
    engine = _engine(DATA / "onnx" / f"{name}.onnx")
    net = ee.load(report.artifact)
    for row in _rows(real_inputs(DATA, name, 3), 3):
        found = net.full_depth(row).outputs
        assert set(found) == {output.name for output in engine.get_outputs()}
        for output, expected in zip(engine.get_outputs(), engine.run(None, row), strict=True):
            limit = 1e-4 * max(1, np.abs(expected).max())
            np.testing.assert_allclose(
                found[output.name].reshape(expected.shape), expected, rtol=0, atol=limit
            )
    if NETWORKS[name].labelled:
        images, labels = labelled_images(DATA, name, 2000)
        assert (net.full_depth_batch(images).logits.argmax(1) == labels).mean() > 0.85


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_by_node_and_operator(name: str, tmp_path: Path) -> None:
    with pytest.raises(CompileErrors) as refused:
        _build(write_file(tmp_path, DATA, name), tmp_path)
    operator, node = REFUSED[name]
    first, *_ = refused.value.diagnostics
    assert first.id == "unsupported-operator"
    assert f"`{operator}` of node `{node}`" in first.message
    assert not (tmp_path / "net.artifact").exists()


def test_a_shape_the_network_cannot_take_is_refused_by_node(tmp_path: Path) -> None:
    path = write_file(tmp_path, DATA, "ppocr_mobile_v2_cls")
    path.write_text(path.read_text().replace("[1, 3, 48, 192]", "[1, 3, 4, 4]"))
    with pytest.raises(CompileErrors) as refused:
        _build(path, tmp_path)
    (found,) = refused.value.diagnostics
    assert found.id == "unsupported-operator"
    assert "`MaxPool` of node `p2o.MaxPool.0`" in found.message
    assert "no window fits into float32[1, 200, 1, 2]" in found.message


@pytest.mark.parametrize("name", EXITS)
def test_exits_of_foreign_networks_answer_as_the_emitted_network_does(
    name: str, tmp_path: Path
) -> None:
    exits, normalize = EXITS[name]
    train, test = DATA / "cifar10_train_20k.npz", DATA / "cifar10_test.npz"
    lines = f'fit "{train}"[..600] calibrate "{test}"[..300] test "{test}"[300..600]'
    body = (
        f"{exits}}}\ndata d {{ {lines} {f'normalize {normalize}' if normalize else ''} }}\n"
        "policy p { exit when confidence(class_means) budget mean macs <= 75 % }"
    )
    emitted = tmp_path / "exits.onnx"
    _build(write_file(tmp_path, DATA, name, body), tmp_path, emitted)
    net, engine = ee.load(tmp_path / "net.artifact"), _engine(emitted)
    shown = [output.name for output in engine.get_outputs()]
    images, labels = labelled_images(DATA, name, 300)
    batch = net.run_batch(images)
    assert {0, 2} <= set(batch.exits.tolist())  # Or nothing below would be shown.
    for row, sample in enumerate(_rows(images, 40)):
        one = net.run(sample)
        assert one.segments_run == batch.segments_run[row] == batch.exits[row] + 1
        expected = dict(zip(shown, engine.run(None, sample), strict=True))
        wanted = expected[shown[0] if one.exit == "final" else f"{one.exit}.class_means"]
        for logits in (one.logits, batch.logits[row]):
            np.testing.assert_allclose(logits, wanted.reshape(-1), rtol=0, atol=1e-3)
    full = net.full_depth_batch(images).logits.argmax(1) == labels
    found = NETWORKS[name].labelled
    assert found is not None and abs(full.mean() - found.accuracy) < 0.1
    assert (batch.logits.argmax(1) == labels).mean() > 0.3


def test_a_quantised_network_rounds_as_onnx_runtime_but_for_single_steps() -> None:
    host = load_onnx(
        DATA / "onnx" / "mobilenetv2_quant_static.onnx",
        {"input": TensorType("float32", (1, 3, 224, 224))},
    )
    follower = Follower(host)
    follower.follow(real_inputs(DATA, "mobilenetv2_quant_static", 1))
    found = follower.found
    assert found.values > 7_000_000 and not found.wrong
    assert found.apart < 1e-6 * found.values
    assert max(found.errors.values()) <= 1e-4
