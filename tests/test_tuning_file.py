"""NAME.tuned.json: what is written is read again, and nothing else is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.hardware import machine
from eecompile.tuning_file import (
    TunedKernel,
    TunedMachine,
    Tuning,
    read_tuning,
    tuned_words,
    tuning_path,
    write_tuning,
)

ONE = TunedKernel("Conv 1x8", "0" * 16, "conv width=8 blocks=2", 1.5, "conv width=6 blocks=2", 2.0)
TWO = TunedKernel(
    "MatMul 8x8", "1" * 16, "matmul rows=4 blocks=1", 3.0, "matmul rows=4 blocks=1", 3.0
)
DESK = TunedMachine.of(machine("x86-64-v3"), "A CPU")
HOST = TunedMachine.of(machine("host"), "A CPU")
BOARD = TunedMachine.of(replace(machine("arm-cpu"), mcpu="cortex-a72"), "A board")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tuning_path(tmp_path / "net.ee")
    tuning = Tuning(path).with_kernels(HOST, [TWO, ONE]).with_kernels(BOARD, [ONE])
    write_tuning(tuning)
    return path


def test_no_file_is_no_choice(tmp_path: Path) -> None:
    tuning = read_tuning(tmp_path / "net.tuned.json")
    assert (tuning.machines, tuning.choices(HOST)) == ((), {})
    assert tuning.foreign(HOST) is None


def test_what_is_written_is_read(file: Path) -> None:
    tuning = read_tuning(file)
    assert tuning.machine(HOST) == replace(HOST, kernels=(ONE, TWO))
    assert tuning.choices(BOARD) == {ONE.digest: ONE.choice}
    before = file.read_bytes()
    write_tuning(tuning)
    assert file.read_bytes() == before


def test_a_machine_is_replaced_and_others_stay(file: Path) -> None:
    tuning = read_tuning(file).with_kernels(HOST, [TWO])
    assert tuning.choices(HOST) == {TWO.digest: TWO.choice}
    assert tuning.choices(BOARD) == {ONE.digest: ONE.choice}


def test_whatever_machine_is_there_is_another_one_with_another_cpu(file: Path) -> None:
    tuning = read_tuning(file)
    assert tuning.machine(replace(HOST, cpu="Another CPU")) is None
    assert tuning.machine(replace(HOST, features="")) is None
    assert tuning.machine(replace(HOST, cores=99)) is not None
    assert tuning.machine(replace(HOST, target="same")) is not None


def test_a_named_cpu_model_is_one_machine_wherever_it_was_measured(file: Path) -> None:
    tuning = read_tuning(file)
    assert tuning.machine(replace(BOARD, cpu="desk")) is not None
    assert tuning.machine(replace(BOARD, mcpu="cortex-a55")) is None


def test_measurements_of_other_machines_are_told(file: Path) -> None:
    wanted = replace(HOST, cpu="Another CPU")
    warning = read_tuning(file).foreign(wanted)
    assert warning is not None
    assert (warning.id, warning.severity) == ("stale-tuning", "warning")
    assert "Another CPU" in warning.message
    assert any("A board" in note for note in warning.notes)
    assert read_tuning(file).foreign(HOST) is None


def test_choices_that_fit_no_more_are_told(file: Path) -> None:
    tuning = read_tuning(file)
    assert tuning.stale([], HOST) is None
    warning = tuning.stale([TWO.digest], HOST)
    assert warning is not None and warning.severity == "warning"
    assert warning.notes == ("MatMul 8x8: `matmul rows=4 blocks=1`",)


def test_choices_for_kernels_that_are_not_there_are_told(file: Path) -> None:
    tuning = read_tuning(file)
    assert tuning.unused([], HOST) is None
    assert tuning.unused(["f" * 16], HOST) is None
    one, both = tuning.unused([TWO.digest], HOST), tuning.unused([ONE.digest, TWO.digest], HOST)
    assert one is not None and both is not None
    assert (one.id, one.severity) == ("stale-tuning", "warning")
    assert one.message == "1 entry is of other networks or versions, and not used"
    assert one.notes == ("MatMul 8x8: `matmul rows=4 blocks=1`",)
    assert both.message == "2 entries are of other networks or versions, and not used"


@pytest.mark.parametrize(
    ("measured", "beaten", "said"),
    [
        (0, 0, "no kernel was measured: the time was too short, or there was nothing to choose"),
        (1, 0, "1 kernel measured; the model's choice was not beaten"),
        (1, 1, "1 kernel measured; the model's choice was beaten for 1"),
        (6, 2, "6 kernels measured; the model's choice was beaten for 2"),
    ],
)
def test_what_came_of_measuring_is_a_sentence(measured: int, beaten: int, said: str) -> None:
    assert tuned_words(measured, beaten) == said


def spoil(change: Callable[[Any], None]) -> Callable[[str], str]:
    def spoiled(text: str) -> str:
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return spoiled


def host_of(value: Any) -> Any:
    return next(m for m in value["machines"] if m["target"] == "host")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:100], "it is no JSON"),
        (lambda text: "[]", "is no object"),
        (lambda text: "<<<<<<< ours\n" + text, "it is no JSON"),
        (spoil(lambda v: v.pop("format")), "`format` is missing"),
        (spoil(lambda v: v.update(format="other")), "`format` must be `eecompile-tuned`"),
        (spoil(lambda v: v.update(version=2)), "version 2, this compiler reads version 1"),
        (spoil(lambda v: v.update(more=1)), "`more` is no field"),
        (spoil(lambda v: v.update(machines=3)), "`machines` must be a list"),
        (spoil(lambda v: v["machines"].append(v["machines"][0])), "`machines[2]` is the same"),
        (spoil(lambda v: host_of(v).update(lanes=0)), "`machines[1].lanes` must be a whole"),
        (spoil(lambda v: host_of(v).pop("cpu")), "`machines[1].cpu` is missing"),
        (
            spoil(lambda v: host_of(v)["kernels"][0].update(digest="x")),
            "`machines[1].kernels[0].digest` must be a string that matches [0-9a-f]{16}",
        ),
        (
            spoil(lambda v: host_of(v)["kernels"][1].update(choice="rm -rf /")),
            "`machines[1].kernels[1].choice` must be a string that matches",
        ),
        (
            spoil(lambda v: host_of(v)["kernels"][0].update(time_us=-1)),
            "`machines[1].kernels[0].time_us` must be a number of microseconds",
        ),
        (
            spoil(lambda v: host_of(v)["kernels"].append(host_of(v)["kernels"][0])),
            "`machines[1].kernels` has the digest `0000000000000000` twice",
        ),
    ],
)
def test_a_malformed_file_is_refused(file: Path, change: Callable[[str], str], said: str) -> None:
    file.write_text(change(file.read_text()))
    with pytest.raises(CompileErrors) as raised:
        read_tuning(file)
    (found,) = raised.value.diagnostics
    assert (found.id, found.path) == ("bad-tuning", str(file))
    assert said in found.message
    assert "--tune" in found.help


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.tuned.json").mkdir()
    with pytest.raises(CompileErrors, match="bad-tuning"):
        read_tuning(tmp_path / "net.tuned.json")
