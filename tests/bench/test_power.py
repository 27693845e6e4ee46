"""Power of one function, from a meter here and from readings a board took itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import pytest

from eecompile.benching.power import drawn_by
from eecompile.runtime.counter_meter import Counter, CounterMeter
from eecompile.runtime.governor import RecordingGovernor
from eecompile.runtime.meter import Meter, NoMeter
from eecompile.runtime.power_meter import Channel, PowerMeter
from eecompile.runtime.sysfs import LocalFiles
from tests.bench.parts import CountingDevice


@dataclass
class Reading:
    time_s: float
    texts: tuple[str | None, ...]


@dataclass
class Repeated:
    seconds: float
    readings: tuple[Reading, ...]


class FarDevice(CountingDevice):
    """Gives prepared readings."""

    readings: tuple[Reading, ...] = ()

    def repeated(
        self, function: int, seconds: float, paths: Sequence[str] = (), interval_s: float = 0.0
    ) -> Repeated:
        self.log.append(f"repeated {function} {seconds} {list(paths)} {interval_s}")
        return Repeated(seconds, self.readings)


def far(*readings: tuple[float, str | None]) -> FarDevice:
    device = FarDevice(RecordingGovernor(()))
    device.readings = tuple(Reading(at, (text,)) for at, text in readings)
    return device


FILES = LocalFiles("/nowhere")
COUNTER = CounterMeter(FILES, [Counter("RAPL", "/e", 1_000_000)], "all")
POWER = PowerMeter(FILES, Channel("ina", ("/p",), 1e-3), "all", period_s=0.5)


def test_a_counter_read_on_the_board() -> None:
    device = far((1.0, "400000\n"), (3.0, "900000\n"))
    found = drawn_by(device, 4, COUNTER, 2.0)
    assert (found.watts, found.seconds, found.problems) == (0.25, 2.0, ())
    assert device.log == ["repeated 4 2.0 ['/e'] 0.0"]


def test_a_counter_that_wrapped_on_the_way() -> None:
    found = drawn_by(far((0.0, "900001"), (1.0, "100000")), 0, COUNTER, 1.0)
    assert found.watts == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("meter", "readings"),
    [
        (COUNTER, [(0.0, "x"), (1.0, "5")]),
        (COUNTER, [(0.0, None), (1.0, "5")]),
        (COUNTER, [(0.0, "5"), (1.0, "5")]),
        (CounterMeter(FILES, [Counter("e", "/e", None)], "all"), [(0.0, "9"), (1.0, "5")]),
        (POWER, [(0.0, "garbage"), (0.5, None), (1.0, "2000")]),
        (POWER, [(0.0, "-5"), (0.5, "-5"), (1.0, "-5")]),
        (NoMeter("no sensor"), [(0.0, "1"), (1.0, "2")]),
    ],
)
def test_what_makes_no_sense_is_no_power(
    meter: Meter, readings: list[tuple[float, str | None]]
) -> None:
    found = drawn_by(far(*readings), 0, meter, 1.0)
    assert isnan(found.watts)
    assert found.problems


def test_power_is_averaged_over_time() -> None:
    device = far((0.0, "1000"), (0.5, "3000"), (1.0, "1000"))
    found = drawn_by(device, 1, POWER, 1.0)
    assert (found.watts, found.seconds, found.problems) == (2.0, 1.0, ())
    assert device.log == ["repeated 1 1.0 ['/p'] 0.5"]


def test_a_device_that_runs_whole_rounds_only_tells_none() -> None:
    class Plain:
        name, files, threads = "plain", FILES, 1

        def round(self) -> list[float]:
            return []

    found = drawn_by(Plain(), 0, COUNTER, 1.0)
    assert isnan(found.watts)
    assert found.problems == ("the device cannot run one function alone",)


def test_a_counter_here_is_read_around_the_calls(tmp_path: Path) -> None:
    energy = tmp_path / "e"
    energy.write_text("1000")

    class Drawing(CountingDevice):
        def repeat(self, function: int, seconds: float) -> float:
            energy.write_text("3000")
            return super().repeat(function, seconds)

    meter = CounterMeter(
        LocalFiles(tmp_path),
        [Counter("RAPL", "/e", 1 << 40)],
        "all",
        clock=iter([0.0, 0.5]).__next__,
    )
    found = drawn_by(Drawing(RecordingGovernor(())), 0, meter, 0.1)
    assert found.watts == pytest.approx(4e-3)


def test_a_sensor_that_has_gone_says_so(tmp_path: Path) -> None:
    meter = CounterMeter(LocalFiles(tmp_path), [Counter("RAPL", "/e", 1 << 40)], "all")
    found = drawn_by(CountingDevice(RecordingGovernor(())), 0, meter, 0.1)
    assert isnan(found.watts)
    assert found.problems == ("RAPL: gone",)
