"""Another budget where the artifact runs: on the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import eecompile
from eecompile.artifact import read_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.policies import to_json
from eecompile.policies.points import OperatingPoint, choose
from tests.cli.calls import Call


@pytest.fixture(scope="module")
def artifact(built: Path) -> Path:
    return built / "out"


def points(artifact: Path) -> list[OperatingPoint]:
    stored = read_artifact(artifact).policies["quick"].report["points"]
    return [OperatingPoint.from_json(point) for point in stored]


def test_a_session_takes_the_point_of_a_budget(artifact: Path, images: np.ndarray) -> None:
    chosen = choose(points(artifact), {"macs": 0.6})
    with eecompile.load(artifact, budget={"macs": 0.6}) as net:
        assert net.policy == "quick"
        assert net.budget == {"macs": 0.6}
        own = eecompile.load(artifact, chosen.make()).run_batch(images)
        batch = net.run_batch(images)
        np.testing.assert_array_equal(batch.exits, own.exits)
        np.testing.assert_array_equal(net.clone().run_batch(images).exits, own.exits)
        net.set_policy("quick")
        assert net.budget is None
        built_in = net.run_batch(images).exits
        net.set_budget({"macs": 0.6, "accuracy_drop": 0.5})
        both = choose(points(artifact), {"macs": 0.6, "accuracy_drop": 0.5})
        again = eecompile.load(artifact, both.make()).run_batch(images)
        np.testing.assert_array_equal(net.run_batch(images).exits, again.exits)
    assert (built_in != own.exits).any()


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("mean macs <= 60 %", '`{"macs": 0.6}`'),
        ({}, "limits by quantity"),
        ({"mac": 0.6}, "Unknown quantity `mac`"),
        ({"macs": "60 %"}, "Expected a number"),
        ({"macs": True}, "Expected a number"),
        ({"macs": 60}, "60 % is 0.6"),
        ({"accuracy_drop": 5.0}, "60 % is 0.6"),
        ({"macs": float("nan")}, "Expected a number"),
        ({"macs": 0.01}, "the strictest that can be kept is mean macs <= "),
        ({"energy": 1e-9}, "operating points"),
    ],
)
def test_what_is_no_budget_is_refused(artifact: Path, budget: object, words: str) -> None:
    net = eecompile.load(artifact)
    with pytest.raises(CompileErrors) as raised:
        net.set_budget(budget)  # type: ignore[arg-type]
    assert words in str(raised.value) + "".join(d.full() for d in raised.value.diagnostics)
    assert (net.policy, net.budget) == ("quick", None)


def test_the_range_in_reach_has_two_ends(artifact: Path) -> None:
    with pytest.raises(CompileErrors) as raised:
        eecompile.load(artifact, budget={"macs": 0.01})
    (diagnostic,) = raised.value.diagnostics
    least = min(point.at_most["macs"] for point in points(artifact))
    assert f"<= {100 * least:.6g} %" in diagnostic.notes[0]
    assert "needs mean macs <= 100 %" in diagnostic.notes[1]


def test_a_policy_of_ones_own_has_no_points(artifact: Path) -> None:
    net = eecompile.load(artifact, points(artifact)[0].make())
    with pytest.raises(CompileErrors, match="Only a stored policy"):
        net.set_budget({"macs": 0.6})


def test_run_takes_a_budget(
    call: Call,
    artifact: Path,
    images: np.ndarray,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", images[:40])
    run = ("run", artifact, "--input", tmp_path / "x.npy", "--json")
    done = call(*run, "--budget", "mean macs <= 60 %")
    assert done.status == 0, done.err
    with eecompile.load(artifact, budget={"macs": 0.6}) as net:
        expected = [net.run(image).exit for image in images[:40]]
    assert [answer["exit"] for answer in done.json["answers"]] == expected
    refused = call(*run, "--budget", "mean macs <= 1 %")
    assert (refused.status, refused.ids) == (1, ["infeasible-budget"])
    assert call(*run, "--budget", "mean macs <= 60 %", "--full-depth").ids == ["bad-argument"]
    assert call(*run, "--budget", "60 %").status == 1


def test_eval_and_the_session_choose_alike(call: Call, artifact: Path, built: Path) -> None:
    data = built / "test.npz"
    done = call("eval", artifact, "--data", data, "--budget", "mean macs <= 60 %", "--json")
    with np.load(data) as arrays:
        digits = arrays["images"][:, None]
    with eecompile.load(artifact, budget={"macs": 0.6}) as net:
        batch = net.run_batch(digits, normalize=True)
    shares = {row["name"]: row["fraction"] for row in done.json["exits"]}
    counts = {name: count / len(digits) for name, count in batch.exit_counts.items()}
    assert shares == pytest.approx(counts)


def test_points_in_the_artifact_are_of_every_tenth(artifact: Path) -> None:
    found = points(artifact)
    least = min(point.at_most["macs"] for point in found)
    for percent in range(10, 101, 10):
        if percent / 100 > least:
            assert choose(found, {"macs": percent / 100}).at_most["macs"] <= percent / 100 + 1e-9
    assert all(set(point.costs) >= {"macs", "latency"} for point in found)
    assert json.dumps([to_json(point.make()) for point in found])
