"""The whole of `bench` on a real artifact, with a kernel's files in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eecompile.artifact import read_artifact, write_artifact
from eecompile.benching.blocks import Settings
from eecompile.benching.device import LocalDevice
from eecompile.benching.run import BenchOptions, bench_artifact
from eecompile.console import Steps
from eecompile.diagnostics import CompileErrors
from tests.governor.sysfs_tree import KernelKept, Policy, rk3399, rpi4, settings
from tests.runtime import tiny

QUICK = Settings(
    seconds=float("inf"), rounds=4, sweeps=2, window=2, warm_seconds=0.0, meter_seconds=0.0
)
CLOCKS = [600e6, 750e6, 1e9, 1.2e9, 1.5e9]


def bench(artifact: Path, kernel: KernelKept | None, **more: Any) -> dict[str, Any]:
    options = BenchOptions(artifact, settings=QUICK, **more)
    report = bench_artifact(options, Steps(4, quiet=True), kernel)
    found = report.to_json()
    json.dumps(found, allow_nan=False)
    return found


def board(tmp_path: Path, *policies: Policy) -> KernelKept:
    return KernelKept(tmp_path / "tree", *(policies or (rpi4(),)))


def clocks(found: dict[str, Any], provenance: str = "measured") -> list[float]:
    points = found["full_depth"]["points"]
    return [p["frequency_hz"] for p in points if p["provenance"] == provenance]


def test_every_clock_is_set_measured_and_put_back(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    before = settings(kernel.root_path)
    found = bench(artifact, kernel, frequencies="all")
    assert clocks(found) == CLOCKS
    assert clocks(found, "modelled") == []
    assert settings(kernel.root_path) == before
    policy = "/sys/devices/system/cpu/cpufreq/policy0"
    asked = [text for path, text in kernel.writes if path == f"{policy}/scaling_setspeed"]
    # Twice each: two sweeps; where one ends at the clock the next begins with, nothing is set.
    assert {text: 1 <= asked.count(text) <= 2 for text in asked} == {
        str(int(hz / 1e3)): True for hz in CLOCKS
    }
    assert [text for path, text in kernel.writes if path.endswith("scaling_governor")] == [
        "userspace",
        "schedutil",
    ]
    assert found["conditions"]["clock_set_by"] == "eecompile"
    assert found["governor"] == "eecompile"
    assert all(b["disturbances"] == [] for b in found["blocks"])


def test_the_keys_are_those_scripts_rely_on(artifact: Path, tmp_path: Path) -> None:
    found = bench(artifact, board(tmp_path), frequencies="600 MHz, 1.5 GHz")
    assert [row["name"] for row in found["segments"]] == ["segment0", "segment1", "segment2"]
    assert [row["name"] for row in found["exits"]] == ["early", "late"]
    for row in (*found["segments"], *found["exits"]):
        assert {"name", "macs", "bytes", "points"} <= set(row)
        assert [point["frequency_hz"] for point in row["points"]] == [600e6, 1.5e9]
        for point in row["points"]:
            assert set(point) == {
                *("cluster", "frequency_hz", "voltage_v", "latency_s", "energy_j"),
                *("provenance", "energy_provenance", "quantiles"),
            }
            assert point["latency_s"] == point["quantiles"]["p50_s"] > 0
            assert point["quantiles"]["rounds"] == 4
            assert point["provenance"] == "measured"
            assert point["energy_j"] is point["energy_provenance"] is None
    assert (found["target"], found["board"], found["threads"]) == ("host", "host", 1)
    assert found["model"] == "tiny"
    assert [row["macs"] for row in found["segments"]] == [1, 100, 100_000]
    assert found["full_depth"]["macs"] == 100_101


def test_clocks_that_are_not_asked_for_are_not_set(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    found = bench(artifact, kernel, frequencies="1 GHz .. 1.3 GHz")
    assert clocks(found) == [1e9, 1.2e9]
    asked = {text for path, text in kernel.writes if path.endswith("scaling_setspeed")}
    assert asked == {"1000000", "1200000"}


def test_current_sets_nothing_and_names_the_clock_there_was(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    found = bench(artifact, kernel, frequencies="current")
    assert kernel.writes == []
    assert clocks(found) == [600e6]
    assert (found["governor"], found["conditions"]["clock_set_by"]) == ("schedutil",) * 2
    assert "the clock is free to change (governor schedutil)" in found["notes"]


def test_without_being_asked_no_clock_is_set(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    found = bench(artifact, kernel)
    assert kernel.writes == []
    assert clocks(found) == [600e6]
    assert not any("left alone" in note for note in found["notes"])


def test_clocks_the_file_names_are_measured(tmp_path: Path) -> None:
    source = "eecompile 1 target host { frequencies [700 MHz .. 1.1 GHz] }"
    write_artifact(tmp_path / "named", tiny.contents(source_text=source))
    found = bench(tmp_path / "named", board(tmp_path))
    assert clocks(found) == [750e6, 1e9]


def test_a_clock_that_moves_is_none_of_the_table(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = board(tmp_path)
    run, policy, rounds = LocalDevice.round, kernel.domains[0], [0]
    assert isinstance(policy, Policy)

    def moving(device: LocalDevice) -> list[float]:
        rounds[0] += 1
        policy.low = 1_000_000 if rounds[0] > 4 else 0  # the first block begins after four
        kernel.show()
        return run(device)

    monkeypatch.setattr(LocalDevice, "round", moving)
    found = bench(artifact, kernel, frequencies="current")
    assert clocks(found) == [None]
    assert any(
        note.startswith("the clock moved between 600 MHz and 1 GHz") for note in found["notes"]
    )


def test_without_cpufreq_the_rest_is_modelled_and_said_so(artifact: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "proc").mkdir(parents=True)
    (tree / "proc/cpuinfo").write_text("processor : 0\ncpu MHz : 2000.000\n\n")
    found = bench(artifact, KernelKept(tree), frequencies="1 GHz, 2 GHz, 3 GHz")
    assert clocks(found) == [2e9]
    assert clocks(found, "modelled") == [1e9, 3e9]
    assert any("no cpufreq policy" in note for note in found["notes"])
    assert any("modelled" in note for note in found["notes"])
    assert found["model_error"]["pieces"] == 5
    assert [p["quantiles"] is None for p in found["full_depth"]["points"]] == [True, False, True]


def test_energy_is_power_times_time_and_its_meter_is_named(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = board(tmp_path)
    zone = kernel.root_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", str(1 << 40))):
        (zone / name).write_text(f"{text}\n")
    total = [0]

    def drawing(device: LocalDevice, function: int, seconds: float) -> float:
        total[0] += 1000 * (1 + function)
        (zone / "energy_uj").write_text(f"{total[0]}\n")
        return seconds

    (zone / "energy_uj").write_text("0\n")
    monkeypatch.setattr(LocalDevice, "repeat", drawing)
    found = bench(artifact, kernel, frequencies="600 MHz")
    points = [row["points"][0] for row in (*found["segments"], *found["exits"])]
    assert {point["energy_provenance"] for point in points} == {"measured"}
    assert all(point["energy_j"] > 0 for point in points)
    assert found["energy_covers"] == "all cores and caches of a processor"
    assert found["conditions"]["meter"]["problems"] == []
    assert found["conditions"]["meter"]["overhead_share"] > 0


def test_a_sensor_that_gives_garbage_gives_no_energy(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    zone = kernel.root_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "10"), ("energy_uj", "9999")):
        (zone / name).write_text(f"{text}\n")
    found = bench(artifact, kernel, frequencies="600 MHz")
    assert {row["points"][0]["energy_j"] for row in found["segments"]} == {None}
    (told,) = found["conditions"]["meter"]["problems"]
    assert told == "RAPL package-0: it reads 9999 of at most 10 microjoules"


def test_without_permission_it_measures_what_there_is(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    kernel.denied = [".*"]
    found = bench(artifact, kernel, frequencies="all")
    assert kernel.writes == []
    assert clocks(found) == [600e6]
    assert clocks(found, "modelled") == CLOCKS[1:]
    assert any(note.startswith("Clocks are left alone") for note in found["notes"])


def test_a_clock_that_heat_denies_is_modelled(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    policy = kernel.domains[0]
    assert isinstance(policy, Policy)
    kernel.heat(policy, 1_000_000)
    found = bench(artifact, kernel, frequencies="all")
    assert clocks(found) == CLOCKS[:3]
    assert clocks(found, "modelled") == CLOCKS[3:]
    assert any("2 of 5 clocks are not here" in note for note in found["notes"])


def test_a_clock_that_heat_denies_meanwhile_says_so(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    policy = kernel.domains[0]
    assert isinstance(policy, Policy)

    def hot(path: str, text: str) -> None:
        if path.endswith("setspeed") and text.strip() == "1500000":
            kernel.heat(policy, 1_000_000)

    kernel.before_write = hot
    found = bench(artifact, kernel, frequencies="600 MHz, 1.5 GHz")
    assert clocks(found) == [600e6]
    assert clocks(found, "modelled") == [1.5e9]
    (told,) = [block["unreachable"] for block in found["blocks"] if block["unreachable"]]
    assert told == "cluster cpu: 1500 MHz is not reached (limits 600 MHz to 1000 MHz)"
    assert any(note.startswith("1.5 GHz could not be measured") for note in found["notes"])


def test_each_cluster_is_measured_on_its_own_cpus(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[int, ...]] = []
    monkeypatch.setattr(LocalDevice, "place", lambda device, cpus: placed.append(tuple(cpus)))
    kernel = board(tmp_path, *rk3399())
    found = bench(artifact, kernel, frequencies="1.416 GHz")
    assert [(s["cluster"], s["frequency_hz"]) for s in found["states"]] == [
        ("big", 1.416e9),
        ("little", 1.416e9),
    ]
    assert set(placed) == {(4, 5), (0, 1, 2, 3)}
    assert 2 <= len(placed) <= 4
    assert found["cpus"] == {"big": [4, 5], "little": [0, 1, 2, 3]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_happens_the_clock_is_put_back(
    error: type[BaseException], artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = board(tmp_path)
    before = settings(kernel.root_path)
    run, rounds = LocalDevice.round, [0]

    def stopped(device: LocalDevice) -> list[float]:
        rounds[0] += 1
        if rounds[0] == 9:
            assert settings(kernel.root_path) != before
            raise error
        return run(device)

    monkeypatch.setattr(LocalDevice, "round", stopped)
    with pytest.raises(error):
        bench(artifact, kernel, frequencies="all", update=True)
    assert settings(kernel.root_path) == before
    read_artifact(artifact)


def test_a_policy_shares_and_its_mean(artifact: Path, tmp_path: Path) -> None:
    found = bench(artifact, board(tmp_path), frequencies="600 MHz")
    ways = {way["exit"]: way for way in found["pareto"]}
    assert {name: (w["share"], w["accuracy"]) for name, w in ways.items()} == {
        "early": (0.5, 1.0),
        "late": (0.5, 0.75),
        "final": (0.0, None),
    }
    policy = found["policy"]
    assert (policy["name"], policy["samples"], policy["accuracy"]) == ("fast", 40, 0.875)
    (mean,) = policy["points"]
    halves = 0.5 * ways["early"]["latency_s"] + 0.5 * ways["late"]["latency_s"]
    assert mean["latency_s"] == pytest.approx(halves)
    assert mean["provenance"] == "measured"


def test_a_policy_without_held_out_data_has_no_shares(artifact: Path, tmp_path: Path) -> None:
    found = bench(artifact, board(tmp_path), frequencies="600 MHz", policy="careful")
    assert found["policy"]["points"] == []
    # Its threshold at the first exit is out of reach: nobody leaves there.
    assert [way["exit"] for way in found["pareto"]] == ["late", "final"]


def test_update_writes_the_costs_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    before = read_artifact(artifact)
    found = bench(artifact, board(tmp_path), frequencies="600 MHz", update=True)
    after = read_artifact(artifact)
    changed = {n for n, data in after.texts.items() if data != before.texts[n]}
    assert changed == {"costs.json", "plan.bin"}
    assert (after.library, bytes(after.weights)) == (before.library, bytes(before.weights))
    assert after.manifest.members["costs.json"].measured
    costs = after.costs
    assert costs is not None
    # The whole board is kept, not only what was asked for.
    assert [state.frequency_hz for state in costs.states] == CLOCKS
    measured = costs.full_depth(0)
    assert measured is not None
    assert measured.provenance == "measured"
    assert measured.latency_s == found["full_depth"]["points"][0]["latency_s"]
    assert sorted(os.listdir(artifact.parent)) == ["out", "tree"]


def test_a_second_run_compares_with_the_first(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    first = bench(artifact, kernel, frequencies="600 MHz", update=True)
    assert first["comparison"]["refused"].startswith("the earlier ones were measured on a machine")
    second = bench(artifact, kernel, frequencies="600 MHz")
    assert second["comparison"]["refused"] is None
    (row,) = second["comparison"]["full_depth"]
    ours, theirs = (f["full_depth"]["points"][0]["latency_s"] for f in (second, first))
    assert row == {"cluster": "cpu", "frequency_hz": 600e6, "ratio": ours / theirs}


def test_another_governor_is_not_compared(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    bench(artifact, kernel, frequencies="600 MHz", update=True)
    found = bench(artifact, kernel, frequencies="current")
    assert found["comparison"] == {
        "refused": "the earlier ones were measured under governor eecompile (now schedutil)",
        "full_depth": [],
    }


def test_a_board_that_is_not_here_is_modelled(artifact: Path, tmp_path: Path) -> None:
    found = bench(artifact, board(tmp_path), board="rk3399")
    assert found["device"] is None
    assert found["blocks"] == []
    assert clocks(found) == []
    assert len(clocks(found, "modelled")) == 14
    assert "this machine is no `rk3399`: every cost is modelled" in found["notes"]
    assert {p["energy_provenance"] for p in found["full_depth"]["points"]} == {"modelled"}
    assert found["comparison"] is None


def refused(artifact: Path, kernel: KernelKept, **more: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(CompileErrors) as caught:
        bench(artifact, kernel, **more)
    return [(d.id, d.message, d.label or d.help) for d in caught.value.diagnostics]


def test_a_clock_the_board_lacks_is_told_with_its_neighbours(
    artifact: Path, tmp_path: Path
) -> None:
    kernel = board(tmp_path)
    assert refused(artifact, kernel, frequencies="700 MHz, 2 GHz, 600 MHz") == [
        ("unknown-frequency", "`host` has no clock of 700 MHz", "nearest: 600 MHz and 750 MHz"),
        ("unknown-frequency", "`host` has no clock of 2 GHz", "nearest: 1.5 GHz"),
    ]
    assert kernel.writes == []


def test_wrong_words_are_told_before_anything_is_measured(artifact: Path, tmp_path: Path) -> None:
    kernel = board(tmp_path)
    ids = {
        more: [id for id, _, _ in refused(artifact, kernel, **dict([more]))]
        for more in (
            ("frequencies", "fastest"),
            ("frequencies", "3 kg"),
            ("frequencies", ""),
            ("board", "rk3398"),
            ("policy", "fats"),
        )
    }
    assert list(ids.values()) == [
        ["syntax-error"],
        ["unknown-unit"],
        ["syntax-error"],
        ["unknown-target"],
        ["bad-argument"],
    ]
    assert refused(artifact, kernel, board="rk3399", update=True)[0][1] == (
        "`--update` keeps measurements, and `rk3399` is not measured"
    )
    assert refused(artifact, kernel, board="rk3399", frequencies="current")[0][0] == "bad-argument"
    assert kernel.writes == []


def test_a_board_that_is_not_here_has_as_many_threads_as_asked(
    artifact: Path, tmp_path: Path
) -> None:
    assert bench(artifact, board(tmp_path), board="rk3399", threads=2)["threads"] == 2


def test_the_picture_is_of_what_was_found(artifact: Path, tmp_path: Path) -> None:
    options = BenchOptions(artifact, "all", settings=QUICK)
    report = bench_artifact(options, Steps(4, quiet=True), board(tmp_path))
    drawn = report.svg()
    for name in ("tiny", "leaving at early", "leaving at late", "5 of 5 clocks measured"):
        assert name in drawn


def test_several_threads_are_told(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eecompile.runtime.opening.usable_cores", lambda: 8)
    found = bench(artifact, board(tmp_path), frequencies="600 MHz", threads=2)
    assert found["threads"] == 2
