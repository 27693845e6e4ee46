"""From the file to the artifact and its figures: what is checked, told, and met by every sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import read_artifact
from eecompile.halt_rule import HaltRule
from tests.cli.calls import Call, edited

HALTS = {
    "capped": HaltRule(macs=0.6),
    "both": HaltRule(macs=0.8),
    "patient": HaltRule(macs=0.9),
    "timed": HaltRule(latency_s=100.0),
}


@pytest.mark.parametrize("name", HALTS)
def test_eval_and_the_builds_report_agree(call: Call, halting: Path, name: str) -> None:
    artifact = halting / "out"
    entry = read_artifact(artifact).policies[name]
    assert entry.halt is not None
    assert HaltRule.from_json(entry.halt) == HALTS[name]
    data = halting / "test.npz"
    done = call("eval", artifact, "--data", data, "--policy", name, "--json")
    assert done.status == 0, done.err
    told, found = entry.report["test"], done.json
    assert found["halt"] == entry.report["halt"]["rule"] == str(HALTS[name])
    assert found["halted"] == entry.report["halt"]["test"]["halted"]
    assert found["accuracy"] == told["accuracy"]["value"]
    assert found["exits"] == told["exits"]
    assert found["mean_macs_fraction"] == pytest.approx(told["costs"]["macs"]["value"])
    (quantity,) = HALTS[name].given
    assert found["over_budget"] == {quantity: {"samples": 0, "most": 0.0}}
    if quantity == "macs":
        assert entry.report["halt"]["test"]["worst"] <= HALTS[name].given["macs"]
    assert found["worst_latency_s"] >= found["p99_latency_s"]


def test_the_exits_of_a_halt_alone_are_the_deepest_that_fit(halting: Path) -> None:
    with ee.load(halting / "out", "capped") as net, np.load(halting / "test.npz") as arrays:
        batch = net.run_batch(arrays["images"][:, None], normalize=True)
    assert batch.exit_counts == {"early": 0, "middle": 0, "late": 500, "final": 0}
    assert batch.halted.all()


def test_verify_knows_halting_policies(call: Call, halting: Path) -> None:
    done = call("verify", halting / "out", "--json")
    assert (done.status, done.json["exits_agree"]) == (0, True)


def test_inspect_tells_of_halts(call: Call, halting: Path) -> None:
    done = call("inspect", halting / "out")
    assert "halts at macs <= 60 %: 100.0 % of the samples are stopped" in done.out
    report = call("inspect", halting / "out", "--json").json["reports"]["capped"]["halt"]
    assert report["cheapest"]["exit"] == "early"


def test_eval_and_run_take_a_halt(
    call: Call, halting: Path, images: np.ndarray, tmp_path: Path
) -> None:
    artifact, data = halting / "out", halting / "test.npz"
    done = call(
        "eval", artifact, "--data", data, "--policy", "timed", "--halt", "macs <= 15 %", "--json"
    )
    assert done.status == 0, done.err
    assert (done.json["halt"], done.json["halted"]) == ("macs <= 15 %", 1.0)
    assert done.json["exits"][0]["fraction"] == 1.0
    assert "15 %: 100.0 % of the samples were stopped; kept by all" in (
        call("eval", artifact, "--data", data, "--policy", "timed", "--halt", "macs <= 15 %").out
    )
    np.save(tmp_path / "x.npy", images[:4])
    run = ("run", artifact, "--input", tmp_path / "x.npy", "--policy", "timed")
    answers = call(*run, "--halt", "macs <= 20 %", "--json").json["answers"]
    assert {(one["exit"], one["halted"]) for one in answers} == {("middle", True)}
    assert "middle (halted)" in call(*run, "--halt", "macs <= 20 %").out
    assert call(*run, "--halt", "macs <= 20 %", "--full-depth", "--json").ids == ["bad-argument"]
    assert call(*run, "--halt", "macs <= 1 %", "--json").ids == ["infeasible-budget"]
    assert call(*run, "--halt", "energy <= 1 mJ", "--json").ids == ["unknown-costs"]
    assert call(*run, "--halt", "accuracy drop <= 1 %", "--json").status == 1


@pytest.mark.parametrize(
    ("limit", "id_", "words"),
    [
        ("macs <= 1 %", "infeasible-budget", ["the cheapest is exit `early` with 9.7"]),
        (
            "latency <= 0.00001 ms",
            "infeasible-budget",
            ["the cheapest is exit `early`", "measured"],
        ),
        ("energy <= 1 mJ", "unknown-costs", ["What energy"]),
    ],
)
def test_a_build_refuses_what_cannot_be_kept(
    call: Call, demo: Path, limit: str, id_: str, words: list[str]
) -> None:
    demo.write_text(demo.read_text() + f"policy hard {{ halt at budget {limit} }}\n")
    done = call("build", demo, "-o", demo.parent / "out", "--json")
    assert (done.status, done.ids[0]) == (1, id_)
    assert "halt at budget" in done.err
    for word in words:
        assert word in done.err


def test_a_halt_that_nothing_reaches_is_a_warning(call: Call, demo: Path) -> None:
    edited(demo, ("budget accuracy drop <= 0.5 % }", "budget accuracy drop <= 0.5 %\n"))
    demo.write_text(demo.read_text() + "    halt at budget macs <= 110 % }\n")
    done = call("build", demo, "-o", demo.parent / "new", "--json")
    assert done.status == 0
    assert "warning[needless-halt]" in done.err
    assert "the whole network takes 100.124 % with all heads" in done.err


def test_replays_that_halt_nothing_say_so(call: Call, halting: Path) -> None:
    data = halting / "test.npz"
    done = call(
        *("eval", halting / "out", "--data", data, "--policy", "capped", "--board", "rk3399"),
        "--json",
    )
    assert done.status == 0, done.err
    assert "the policy is taken without its halt: samples are not stopped" in done.json["notes"]
    assert (done.json["halt"], done.json["exits"][-1]["fraction"]) == (None, 1.0)
    for option in ("--sweep", "--board=rk3399"):
        refused = call(
            *("eval", halting / "out", "--data", data, "--halt", "macs <= 50 %", option, "--json")
        )
        assert refused.ids == ["bad-argument"]
