"""build --tune: measured once, kept in a file, and reused by every later build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eecompile.tuning_file import TunedKernel
from tests.cli.calls import Call, copy_demo


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The demo's `.ee` file in a folder of its own."""
    return copy_demo(tmp_path / "demo")


def tuned(file: Path) -> Path:
    return file.with_suffix(".tuned.json")


def library(file: Path, folder: str = "out") -> bytes:
    (found,) = (file.parent / folder).glob("*.so")
    return found.read_bytes()


def chosen(file: Path, pick: Any) -> dict[str, Any]:
    """Rewrites the file with one choice of each kernel; gives what was there."""
    value: dict[str, Any] = json.loads(tuned(file).read_text())
    for kernel in value["machines"][0]["kernels"]:
        kernel["choice"] = pick(kernel)
    tuned(file).write_text(json.dumps(value))
    return value


def test_what_was_measured_once_is_reused(call: Call, file: Path) -> None:
    # On a busy machine a kernel takes seconds.
    done = call("build", file, "-o", file.parent / "out", "--tune", 8, "--json")
    assert done.status == 0, done.err
    (machine,) = json.loads(tuned(file).read_text())["machines"]
    assert machine["target"] == "host"
    assert machine["kernels"]
    count = done.json["kernels"]
    assert count["tuned"] == len(machine["kernels"])

    again = call("build", file, "-o", file.parent / "again", "--json")
    assert again.json["kernels"] == count
    assert library(file, "again") == library(file)

    told = call("build", file, "-o", file.parent / "again", "--quiet")
    assert f"kernels: {count['tuned']} tuned, {count['by_model']} by model" in told.out
    assert call("verify", file.parent / "again").status == 0


