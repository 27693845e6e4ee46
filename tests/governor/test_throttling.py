"""What the clocks were doing is told from sysfs, and what is not there is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eecompile.runtime.sysfs import LocalFiles
from eecompile.runtime.throttling import Conditions, changes, clock_conditions
from tests.governor.sysfs_tree import Kernel, Policy, rpi4

CPU = "/sys/devices/system/cpu"


def put(root: Path, files: dict[str, str]) -> LocalFiles:
    for path, text in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return LocalFiles(root)


def test_nothing_to_read_tells_nothing(tmp_path: Path) -> None:
    found = clock_conditions(LocalFiles(tmp_path))
    assert found == Conditions()
    assert found.warnings == ("the machine does not tell its clock (no cpufreq)",)


def test_this_machine_can_be_looked_at() -> None:
    found = clock_conditions(LocalFiles())
    assert found.cpus >= 1 and found.load is not None
    assert json.loads(json.dumps(found.to_json()))["cpus"] == found.cpus


def test_policies_turbo_load_and_heat(tmp_path: Path) -> None:
    policy = rpi4()
    Kernel(tmp_path, policy)
    files = put(
        tmp_path,
        {
            "/proc/loadavg": "3.50 0.21 0.97 1/97 6952",
            f"{CPU}/online": "0-3",
            f"{CPU}/cpufreq/boost": "1",
            "/sys/class/thermal/thermal_zone0/temp": "48000",
            "/sys/class/thermal/thermal_zone1/temp": "81500",
            "/sys/class/thermal/thermal_zone2/temp": "-274000",
            "/sys/class/thermal/thermal_zone3/temp": "garbage",
        },
    )
    found = clock_conditions(files)
    (one,) = found.policies
    assert (one.cpus, one.driver, one.governor) == ((0, 1, 2, 3), "cpufreq-dt", "schedutil")
    assert (one.current_hz, one.low_hz, one.high_hz, one.fastest_hz) == (6e8, 6e8, 1.5e9, 1.5e9)
    assert (found.turbo, found.load, found.cpus, found.temperature_c) == (True, 3.5, 4, 81.5)
    assert found.warnings == (
        "the clock is free to change (governor schedutil)",
        "turbo is on: the clock depends on heat and on what other cores do",
        "other work is running (load 3.5 on 4 CPUs)",
        "it is hot (81.5 °C)",
    )


@pytest.mark.parametrize("way", ["userspace", "limits"])
def test_a_pinned_clock_on_a_quiet_machine_is_nothing_to_warn_of(tmp_path: Path, way: str) -> None:
    policy = rpi4()
    if way == "userspace":
        policy.governor, policy.speed, policy.tunables = "userspace", 1_000_000, {}
    else:
        policy.low = policy.high = 1_000_000
    Kernel(tmp_path, policy)
    found = clock_conditions(put(tmp_path, {"/proc/loadavg": "0.05 0 0", f"{CPU}/online": "0-3"}))
    assert found.policies[0].current_hz == 1e9 and found.warnings == ()


def test_intel_s_switch_says_no_turbo(tmp_path: Path) -> None:
    files = put(tmp_path, {f"{CPU}/intel_pstate/no_turbo": "1", f"{CPU}/cpufreq/boost": "1"})
    assert clock_conditions(files).turbo is False


def test_throttle_counters_count_a_package_once(tmp_path: Path) -> None:
    files = put(
        tmp_path,
        {
            f"{CPU}/cpu{cpu}/thermal_throttle/{kind}_throttle_count": count
            for cpu, kind, count in [
                (0, "core", "3"),
                (1, "core", "7"),
                (0, "package", "9"),
                (1, "package", "9"),
                (2, "package", "-1"),
            ]
        },
    )
    found = clock_conditions(files).throttle_counts
    assert found == {"core_throttle_count": 7, "package_throttle_count": 9}


@pytest.mark.parametrize(
    ("bits", "now", "before"),
    [
        ("0", (), ()),
        ("50005", ("under-voltage", "throttled"), ("under-voltage", "throttled")),
        ("80000", (), ("soft temperature limit",)),
        ("0x2", ("clock capped",), ()),
        ("nonsense", (), ()),
    ],
)
def test_a_raspberry_pi_s_bits(
    tmp_path: Path, bits: str, now: tuple[str, ...], before: tuple[str, ...]
) -> None:
    files = put(tmp_path, {"/sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    found = clock_conditions(files)
    assert (found.throttled, found.throttled_before) == (now, before)


def test_weak_supplies_and_cooling_devices(tmp_path: Path) -> None:
    files = put(
        tmp_path,
        {
            "/sys/class/hwmon/hwmon1/name": "rpi_volt",
            "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1",
            "/sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "/sys/class/thermal/cooling_device0/cur_state": "2",
            "/sys/class/thermal/cooling_device1/type": "pwm-fan",
            "/sys/class/thermal/cooling_device1/cur_state": "3",
            "/sys/class/thermal/cooling_device2/type": "cpufreq-cpu4",
            "/sys/class/thermal/cooling_device2/cur_state": "0",
        },
    )
    expected = ("under-voltage", "heat (cpufreq-cpu0 at level 2)")
    assert clock_conditions(files).throttled == expected


def test_an_offline_policy_is_left_out(tmp_path: Path) -> None:
    policy, other = Policy(0, (0,), (1_000_000,)), Policy(1, (1,), (1_000_000,))
    kernel = Kernel(tmp_path, policy, other)
    other.online = False
    assert [one.cpus for one in clock_conditions(kernel).policies] == [(0,)]


def test_what_happened_between_two_looks(tmp_path: Path) -> None:
    policy, other = rpi4(), Policy(4, (4, 5), (1_000_000,))
    kernel = Kernel(tmp_path, policy, other)
    before = replace(clock_conditions(kernel), throttle_counts={"core_throttle_count": 2})
    assert changes(before, before) == ()
    kernel.store(f"{policy.folder}/scaling_governor", "performance")
    kernel.store(f"{policy.folder}/scaling_max_freq", "1000000")
    kernel.unplug(other)
    after = replace(
        clock_conditions(kernel),
        throttle_counts={"core_throttle_count": 5},
        throttled=("under-voltage",),
        throttled_before=("under-voltage", "throttled"),
    )
    assert changes(before, after) == (
        "CPUs 0, 1, 2, 3: the governor changed from schedutil to performance",
        "CPUs 0, 1, 2, 3: the limits of the clock changed",
        "CPUs 4, 5 went away",
        "heat slowed it down 3 times (core_throttle_count)",
        "it is slowed down: under-voltage",
        "it was slowed down: throttled",
    )
