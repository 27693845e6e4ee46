"""Builds of networks with gates whose policies choose clocks: told, replayed and run alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import Artifact, read_artifact
from eecompile.cli import main
from eecompile.hardware import machine
from eecompile.runtime.governor import RecordingGovernor
from eecompile.runtime.session import Session
from tests.cli.calls import Call, evaluating, gated_demo

BOARDS = Path(__file__).parent.parent.parent / "targets" / "boards"
#: The first three at one clock or by energy, with nothing late; the last cannot always be in time.
POLICIES = """
policy fixed  { budget mean macs <= 60 %   frequency 1.2 GHz }
policy paced  { budget mean macs <= 60 %   deadline 2.5 ms safe   frequency lowest_energy }
policy leaves { exit when confidence(max_softmax)   budget accuracy drop <= 0.5 %
                deadline 2.5 ms safe   frequency lowest_energy }
policy forced { exit when confidence(max_softmax)   budget accuracy drop <= 0.5 %
                deadline 0.2 ms hard   frequency highest }
target host   { board "mine.toml"   cluster "little" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The demo with gates on this machine's cores at the clocks of a board; its artifact, `out`."""
    folder = tmp_path_factory.mktemp("clocked")
    file = gated_demo(folder, POLICIES)
    family = "arm-cpu" if machine("host").triple.startswith("aarch64") else "x86-64"
    cores = (BOARDS / f"{family}.toml").read_text()
    clocks = (BOARDS / "rk3399.toml").read_text()
    (folder / "mine.toml").write_text(cores + clocks[clocks.index("[[cluster]]") :])
    assert main(["build", str(file), "-o", str(folder / "out"), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return read_artifact(folder / "out")


@pytest.mark.parametrize("name", ["fixed", "paced", "leaves", "forced"])
def test_what_is_told_is_what_a_replay_gives(
    name: str, call: Call, folder: Path, artifact: Artifact
) -> None:
    told = artifact.policies[name].report["clock"]
    given = ("--policy", name, "--board", folder / "mine.toml", "--cluster", "little")
    found = evaluating(call, folder)(*given, data="digits.ee")
    chosen = told["test"]["chosen"]
    for key in ("accuracy", "mean_latency_s", "mean_energy_j", "deadline_misses", "n"):
        assert found[key] == pytest.approx(chosen[key], rel=1e-6)
    for run in ("early_exit_top_clock", "full_depth_top_clock"):
        for key in ("accuracy", "mean_latency_s", "mean_energy_j"):
            assert found["baselines"][run][key] == pytest.approx(told["test"][run][key], rel=1e-6)
    assert told["test"]["full_depth_top_clock"]["mean_energy_j"] > chosen["mean_energy_j"]


def test_deadlines_are_kept_and_clocks_save_energy(artifact: Artifact) -> None:
    for name in ("paced", "leaves"):
        told = artifact.policies[name].report["clock"]
        test = told["test"]
        assert test["chosen"]["deadline_misses"] == 0
        assert test["chosen"]["mean_energy_j"] < test["early_exit_top_clock"]["mean_energy_j"]
        assert told["fitting"]["start"]["cluster"] == "little"
        assert told["fitting"]["settings"] == 1
    forced = artifact.policies["forced"].report["clock"]["test"]["chosen"]
    assert forced["forced_answers"] > 0


def test_energies_of_answers_are_those_of_the_replay(artifact: Artifact, folder: Path) -> None:
    """At one clock, so that no time that passes here decides."""
    assert artifact.costs is not None
    with np.load(folder / "test.npz") as data:
        images = data["images"]
    governor = RecordingGovernor(artifact.costs.states)
    with Session(artifact, "fixed", governor=governor) as net:
        answers = [net.run(image[None], normalize=True) for image in images]
    told = artifact.policies["fixed"].report["clock"]["test"]["chosen"]
    energies = [answer.energy_j for answer in answers if answer.energy_j is not None]
    assert len(energies) == len(images) == told["n"]
    assert np.mean(energies) == pytest.approx(told["mean_energy_j"], rel=1e-6)
    assert {answer.frequency_hz for answer in answers} == {1.2e9}


def test_an_artifact_of_its_own_shift_is_told_of_at_it(artifact: Artifact) -> None:
    for name in ("fixed", "paced"):
        assert artifact.policies[name].rule["gate_shift"] != 0
        report = artifact.policies[name].report
        assert report["clock"]["test"]["chosen"]["accuracy"] == report["test"]["accuracy"]["value"]


def test_a_deadline_that_no_clock_keeps_counts_the_gates(call: Call, folder: Path) -> None:
    done = call(
        *("build", folder / "digits.ee", "-o", folder / "other", "--json"),
        *("--set", "policy.paced.deadline=1 us"),
    )
    assert done.status == 1 and "impossible-deadline" in done.ids
