"""Boards of running systems, as their kernels' files tell them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.board import Board
from eecompile.boards.device_tree import live_device_tree
from eecompile.boards.file import read_board
from eecompile.boards.host import board_of, host_board
from eecompile.boards.host_processor import machine_of
from eecompile.boards.importing import import_system
from eecompile.hardware import Machine, machine
from eecompile.runtime.sysfs import LocalFiles
from tests.boards.trees import CPU, DESKTOP, RK3399, arm_cpuinfo, grow, live, policy, rk3399_dts

ARM = Machine("host", "aarch64-linux-gnu", l2_bytes=2**19)


def board(
    tmp_path: Path, files: Mapping[str, str | bytes], notes: list[str] | None = None
) -> Board:
    system = LocalFiles(grow(tmp_path, files))
    return board_of(system, ARM, live_device_tree(system), [] if notes is None else notes)


def test_policies_are_clusters_the_fastest_first(tmp_path: Path) -> None:
    big, little = board(tmp_path, RK3399).clusters
    assert (big.name, big.core, big.cpus) == ("big", "cortex-a72", (4, 5))
    assert (little.name, little.core, little.cpus) == ("little", "cortex-a53", (0, 1, 2, 3))
    assert [s.frequency_hz for s in little.states] == [
        *(408e6, 600e6, 816e6, 1008e6, 1200e6, 1416e6),
    ]
    assert (big.transition_latency_s, big.capacitance_f, big.states[0].voltage_v) == (
        *(4e-5, None, None),
    )
    assert big.sources["states"] == f"{CPU}/cpufreq/policy4/scaling_available_frequencies"
    assert {state.cluster for state in big.states} == {"big"}


def test_the_device_tree_adds_voltages_and_powers(tmp_path: Path) -> None:
    found = board(tmp_path, {**RK3399, **live(rk3399_dts())})
    big, little = found.clusters
    assert [s.voltage_v for s in big.states][-1] == 1.2
    assert (big.capacitance_f, little.capacitance_f) == (436e-12, 100e-12)
    assert big.core_power_w(big.states[-1]) == pytest.approx(436e-12 * 1.44 * 1.8e9)
    assert "policy4" in big.sources["states"] and "/opp-table-1" in big.sources["states"]


def test_voltages_of_other_clocks_are_not_taken(tmp_path: Path) -> None:
    files = {**RK3399, **live(rk3399_dts()), **policy(4, "4 5", "408000 2000000")}
    assert [s.voltage_v for s in board(tmp_path, files).clusters[0].states] == [None, None]


def test_policies_of_one_cpu_each_that_are_alike_are_one_cluster(tmp_path: Path) -> None:
    notes: list[str] = []
    (cluster,) = board(tmp_path, DESKTOP, notes).clusters
    assert (cluster.name, cluster.cpus) == ("cpu", (0, 1))
    assert [s.frequency_hz for s in cluster.states] == [800e6, 4900e6]
    assert cluster.transition_latency_s is None
    assert "CPUs 0-1: each has a clock of its own; one cluster here" in notes
    assert sum("lists no clocks; only lowest and highest" in note for note in notes) == 2


def test_two_clusters_of_one_kind_stay_two(tmp_path: Path) -> None:
    files = {
        "/proc/cpuinfo": arm_cpuinfo(["0xd05"] * 2 + ["0xd0b"] * 4),
        **policy(0, "0 1", "408000 1800000"),
        **policy(2, "2 3", "408000 2400000"),
        **policy(4, "4 5", "408000 2400000"),
    }
    found = board(tmp_path, files).clusters
    assert [(c.name, c.cpus, c.fma_per_cycle) for c in found] == [
        ("big0", (2, 3), 2),
        ("big1", (4, 5), 2),
        ("little", (0, 1), 1),
    ]


@pytest.mark.parametrize("latency", ["4294967295", "0", "-1", "", "soon", "99999999999999999999"])
def test_a_driver_that_does_not_know_its_latency_gives_none(tmp_path: Path, latency: str) -> None:
    files = policy(0, "0", "600000 1500000", cpuinfo_transition_latency=latency)
    (cluster,) = board(tmp_path, files).clusters
    assert cluster.transition_latency_s is None
    assert "transition_latency_s" not in cluster.sources


def test_boosts_are_left_out_and_said(tmp_path: Path) -> None:
    notes: list[str] = []
    files = policy(0, "0", "600000 1500000", scaling_boost_frequencies="1800000 ")
    (cluster,) = board(tmp_path, files, notes).clusters
    assert cluster.states[-1].frequency_hz == 1.5e9
    assert f"{CPU}/cpufreq/policy0: 1800 MHz left out, for short boosts only" in notes


def energy_model(root: str, watts: Mapping[int, int], **files: str) -> dict[str, str]:
    folder = f"/sys/kernel/debug/energy_model/{root}"
    rows = {
        f"{folder}/ps:{khz}/{name}": str(value)
        for khz, power in watts.items()
        for name, value in (("frequency", khz), ("power", power), ("cost", 1))
    }
    return rows | {f"{folder}/{name}": text for name, text in files.items()}


ONE = policy(0, "0 1", "600000 1500000")


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"flags": "0x1"}, 1.5),
        ({"flags": "0x3"}, 1.5),
        ({"units": "microWatts"}, 1.5),
        ({"units": "milliWatts"}, 1500.0),
        ({"units": "bogoWatts"}, None),
        ({"flags": "0x0"}, None),
        ({"flags": "0x4"}, None),
        ({"flags": "what"}, None),
        ({}, None),
    ],
)
def test_powers_of_the_energy_model_are_watts_only_where_it_says_so(
    tmp_path: Path, files: dict[str, str], watts: float | None
) -> None:
    power = 1500000 if watts != 1500.0 else 1500
    found = energy_model("cpu0", {600000: power // 2, 1500000: power}, **files)
    notes: list[str] = []
    (cluster,) = board(
        tmp_path, {**ONE, **found, "/proc/sys/kernel/osrelease": "6.6.31-v8+"}, notes
    ).clusters
    expected = 1.5 if watts == 1500.0 else watts
    assert cluster.states[-1].core_power_w == expected
    assert ("core_power_w" in cluster.sources) == (watts is not None)
    assert any("no watts" in note for note in notes) == (watts is None)


def test_flags_of_an_old_kernel_mean_milliwatts(tmp_path: Path) -> None:
    model = energy_model("cpu0", {600000: 750, 1500000: 1500}, flags="0x1")
    files = {**ONE, **model, "/proc/sys/kernel/osrelease": "5.18.0"}
    assert board(tmp_path, files).clusters[0].states[-1].core_power_w == 1.5


@pytest.mark.parametrize(
    "watts", [{600000: 2, 1500000: 1}, {600000: 1}, {1: 1}, {}, {600000: -5, 1500000: 1}]
)
def test_powers_that_do_not_fit_the_clocks_are_left_out(
    tmp_path: Path, watts: dict[int, int]
) -> None:
    notes: list[str] = []
    model = energy_model("cpu0", watts, units="milliWatts")
    (cluster,) = board(tmp_path, {**ONE, **model}, notes).clusters
    assert cluster.states[-1].core_power_w is None
    assert any("its powers are not for the clocks" in note for note in notes)


def test_without_cpufreq_there_is_one_state(tmp_path: Path) -> None:
    notes: list[str] = []
    text = "processor\t: 0\ncpu MHz\t\t: 2596.118\nflags\t\t: fpu\n"
    found = board(tmp_path, {"/proc/cpuinfo": text, f"{CPU}/online": "0-3"}, notes)
    (cluster,) = found.clusters
    assert (cluster.name, cluster.cpus) == ("cpu", (0, 1, 2, 3))
    assert [state.frequency_hz for state in cluster.states] == [2596118000.0]
    assert notes[0].startswith("no cpufreq")


def test_a_machine_that_tells_no_clock_has_one_state_all_the_same(tmp_path: Path) -> None:
    (cluster,) = board(tmp_path, {"/proc/cpuinfo": arm_cpuinfo(["0xd08"])}).clusters
    assert [state.frequency_hz for state in cluster.states] == [None]
    assert (cluster.core, cluster.cpus) == ("cortex-a72", (0,))


def test_sensors_are_found_with_their_places(tmp_path: Path) -> None:
    files = {
        **DESKTOP,
        "/sys/class/hwmon/hwmon0/name": "ina3221",
        "/sys/class/hwmon/hwmon0/in1_label": "VDD_CPU",
        "/sys/class/hwmon/hwmon0/curr1_input": "812",
        "/sys/class/hwmon/hwmon0/curr1_max": "5000",
        "/sys/class/hwmon/hwmon1/name": "cros_ec",
        "/sys/class/hwmon/hwmon1/power1_input": "2500000",
        "/sys/class/hwmon/hwmon2/name": "coretemp",
        "/sys/class/hwmon/hwmon2/temp1_input": "45000",
    }
    found = board(tmp_path, files)
    assert [(s.kind, s.name, s.label) for s in found.sensors] == [
        ("rapl", "package-0", ""),
        ("ina3221", "ina3221", "VDD_CPU"),
        ("hwmon", "cros_ec", "power1"),
    ]
    assert found.sources["sensor package-0"] == "/sys/class/powercap/intel-rapl:0/energy_uj"


def test_this_machine_is_the_host() -> None:
    here = read_board("host")
    assert here.machine == machine("host") == host_board(LocalFiles()).machine
    assert all(cluster.states for cluster in here.clusters) and here.clusters


def test_processor_and_caches_are_read(tmp_path: Path) -> None:
    found = machine_of(LocalFiles(grow(tmp_path, DESKTOP)), "pc")
    assert found is not None
    assert (found.triple, found.lanes, found.registers, found.cores) == (
        *("x86_64-linux-gnu", 8, 16, 2),
    )
    assert (found.l1_bytes, found.l2_bytes) == (48 * 1024, 1280 * 1024)
    assert machine_of(LocalFiles(tmp_path / "empty"), "x") is None


class Failing(LocalFiles):
    """Files of which some fail as a kernel's do."""

    def __init__(self, root: Path, number: int, failing: str) -> None:
        super().__init__(root)
        self.number, self.failing = number, failing

    def read_bytes(self, path: str) -> bytes:
        if path.endswith(self.failing):
            raise OSError(self.number, "refused", path)
        return super().read_bytes(path)

    def names(self, folder: str) -> list[str]:
        if folder.endswith(self.failing):
            raise OSError(self.number, "refused", folder)
        return super().names(folder)


