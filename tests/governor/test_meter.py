"""Joules are measured or not given: wraps are counted, garbage is dropped and named."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.board import Board, Sensor
from eecompile.hardware import machine
from eecompile.runtime.counter_meter import Counter, CounterMeter, counted_uj
from eecompile.runtime.meter import Meter, NoMeter
from eecompile.runtime.power_meter import Channel, PowerIntegral, PowerMeter, judged
from eecompile.runtime.sensors import find_meter
from eecompile.runtime.sysfs import LocalFiles

#: What Intel's packages tell: 2^32 - 1 units of 61 microjoules.
RANGE = 262_143_328_850


class Readings:
    """A `SysFiles` whose files give one prepared text after the other, or an error."""

    def __init__(self, **files: list[str | int]) -> None:
        self.files = files

    def read(self, path: str) -> str:
        found = self.files[path].pop(0)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        return found

    def read_bytes(self, path: str) -> bytes:
        return self.read(path).encode()

    def write(self, path: str, text: str) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    def names(self, folder: str) -> list[str]:
        return []


def ticking(*times: float) -> Callable[[], float]:
    left = list(times)
    return lambda: left.pop(0)


def counted(
    first: str | int, last: str | int, seconds: float = 1.0, range_uj: int | None = RANGE
) -> Any:
    """What a counter's two readings give: joules, or the problem."""
    meter = CounterMeter(
        Readings(e=[first, last]),
        [Counter("package-0", "e", range_uj)],
        "the package",
        max_power_w=100.0,
        clock=ticking(0.0, seconds),
    )
    meter.start()
    found = meter.stop()
    if found is None:
        (problem,) = meter.problems
        return problem
    assert meter.problems == () and found.seconds == seconds
    assert found.provenance == "measured" and found.covers == "the package"
    return found.joules


def test_a_counter_s_difference_in_joules() -> None:
    assert counted("1000000\n", "16000000\n") == 15.0


def test_a_counter_that_wrapped() -> None:
    assert counted(str(RANGE - 4_999_999), "10000000") == 15.0
    assert counted(str(RANGE), "0") == 1e-6


@given(
    first=st.integers(0, RANGE),
    joules_uj=st.integers(1, 100_000_000),
)
def test_wraps_never_change_the_difference(first: int, joules_uj: int) -> None:
    last = (first + joules_uj) % (RANGE + 1)
    assert counted_uj(first, last, RANGE) == joules_uj
    assert counted(str(first), str(last)) == joules_uj * 1e-6


@given(
    range_uj=st.integers(1 << 20, 1 << 64),
    steps=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=20),
    start=st.integers(0, 1 << 64),
)
def test_many_wraps_add_up_when_read_often(range_uj: int, steps: list[int], start: int) -> None:
    at, readings = start % (range_uj + 1), []
    for step in (0, *steps):
        at = (at + step) % (range_uj + 1)
        readings.append(at)
    assert sum(counted_uj(a, b, range_uj) for a, b in pairwise(readings)) == sum(steps)


@pytest.mark.parametrize(
    ("first", "last", "seconds", "problem"),
    [
        ("5000000", "0", 1.0, "was reset or jumped"),
        ("0", "200000000", 1.0, "the counter jumped"),
        ("-5", "100", 1.0, "it reads -5 of at most"),
        (str(RANGE + 1), "5", 1.0, f"it reads {RANGE + 1} of at most {RANGE}"),
        ("12", "garbage", 1.0, "not a number"),
        ("12", "", 1.0, "not a number"),
        ("9" * 21, "5", 1.0, "not a number"),
        ("12", "1.5", 1.0, "not a number"),
        ("777", "777", 1.0, "the counter stood still for 1 s"),
        ("12", errno.ENODEV, 1.0, "gone"),
        (errno.ENOENT, "5", 1.0, "gone"),
        ("12", errno.EACCES, 1.0, "permission denied"),
        ("12", errno.EIO, 1.0, "input/output error"),
        ("0", "5000000", 5000.0, "may have gone round"),
    ],
)
def test_what_cannot_be_is_no_joule(
    first: str | int, last: str | int, seconds: float, problem: str
) -> None:
    found = counted(first, last, seconds)
    assert isinstance(found, str) and problem in found and found.startswith("package-0: ")


def test_a_counter_whose_range_is_not_known_may_not_go_back() -> None:
    assert counted("100", "1000100", range_uj=None) == 1.0
    assert "the counter went back" in counted("1000100", "100", range_uj=None)


def test_a_short_time_may_show_no_energy() -> None:
    assert counted("777", "777", 0.0005) == 0.0


def test_one_bad_counter_of_two_spoils_the_sum() -> None:
    files = Readings(a=["0", "5"], b=["0", "x"])
    counters = [Counter("package-0", "a", RANGE), Counter("package-1", "b", RANGE)]
    meter = CounterMeter(files, counters, "both", clock=ticking(0.0, 0.0, 1.0, 1.0))
    meter.start()
    assert meter.stop() is None and meter.problems == ("package-1: not a number",)


