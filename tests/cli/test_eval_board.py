"""`eval --board`: this machine's answers at a board's modelled costs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calls import Call, evaluating

#: Its first exit takes the demo more than 10 us, everything less than 20 ms.
BOARD = ("--board", "rk3399")
CHEAP = ("--frequency", "lowest_energy")


@pytest.fixture
def evaluated(call: Call, built: Path) -> Any:
    return evaluating(call, built)


def test_answers_are_this_machines_and_costs_the_boards(evaluated: Any) -> None:
    here, there = evaluated(), evaluated(*BOARD, *CHEAP, "--deadline", "20 ms safe")
    same = ("n", "accuracy", "full_depth_accuracy", "mean_macs_fraction", "exits", "policy")
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    assert here.keys() - {"budget"} <= there.keys()
    assert there["latency_provenance"] == there["energy_provenance"] == "modelled"
    assert (there["board"], there["deadline_s"], there["deadline_misses"]) == ("rk3399", 0.02, 0)
    assert there["forced_answers"] == 0 and there["transitions_per_sample"] >= 0
    early, full = (
        there["baselines"][name] for name in ("early_exit_top_clock", "full_depth_top_clock")
    )
    energies = [side["mean_energy_j"] for side in (there, early, full)]
    assert energies == sorted(energies) and energies[0] < energies[2]
    assert full["mean_macs_fraction"] == 1.0
    assert full["mean_latency_s"] == there["full_depth_latency_s"]
    assert full["accuracy"] == there["full_depth_accuracy"]


def test_the_models_inputs_are_told(evaluated: Any) -> None:
    found = evaluated(*BOARD, "--samples", 20)
    assert found["n"] == 20
    big, little = found["model"]["clusters"]
    assert (big["name"], little["name"]) == ("big", "little")
    assert big["dynamic_power_coefficient"] > little["dynamic_power_coefficient"] > 0
    assert big["transition_latency_s"] > 0
    assert all(row["voltage_v"] > 0 for row in found["clocks"])
    assert sum(row["time_fraction"] for row in found["clocks"]) == pytest.approx(1.0)
    assert sum(row["begins"] for row in found["clocks"]) == 1
    assert any("work is that of code compiled for `host`" in note for note in found["notes"])


def test_one_cluster_can_be_meant(evaluated: Any) -> None:
    found = evaluated(*BOARD, *CHEAP, "--cluster", "big", "--samples", 20)
    assert {row["cluster"] for row in found["clocks"]} == {"big"} == {found["cluster"]}
    assert [cluster["name"] for cluster in found["model"]["clusters"]] == ["big"]


def test_without_a_rule_everything_is_at_the_fastest_clock(evaluated: Any) -> None:
    found = evaluated(*BOARD)
    assert found["clock"] == "" and found["deadline_s"] is None
    early = found["baselines"]["early_exit_top_clock"]
    assert found["mean_energy_j"] == early["mean_energy_j"]
    assert found["p99_latency_s"] == early["p99_latency_s"]


def test_a_deadline_too_short_for_exits_and_the_rest_forces_answers(evaluated: Any) -> None:
    # As long as the full depth at the top clock: heads have no time of their own.
    full_s = evaluated(*BOARD)["full_depth_latency_s"]
    given = ("--deadline", f"{full_s * 1e6:.9f} us safe")
    found = evaluated(*BOARD, *CHEAP, *given)
    assert found["deadline_misses"] == 0 and found["forced_answers"] > 0
    assert any("deadline is too short for both" in note for note in found["notes"])
    loose = evaluated(*BOARD, *CHEAP, "--deadline", f"{full_s * 1e6:.9f} us")
    assert loose["deadline_misses"] == found["forced_answers"] and not loose["forced_answers"]


def test_the_first_clock_is_fitted_where_the_file_has_calibration_data(evaluated: Any) -> None:
    found = evaluated(*BOARD, *CHEAP, "--deadline", "4 ms safe", data="digits.ee")
    assert found["start_fitted_on"] == 300 and found["deadline_misses"] == 0
    assert evaluated(*BOARD, *CHEAP, "--deadline", "4 ms safe")["start_fitted_on"] == 0


def test_a_board_without_energies_says_so(evaluated: Any) -> None:
    found = evaluated("--board", "host", "--samples", 20)
    assert found["board"] == "host"
    if found["mean_energy_j"] is None:
        assert found["energy_provenance"] is None


def test_people_read_what_was_modelled_and_from_what(call: Call, built: Path) -> None:
    given = (*BOARD, *CHEAP, "--deadline", "20 ms safe")
    done = call("eval", built / "out", "--data", built / "test.npz", *given)
    assert done.status == 0
    for said in (
        "latencies and energies are modelled, not measured",
        "frequency lowest_energy, deadline 20.0 ms safe; samples begin on little at ",
        "full network, fastest",
        "deadline misses",
        "uW/MHz/V^2 a core, 40 us to change the clock",
    ):
        assert said in done.out


@pytest.mark.parametrize(
    ("options", "id", "said"),
    [
        ((*BOARD, "--deadline", "10 us"), "impossible-deadline", "at best"),
        ((*BOARD, "--deadline", "1 us hard"), "impossible-deadline", "exit `early` takes"),
        ((*BOARD, "--deadline", "4"), "missing-unit", "`ms`"),
        ((*BOARD, "--frequency", "1.3 GHz"), "unknown-frequency", "1.2 GHz and 1.416 GHz"),
        ((*BOARD, "--frequency", "least"), "unknown-rule", "`lowest_energy`"),
        ((*BOARD, "--deadline", "4"), "missing-unit", "--> --deadline:1:1\n"),
        ((*BOARD, "--frequency", "1.3 GHz"), "unknown-frequency", "--> --frequency:1:1\n"),
        ((*BOARD, "--deadline", "4 ms soft"), "syntax-error", "`hard`, `safe` or the end"),
        ((*BOARD, "--deadline", ""), "syntax-error", "found the end of the text"),
        ((*BOARD, "--deadline", "4 ms frequency highest"), "syntax-error", "found `frequency`"),
        ((*BOARD, "--deadline", "4 ms } policy x {"), "syntax-error", "found `}`"),
        ((*BOARD, "--frequency", "1.2 GHz deadline 4 ms"), "syntax-error", "found `deadline`"),
        ((*BOARD, "--budget", "mean macs <= 90 % }"), "syntax-error", "found `}`"),
        ((*BOARD, "--budget", "mean energy <= 3 mJ"), "infeasible-budget", "`mean macs`"),
        (("--board", "rk3388"), "unknown-target", "`rk3399`"),
        (("--board", "arm-cpu"), "unknown-costs", "gives no clocks"),
        (("--deadline", "4 ms"), "bad-argument", "`--board NAME`"),
        (CHEAP, "bad-argument", "`--board NAME`"),
        ((*BOARD, "--cluster", "huge"), "unknown-target", "help: it has `big`, `little`"),
        (("--cluster", "big"), "bad-argument", "`--board NAME`"),
        ((*BOARD, "--policy", "quack"), "bad-argument", "`quick`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_is_told(
    options: tuple[str, ...], id: str, said: str, call: Call, built: Path
) -> None:
    done = call("eval", built / "out", "--data", built / "test.npz", *options)
    assert done.status == 1
    assert f"error[{id}]" in done.err and said in done.err


def test_code_that_cannot_run_here_is_to_be_built_for_the_host(
    call: Call, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    monkeypatch.setattr(platform, "machine", lambda: other)
    done = call("eval", built / "out", "--data", built / "test.npz", *BOARD)
    assert done.status == 1 and "error[wrong-machine]" in done.err
    assert "build it with `--target host`, and give `--board rk3399` here" in done.err


def test_what_a_server_answers_is_not_replayed(call: Call, demo: Path) -> None:
    written = demo.read_text()
    demo.write_text(
        written
        + """
policy shared {
    exit when confidence(max_softmax) >= 0.9
    offload "http://127.0.0.1:9" cost 0.5
    split fixed(at: early)
}
"""
    )
    assert call("build", demo, "-o", demo.parent / "out2").status == 0
    done = call(
        *("eval", demo.parent / "out2", "--data", demo.parent / "test.npz"),
        *("--policy", "shared", *BOARD),
    )
    assert done.status == 1
    assert "`shared` has a server answer: no replay knows how long that takes" in done.err
