"""What is compiled for arm-cpu answers on an aarch64 processor as the host's artifact does here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import BuildOptions, build
from eecompile.policies import ThresholdPolicy
from eecompile.policies.scores import max_softmax

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "tests" / "arm" / "env.sh"
DEMO = ROOT / "eecompile" / "demo"


def _cache_folder() -> Path:
    given = os.environ.get("EECOMPILE_ARM_ENV")
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given) if given else base / "eecompile-tests" / "arm"


@pytest.fixture(scope="session")
def arm() -> Path:
    """Folder of an aarch64 Python that runs here; set up only where it is required."""
    folder = _cache_folder()
    if (folder / "ready").exists():
        return folder
    setup = f"bash tests/arm/env.sh setup {folder}"
    if os.environ.get("EECOMPILE_REQUIRE_ARM") != "1":
        pytest.skip(f"no aarch64 environment: run `{setup}`, or set EECOMPILE_REQUIRE_ARM=1")
    done = subprocess.run(
        ["bash", str(ENVIRONMENT), "setup", str(folder)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"`{setup}` failed:\n{done.stdout}\n{done.stderr}")
    return folder


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's digits, for both machines from one set of fitted heads."""
    folder = tmp_path_factory.mktemp("digits")
    found = {}
    for target in ("host", "arm-cpu"):
        options = BuildOptions(target=target, output=folder / target, threads=1)
        build(DEMO / "digits.ee", options, Steps(10, quiet=True), Cache(folder / "cache"))
        found[target] = folder / target
    return found


def thresholds_that_part(net: ee.Session, x: np.ndarray) -> list[float]:
    """Thresholds of `max_softmax` by which some samples leave at each of the two exits.

    However the heads were fitted: each lies in the widest gap between the middle samples' scores,
    so that no sample's exit hangs on its last digits.
    """
    found: list[float] = []
    for index in range(2):
        only = [float("inf")] * 2
        only[index] = 0.0
        net.set_policy(ThresholdPolicy("max_softmax", only))
        scores = np.sort(max_softmax(net.run_batch(x).logits))
        middle = scores[len(scores) // 4 : len(scores) * 3 // 4]
        widest = int(np.diff(middle).argmax())
        found.append(float(middle[widest : widest + 2].mean(dtype=np.float64)))
        x = x[max_softmax(net.run_batch(x).logits) < found[-1]]
    return found


def test_same_exits_and_logits_on_aarch64(
    arm: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    with np.load(DEMO / "test.npz") as data:
        images = data["images"][:50]
    x = (images[:, None].astype(np.float32) / np.float32(255)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    here = ee.load(artifacts["host"])
    thresholds = thresholds_that_part(here, x)
    script, output = ROOT / "tests" / "arm" / "run.py", tmp_path / "found.npz"
    arguments = [
        script,
        artifacts["arm-cpu"],
        ",".join(map(str, thresholds)),
        tmp_path / "x.npy",
        output,
    ]
    done = subprocess.run(
        ["bash", str(ENVIRONMENT), "python", str(arm), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(output) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if platform.machine() != found["machine"]:
        with pytest.raises(CompileErrors, match=r"wrong-machine.*aarch64-linux-gnu"):
            ee.load(artifacts["arm-cpu"])
    here.set_policy(ThresholdPolicy("max_softmax", thresholds))
    expected = here.run_batch(x)
    assert len(set(expected.exits.tolist())) == 3, "the images must leave at different exits"
    assert found["machine"] == "aarch64"
    assert found["verified"]
    assert found["heavy"].size == 0
    np.testing.assert_array_equal(found["exits"], expected.exits)
    np.testing.assert_array_equal(found["batch_exits"], expected.exits)
    np.testing.assert_array_equal(found["segments_run"], expected.exits + 1)
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-3)
    np.testing.assert_allclose(found["batch_logits"], expected.logits, atol=1e-3)
    np.testing.assert_allclose(found["full_depth"], here.full_depth_batch(x[:8]).logits, atol=1e-3)
