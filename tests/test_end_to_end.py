"""The main job on real input: a trained ResNet-56, as PyTorch and as ONNX, from `.ee` to answers.

Fewer images than in `benchmarks/resnet56.py` (which has the accuracy), the same path.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import BuildOptions, build
from eecompile.inspection import inspect_path
from eecompile.policies import from_json
from eecompile.text import print_segments
from tests.helpers import shared_data
from tests.test_arm import answers_on_arm

pytest.importorskip("torch", reason="needs torch for the PyTorch route")

ROOT = Path(__file__).parents[1]
TEXT = """
eecompile 1
model resnet56 {{
    source {source}
    input  image: float32[1, 3, 32, 32]
    output logits: classes(10)
    exit a after "layer2.4" head linear(pool: 4)
    exit b after "layer3.1" head linear(pool: 2) comparator class_means(pool: 2)
    exit c after "layer3.4" head class_means(pool: 2)
}}
data cifar10 {{
    fit       "{data}/cifar10_train_20k.npz"[..3000]
    calibrate "{data}/cifar10_test.npz"[..1000]
    test      "{data}/cifar10_test.npz"[5000..6000]
    normalize mean [0.485, 0.456, 0.406] std [0.229, 0.224, 0.225]
}}
policy softmax {{ exit when confidence(max_softmax)   budget mean macs <= 85 % }}
policy either {{
    exit when confidence(class_means) or confidence(max_softmax)
    budget accuracy drop <= 3 %
}}
"""


@dataclass(frozen=True)
class Built:
    """An artifact and what its build said."""

    path: Path
    summary: Any


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The artifacts of the ONNX route, the PyTorch route, and the ONNX route for arm-cpu."""
    data, folder = shared_data(), tmp_path_factory.mktemp("resnet56")
    weights, network = data / "nets" / "resnet56_cifar10.th", folder / "resnet56.onnx"
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.networks", "export", "resnet56"),
            *("--weights", str(weights), "--onnx", str(network)),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    sources = {
        "onnx": f'onnx "{network}"',
        "torch": f'torch "{ROOT / "benchmarks" / "networks.py"}:resnet56" weights "{weights}"',
    }
    found = {}
    for name, route, target in (
        ("onnx", "onnx", "host"),
        ("torch", "torch", "host"),
        ("arm", "onnx", "arm-cpu"),
    ):
        file = folder / f"{route}.ee"
        if not file.exists():
            file.write_text(TEXT.format(source=sources[route], data=data))
            time.sleep(0.1)  # what changes while a build begins is not remembered as read
        options = BuildOptions(target=target, output=folder / name)
        report = build(file, options, Steps(10, quiet=True), Cache(folder / "cache"))
        found[name] = Built(folder / name, report.summary)
    return found


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """The test images of the `.ee` file, as stored, and their labels."""
    with np.load(shared_data() / "cifar10_test.npz") as archive:
        return archive["images"][5000:6000], archive["labels"][5000:6000].astype(np.int64)


def test_both_routes_give_the_same_segment_graph(built: dict[str, Built]) -> None:
    texts = [print_segments(inspect_path(built[name].path).segments) for name in ("onnx", "torch")]
    assert texts[0] == texts[1]
    assert texts[0].count("exit ") == 3


@pytest.mark.parametrize("policy", ["softmax", "either"])
def test_both_routes_answer_alike(
    built: dict[str, Built], images: tuple[np.ndarray, np.ndarray], policy: str
) -> None:
    answers = [
        ee.load(built[name].path, policy, threads=2).run_batch(images[0], normalize=True)
        for name in ("onnx", "torch")
    ]
    np.testing.assert_array_equal(answers[0].exits, answers[1].exits)
    np.testing.assert_allclose(answers[0].logits, answers[1].logits, atol=1e-4)
    assert len(set(answers[0].exits.tolist())) >= 3, "the images must leave at different exits"


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_decisions_off_is_the_source_network(built: dict[str, Built], name: str) -> None:
    assert built[name].summary["max_abs_error"] <= 1e-4
    assert built[name].summary["max_exit_error"] <= 1e-3


@pytest.mark.parametrize("policy", ["softmax", "either"])
def test_what_the_build_reports_is_what_the_artifact_does(
    built: dict[str, Built], images: tuple[np.ndarray, np.ndarray], policy: str
) -> None:
    reported = built["onnx"].summary["policies"][policy]["test"]
    net = ee.load(built["onnx"].path, policy, threads=2)
    answers = net.run_batch(images[0], normalize=True)
    assert answers.labels is not None
    assert (answers.labels == images[1]).mean() == pytest.approx(reported["accuracy"]["value"])
    fraction = answers.macs.mean() / net.manifest.network.macs
    assert fraction == pytest.approx(reported["costs"]["macs"]["value"], rel=1e-9)
    for row, taken in zip(reported["exits"], net.exit_names, strict=True):
        assert row["name"] == taken
        assert answers.exit_counts[taken] / len(answers) == pytest.approx(row["fraction"])


def test_segments_behind_the_exit_do_not_run(
    built: dict[str, Built], images: tuple[np.ndarray, np.ndarray]
) -> None:
    net = ee.load(built["onnx"].path, "softmax")
    segments = net.manifest.network.segments
    for image in images[0][:40]:
        answer = net.run(image, normalize=True)
        index = net.exit_names.index(answer.exit)
        assert answer.segments_run == index + 1
        assert answer.macs >= sum(segment.macs for segment in segments[: index + 1])
        assert answer.macs < sum(segment.macs for segment in segments[: index + 2]) or (
            answer.exit == "final"
        )


def test_aarch64_gives_the_same_exits_and_logits(
    built: dict[str, Built], images: tuple[np.ndarray, np.ndarray], arm: Path, tmp_path: Path
) -> None:
    here = ee.load(built["onnx"].path, "softmax")
    policy = from_json(read_artifact(built["onnx"].path).policies["softmax"].rule)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    x = ((images[0][:50] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    x = np.ascontiguousarray(x, np.float32)
    found = answers_on_arm(arm, built["arm"].path, policy, x, tmp_path, batch=4)
    expected = here.run_batch(x)
    np.testing.assert_array_equal(found["exits"], expected.exits)
    np.testing.assert_array_equal(found["segments_run"], expected.exits + 1)
    np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-3)


def test_a_second_build_changes_nothing(built: dict[str, Built]) -> None:
    path = built["onnx"].path
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    options = BuildOptions(target="host", output=path)
    file = path.parent / "onnx.ee"
    report = build(file, options, Steps(10, quiet=True), Cache(path.parent / "cache"))
    assert report.unchanged
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