EVERYTHING = {
    **RK3399,
    **live(rk3399_dts()),
    **energy_model("cpu0", {408000: 5, 1416000: 9}, units="milliWatts"),
    "/sys/class/hwmon/hwmon0/name": "ina3221",
    "/sys/class/hwmon/hwmon0/curr1_input": "812",
}
NAMES = sorted(
    {path.rpartition("/")[2] for path in EVERYTHING} | {"policy0", "cpu0", "hwmon", "base", "cpus"}
)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENODEV, errno.EIO])
def test_whatever_cannot_be_read_is_left_out(tmp_path: Path, number: int) -> None:
    root = grow(tmp_path, EVERYTHING)
    for name in NAMES:
        found = import_system(Failing(root, number, f"/{name}"))
        assert found.board.machine.triple == "aarch64-linux-gnu"


GARBAGE = st.sampled_from(
    ["", "\0", "-1", "x" * 5000, "1e9", "0x10", "99999999999999999999999", "3-1", "ÿ", "nan", "0-9"]
) | st.text(max_size=10)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(EVERYTHING)), GARBAGE, min_size=1, max_size=6))
def test_garbage_in_files_is_never_a_crash(files: dict[str, str]) -> None:
    class Garbled:
        def read_bytes(self, path: str) -> bytes:
            if path in files:
                return files[path].encode(errors="surrogatepass")
            if path in EVERYTHING:
                content = EVERYTHING[path]
                return content.encode() if isinstance(content, str) else content
            if any(other.startswith(f"{path}/") for other in EVERYTHING):
                raise IsADirectoryError(errno.EISDIR, "a folder", path)
            raise FileNotFoundError(errno.ENOENT, "not there", path)

        def read(self, path: str) -> str:
            return self.read_bytes(path).decode(errors="replace")

        def write(self, path: str, text: str) -> None:
            raise PermissionError(errno.EACCES, "refused", path)

        def names(self, folder: str) -> list[str]:
            start = f"{folder}/"
            inside = {p[len(start) :].partition("/")[0] for p in EVERYTHING if p.startswith(start)}
            if not inside:
                raise FileNotFoundError(errno.ENOENT, "not there", folder)
            return sorted(inside)

    found = import_system(Garbled())
    assert found.board.machine.triple
