"""From a `.ee` file to answers on both hosts: heads on the way to a forecast exit do not run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import Artifact, read_artifact
from eecompile.cache import Cache
from eecompile.compiled import Function
from eecompile.console import Steps
from eecompile.demo import run as demo
from eecompile.driver import BuildOptions, build
from eecompile.policies import ExitOutputs, ExitPolicy, Replay, from_json, replay
from eecompile.report import held_out_lines
from eecompile.runtime.library import Code, Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from tests.runtime.tiny import CODE

torch = pytest.importorskip("torch", reason="needs torch for the PyTorch route")
if importlib.util.find_spec("onnxscript") is None:
    pytest.skip("no ONNX exporter", allow_module_level=True)

DATA = Path(demo.__file__).parent
DEPTH = 5
NET = f"""
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range({DEPTH})))
        self.last = nn.Linear(8 * 16, 10)

    def forward(self, image):
        x = self.blocks(torch.relu(self.first(image)))
        return self.last(torch.flatten(nn.functional.avg_pool2d(x, 2), 1))


def net():
    torch.manual_seed(0)
    return Net()
"""
POLICIES = {
    "ours": "predicted(start: e1, window: 4, beta: 2.5)",
    "in_order": "predicted(start: e1, window: 1, beta: 2.5)",
    "published": "predicted(start: e1, forecast: class_order, beta: 2.5)",
    "by_value": "predicted(start: e2, forecast: sorted, beta: 2.5)",
    "tuned": "predicted   budget mean macs <= 70 %",
}


def trained() -> tuple[Any, Mapping[str, np.ndarray]]:
    """The network after a few rounds over real digits, and the digits it was not shown."""
    space: dict[str, Any] = {}
    exec(NET, space)
    network = space["net"]()
    with np.load(DATA / "fit.npz") as data:
        x = torch.from_numpy(data["images"].astype(np.float32) / 255)[:, None]
        y = torch.from_numpy(data["labels"].astype(np.int64))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other on maps this small
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    torch.set_num_threads(threads)
    with np.load(DATA / "test.npz") as data:
        return network.eval(), dict(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of both routes, and `images.npy`."""
    found = tmp_path_factory.mktemp("predicted")
    network, test = trained()
    torch.save(network.state_dict(), found / "net.pt")
    (found / "net.py").write_text(NET)
    torch.onnx.export(
        network, (torch.zeros(1, 1, 8, 8),), found / "net.onnx", input_names=["image"],
        output_names=["logits"], dynamo=True, verbose=False,
    )  # fmt: skip
    np.save(found / "images.npy", (test["images"].astype(np.float32) / np.float32(255))[:, None])
    np.save(found / "labels.npy", test["labels"])
    exits = "\n".join(
        f'exit e{k + 1} after "blocks.{k}" head linear(pool: 2)' for k in range(DEPTH)
    )
    policies = "\n".join(f"policy {name} {{ exit when {p} }}" for name, p in POLICIES.items())
    data = " ".join(f'{split} "{DATA / split}.npz"' for split in ("fit", "calibrate", "test"))
    sources = {"torch": 'torch "net.py:net" weights "net.pt"', "onnx": 'onnx "net.onnx"'}
    for name, source in sources.items():
        file = found / f"{name}.ee"
        file.write_text(
            f"eecompile 1\nmodel net {{\nsource {source}\ninput image: float32[1, 1, 8, 8]\n"
            f"output logits: classes(10)\n{exits}\n}}\ndata uci {{ {data} }}\n{policies}\n"
        )
        report = build(
            file, BuildOptions(output=found / name), Steps(10, quiet=True), Cache(found / "cache")
        )
        (found / f"{name}.json").write_text(json.dumps(dict(report.summary)))
    return found


@pytest.fixture(scope="module")
def images(folder: Path) -> np.ndarray:
    found: np.ndarray = np.load(folder / "images.npy")
    return found


