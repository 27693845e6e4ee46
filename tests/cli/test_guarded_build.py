"""From `guard` in a file to an artifact that watches itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eecompile
from eecompile.artifact import read_artifact
from eecompile.guard_rule import RESERVE, GuardRule
from eecompile.policies import from_json
from tests.cli.calls import Call


@pytest.fixture(scope="module")
def guarded(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with its policy guarded, and one that differs too often from the start."""
    from eecompile.cli import main

    text = (built / "digits.ee").read_text().replace('"fit.npz"', f'"{built}/fit.npz"')
    for name in ("calibrate", "test"):
        text = text.replace(f'"{name}.npz"', f'"{built}/{name}.npz"')
    text = text.replace('"digits.onnx"', f'"{built}/digits.onnx"')
    text += (
        "policy watched { exit when confidence(max_softmax) budget mean macs <= 70 % "
        "guard accuracy drop <= 20 % audit 10 % }\n"
        "policy eager { exit when confidence(max_softmax) budget mean macs <= 60 % "
        "guard accuracy drop <= 0.1 % }\n"
    )
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "digits.ee").write_text(text)
    command = ["build", str(folder / "digits.ee"), "-o", str(folder / "out"), "--quiet"]
    assert main(command) == 0
    return folder / "out"


def rule(artifact: Path, name: str) -> GuardRule:
    return GuardRule.from_json(read_artifact(artifact).policies[name].guard)


def test_settings_are_ever_more_careful(guarded: Path) -> None:
    entries = read_artifact(guarded).policies
    assert entries["quick"].guard is None
    for name, drop, share in (("watched", 0.2, 0.1), ("eager", 0.001, 0.02)):
        found = rule(guarded, name)
        assert (found.drop, found.share) == (drop, share)
        assert found.settings[0].policy == entries[name].rule
        differing = [setting.differing for setting in found.settings]
        assert differing == sorted(differing, reverse=True) and len(set(differing)) > 1
        ends = [setting.exits[-1] for setting in found.settings]
        assert ends == sorted(ends) and ends[-1] < 1
        # Beside the operating points there are settings in between, and beyond them.
        points = [point["policy"] for point in entries[name].report["points"]]
        assert any(setting.policy not in points for setting in found.settings[1:])
        told = entries[name].report["guard"]
        assert told["calibrate"] == differing and len(told["test"]) == len(differing)
        assert told["start"] == sum(share > RESERVE * drop for share in differing)


def test_cost_is_told_of_the_setting_a_guard_begins_with(guarded: Path) -> None:
    network = read_artifact(guarded).manifest.network
    heads = sum(exit_.macs for exit_ in network.exits) / network.macs
    for name, share in (("watched", 0.1), ("eager", 0.02)):
        report = read_artifact(guarded).policies[name].report
        told, built = report["guard"], report["test"]["costs"]["macs"]["value"]
        audited = share * (1 + heads)
        if told["start"] == 0:
            expected = audited + (1 - share) * built
            assert told["test_macs_at_start"] == pytest.approx(expected)
        elif told["start"] == told["settings"]:
            assert told["test_macs_at_start"] == pytest.approx(audited + 1 - share)
        else:
            assert audited + (1 - share) * built < told["test_macs_at_start"] < 1 + heads


def test_settings_do_to_calibration_data_what_they_say(guarded: Path, built: Path) -> None:
    with np.load(built / "calibrate.npz") as data:
        images = data["images"][:, None].astype(np.float32) / np.float32(255)
    net = eecompile.load(guarded)
    final = net.full_depth_batch(images).labels
    for setting in rule(guarded, "eager").settings:
        net.set_policy(from_json(setting.policy))
        batch = net.run_batch(images)
        # Recorded and computed one by one, logits differ by rounding.
        assert float(np.mean(batch.labels != final)) == pytest.approx(setting.differing, abs=0.004)


def test_what_differs_too_often_at_calibration_is_not_begun_with(
    guarded: Path, images: np.ndarray
) -> None:
    with eecompile.load(guarded, "eager") as net:
        assert net.guard is not None
        start = sum(s.differing > 0.001 * RESERVE for s in rule(guarded, "eager").settings)
        assert net.guard.setting == start > 0 and net.guard.tightened == 0
    with eecompile.load(guarded, "watched") as net:
        batch = net.run_batch(images)
        assert net.guard is not None
        assert net.guard.samples == len(images)
        assert 0 < net.guard.audits < len(images)
        assert (batch.exits < 3).any()


def test_eval_shows_the_guard(call: Call, guarded: Path, built: Path) -> None:
    done = call("eval", guarded, "--data", built / "test.npz", "--policy", "watched")
    assert "audits differed from full depth, at most 20.00 % may; setting 1 of" in done.out
