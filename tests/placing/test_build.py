"""From `exits auto` to an artifact: what is chosen is built, recorded once, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import eecompile
from eecompile.artifact import read_artifact
from eecompile.build_options import BuildOptions
from eecompile.planning import plan
from tests.cli.calls import Call, in_process
from tests.placing.conftest import CLASSES, FILE, SOURCES, WIDTH, Build


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return in_process(capfd)


def test_what_is_chosen_is_what_is_built(built: Build) -> None:
    path, summary = built()
    placing = summary["placing"]
    assert 1 <= len(placing["chosen"]) <= 3
    network = read_artifact(path).manifest.network
    assert network.exit_names == (*placing["chosen"], "final")
    assert [row["name"] for row in summary["exits"][:-1]] == placing["chosen"]
    assert summary["policies"]["p"]["test"]["budget_missed_by"] < 0.05
    assert eecompile.load(path).policies == ("p",)


def test_the_table_says_why(built: Build) -> None:
    placing = built()[1]["placing"]
    rows = placing["candidates"]
    assert [row["name"] for row in rows] == [f"blocks_{k}" for k in range(5)]
    assert [row["point"] for row in rows] == [f"blocks.{k}" for k in range(5)]
    macs, head = 2 * WIDTH * 16 * 4, WIDTH * CLASSES  # of a block, of a head on the mean token
    total = 6 * macs + head
    for k, row in enumerate(rows):
        assert row["backbone_fraction"] == pytest.approx((k + 1) * macs / total)
        assert row["head_fraction"] == pytest.approx(head / total)
        assert row["chosen"] == (row["name"] in placing["chosen"])
        assert (row["gain"] is None) == (not row["chosen"])
        assert 1 / 3 < row["accuracy"] <= 1
    assert [size["count"] for size in placing["sizes"]] == [1, 2, 3]
    (best,) = (size for size in placing["sizes"] if size["chosen"])
    assert best["exits"] == placing["chosen"]
    assert best["value"] == max(size["value"] for size in placing["sizes"])
    assert (placing["aim"], placing["exhaustive"]) == (
        "accuracy at mean macs <= 60 % (policy p)",
        True,
    )


def test_both_routes_place_the_same_exits(built: Build) -> None:
    onnx, torch = (built(route)[1]["placing"] for route in ("onnx", "torch"))
    assert onnx["chosen"] == torch["chosen"]
    kept = ("name", "point", "backbone_fraction", "head_fraction", "chosen")
    assert [[row[key] for key in kept] for row in onnx["candidates"]] == [
        [row[key] for key in kept] for row in torch["candidates"]
    ]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many records are made and heads fitted from here on."""
    from eecompile.heads import fit_heads
    from eecompile.record import record

    done = {"records": 0, "heads": 0}

    def counted_record(*arguments: Any, **options: Any) -> Any:
        done["records"] += 1
        return record(*arguments, **options)

    def counted_fit(jobs: Any, *arguments: Any, **options: Any) -> Any:
        done["heads"] += len(jobs)
        return fit_heads(jobs, *arguments, **options)

    monkeypatch.setattr("eecompile.recording.record", counted_record)
    monkeypatch.setattr("eecompile.head_fitting.fit_heads", counted_fit)
    return done


def test_data_are_run_once_for_all_choices(built: Build, work: dict[str, int]) -> None:
    """Of three splits there is one record each, of five candidates one head each."""
    built("onnx", "1..3", "mean macs <= 75 %")
    assert work in ({"records": 0, "heads": 0}, {"records": 3, "heads": 5})
    before = dict(work)
    summary = built("onnx", "2", "accuracy drop <= 4 %")[1]
    assert work == before
    assert len(summary["placing"]["chosen"]) == 2
    assert summary["placing"]["less_is_better"]
    assert summary["placing"]["aim"] == "mean macs at accuracy drop <= 4 % (policy p)"


def test_latency_budgets_count_measured_kernels(built: Build) -> None:
    placing = built("onnx", "1..2", "mean latency <= 1 ms")[1]["placing"]
    assert (placing["quantity"], placing["provenance"]) == ("latency", "measured")
    # All of it takes less than a millisecond: no exit is worth anything, and the least are chosen.
    assert [size["value"] for size in placing["sizes"]] == [placing["sizes"][0]["value"]] * 2


def test_inspect_shows_it_again(built: Build, call: Call) -> None:
    path, summary = built()
    assert call("inspect", path, "--json").json["placing"] == summary["placing"]
    shown = [line.split() for line in call("inspect", path).out.splitlines()]
    chosen = summary["placing"]["chosen"]
    table = [line for line in shown if line[:1] and line[0].startswith("blocks_")]
    rows = table[len(chosen) :]
    assert [row[0] for row in rows] == [f"blocks_{k}" for k in range(5)]
    assert [row[0] for row in rows if "yes" in row] == chosen
    assert "exits chosen: 1 to 3 of 5, by accuracy at mean macs <= 60 %".split() in [
        line[:15] for line in shown
    ]


def test_dry_runs_and_files_show_the_candidates(folder: Path, call: Call) -> None:
    file = folder / "dry.ee"
    file.write_text(FILE.format(source=SOURCES["onnx"], count="2..3", budget="mean macs <= 60 %"))
    planned = plan(file, BuildOptions(output=folder / "dry.artifact"))
    names = [f"blocks_{k}" for k in range(5)]
    assert planned["placing"] == {"count": [2, 3], "candidates": names, "named": []}
    assert [row["name"] for row in planned["exits"][:-1]] == names
    choice = "choose 2 to 3 of 5 exits by accuracy at mean macs <= 60 % (policy p)"
    assert choice in planned["steps"]
    assert not (folder / "dry.artifact").exists()
    found = call("inspect", file, "--json").json
    assert [row["name"] for row in found["exits"][:-1]] == names
    assert (found["placing"], found["auto_exits"]) == (None, "2 to 3")


def test_check_counts_the_candidates(folder: Path, call: Call) -> None:
    file = folder / "many.ee"
    file.write_text(FILE.format(source=SOURCES["onnx"], count="9", budget="mean macs <= 60 %"))
    done = call("check", file, "--json")
    assert (done.status, done.ids) == (1, ["bad-option"])
    assert done.json["diagnostics"][0]["message"] == "Expected a number of exits up to 5, found 9"