@pytest.fixture
def fixed(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The demo's file, whose measurements let the last choice of two kernels win."""
    from eecompile.targets.lowering import tuning
    from eecompile.targets.lowering.measuring import Measured

    def measure(spec: Any, machine: Any, choices: Any, until: float) -> list[Measured]:
        last = len(choices) - 1
        return [Measured(c, (0.5 if i == last else 1.0,) * 7) for i, c in enumerate(choices)]

    real = tuning.tune

    def tune(
        graphs: Any, machine: Any, plain: Any, seconds: float, **options: Any
    ) -> Iterator[Any]:
        found = real(graphs, machine, plain, 1000.0, **options, measure=measure)
        yield next(found)
        yield next(found)

    monkeypatch.setattr(tuning, "tune", tune)
    yield file


def test_builds_follow_the_file_and_not_the_clock(call: Call, fixed: Path) -> None:
    out = fixed.parent / "out"
    assert call("build", fixed, "-o", out, "--quiet").status == 0
    by_model = library(fixed)
    done = call("build", fixed, "-o", out, "--tune", 1, "--json")
    assert (done.json["unchanged"], done.json["kernels"]["tuned"]) == (False, 2)
    assert library(fixed) != by_model
    written = tuned(fixed).read_bytes()

    assert call("build", fixed, "-o", out, "--json").json["unchanged"]
    assert call("build", fixed, "-o", fixed.parent / "other", "--json").status == 0
    assert library(fixed, "other") == library(fixed)

    chosen(fixed, lambda kernel: kernel["model_choice"])
    done = call("build", fixed, "-o", out, "--json")
    assert (done.json["unchanged"], done.json["kernels"]["tuned"]) == (False, 2)
    assert library(fixed) == by_model

    tuned(fixed).unlink()
    done = call("build", fixed, "-o", out, "--json")
    assert (done.json["unchanged"], done.json["kernels"]) == (False, None)
    assert library(fixed) == by_model
    assert call("build", fixed, "-o", out, "--tune", 1, "--json").status == 0
    assert tuned(fixed).read_bytes() == written


def test_choices_that_fit_no_more_are_told_and_left_out(call: Call, fixed: Path) -> None:
    out = fixed.parent / "out"
    assert call("build", fixed, "-o", out, "--tune", 1, "--quiet").status == 0
    chosen(fixed, lambda kernel: "conv width=999 blocks=7")
    done = call("build", fixed, "-o", out, "--json")
    assert (done.status, done.json["kernels"]["tuned"]) == (0, 0)
    assert "warning[stale-tuning]: 2 of its choices are none" in done.err


def test_entries_of_other_networks_are_told_and_left_out(call: Call, fixed: Path) -> None:
    out = fixed.parent / "out"
    assert call("build", fixed, "-o", out, "--tune", 1, "--quiet").status == 0
    value = json.loads(tuned(fixed).read_text())
    value["machines"][0]["kernels"][0]["digest"] = "0" * 16
    tuned(fixed).write_text(json.dumps(value))
    for folder in (out, fixed.parent / "again"):  # compiled, and from the cache
        done = call("build", fixed, "-o", folder, "--json")
        assert (done.status, done.json["kernels"]["tuned"]) == (0, 1)
        assert "warning[stale-tuning]: 1 entry is of other networks or versions" in done.err


def test_measurements_of_another_machine_are_told_and_left_out(call: Call, fixed: Path) -> None:
    out = fixed.parent / "out"
    assert call("build", fixed, "-o", out, "--tune", 1, "--quiet").status == 0
    value = json.loads(tuned(fixed).read_text())
    value["machines"][0]["cpu"] = "Another CPU"
    tuned(fixed).write_text(json.dumps(value))
    done = call("build", fixed, "-o", out, "--json")
    assert (done.status, done.json["kernels"]) == (0, None)
    assert "warning[stale-tuning]: Nothing in it was measured on" in done.err

    assert call("build", fixed, "-o", out, "--tune", 1, "--quiet").status == 0
    cpus = [machine["cpu"] for machine in json.loads(tuned(fixed).read_text())["machines"]]
    assert len(cpus) == 2 and "Another CPU" in cpus


@pytest.mark.parametrize("options", [[], ["--tune", "1"], ["--dry-run"]])
def test_a_malformed_file_is_refused_and_stays(call: Call, file: Path, options: list[str]) -> None:
    tuned(file).write_text("{}")
    done = call("build", file, "-o", file.parent / "out", "--json", *options)
    assert (done.status, done.ids) == (1, ["bad-tuning"])
    assert "`format` is missing" in done.err
    assert tuned(file).read_text() == "{}"
    assert not (file.parent / "out").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_another_machine_cannot_be_measured_here(
    call: Call, file: Path, options: list[str]
) -> None:
    foreign = "arm-cpu" if "x86" in call("doctor").out else "x86-64"
    done = call("build", file, "-t", foreign, "--tune", 1, "--json", *options)
    assert (done.status, done.ids) == (1, ["bad-argument"])
    assert f"`--tune` measures on the device, and this machine is no `{foreign}`" in done.err
    assert not tuned(file).exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_seconds_are_a_time(call: Call, file: Path, seconds: str) -> None:
    done = call("build", file, f"--tune={seconds}", "--json")
    assert (done.status, done.ids) == (1, ["bad-argument"])
    assert f"expected seconds above 0 and at most 86400, a day, found {seconds}" in done.err


def test_a_dry_run_says_what_would_be_measured(call: Call, file: Path) -> None:
    done = call("build", file, "--tune", 30, "--dry-run", "--json")
    assert any("measure kernels for 30 s" in step for step in done.json["steps"])
    assert not tuned(file).exists()


def test_an_interrupt_keeps_what_is_known(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = TunedKernel("MatMul 1x1", "0" * 16, "matmul rows=1 blocks=1", 1, "matmul rows=1", 1)

    def interrupted(*arguments: Any) -> Iterator[TunedKernel]:
        yield known
        raise KeyboardInterrupt

    monkeypatch.setattr("eecompile.driver.tune_graphs", interrupted)
    done = call("build", file, "-o", file.parent / "out", "--tune", 1, "--json")
    assert (done.status, done.json["error"]["kind"]) == (130, "interrupted")
    (machine,) = json.loads(tuned(file).read_text())["machines"]
    assert [kernel["digest"] for kernel in machine["kernels"]] == [known.digest]
    assert not (file.parent / "out").exists()
