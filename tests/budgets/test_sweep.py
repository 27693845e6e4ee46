"""`eval --sweep`: every policy at every operating point, as a table, as JSON and as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import eecompile
from eecompile.outcomes import evaluate
from eecompile.policies import NeverPolicy
from eecompile.policies.points import OperatingPoint
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.runtime.session import Session
from eecompile.spec import Budget
from eecompile.sweep_picture import draw_sweep
from eecompile.sweeping import Curve, Sweep, SweptPoint, front
from tests.budgets.records import COSTS, RULES, made
from tests.cli.calls import Call

FIGURES = {
    *("accuracy", "accuracy_interval", "accuracy_drop", "accuracy_drop_interval"),
    *("mean_macs_fraction", "mean_latency_s", "mean_energy_j", "provenance"),
}


def swept(call: Call, built: Path, *more: object) -> dict:  # type: ignore[type-arg]
    data = built / "test.npz"
    done = call("eval", built / "out", "--data", data, "--sweep", "--json", *more)
    assert done.status == 0, done.err
    return done.json


def test_each_point_is_what_the_compiled_network_does(
    call: Call, built: Path, images: np.ndarray
) -> None:
    found = swept(call, built)
    assert set(found) == {"n", "quantity", "full_depth", "policies", "left_out"}
    assert (found["n"], found["quantity"]) == (500, "macs")
    assert set(found["full_depth"]) == FIGURES
    (policy,) = found["policies"]
    assert policy["name"] == "quick"
    with np.load(built / "test.npz") as data:
        labels = data["labels"]
    net = eecompile.load(built / "out")
    stored = front(
        [
            OperatingPoint.from_json(value)
            for value in net.artifact.policies["quick"].report["points"]
        ],
        "macs",
    )
    built_in = [point for point in policy["points"] if point["built_in"]]
    assert len(built_in) == 1
    assert len(policy["points"]) in (len(stored), len(stored) + 1)
    macs = {point["mean_macs_fraction"]: point for point in policy["points"]}
    for point in (*stored[:3], stored[-1]):
        batch = Session(net.artifact, point.make()).run_batch(images)
        mean = np.asarray(batch.macs).mean() / net.manifest.network.macs
        key = min(macs, key=lambda one: abs(one - mean))
        assert key == pytest.approx(mean, rel=1e-9)
        assert macs[key]["accuracy"] == (batch.labels == labels).mean()
        assert set(macs[key]) == FIGURES | {"budget", "built_in"}
        low, high = macs[key]["accuracy_interval"]
        assert low <= macs[key]["accuracy"] <= high
    costs = list(macs)
    assert costs == sorted(costs)
    assert found["full_depth"]["mean_macs_fraction"] == pytest.approx(1)
    assert found["full_depth"]["provenance"]["macs"] == "counted"


def test_by_latency_points_are_those_of_latency_budgets(call: Call, built: Path) -> None:
    found = swept(call, built, "--by", "latency", "--policy", "quick", "--samples", 100)
    (policy,) = found["policies"]
    assert (found["n"], found["quantity"]) == (100, "latency")
    assert found["full_depth"]["provenance"]["latency"] == "measured"
    latencies = [point["mean_latency_s"] for point in policy["points"]]
    assert latencies == sorted(latencies)
    assert found["full_depth"]["mean_latency_s"] > latencies[0] > 0


def test_the_table_and_the_picture(call: Call, built: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.svg"
    sweep = ("eval", built / "out", "--data", built / "test.npz", "--sweep")
    done = call(*sweep, "--svg", picture)
    assert done.status == 0, done.err
    assert "40.0 %" in done.out
    assert "100.0 %" in done.out
    assert "whole network: 99.60 (100.0 %)" in done.out
    assert f"picture: {picture}" in done.out
    table, told = done.out.split("at most")[1], re.search(r"off by (\S+) % at most", done.out)
    shown = {float(cell) for cell in re.findall(r"(\d+\.\d\d) \(", table)}
    halves = {
        round(100 * point["accuracy"], 2): 50 * (interval[1] - interval[0])
        for policy in call(*sweep, "--json").json["policies"]
        for point in policy["points"]
        for interval in [point["accuracy_interval"]]
    }
    assert told and float(told[1]) == round(max(halves[cell] for cell in shown & set(halves)), 2)


@pytest.mark.parametrize(
    ("more", "id"),
    [
        (("--sweep", "--budget", "mean macs <= 60 %"), "bad-argument"),
        (("--sweep", "--state", "s.json"), "bad-argument"),
        (("--sweep", "--endpoint", "http://edge:8000"), "bad-argument"),
        (("--sweep", "--board", "raspberry-pi-4"), "bad-argument"),
        (("--by", "macs"), "bad-argument"),
        (("--svg", "x.svg"), "bad-argument"),
        (("--sweep", "--policy", "quik"), "bad-argument"),
    ],
)
def test_what_makes_no_sense_is_refused(
    more: tuple[str, ...], id: str, call: Call, built: Path
) -> None:
    done = call("eval", built / "out", "--data", built / "test.npz", *more, "--json")
    assert (done.status, done.ids) == (1, [id])


def curves(quantity: str) -> Sweep:
    """Policies on a record, without an artifact."""
    calibrate, test = made(CalibrateRecord, 1, 800), made(TestRecord, 2, 800)
    found = []
    for name in ("softmax", "patience", "means"):
        fitted = fit_policy(RULES[name], Budget("macs", 0.8), calibrate, COSTS)
        points = [
            SweptPoint(evaluate(p.make(), test, COSTS), p.budget, p == fitted.point, p)
            for p in front(fitted.points, quantity)
        ]
        found.append(Curve(f"<{name}>", str(RULES[name]), tuple(points)))
    whole = evaluate(NeverPolicy(3), test, COSTS)
    left_out = {"split": "learns & sends"}
    return Sweep("net", quantity, whole, COSTS[quantity].full_depth, tuple(found), left_out)


@pytest.mark.parametrize("quantity", ["macs", "latency"])
def test_the_picture_shows_every_policy_and_the_whole_network(quantity: str) -> None:
    sweep = curves(quantity)
    root = ElementTree.fromstring(draw_sweep(sweep))
    words = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for curve in sweep.curves:
        assert curve.name in words
    assert any(word.startswith("whole network: ") for word in words)
    assert any("left out" in word for word in words)
    lines = [p for p in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == len(sweep.curves)
    for line, curve in zip(lines, sweep.curves, strict=True):
        places = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert len(places) == len(curve.points)
        across = [x for x, _ in places]
        costs = [point.report.costs[quantity].value for point in curve.points]
        assert np.argsort(across).tolist() == np.argsort(costs).tolist()
        for (_, low), (_, high), one, other in zip(
            places, places[1:], curve.points, curve.points[1:], strict=False
        ):
            gain = other.report.accuracy.value - one.report.accuracy.value
            assert low - high == pytest.approx(gain * (places[0][1] - places[-1][1]) / max(
                curve.points[-1].report.accuracy.value - curve.points[0].report.accuracy.value,
                1e-9,
            ), abs=0.3)  # fmt: skip
