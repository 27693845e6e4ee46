"""Gates that a build fits: what is known to be harmless goes first, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import build
from eecompile.gate_fitting import fit_gates
from eecompile.gating import Gating
from eecompile.hardware import machine
from eecompile.planning import prepare

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

from benchmarks.networks import export_onnx  # noqa: E402
from tests.gates_fitted.modules import planted  # noqa: E402

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent
SHAPE = (1, 3, 8, 8)
SOURCES = {
    "torch": f'source torch "{HERE}/modules.py:planted"',
    "onnx": 'source onnx "planted.onnx"',
}
LAYERS = 'skip layers "blocks.*" gate fitted'
CHANNELS = 'skip channels "blocks.*.conv1" gate fitted(groups: 4)'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a file, and samples with the classes that it gives itself."""
    folder = tmp_path_factory.mktemp("planted")
    module = planted().eval()
    export_onnx(module, SHAPE, folder / "planted.onnx", exporter="torchscript")
    generator = np.random.default_rng(0)
    images = generator.standard_normal((400, *SHAPE[1:])).astype(np.float32)
    images *= generator.uniform(0.2, 2.0, (400, 3, 1, 1)).astype(np.float32)
    with torch.no_grad():
        labels = module(torch.from_numpy(images)).argmax(1).numpy()
    np.savez(folder / "samples.npz", images=images, labels=labels)
    return folder


def written(
    folder: Path, source: str, *skips: str, data: str = "calibrate", more: str = ""
) -> Path:
    path = folder / f"{source}.ee"
    path.write_text(f"""eecompile 1
model planted {{
    {SOURCES[source]}
    input image: float32[1, 3, 8, 8]
    output logits: classes(4)
    {" ".join(skips)}
}}
data samples {{
    {data} "samples.npz"[..200]
    test "samples.npz"[200..]
}}
{more}
""")
    return path


def fitted(path: Path, cache: Path, threads: int = 1) -> Gating:
    prepared = prepare(path, BuildOptions())
    return fit_gates(
        prepared.gating,
        prepared.host,
        prepared.spec.model,
        prepared.splits["calibrate"],
        machine("host"),
        threads=threads,
        seed=0,
        cache=Cache(cache),
        progress=lambda done, total, what="": None,
    )


def biases(gating: Gating, name: str) -> Array:
    return np.asarray(gating.parameters[f"gates.{name}_bias"])


def test_a_block_that_adds_nothing_goes_first(folder: Path, tmp_path: Path) -> None:
    gating = fitted(written(folder, "onnx", LAYERS), tmp_path)
    scores = [float(biases(gating, f"blocks.{i}.keep")[0]) for i in range(3)]
    assert scores[2] < 0 < min(scores[:2])
    assert not gating.unfitted


@pytest.mark.parametrize("source", SOURCES)
def test_channels_that_are_constant_go_first(source: str, folder: Path, tmp_path: Path) -> None:
    gating = fitted(written(folder, source, CHANNELS), tmp_path)
    scores = {i: biases(gating, f"blocks.{i}.conv1.channels") for i in range(3)}
    harmless = {(1, 2), *((2, group) for group in range(4))}
    for block, row in scores.items():
        for group, score in enumerate(row):
            if (block, group) in harmless:
                assert score < 0
            else:
                assert score > max(scores[b][g] for b, g in harmless)
    # The mean of constant channels is their constant: what they give is known.
    weight = planted().state_dict()["blocks.1.conv2.weight"].numpy()[:, 8:12, 0, 0]
    given = gating.parameters["gates.blocks.1.conv1.left_out"][2]
    np.testing.assert_allclose(given, 0.7 * weight.sum(axis=1), rtol=1e-4, atol=1e-6)


def test_fits_are_equal_whatever_runs_them(folder: Path, tmp_path: Path) -> None:
    path = written(folder, "onnx", LAYERS, CHANNELS)
    one = fitted(path, tmp_path / "one")
    two = fitted(path, tmp_path / "two", threads=2)
    again = fitted(path, tmp_path / "one")
    for other in (two, again):
        assert one.parameters.keys() == other.parameters.keys()
        for name, array in one.parameters.items():
            np.testing.assert_array_equal(array, other.parameters[name])


def test_both_sources_leave_out_the_same(folder: Path, tmp_path: Path) -> None:
    rows = []
    for source in SOURCES:
        gating = fitted(written(folder, source, CHANNELS), tmp_path)
        rows.append(np.concatenate([biases(gating, f"blocks.{i}.conv1.channels") for i in (0, 1)]))
    np.testing.assert_allclose(rows[0], rows[1], atol=0.05)


def test_a_build_saves_what_is_harmless_and_answers_alike(folder: Path, tmp_path: Path) -> None:
    path = written(folder, "onnx", LAYERS, more="policy p { budget mean macs <= 75 % }")
    options = BuildOptions(output=tmp_path / "out", threads=1)
    made = build(path, options, Steps(11, quiet=True), Cache(tmp_path / "cache"))
    report = made.summary["policies"]["p"]
    found = report["test"]
    assert found["costs"]["macs"]["value"] <= 0.75
    assert found["accuracy"]["value"] == 1.0


def test_samples_held_out_are_asked_for(folder: Path) -> None:
    with pytest.raises(CompileErrors) as raised:
        prepare(written(folder, "onnx", LAYERS, data="fit"), BuildOptions())
    (found,) = raised.value.diagnostics
    assert found.id == "missing-data"
    assert "no `calibrate` data" in found.message
