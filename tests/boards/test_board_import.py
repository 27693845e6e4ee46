"""`targets import`: the files it writes are board files, and say what they do not know."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.boards.file import parse_board, read_board
from eecompile.boards.importing import Imported, import_device_tree, import_system, read_dtb
from eecompile.diagnostics import CompileErrors
from eecompile.hardware import machine
from eecompile.runtime.sysfs import LocalFiles
from tests.boards.trees import (
    DESKTOP,
    RK3399,
    blob,
    cpu_node,
    grow,
    live,
    opp_table,
    policy,
    rk3399_dts,
)


def imported(dts: str) -> Imported:
    return import_device_tree(blob(dts), "folder/board.dtb", "mine")


def test_a_device_tree_becomes_a_board_file() -> None:
    found = imported(rk3399_dts())
    board = found.board
    assert parse_board(found.text, "mine", "mine.toml") == board
    assert board.description == "Some RK3399 Board"
    assert (board.machine.mcpu, board.machine.cores, board.machine.features) == (
        *("cortex-a72", 6, ("fp-armv8", "neon")),
    )
    assert [(c.name, c.core, c.cpus, len(c.states)) for c in board.clusters] == [
        ("big", "cortex-a72", (4, 5), 8),
        ("little", "cortex-a53", (0, 1, 2, 3), 6),
    ]
    assert board.clusters[0].sources["states"] == (
        "board.dtb: /opp-table-1, opp-hz and opp-microvolt"
    )


def test_what_is_missing_stands_in_the_file_and_is_told() -> None:
    found = imported(rk3399_dts())
    assert [line.partition(":")[0] for line in found.missing] == [
        "CPUs are numbered in the order of their nodes; Linux calls the one it boots on 0",
        "[board] memory_bandwidth",
        "[board] idle_power_w",
        "[board] migration_latency_s",
    ]
    for line in found.missing:
        assert f"# - {line}\n" in found.text


def test_a_board_whose_device_tree_has_no_clocks_can_be_built_for_and_filled_in() -> None:
    # As the Raspberry Pi's: its firmware sets the clock.
    cpus = "".join(cpu_node(i, "cortex-a72", 7) for i in range(4))
    found = imported(f'/dts-v1/;\n/ {{\nmodel = "Pi";\ncpus {{\n{cpus}\n}};\n}};\n')
    assert found.board.clusters == ()
    assert found.board.machine.cores == 4
    assert any("no clocks, so nothing can be modelled" in line for line in found.missing)
    filled = "\n".join(line.removeprefix("# ") for line in found.text.splitlines()[-5:])
    filled = filled.replace("[HERTZ, VOLT]", "[1.5e9, 0.9]").replace('""', '"datasheet"')
    whole = parse_board("\n".join(found.text.splitlines()[:-6]) + "\n" + filled, "pi", "pi.toml")
    assert whole.clusters[0].cpus == (0, 1, 2, 3)


def test_a_core_that_is_not_known_is_said() -> None:
    cpu = cpu_node(0, "armv8", 1)
    table = opp_table("t", 1, "600000 900000", (800, 900))
    found = imported(f"/dts-v1/;\n/ {{\ncpus {{\n{cpu}\n}};\n{table}\n}};\n")
    assert (found.board.machine.mcpu, found.board.clusters[0].core) == ("generic", "")
    assert any(
        line.startswith("mcpu: a core of a kind that is not known") for line in found.missing
    )
    assert any("[machine] fma_per_cycle" in line for line in found.missing)


def test_numbers_that_cannot_be_are_left_out_and_said() -> None:
    wrong = rk3399_dts().replace("coefficient = <436>", "coefficient = <436000000>")
    found = imported(wrong.replace("cache-size = <0x100000>", "cache-size = <1>"))
    assert found.board.clusters[0].capacitance_f is None
    assert [line for line in found.missing if "left out" in line] == [
        "[machine]: l2_bytes 1 left out, expected a whole number from 1024 to 1.07374e+09 bytes",
        "big: dynamic_power_coefficient 4.36e+08 left out, expected a number from 1 to 100000 "
        "uW/MHz/V^2",
        "big: l2_bytes 1 left out, expected a whole number from 1024 to 1.07374e+09 bytes",
        "little: l2_bytes 1 left out, expected a whole number from 1024 to 1.07374e+09 bytes",
    ]
    assert any(line.startswith("big: no power of its cores") for line in found.missing)


@pytest.mark.parametrize("core", ["cortex-a7", ""])
def test_a_board_of_another_architecture_is_refused(core: str) -> None:
    cpu = cpu_node(0, core, 1) if core else ""
    with pytest.raises(CompileErrors, match="No 64-bit ARM processor in the device tree"):
        imported(f"/dts-v1/;\n/ {{\ncpus {{\n{cpu}\n}};\n}};\n")


RK3399_BLOB = blob(rk3399_dts())


@settings(deadline=None)
@given(st.integers(0, len(RK3399_BLOB) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_device_tree_becomes_a_board_file_or_is_refused(at: int, bytes_: bytes) -> None:
    damaged = RK3399_BLOB[:at] + bytes_ + RK3399_BLOB[at + len(bytes_) :]
    try:
        found = import_device_tree(damaged, "board.dtb", "mine")
    except CompileErrors as errors:
        (only,) = errors.diagnostics
        assert "device tree" in only.message
    else:
        assert parse_board(found.text, "mine", "mine.toml") == found.board


def test_a_running_system_becomes_a_board_file(tmp_path: Path) -> None:
    files = LocalFiles(grow(tmp_path, {**RK3399, **live(rk3399_dts())}))
    found = import_system(files, "mine")
    board = found.board
    assert parse_board(found.text, "mine", "mine.toml") == board
    assert (board.machine.triple, board.machine.mcpu) == ("aarch64-linux-gnu", "cortex-a72")
    assert board.machine.features == ("crc", "fp-armv8", "neon")
    assert board.description == "Some RK3399 Board"
    assert board.clusters[0].states[-1].voltage_v == 1.2
    assert board.machine.sources["l2_bytes"] == "/sys/devices/system/cpu/cpu0/cache"
    # What the device tree says of it, the blob would have said.
    from_blob = imported(rk3399_dts()).board
    assert [c.states for c in board.clusters] == [c.states for c in from_blob.clusters]


def test_the_blob_is_read_where_the_system_shows_no_folders(tmp_path: Path) -> None:
    files = {**RK3399, "/sys/firmware/fdt": blob(rk3399_dts())}
    found = import_system(LocalFiles(grow(tmp_path, files)))
    assert found.board.clusters[0].capacitance_f == 436e-12
    assert "/sys/firmware/fdt: /cpus/cpu@4" in found.text


def test_a_desktop_becomes_a_board_file(tmp_path: Path) -> None:
    found = import_system(LocalFiles(grow(tmp_path, DESKTOP)), "mine")
    board = found.board
    assert (board.machine.triple, board.machine.mcpu, board.machine.lanes) == (
        *("x86_64-linux-gnu", "", 8),
    )
    assert board.description == "Some Processor @ 3.50GHz"
    assert [sensor.name for sensor in board.sensors] == ["package-0"]
    assert any(line.startswith("cpu: no power of its cores") for line in found.missing)


def test_clusters_without_all_cpus_keep_the_file_right(tmp_path: Path) -> None:
    # A CPU without cpufreq: `cores` is then of those that have it.
    files = {**RK3399, "/sys/devices/system/cpu/online": "0-7"}
    assert import_system(LocalFiles(grow(tmp_path, files))).board.machine.cores == 6


def test_this_very_machine_can_be_imported(tmp_path: Path) -> None:
    found = import_system(name="here")
    path = tmp_path / "here.toml"
    path.write_text(found.text)
    here = read_board(str(path))
    assert here == found.board
    assert here.machine.features == machine("host").features


def test_a_system_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match="Nothing tells what processor this is"):
        import_system(LocalFiles(tmp_path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match="Cannot read"):
        read_dtb(tmp_path / "no.dtb")


def test_policies_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    files = {
        **policy(0, "nonsense", "600000"),
        **policy(1, "1", "5 6"),
        **policy(2, "2", "600000 1200000"),
        **policy(3, "2 3", "600000 1200000"),
        "/proc/cpuinfo": RK3399["/proc/cpuinfo"],
    }
    found = import_system(LocalFiles(grow(tmp_path, files)))
    assert [cluster.cpus for cluster in found.board.clusters] == [(2,)]
    assert sum(line.endswith("left out") for line in found.missing) == 3
