"""What the shipped board files claim: sources, and numbers that can be worked out a second time."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from eecompile.board import Board, Cluster
from eecompile.boards.file import read_board
from eecompile.cli import main
from eecompile.hardware import BOARDS, board_names

FILES = sorted(BOARDS.glob("*.toml"))
BOARDS_WITH_CLOCKS = [
    name for name in board_names() if name != "host" and read_board(name).clusters
]
CLUSTERS = [
    pytest.param(board, cluster, id=f"{board.name}-{cluster.name}")
    for board in map(read_board, BOARDS_WITH_CLOCKS)
    for cluster in board.clusters
]
README = (BOARDS / "README.md").read_text(encoding="utf-8")

#: What a source must have to be found again: a file, a site, a program with its version, a manual.
DOCUMENT = re.compile(
    r"\.(dtsi?|c|md|adb|txt|td|toml)\b|[a-z0-9-]+\.(com|org)\b|\blscpu\b|/sys/|llvm-mca [0-9.]+"
    r"|LLVM commit [0-9a-f]{8}|gem5 commit [0-9a-f]{8}|Wikipedia, |WikiChip, |psABI|^measured, AMD"
    r"|^AArch64 |^AVX|^x86-64 without|^as host\.toml"
)
#: A repository's name is not enough where the number may change from one commit to the next.
PINNED = {
    "sbc-bench": "53f79517",
    "cpufp": "93e165ea",
    "PowerJoular": "1266890a",
    "energymon": "4bcb29c4",
    "raspberrypi/linux": "05207a2d",
}


def numbers(table: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str | None]]:
    """Every number of a TOML table: where it stands, and the source beside it."""
    if isinstance(table, dict):
        if "value" in table:
            source = table.get("source")
            return [(path, source)] if isinstance(source, str) else [(path, None)]
        return [found for key, value in table.items() for found in numbers(value, (*path, key))]
    if isinstance(table, list):
        return [found for item in table for found in numbers(item, path)]
    return [(path, None)] if isinstance(table, (int, float)) else []


def sources(board: Board) -> dict[str, str]:
    """Sources by the names of what they stand for."""
    said = {f"machine.{key}": text for key, text in board.machine.sources.items()}
    said |= {f"board.{key}": text for key, text in board.sources.items()}
    for cluster in board.clusters:
        said |= {f"{cluster.name}.{key}": text for key, text in cluster.sources.items()}
    return said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_number_stands_without_its_source(path: Path) -> None:
    found = numbers(tomllib.loads(path.read_text(encoding="utf-8")))
    assert found
    assert [place for place, source in found if source is None] == []
    assert [both for both in found if not DOCUMENT.search(both[1] or "")] == []


@pytest.mark.parametrize("name", BOARDS_WITH_CLOCKS)
def test_numbers_that_cost_anything_come_from_one_version_of_their_source(name: str) -> None:
    for key, text in sources(read_board(name)).items():
        for repository, commit in PINNED.items():
            if repository in text:
                assert commit in text, key
        if "arch/arm" in text:
            assert re.search(r"Linux v7\.1 arch/arm(64)?/boot/dts/[\w./-]+\.dtsi?\b", text), key


def test_what_was_to_be_there_is_there() -> None:
    assert set(BOARDS_WITH_CLOCKS) >= {
        "raspberry-pi-4", "raspberry-pi-5", "rk3399", "rk3588", "jetson-nano", "jetson-tx1",
        "jetson-agx-orin", "mt8183", "sdm845", "hikey960",
    }  # fmt: skip
    assert len(read_board("rk3399").clusters) == 2
    assert {cluster.core for cluster in read_board("rk3588").clusters} == {
        "cortex-a76",
        "cortex-a55",
    }
    assert read_board("arm-cpu").clusters == ()


@pytest.mark.parametrize(("board", "cluster"), CLUSTERS)
def test_clocks_rise_and_voltages_do_not_fall(board: Board, cluster: Cluster) -> None:
    clocks = [state.frequency_hz for state in cluster.states]
    assert clocks == sorted(set(clocks), key=lambda hz: hz or 0.0)
    voltages = [state.voltage_v for state in cluster.states]
    assert None not in voltages or set(voltages) == {None}
    if None not in voltages:
        assert voltages == sorted(voltages, key=lambda volts: volts or 0.0)
        assert all(0.6 <= volts <= 1.3 for volts in voltages if volts is not None)


@pytest.mark.parametrize(("board", "cluster"), CLUSTERS)
def test_energy_of_a_clock_is_its_voltage_squared(board: Board, cluster: Cluster) -> None:
    """Of the same cycles: power over clock, against the highest clock's."""
    top = cluster.states[-1]
    highest = cluster.core_power_w(top)
    if top.voltage_v is None or cluster.capacitance_f is None:
        assert highest is None
        return
    assert highest is not None and top.frequency_hz is not None
    for state in cluster.states:
        power = cluster.core_power_w(state)
        assert power is not None and state.voltage_v is not None and state.frequency_hz is not None
        ratio = (power / state.frequency_hz) / (highest / top.frequency_hz)
        assert ratio == pytest.approx((state.voltage_v / top.voltage_v) ** 2, rel=1e-12)