class Counting(Library):
    """Writes down each call of a function."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact.library, artifact.weights, "counted")
        self.calls: list[str] = []

    def function(self, function: Function) -> Code:
        code = super().function(function)

        def counted(frame: int, *arguments: Any) -> int:
            self.calls.append(function.symbol)
            return code(frame, *arguments)

        wrapped: Code = CODE(counted)
        return wrapped


def stored(artifact: Artifact, name: str) -> ExitPolicy:
    return from_json(artifact.policies[name].rule)


def replayed(artifact: Artifact, policy: ExitPolicy, images: np.ndarray) -> Replay:
    """What the policy does to what the compiled heads give."""
    network = artifact.manifest.network
    library = Library(artifact.library, artifact.weights, "all")
    names = [f"{exit_.name}.logits" for exit_ in network.exits]
    values = Runner.of(library, network).run_all(images, [*names, network.output])
    return replay(policy, [ExitOutputs(values[n]) for n in names], values[network.output])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("route", ["onnx", "torch"])
def test_only_forecast_heads_run_and_the_replay_knows_which(
    folder: Path, images: np.ndarray, route: str, policy: str
) -> None:
    artifact = read_artifact(folder / route)
    library = Counting(artifact)
    session = Session(artifact, policy, library=library)
    expected = replayed(artifact, stored(artifact, policy), images[:150])
    network, skipped = artifact.manifest.network, 0
    heads = {exit_.functions[0].symbol: k for k, exit_ in enumerate(network.exits)}
    for sample, image in enumerate(images[:150]):
        library.calls.clear()
        answer = session.run(image)
        ran = [heads[call] for call in library.calls if call in heads]
        assert network.exit_names[expected.exit[sample]] == answer.exit
        assert ran == np.flatnonzero(expected.evaluated[sample]).tolist()
        assert answer.heads_run == len(ran)
        assert answer.segments_run == expected.exit[sample] + 1
        np.testing.assert_array_equal(answer.logits, expected.logits[sample])
        if ran:
            skipped += ran[-1] - ran[0] + 1 - len(ran)
    if policy != "tuned":  # which may find that all had best leave at once
        assert (skipped == 0) == (policy == "in_order")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_goes_as_its_samples(folder: Path, images: np.ndarray, policy: str) -> None:
    artifact = read_artifact(folder / "onnx")
    batch = Session(artifact, policy).run_batch(images)
    expected = replayed(artifact, stored(artifact, policy), images)
    np.testing.assert_array_equal(batch.exits, expected.exit)
    np.testing.assert_array_equal(batch.heads_run, expected.evaluated.sum(axis=1))


@pytest.mark.parametrize("policy", POLICIES)
def test_both_routes_answer_alike(folder: Path, images: np.ndarray, policy: str) -> None:
    one, other = (
        Session(read_artifact(folder / route), policy).run_batch(images)
        for route in ("onnx", "torch")
    )
    np.testing.assert_array_equal(one.exits, other.exits)
    np.testing.assert_array_equal(one.heads_run, other.heads_run)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_the_report_is_what_the_artifact_does(folder: Path, images: np.ndarray) -> None:
    labels = np.load(folder / "labels.npy")
    summary = json.loads((folder / "onnx.json").read_text())["policies"]
    for name in POLICIES:
        report, session = summary[name], Session(read_artifact(folder / "onnx"), name)
        batch = session.run_batch(images)
        forecast = report["forecast"]["test"]
        assert forecast["heads"] == batch.heads_run.mean()
        assert report["test"]["accuracy"]["value"] == (batch.labels == labels).mean()
        assert report["forecast"]["calibrate"]["start"] == forecast["start"]
        line = f"{forecast['heads']:.2f} heads each, {forecast['heads_in_order']:.2f} in order"
        assert any(text.endswith(line) for text in held_out_lines(name, report, 1))
    in_order = summary["in_order"]["forecast"]["test"]
    assert in_order["heads"] == in_order["heads_in_order"]
    assert [start["hits"] for start in in_order["starts"]] == [1.0] * DEPTH


def test_operating_points_are_usable(folder: Path, images: np.ndarray) -> None:
    artifact = read_artifact(folder / "onnx")
    points = artifact.policies["tuned"].report["points"]
    heads = []
    for point in points:
        session = Session(artifact, from_json(point["policy"]))
        heads.append(session.run_batch(images).heads_run.mean())
    assert len(points) >= 3
    assert heads[-1] == 0, "the last never leaves early"
