"""Whole networks: compiled code computes what ONNX Runtime does, here and on emulated ARM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
from benchmarks import networks  # noqa: E402
from benchmarks.suite import lively  # noqa: E402
from eecompile.hardware import machine  # noqa: E402
from eecompile.ir import Graph  # noqa: E402
from eecompile.passes.onnx_host import load_onnx  # noqa: E402
from eecompile.targets.lowering import compile_functions  # noqa: E402
from tests.helpers import python_on_arm  # noqa: E402
from tests.lowering.calling import Loaded, compile_plain, inputs_of  # noqa: E402

NAMES = ["resnet20", "resnet56", "mobilenet_v2_small", "densenet_small", "vit_small", "mlp"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


def _load(name: str, folder: Path) -> tuple[Graph, Path]:
    path = folder / f"{name}.onnx"
    if not path.exists():
        shape = networks.INPUT_SHAPES[name]
        networks.export_onnx(lively(name), shape, path, exporter="torchscript")
    return load_onnx(path).graph(), path


@pytest.mark.parametrize("name", NAMES)
def test_a_network_answers_as_onnx_runtime_does(name: str, exported: Path) -> None:
    graph, path = _load(name, exported)
    compiled = compile_plain(graph)
    loaded = Loaded(compiled)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = []
    for seed in range(2):
        (image,) = inputs_of(graph, seed).values()
        (expected,) = session.run(None, {session.get_inputs()[0].name: image})
        (found,) = loaded(compiled.functions[0].symbol, [image])
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        answers.append(expected)
    # The comparison would mean nothing if the answer did not depend on the picture.
    assert np.abs(answers[0] - answers[1]).max() > 0.05 * np.abs(answers[0]).max()


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_small", "vit_small"])
def test_a_network_for_older_processors_answers_as_onnx_runtime_does(
    name: str, target: str, exported: Path
) -> None:
    if not machine(target).is_native:
        pytest.skip(f"this processor lacks what {target} needs")
    graph, path = _load(name, exported)
    compiled = compile_plain(graph, machine(target))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = inputs_of(graph).values()
    (expected,) = session.run(None, {session.get_inputs()[0].name: image})
    (found,) = Loaded(compiled)(compiled.functions[0].symbol, [image])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_depth_does_not_add_kernels(exported: Path) -> None:
    def kernels(name: str) -> set[str]:
        (function,) = compile_plain(_load(name, exported)[0]).functions
        return {use.symbol for use in function.kernels}

    assert kernels("resnet20") == kernels("resnet56")


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_small"])
def test_a_network_answers_on_arm(name: str, exported: Path, arm: Path, tmp_path: Path) -> None:
    graph, path = _load(name, exported)
    compiled = compile_functions([graph], machine("arm-cpu"), plain=[*graph.inputs, *graph.outputs])
    (function,) = compiled.functions
    (image,) = inputs_of(graph).values()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: image})
    (tmp_path / "kernels.so").write_bytes(compiled.library)
    np.savez(tmp_path / "data.npz", weights=compiled.weights, image=image)
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import ctypes, platform, numpy as np
assert platform.machine() == "aarch64"
data = np.load({str(tmp_path / "data.npz")!r})
library = ctypes.CDLL({str(tmp_path / "kernels.so")!r})
result = np.zeros({expected.shape!r}, np.float32)
workspace = np.zeros({function.workspace_bytes + function.private_bytes} + 1, np.uint8)
arrays = [data["weights"], workspace, data["image"], result]
frame = np.array([1, *(array.ctypes.data for array in arrays)], np.int64)
assert library[{function.symbol!r}](ctypes.c_void_p(frame.ctypes.data), 0, 1, None) == 0
np.save({str(tmp_path / "result.npy")!r}, result)
""",
        encoding="utf-8",
    )
    python_on_arm(arm, script)
    found = np.load(tmp_path / "result.npy")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