@pytest.mark.parametrize("name", BOARDS_WITH_CLOCKS)
def test_energies_shown_are_the_voltages_squared(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["targets", "show", name]) == 0
    shown = re.findall(r"^ *[0-9.]+ [MG]Hz .* ([0-9]+ %|-) *$", capsys.readouterr().out, re.M)
    expected = []
    for cluster in read_board(name).clusters:
        for state in cluster.states:
            low, high = state.voltage_v, cluster.states[-1].voltage_v
            expected.append(f"{(low / high) ** 2:.0%}" if low and high else "-")
    assert [text.replace(" ", "") for text in shown] == expected


@pytest.mark.parametrize("name", BOARDS_WITH_CLOCKS)
def test_memory_bandwidth_is_twice_the_copy_its_source_tells(name: str) -> None:
    board = read_board(name)
    if board.memory_bandwidth is None:
        assert name in ("hikey960", "mt8183")
        return
    copied = re.search(r"memcpy ([0-9.]+) MB/s on one ", board.sources["memory_bandwidth"])
    assert copied
    assert board.memory_bandwidth == float(f"{2e6 * float(copied[1]):.4g}")


@pytest.mark.parametrize("name", board_names())
def test_multiply_accumulates_a_cycle_are_those_that_were_measured(name: str) -> None:
    """8 flops of four lanes are one multiply-accumulate of a vector; overhead is below 3 %."""
    if name == "host":
        return
    board = read_board(name)
    machine = board.machine
    told: list[tuple[float, str]] = [
        (machine.fma_per_cycle, machine.sources.get("fma_per_cycle", ""))
    ]
    told += [
        (cluster.fma_per_cycle, cluster.sources["fma_per_cycle"]) for cluster in board.clusters
    ]
    for value, text in told:
        measured = re.search(r"([0-9.]+) GFLOPS .*?at ([0-9.]+) GHz", text)
        if measured:
            a_cycle = float(measured[1]) / float(measured[2]) / 8
            assert 0.97 * value <= a_cycle <= 1.01 * value


#: Microvolts of clocks in MHz. Source: Linux drivers/clk/tegra/clk-tegra124-dfll-fcpu.c,
#: CPU_CVB_TABLE_EUCM2 and CPU_CVB_TABLE_EUCM1 (no term depends on the chip).
EUCM2 = {
    204: 742283, 306: 776249, 408: 810215, 510: 844181, 612: 878147, 714: 912113, 816: 946079,
    918: 980045, 1020: 1014011, 1122: 1047977, 1224: 1081943, 1326: 1090000, 1479: 1090000,
}  # fmt: skip
EUCM1 = {
    204: 734429, 306: 768191, 408: 801953, 510: 835715, 612: 869477, 714: 903239, 816: 937001,
    918: 970763, 1020: 1004525, 1122: 1038287, 1224: 1072049, 1326: 1105811, 1428: 1130000,
    1555.5: 1130000, 1632: 1170000, 1734: 1227500,
}  # fmt: skip


def next_clock(table: dict[Any, int], hertz: float) -> int:
    """Microvolts of the lowest clock of a table that is not below one."""
    return table[min(clock for clock in table if clock * 1e6 >= hertz)]