def test_stop_without_start_measures_nothing() -> None:
    meters: list[Meter] = [
        CounterMeter(Readings(), [Counter("p", "e", 5)], ""),
        PowerMeter(Readings(), Channel("p", ("e",), 1.0), ""),
    ]
    for meter in meters:
        assert meter.stop() is None and meter.problems == ("`start` was not called",)


# Sampled power.


@given(st.lists(st.floats(0, 50), min_size=2, max_size=30), st.floats(0.001, 10))
def test_the_integral_lies_between_least_and_most_power(watts: list[float], step: float) -> None:
    integral = PowerIntegral(100.0)
    for index, one in enumerate(watts):
        integral.add(index * step, one)
    seconds = (len(watts) - 1) * step
    assert min(watts) * seconds - 1e-6 <= integral.joules <= max(watts) * seconds + 1e-6


def test_a_ramp_is_integrated_exactly() -> None:
    integral = PowerIntegral(100.0)
    for at in range(11):
        integral.add(float(at), float(at))
    assert integral.joules == 50.0


@given(st.data())
def test_garbage_between_readings_changes_no_joule_of_constant_power(data: st.DataObject) -> None:
    integral = PowerIntegral(100.0)
    bad: st.SearchStrategy[float | str] = st.sampled_from(
        [-1.0, 101.0, 1e30, float("inf"), float("nan"), "gone", "not a number"]
    )
    dropped = 0
    integral.add(0.0, 7.0)
    for at in range(1, 20):
        if data.draw(st.booleans()):
            integral.add(float(at), data.draw(bad))
            dropped += 1
        else:
            integral.add(float(at), 7.0)
    integral.add(20.0, 7.0)
    assert integral.joules == 140.0
    assert sum(integral.dropped.values()) == dropped


def judgement(readings: list[tuple[float, float | str]], seconds: float) -> list[str] | str:
    integral = PowerIntegral(100.0)
    for at, watts in readings:
        integral.add(at, watts)
    return judged(integral, seconds, 0.1)


def test_power_readings_are_judged() -> None:
    good: list[tuple[float, float | str]] = [(at / 10, 5.0 + at % 2) for at in range(31)]
    assert judgement(list(good), 3.0) == []
    some = [*good[:5], (0.5, "gone"), (0.6, -1.0), *good[7:]]
    assert judgement(some, 3.0) == ["2 of 31 readings were dropped (1 gone; 1 negative)"]
    assert judgement([*good[:5], *[(at, "gone") for at, _ in good[5:]]], 3.0) == (
        "26 of 31 readings were dropped (26 gone)"
    )
    assert judgement(list(good[:20]), 3.0) == "readings cover 1.9 of 3 s (too few)"
    assert judgement([(0.0, 5.0)], 3.0) == "0 of 1 readings were dropped ()"
    assert judgement([(at, 5.0) for at, _ in good], 3.0) == ["all 31 readings were the same"]
    assert judgement([*good[:5], *good[25:]], 3.0) == ["2.1 s passed between two readings"]


class Watched(LocalFiles):
    """Files, and whether somebody has read them a number of times."""

    def __init__(self, root: Path, reads: int) -> None:
        super().__init__(root)
        self.left, self.done = reads, Event()

    def read_bytes(self, path: str) -> bytes:
        self.left -= 1
        if not self.left:
            self.done.set()
        return super().read_bytes(path)


