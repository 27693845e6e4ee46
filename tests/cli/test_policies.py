"""Every policy builds, and does in the runtime what was reported of it; what is emitted runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import eecompile
from eecompile.artifact import content_digest, read_artifact
from eecompile.inspection import inspect_path
from eecompile.policies import from_json
from eecompile.text import print_segments
from tests.cli.calls import Call, edited

RULES = {
    "softmax": "confidence(max_softmax)",
    "entropy": "confidence(entropy)",
    "margin": "confidence(margin)",
    "means": "confidence(class_means)",
    "patience": "patience",
    "forecast": "predicted",
    "either": "confidence(class_means) or confidence(max_softmax)",
}


def with_policies(file: Path, fitted: bool) -> None:
    """The demo with comparators, and a policy of each kind."""

    def one(rule: str) -> str:
        if fitted:
            return f"{rule} budget accuracy drop <= 1 %"
        given = {
            "patience": "patience(count: 1)",
            "predicted": "predicted(start: early, beta: 2, forecast: sorted)",
        }
        return " or ".join(given.get(term, f"{term} >= 0.9") for term in rule.split(" or "))

    before, _, _ = file.read_text().partition("policy ")
    policies = (f"policy {name} {{ exit when {one(rule)} }}\n" for name, rule in RULES.items())
    file.write_text(before + "".join(policies))
    edited(file, ("head linear(pool: 4)", "head linear(pool: 4) comparator class_means(pool: 4)"))


@pytest.mark.parametrize("kind", ["fitted", "given", "given, no calibration data"])
def test_reports_are_what_the_runtime_does(
    kind: str, call: Call, demo: Path, images: np.ndarray
) -> None:
    """The replay on recorded scores and the compiled network agree sample by sample."""
    with_policies(demo, fitted=kind == "fitted")
    if "no" in kind:
        edited(demo, ('calibrate "calibrate.npz"', ""))
    out = demo.parent / "policies"
    done = call("build", demo, "-o", out, "--json")
    assert done.status == 0, done.err
    reports = done.json["policies"]
    assert set(reports) == set(RULES)
    with np.load(demo.parent / "test.npz") as data:
        labels = data["labels"]
    session = eecompile.load(out)
    for name, report in reports.items():
        session.set_policy(name)
        batch = session.run_batch(images)
        right = batch.logits.reshape(len(labels), -1).argmax(axis=1) == labels
        assert report["test"]["accuracy"]["value"] == right.mean()
        shares = [row["fraction"] for row in report["test"]["exits"]]
        counts = np.bincount(batch.exits, minlength=len(shares))
        assert shares == (counts / len(labels)).tolist()
        macs = np.asarray(batch.macs).mean() / session.manifest.network.macs
        assert report["test"]["costs"]["macs"]["value"] == pytest.approx(macs, rel=1e-12)
        one = [session.run(image) for image in images[:20]]
        assert [answer.exit for answer in one] == [session.exit_names[i] for i in batch.exits[:20]]
    measured = call("eval", out, "--data", demo.parent / "test.npz", "--policy", "either", "--json")
    assert measured.json["accuracy"] == reports["either"]["test"]["accuracy"]["value"]


def test_given_thresholds_are_the_ones_used(call: Call, demo: Path) -> None:
    with_policies(demo, fitted=False)
    edited(demo, ('calibrate "calibrate.npz"', ""))
    out = demo.parent / "given"
    done = call("build", demo, "-o", out, "--quiet")
    assert done.status == 0
    assert "warning[missing-data]: The confidence of class means has no scale" in done.err
    stored = read_artifact(out).policies
    rule: Any = from_json(stored["softmax"].rule)
    assert rule.thresholds == (0.9, 0.9, 0.9)
    done = call("eval", out, "--data", demo.parent / "test.npz", "--budget", "mean macs <= 60 %")
    assert done.status == 1
    assert "all its thresholds were given" in done.err


def test_a_score_of_heads_that_are_not_there_is_refused(call: Call, demo: Path) -> None:
    edited(demo, ("linear(pool: 4)", "class_means(pool: 4)"))
    done = call("build", demo, "--json")
    assert (done.status, done.ids) == (1, ["no-exits"])
    assert "confidence(class_means)" in done.err


def test_the_network_with_its_exits_runs_in_onnx_runtime(
    call: Call, demo: Path, images: np.ndarray
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    out, emitted, folder = (demo.parent / name for name in ("emit", "exits.onnx", "ir"))
    done = call("build", demo, "-o", out, "--emit", emitted, "--dump-ir", folder, "--json")
    assert done.status == 0, done.err
    onnx.checker.check_model(str(emitted))
    session = runtime.InferenceSession(str(emitted), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    exits = [row["name"] for row in done.json["exits"][:-1]]
    assert names == ["logits", *(f"{name}.logits" for name in exits)]
    results = session.run(None, {"image": images[:1]})
    vectors = read_artifact(out).vectors()
    assert vectors
    compiled = eecompile.load(out).full_depth(images[0])
    np.testing.assert_allclose(results[0].reshape(-1), compiled.logits.reshape(-1), atol=1e-4)
    dumped = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    assert next(name for name in dumped if name.startswith("exits/")) == "exits/00-before.txt"
    assert any("insert-exits" in name for name in dumped)
    # Costs stand beside the segments and on the functions of TVM's IR, and change no code.
    costed = (folder / "costs" / "01-annotate-costs.txt").read_text()
    assert costed.count("\n# cost ") == 2 * len(exits) + 1
    functions = (folder / "functions.txt").read_text()
    count = len(read_artifact(out).manifest.network.functions())
    assert functions.count("eecompile.work") == functions.count("eecompile.cost") == count
    plain = demo.parent / "plain"
    assert call("build", demo, "-o", plain).status == 0
    assert content_digest(read_artifact(plain).manifest) == content_digest(
        read_artifact(out).manifest
    )
    taken = call("build", demo, "-o", out, "--emit", demo / "x.onnx", "--json")
    assert (taken.status, taken.ids) == (1, ["cannot-write"])


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(8 * 64, 10)

    def forward(self, image):
        return self.last(torch.flatten(self.second(self.first(image)), 1))


def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="no ONNX exporter")
def test_both_routes_give_the_same_exits(call: Call, demo: Path, images: np.ndarray) -> None:
    """One network as PyTorch and as ONNX: same segments, same exits, same logits."""
    torch = pytest.importorskip("torch")
    folder = demo.parent
    (folder / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    network = space["net"]().eval()
    torch.onnx.export(
        network, (torch.zeros(1, 1, 8, 8),), folder / "net.onnx", input_names=["image"],
        output_names=["logits"], dynamo=True, verbose=False,
    )  # fmt: skip
    text = (
        "eecompile 1\nmodel net {\n source SOURCE\n input image: float32[1, 1, 8, 8]\n"
        ' output logits: classes(10)\n exit early after "first" head linear(pool: 4)\n}\n'
        'data uci { fit "fit.npz" calibrate "calibrate.npz" test "test.npz" }\n'
        "policy some { exit when confidence(max_softmax) >= 0.6 }\n"
    )
    answers, segments = [], []
    for name, source in (("torch", 'torch "net.py:net"'), ("onnx", 'onnx "net.onnx"')):
        file = folder / f"{name}.ee"
        file.write_text(text.replace("SOURCE", source))
        emitted = folder / f"{name}.emitted"
        done = call("build", file, "-o", folder / name, "--emit", emitted, "--json")
        assert done.status == 0, done.err
        assert emitted.stat().st_size > 0
        session = eecompile.load(folder / name)
        answers.append(session.run_batch(images))
        segments.append(print_segments(inspect_path(folder / name).segments))
    one, other = answers
    assert segments[0] == segments[1]
    assert 0 < (one.exits == 0).sum() < len(images)
    np.testing.assert_array_equal(one.exits, other.exits)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
    program = torch.export.load(folder / "torch.emitted")
    given = program.module()(torch.from_numpy(images[:2]))
    final, early = next(iter(given.values())), given["early.logits"]
    assert final.shape == early.shape == (2, 10)
    expected = network(torch.from_numpy(images[:2])).detach().numpy()
    np.testing.assert_allclose(final.detach().numpy(), expected, atol=1e-5)