def test_voltages_of_the_jetson_nano_follow_from_the_clock_drivers_table() -> None:
    """Source: Linux drivers/clk/tegra/cvb.c: up to a step of the rail, at least the minimum."""
    step, offset, least = 19_200, 708_000, 900_000
    for state in read_board("jetson-nano").clusters[0].states:
        assert state.frequency_hz is not None
        steps = math.ceil((next_clock(EUCM2, state.frequency_hz) - offset) / step)
        millivolts = max(offset + steps * step, least) // 1000
        assert state.voltage_v == millivolts / 1000


def test_voltages_of_the_jetson_tx1_follow_from_the_clock_drivers_table() -> None:
    for state in read_board("jetson-tx1").clusters[0].states:
        assert state.frequency_hz is not None
        microvolts = min(max(next_clock(EUCM1, state.frequency_hz), 841_000), 1_227_000)
        assert state.voltage_v == round(microvolts / 1e6, 3)


@pytest.mark.parametrize(
    ("name", "watts_of_four_cores", "megahertz"),
    [
        # Source: PowerJoular, src/raspberry_pi_cpu_formula.adb, the linear models' slopes.
        ("raspberry-pi-4", 4.495800769695992, 1500),
        ("raspberry-pi-5", 3.457855981342954, 2400),
    ],
)
def test_coefficients_of_raspberry_pis_follow_from_the_measured_power(
    name: str, watts_of_four_cores: float, megahertz: int
) -> None:
    cluster = read_board(name).clusters[0]
    (volts,) = [s.voltage_v for s in cluster.states if s.frequency_hz == megahertz * 1e6]
    assert volts is not None and cluster.capacitance_f is not None
    microwatts = watts_of_four_cores / 4 * 1e6
    assert round(microwatts / megahertz / volts**2) == round(cluster.capacitance_f * 1e12)


def row(board: Board, cluster: Cluster) -> str:
    """A cluster's row of the README's table."""
    low, high = cluster.states[0], cluster.states[-1]
    assert low.frequency_hz is not None and high.frequency_hz is not None
    clocks = f"{low.frequency_hz / 1e6:g} to {high.frequency_hz / 1e6:g}, {len(cluster.states)}"
    volts = ratio = "-"
    if low.voltage_v is not None and high.voltage_v is not None:
        volts = f"{low.voltage_v:g} to {high.voltage_v:g}"
        ratio = f"{100 * (low.voltage_v / high.voltage_v) ** 2:.1f} %"
    coefficient, latency, memory = "-", "-", "-"
    if cluster.capacitance_f is not None:
        coefficient = f"{cluster.capacitance_f * 1e12:.0f}"
    if cluster.transition_latency_s is not None:
        latency = f"{cluster.transition_latency_s * 1e6:.0f} us"
    if board.memory_bandwidth is not None:
        memory = f"{board.memory_bandwidth / 1e9:.1f}"
    cells = (f"`{board.name}`", cluster.name, clocks, volts, coefficient, latency, memory, ratio)
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize(("board", "cluster"), CLUSTERS)
def test_the_readme_tells_what_the_file_says(board: Board, cluster: Cluster) -> None:
    assert row(board, cluster) in README.splitlines()


def test_the_readme_has_no_other_boards() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w-]+) \| [0-9]", README, re.MULTILINE)
    assert sorted(rows) == sorted(
        (board.name, cluster.name)
        for board in map(read_board, BOARDS_WITH_CLOCKS)
        for cluster in board.clusters
    )


def test_the_readmes_example_is_a_board(tmp_path: Path) -> None:
    """Every key it explains is one of those that are read."""
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(example.replace('"..."', '"the README"'), encoding="utf-8")
    board = read_board(str(path))
    cluster = board.clusters[0]
    assert (board.machine.cores, board.idle_power_w, board.migration_latency_s) == (4, 0.3, 1e-4)
    assert [state.core_power_w for state in cluster.states] == [0.2, 0.9]
    assert (cluster.static_power_w, cluster.transition_latency_s) == (0.05, 4e-5)
    assert board.sensors[0].covers == "all CPUs"