def test_a_power_sensor_is_sampled_while_something_runs(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("2500000\n")
    files, ticks = Watched(tmp_path, 50), count()
    channel = Channel("p", ("/power",), 1e-6)
    meter = PowerMeter(files, channel, "p", period_s=0.002, clock=lambda: next(ticks) * 0.001)
    for _ in range(2):
        files.left = 50
        files.done.clear()
        meter.start()
        assert files.done.wait(60)
        found = meter.stop()
        assert found is not None and found.samples >= 50 and found.overhead_s > 0
        # Each sample looks at the clock before and after.
        assert found.seconds == pytest.approx(0.002 * (found.samples - 1))
        assert found.joules == pytest.approx(2.5 * found.seconds)
        assert f"p: all {found.samples} readings were the same" in found.problems


def test_a_power_sensor_that_vanishes_gives_no_joule(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("2500000\n")
    meter = PowerMeter(LocalFiles(tmp_path), Channel("p", ("/power",), 1e-6), "p", period_s=0.002)
    meter.start()
    (tmp_path / "power").unlink()
    assert meter.stop() is None
    assert "gone" in meter.problems[0]


# Finding sensors.


def tree(root: Path, **files: str) -> LocalFiles:
    for path, text in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return LocalFiles(root)


def found_meter(files: LocalFiles, *sensors: Sensor) -> Meter:
    return find_meter(Board("b", machine("host"), sensors=sensors), files)


def joules(meter: Meter, change: Callable[[], object]) -> float:
    meter.start()
    change()
    found = meter.stop()
    assert found is not None, meter.problems
    return found.joules


def rapl(root: Path) -> LocalFiles:
    """Two packages with parts, and the platform, which has both in it."""
    powercap = "/sys/class/powercap"
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "package-1-core",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in zones.items():
        tree(root, **{f"{powercap}/{zone}/{file}": text for file, text in (
            ("name", name), ("energy_uj", "1000"), ("max_energy_range_uj", str(RANGE)),
        )})  # fmt: skip
    return LocalFiles(root)


def test_rapl_counts_each_package_once(tmp_path: Path) -> None:
    meter = found_meter(rapl(tmp_path))

    def work() -> None:
        for path in tmp_path.rglob("energy_uj"):
            path.write_text("2001000")
        time.sleep(0.002)

    assert joules(meter, work) == 4.0
    assert meter.covers == "processor packages (package-0, package-1), without the memory modules"


def test_rapl_that_only_root_may_read_says_how_to_grant_it(tmp_path: Path) -> None:
    class Denied(LocalFiles):
        def read_bytes(self, path: str) -> bytes:
            if path.endswith("energy_uj"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().read_bytes(path)

    rapl(tmp_path)
    meter = found_meter(Denied(tmp_path))
    assert isinstance(meter, NoMeter)
    assert meter.problems[0].startswith("RAPL package-0: permission denied; let a group")
    assert "0440 root power" in meter.problems[0]


def test_no_sensor_is_no_meter(tmp_path: Path) -> None:
    meter = found_meter(LocalFiles(tmp_path), Sensor("hwmon", "ina226"), Sensor("magic", "x"))
    meter.start()
    assert meter.stop() is None
    assert meter.problems == ("no sensor `ina226` here", "`magic` is no kind of sensor")
    assert found_meter(LocalFiles(tmp_path)).problems == ("no RAPL here",)


HWMON = "/sys/class/hwmon"
INA = {
    f"{HWMON}/hwmon0/name": "cpu_thermal",
    f"{HWMON}/hwmon3/name": "ina3221",
    f"{HWMON}/hwmon3/in1_label": "VDD_IN",
    f"{HWMON}/hwmon3/in1_input": "5000",
    f"{HWMON}/hwmon3/curr1_input": "3000",
    f"{HWMON}/hwmon3/in2_label": "VDD_CPU",
    f"{HWMON}/hwmon3/in2_input": "4000",
    f"{HWMON}/hwmon3/curr2_input": "500",
    f"{HWMON}/hwmon3/in7_input": "1",
}


def watts(meter: Meter, files: LocalFiles) -> float | str:
    """What the sensor that was found shows."""
    assert isinstance(meter, PowerMeter), meter.problems
    return meter.channel.watts(files)


@pytest.mark.parametrize(
    ("files", "sensor", "expected"),
    [
        (INA, Sensor("ina3221", "ina3221", "VDD_CPU"), 2.0),
        (INA, Sensor("ina3221", "ina3221", "VDD_IN"), 15.0),
        (INA, Sensor("hwmon", "ina3221"), 15.0),
        (
            {f"{HWMON}/hwmon1/name": "ina226", f"{HWMON}/hwmon1/power1_input": "3200000"},
            Sensor("hwmon", "ina226"),
            3.2,
        ),
        (
            {f"{HWMON}/hwmon1/name": "power_meter", f"{HWMON}/hwmon1/power1_average": "9000000"},
            Sensor("hwmon", "power_meter"),
            9.0,
        ),
        (
            {
                "/sys/bus/iio/devices/iio:device0/name": "ina3221x",
                "/sys/bus/iio/devices/iio:device0/rail_name_0": "VDD_SYS_GPU",
                "/sys/bus/iio/devices/iio:device0/in_power0_input": "100",
                "/sys/bus/iio/devices/iio:device0/rail_name_1": "VDD_SYS_CPU",
                "/sys/bus/iio/devices/iio:device0/in_power1_input": "1520",
            },
            Sensor("ina3221", "ina3221", "VDD_SYS_CPU"),
            1.52,
        ),
    ],
)
def test_sensors_of_power(
    tmp_path: Path, files: dict[str, str], sensor: Sensor, expected: float
) -> None:
    found = tree(tmp_path, **files)
    assert watts(found_meter(found, sensor), found) == pytest.approx(expected)


def test_a_channel_of_another_label_is_not_taken(tmp_path: Path) -> None:
    meter = found_meter(tree(tmp_path, **INA), Sensor("ina3221", "ina3221", "VDD_SOC"))
    assert meter.problems == ("no sensor `ina3221 VDD_SOC` here",)


def test_a_counter_of_hwmon(tmp_path: Path) -> None:
    device = f"{HWMON}/hwmon0"
    files = tree(tmp_path, **{f"{device}/name": "energy", f"{device}/energy1_input": "5"})
    meter = found_meter(files, Sensor("hwmon", "energy", covers="the board"))

    def work() -> None:
        tree(tmp_path, **{f"{device}/energy1_input": "1500005"})
        time.sleep(0.002)

    assert joules(meter, work) == 1.5
    assert meter.covers == "the board"


def test_the_first_sensor_that_can_be_read_is_taken(tmp_path: Path) -> None:
    sensors = (Sensor("hwmon", "none"), Sensor("ina3221", "ina3221", "VDD_IN"), Sensor("rapl", ""))
    files = tree(tmp_path, **INA)
    assert watts(found_meter(files, *sensors), files) == pytest.approx(15.0)
