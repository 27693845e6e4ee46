"""From a `.ee` file to answers: a learned score decides in the artifact as in the replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import read_artifact
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.demo import run as demo
from eecompile.driver import build
from eecompile.policies import ExitOutputs, LearnedScorePolicy, from_json, replay
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session

DATA = Path(demo.__file__).parent
POLICIES = {"learned": "learned_score(restarts: 1)", "quota": "learned_score(thresholds: quota)"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the demonstration's network with learned policies, and its report."""
    found = tmp_path_factory.mktemp("learned")
    text = (DATA / "digits.ee").read_text().partition("policy ")[0]
    for name in ("digits.onnx", "fit.npz", "calibrate.npz", "test.npz"):
        text = text.replace(f'"{name}"', f'"{DATA / name}"')
    for name, rule in POLICIES.items():
        text += f"policy {name} {{ exit when {rule} budget mean macs <= 60 % }}\n"
    (found / "digits.ee").write_text(text)
    options = BuildOptions(output=found / "artifact")
    report = build(found / "digits.ee", options, Steps(10, quiet=True), Cache(found / "cache"))
    (found / "report.json").write_text(json.dumps(dict(report.summary)))
    return found / "artifact"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DATA / "test.npz") as data:
        return np.asarray(data["images"][:200, None] / np.float32(255), np.float32)


@pytest.mark.parametrize("name", POLICIES)
def test_alone_in_a_batch_and_in_a_replay_every_answer_is_the_same(
    folder: Path, images: np.ndarray, name: str
) -> None:
    artifact = read_artifact(folder)
    policy = from_json(artifact.policies[name].rule)
    assert isinstance(policy, LearnedScorePolicy)
    network = artifact.manifest.network
    names = [f"{exit_.name}.logits" for exit_ in network.exits]
    library = Library(artifact.library, artifact.weights, "all")
    values = Runner.of(library, network).run_all(images, [*names, network.output])
    expected = replay(policy, [ExitOutputs(values[n]) for n in names], values[network.output])
    assert len(np.unique(expected.exit)) > 1
    session = Session(artifact, name)
    batch = session.run_batch(images)
    np.testing.assert_array_equal(batch.exits, expected.exit)
    np.testing.assert_array_equal(batch.heads_run, expected.evaluated.sum(axis=1))
    for image, taken, ran, logits in zip(
        images, expected.exit, expected.evaluated, expected.logits, strict=True
    ):
        answer = session.run(image)
        assert answer.exit == network.exit_names[taken]
        assert answer.heads_run == ran.sum()
        np.testing.assert_array_equal(answer.logits, logits)


@pytest.mark.parametrize("name", POLICIES)
def test_the_build_keeps_the_budget_and_reports_on_test_data(folder: Path, name: str) -> None:
    report = json.loads((folder.parent / "report.json").read_text())["policies"][name]
    assert report["calibrate"]["at_most"]["macs"] <= 0.6
    assert report["test"]["costs"]["macs"]["value"] <= 0.6
    kinds = {point["policy"]["kind"] for point in report["points"]}
    assert kinds == {"learned_score"}
    assert read_artifact(folder).policies[name].report["points"] == report["points"]
