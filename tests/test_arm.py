"""What is compiled for arm-cpu answers on an aarch64 processor as the host's artifact does here."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from eecompile.driver import BuildOptions, build
from eecompile.policies import ExitPolicy, ThresholdPolicy, to_json
from eecompile.policies.scores import max_softmax
from tests.helpers import ROOT, python_on_arm
from tests.remote.serving import on_arm, serving

DEMO = ROOT / "eecompile" / "demo"
VERIFY = """
import json, sys
from eecompile.runtime.vectors import verify_artifact
print(json.dumps(verify_artifact(sys.argv[1]).to_json()))
"""


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
    """Thresholds of `max_softmax` by which some samples leave at every exit.

    However the heads were fitted: each lies in the widest gap between the middle samples' scores,
    so that no sample's exit hangs on its last digits.
    """
    exits = len(net.exit_names) - 1
    found: list[float] = []
    for index in range(exits):
        only = [float("inf")] * exits
        only[index] = 0.0
        net.set_policy(ThresholdPolicy("max_softmax", only))
        scores = np.sort(max_softmax(net.run_batch(x).logits))
        middle = scores[len(scores) // 4 : len(scores) * 3 // 4]
        widest = int(np.diff(middle).argmax())
        found.append(float(middle[widest : widest + 2].mean(dtype=np.float64)))
        x = x[max_softmax(net.run_batch(x).logits) < found[-1]]
    return found


def answers_on_arm(
    arm: Path, artifact: Path, policy: ExitPolicy, x: np.ndarray, folder: Path, batch: int
) -> dict[str, np.ndarray]:
    """What tests/arm/run.py saves: the artifact's answers on an emulated aarch64 processor.

    One by one, and the first `batch` samples together.
    """
    np.save(folder / "x.npy", x)
    (folder / "policy.json").write_text(json.dumps(to_json(policy)))
    script, output = ROOT / "tests" / "arm" / "run.py", folder / "found.npz"
    arguments = [script, artifact, folder / "policy.json", folder / "x.npy", output, batch]
    python_on_arm(arm, *arguments)
    with np.load(output) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_same_exits_and_logits_on_aarch64(
    arm: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    with np.load(DEMO / "test.npz") as data:
        images = data["images"][:50]
    x = (images[:, None].astype(np.float32) / np.float32(255)).astype(np.float32)
    here = ee.load(artifacts["host"])
    policy = ThresholdPolicy("max_softmax", thresholds_that_part(here, x))
    found = answers_on_arm(arm, artifacts["arm-cpu"], policy, x, tmp_path, len(x))
    if platform.machine() != found["machine"]:
        with pytest.raises(CompileErrors, match=r"wrong-machine.*aarch64-linux-gnu"):
            ee.load(artifacts["arm-cpu"])
    here.set_policy(policy)
    expected = here.run_batch(x)
    assert len(set(expected.exits.tolist())) == 4, "the images must leave at different exits"
    assert found["machine"] == "aarch64"
    assert found["heavy"].size == 0
    np.testing.assert_array_equal(found["exits"], expected.exits)
    np.testing.assert_array_equal(found["batch_exits"], expected.exits)
    np.testing.assert_array_equal(found["segments_run"], expected.exits + 1)
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-3)
    np.testing.assert_allclose(found["batch_logits"], expected.logits, atol=1e-3)
    np.testing.assert_allclose(found["full_depth"], here.full_depth_batch(x[:8]).logits, atol=1e-3)


def test_test_vectors_hold_on_aarch64(arm: Path, artifacts: dict[str, Path]) -> None:
    report = json.loads(python_on_arm(arm, "-c", VERIFY, artifacts["arm-cpu"]))
    assert report["ok"] and report["exits_agree"] and report["samples"] >= 4


def test_a_board_is_measured_over_a_wire(
    arm_tvm: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    remote = pytest.importorskip("eecompile.targets.lowering.remote")
    found = read_artifact(artifacts["arm-cpu"], must_run=False)
    settings = tmp_path / "sys"
    settings.mkdir()
    (settings / "clock").write_text("600000\n")
    with serving(on_arm(arm_tvm, tmp_path)) as port:
        address = remote.read_address(f"127.0.0.1:{port}")
        with remote.RemoteDevice(found, address, threads=2, root=str(tmp_path)) as board:
            # It has compared its results with those of the build. Times here mean nothing.
            assert 0 < board.max_abs_error < 1e-3
            assert len(board.round()) == len(found.manifest.network.functions())
            assert board.repeated(0, 0.05, ["/sys/clock"]).readings[0].texts == ("600000\n",)
            board.files.write("/sys/clock", "900000")
        end = time.monotonic() + 30
        while (settings / "clock").read_text() != "600000\n":
            assert time.monotonic() < end, "the board puts its settings back"
            time.sleep(0.05)
