"""Device trees: the CPUs, clocks and voltages they tell of, and anything else that is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.boards.device_tree import DeviceTree, live_device_tree, read_device_tree
from eecompile.diagnostics import CompileErrors
from eecompile.runtime.sysfs import LocalFiles
from tests.boards.trees import BIG_KHZ, BIG_UV, blob, cpu_node, grow, live, opp_table, rk3399_dts

RK3399_BLOB = blob(rk3399_dts())


def tree_of(dts: str) -> DeviceTree:
    return read_device_tree(blob(dts), "board.dtb")


def board(cpus: str, rest: str = "") -> DeviceTree:
    return tree_of(f"/dts-v1/;\n/ {{\ncpus {{\n{cpus}\n}};\n{rest}\n}};\n")


def clocks(tree: DeviceTree, notes: list[str] | None = None) -> list[tuple[float | None, ...]]:
    """Clock in MHz and voltage of each state of the only cluster."""
    (cluster,) = tree.clusters([] if notes is None else notes)
    return [((s.frequency_hz or 0) / 1e6, s.voltage_v) for s in cluster.states]


def test_clusters_have_clocks_voltages_powers_and_caches() -> None:
    notes: list[str] = []
    little, big = tree_of(rk3399_dts()).clusters(notes)
    assert notes == []
    assert (little.core, little.cpus, big.core, big.cpus) == (
        *("cortex-a53", (0, 1, 2, 3)),
        *("cortex-a72", (4, 5)),
    )
    assert [s.frequency_hz for s in big.states] == [float(k) * 1e3 for k in BIG_KHZ.split()]
    assert [s.voltage_v for s in big.states] == [mv / 1000 for mv in BIG_UV]
    assert (big.capacitance_f, big.transition_latency_s, big.l2_bytes) == (436e-12, 4e-5, 2**20)
    assert big.sources["states"] == "board.dtb: /opp-table-1, opp-hz and opp-microvolt"
    assert big.sources["dynamic_power_coefficient"].startswith("board.dtb: /cpus/cpu@4/")


def test_the_board_says_what_it_is() -> None:
    tree = tree_of(rk3399_dts())
    assert (tree.model, tree.compatible) == ("Some RK3399 Board", ("some,board", "rockchip,rk3399"))
    assert tree.cpus[5].capacity == 1024


def test_the_tree_of_a_running_system_is_that_of_its_blob(tmp_path: Path) -> None:
    files = LocalFiles(grow(tmp_path, live(rk3399_dts())))
    tree = live_device_tree(files)
    assert tree is not None
    assert tree.clusters([]) == tree_of(rk3399_dts()).clusters([])
    assert tree.model == "Some RK3399 Board"


def test_a_number_whose_bytes_are_letters_is_a_number() -> None:
    # 1.5 GHz is 0x59682f00: "Yh/" and an end. The library takes that for a text.
    tree = board(cpu_node(0, "cortex-a72", 1), "x { clock-frequency = <0x59682f00>; };")
    assert len(tree.cpus) == 1
    table = "t { phandle = <1>; opp1 { opp-hz = <0x0 0x59682f00>; opp-microvolt = <0xdbba0>; }; };"
    assert clocks(board(cpu_node(0, "cortex-a72", 1), table)) == [(1500.0, 0.9)]
    # All of it letters: 0x41424300 is 1094861568 Hz.
    table = table.replace("0x59682f00", "0x41424300")
    assert clocks(board(cpu_node(0, "cortex-a72", 1), table)) == [(1094.861568, 0.9)]


def test_boosts_are_left_out_and_said() -> None:
    notes: list[str] = []
    table = opp_table("t", 1, "600000 900000", (800, 900)).replace("opp01 {", "opp01 { turbo-mode;")
    assert clocks(board(cpu_node(0, "cortex-a72", 1), table), notes) == [(600.0, 0.8)]
    assert notes == ["CPUs 0: 900 MHz left out, for short boosts only (turbo-mode)"]


def test_rows_that_are_switched_off_are_left_out() -> None:
    table = opp_table("t", 1, "600000 900000", (800, 900)).replace(
        "opp00 {", 'opp00 { status = "disabled";'
    )
    assert clocks(board(cpu_node(0, "cortex-a72", 1), table)) == [(900.0, 0.9)]


def test_of_chips_sorted_by_speed_the_worst_counts() -> None:
    row = "opp1 { opp-hz = <0x0 0x3b9aca00>; opp-microvolt-speed0 = <900000>; "
    table = f"t {{ phandle = <1>; {row} opp-microvolt-speed1 = <850000>; }}; }};"
    tree = board(cpu_node(0, "cortex-a72", 1), table)
    assert clocks(tree) == [(1000.0, 0.9)]
    (cluster,) = tree.clusters([])
    assert cluster.sources["states"].endswith(
        "the highest of opp-microvolt-speed0, opp-microvolt-speed1"
    )


def test_clocks_for_certain_chips_only_are_said() -> None:
    notes: list[str] = []
    table = opp_table("t", 1, "600000", (800,)).replace(
        "opp00 {", "opp00 { opp-supported-hw = <1>;"
    )
    clocks(board(cpu_node(0, "cortex-a72", 1), table), notes)
    assert notes == ["CPUs 0: some clocks are for certain chips only (opp-supported-hw)"]


@pytest.mark.parametrize(
    ("millivolts", "why"),
    [((900, 800), "voltages left out, they fall"), ((0, 900), "voltages left out")],
)
def test_voltages_that_cannot_be_are_left_out(millivolts: tuple[int, ...], why: str) -> None:
    notes: list[str] = []
    table = opp_table("t", 1, "600000 900000", millivolts)
    found = clocks(board(cpu_node(0, "cortex-a72", 1), table), notes)
    assert found == [(600.0, None), (900.0, None)]
    assert len(notes) == 1 and why in notes[0]


def test_a_table_without_voltages_gives_clocks() -> None:
    notes: list[str] = []
    table = "t { phandle = <1>; opp1 { opp-hz = <0x0 0x3b9aca00>; }; };"
    assert clocks(board(cpu_node(0, "cortex-a72", 1), table), notes) == [(1000.0, None)]
    assert notes == ["CPUs 0: the device tree gives no voltages for them"]


def test_the_old_form_of_a_table_is_read() -> None:
    cpu = (
        'cpu@0 { device_type = "cpu"; compatible = "arm,cortex-a57"; clock-latency = <300000>; '
        "operating-points = <1200000 1000000 600000 900000>; };"
    )
    tree = board(cpu)
    assert clocks(tree) == [(600.0, 0.9), (1200.0, 1.0)]
    assert tree.clusters([])[0].transition_latency_s == 3e-4


def test_without_clocks_there_are_cpus_all_the_same() -> None:
    notes: list[str] = []
    (cluster,) = board(cpu_node(0, "cortex-a72", 7)).clusters(notes)
    assert (cluster.cpus, cluster.states) == ((0,), ())
    assert notes == ["CPUs 0: the device tree lists no clocks"]


def test_cpus_of_one_table_and_two_clock_domains_are_two_clusters() -> None:
    cpus = "".join(
        cpu_node(i, "cortex-a55", 1, f"qcom,freq-domain = <0x50 {i // 2}>;") for i in range(4)
    )
    found = board(cpus, opp_table("t", 1, "600000", (800,))).clusters([])
    assert [cluster.cpus for cluster in found] == [(0, 1), (2, 3)]


def test_where_nothing_tells_the_clock_the_map_of_clusters_does() -> None:
    cpus = "".join(
        f'cpu@{i} {{ compatible = "arm,cortex-a78ae"; phandle = <{i + 16}>; }};' for i in range(4)
    )
    cpu_map = "".join(
        f"cluster{c} {{ core0 {{ cpu = <{16 + 2 * c}>; }}; core1 {{ cpu = <{17 + 2 * c}>; }}; }};"
        for c in range(2)
    )
    found = board(f"{cpus} cpu-map {{ {cpu_map} }};").clusters([])
    assert [cluster.cpus for cluster in found] == [(0, 1), (2, 3)]


def test_cpus_that_are_out_of_use_do_not_count() -> None:
    cpus = cpu_node(0, "cortex-a72", 1) + cpu_node(1, "cortex-a72", 1, 'status = "disabled";')
    assert len(board(cpus).cpus) == 1


def test_a_cache_that_is_its_own_next_one_ends() -> None:
    cache = "c { phandle = <9>; next-level-cache = <9>; cache-size = <0x80000>; };"
    assert board(cpu_node(0, "cortex-a72", 1), cache).cpus[0].last_bytes == 0x80000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        RK3399_BLOB[:100],
        RK3399_BLOB[:-40],
        RK3399_BLOB[:4] + b"\0" * 60,
        b"\xd0\x0d\xfe\xed" + b"\xff" * 3_000_000,
    ],
)
def test_what_is_no_device_tree_is_told(content: bytes) -> None:
    with pytest.raises(CompileErrors, match="is no device tree") as caught:
        read_device_tree(content, "some/board.dtb")
    assert caught.value.diagnostics[0].file == "some/board.dtb"


@settings(deadline=None)
@given(st.integers(0, len(RK3399_BLOB) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_blob_is_read_or_refused(at: int, bytes_: bytes) -> None:
    damaged = RK3399_BLOB[:at] + bytes_ + RK3399_BLOB[at + len(bytes_) :]
    try:
        read_device_tree(damaged, "board.dtb").clusters([])
    except CompileErrors as errors:
        assert [found.id for found in errors.diagnostics] == ["bad-board"]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for start in (b"", b"\xd0\x0d\xfe\xed"):
        try:
            read_device_tree(start + content, "board.dtb").clusters([])
        except CompileErrors as errors:
            assert [found.id for found in errors.diagnostics] == ["bad-board"]
