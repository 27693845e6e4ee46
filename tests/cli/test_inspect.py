"""What `inspect` shows of costs at many clocks, and of the rules that choose among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eecompile.artifact import read_artifact
from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.inspection import Inspection, inspect_path
from eecompile.report import held_out_lines
from tests.cli.calls import Call

STATES = tuple(
    DvfsState(cluster, hz)
    for cluster, hz in (("big", 6e8), ("big", 1e9), ("big", 1.8e9), ("little", 5e8))
)
COSTS: tuple[Cost | None, ...] = (
    None,
    Cost(4e-3, 1.5e-3, "modelled", "modelled"),
    Cost(2e-3, 2.5e-3, "measured", "modelled"),
    Cost(8e-3, provenance="measured"),
)
TABLE = CostTable("rk3399", "rk3399", None, 2, STATES, (CostRow("all", Work(), COSTS),))
RULES = {
    "eco": ClockRule("lowest_energy", 0.04, safe=True, start=1),
    "fast": ClockRule("lowest_latency"),
}


@pytest.fixture
def inspected(demo: Path, monkeypatch: pytest.MonkeyPatch) -> Inspection:
    """The demo with these costs and rules, which `inspect` then shows."""
    found = replace(inspect_path(demo), costs=TABLE, rules=RULES, reports={})
    monkeypatch.setattr("eecompile.inspection.inspect_path", lambda path, trusted: found)
    return found


def test_each_clusters_fastest_and_slowest_clock_with_costs_are_shown(
    call: Call, demo: Path, inspected: Inspection
) -> None:
    shown = [line.split() for line in call("inspect", demo).out.splitlines()]
    at = shown.index("full depth, 2 threads, board rk3399: 3 of 4 clocks".split())
    assert shown[at:] == [
        "full depth, 2 threads, board rk3399: 3 of 4 clocks".split(),
        "cluster clock latency energy".split(),
        "big 1.8 GHz 2.00 ms measured 2.5 mJ modelled".split(),
        "big 1 GHz 4.00 ms modelled 1.5 mJ modelled".split(),
        "little 500 MHz 8.00 ms measured -".split(),
        [],
        "policy eco: frequency lowest_energy, deadline 40.0 ms safe; samples begin on big at "
        "1 GHz".split(),
        "policy fast: frequency highest".split(),
    ]


def test_scripts_get_the_full_depth_at_every_clock(
    call: Call, demo: Path, inspected: Inspection
) -> None:
    found = call("inspect", demo, "--json").json
    assert found["clocks"] == {
        "eco": "frequency lowest_energy, deadline 40.0 ms safe",
        "fast": "frequency highest",
    }
    points = found["costs"]["full_depth"]["points"]
    assert [point["frequency_hz"] for point in points] == [1e9, 1.8e9, 5e8]
    assert found["costs"]["threads"] == 2


def test_a_file_has_no_costs_yet(call: Call, demo: Path) -> None:
    found = call("inspect", demo, "--json").json
    assert (found["costs"], found["clocks"]) == (None, {})


def test_policies_are_told_as_the_build_told_them(call: Call, built: Path) -> None:
    shown = call("inspect", built / "out").out.splitlines()
    reports = inspect_path(built / "out").to_json()["reports"]
    artifact = read_artifact(built / "out")
    assert artifact.costs is not None and set(reports) == set(artifact.policies)
    for name, report in reports.items():
        own = held_out_lines(name, report, artifact.costs.threads)
        at = shown.index(own[0])
        assert shown[at : at + len(own)] == own
        count = len(report["points"])
        assert shown[at + len(own)].startswith(f"  {count} settings to choose from, at ")


def test_a_report_of_somebody_elses_is_no_hindrance(built: Path) -> None:
    found = replace(inspect_path(built / "out"), reports={"fast": {"accuracy": 0.9}})
    assert found.policy_lines == ["fast: its report is none of this version's"]
