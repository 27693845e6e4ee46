"""Finds a board's energy sensors in sysfs.

====================================================  =============================================
``rapl``                                              package domains of the processor; their parts
                                                      (core, uncore, dram) and ``psys``, which
                                                      includes them, are left out
``hwmon`` with ``energy*_input``                      a counter in microjoules
``hwmon`` with ``power*_input`` or ``_average``       power in microwatts
``ina3221`` or ``hwmon`` with ``in*`` and ``curr*``   millivolts times milliamperes
``ina3221`` of older Jetson kernels                   ``in_power*_input`` in milliwatts
====================================================  =============================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from eecompile.board import Board, Sensor
from eecompile.runtime.counter_meter import Counter, CounterMeter
from eecompile.runtime.meter import MAX_POWER_W, Meter, NoMeter
from eecompile.runtime.power_meter import PERIOD_S, Channel, PowerMeter
from eecompile.runtime.sysfs import SysFiles, matching, number_or_why, read_number, read_text

__all__ = ["RAPL_REMEDY", "find_meter"]

_POWERCAP, _HWMON, _IIO = "/sys/class/powercap", "/sys/class/hwmon", "/sys/bus/iio/devices"
#: How to grant reading RAPL, which is root's only since it was found to leak secrets.
#: Source: CVE-2020-8694 ("Platypus") and Linux commit 949dd0104c49.
RAPL_REMEDY = (
    "let a group of trusted users read it, after each boot: "
    "put `z /sys/class/powercap/intel-rapl:*/energy_uj 0440 root power` into "
    "/etc/tmpfiles.d/rapl.conf and run `systemd-tmpfiles --create`"
)


def find_meter(board: Board, files: SysFiles, max_power_w: float = MAX_POWER_W) -> Meter:
    """The first of a board's sensors that can be read here; RAPL where the board names none.

    Only one is used: whether sensors include one another, a board file does not say. A `NoMeter`
    with the reasons where there is none.

    Args:
        board: its `sensors`, in the order they are tried.
        files: of the machine.
        max_power_w: readings above it are dropped.
    """
    reasons: list[str] = []
    for sensor in board.sensors or (Sensor("rapl", "intel-rapl"),):
        finder = _FINDERS.get(sensor.kind)
        if finder is None:
            reasons.append(f"`{sensor.kind}` is no kind of sensor")
            continue
        found = finder(sensor, files, max_power_w)
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return NoMeter(*reasons)


def _rapl(sensor: Sensor, files: SysFiles, max_power_w: float) -> Meter | str:
    zones = [
        (folder, name)
        for folder in matching(files, _POWERCAP, "intel-rapl:")
        if (name := read_text(files, f"{folder}/name") or "").startswith("package")
    ]
    if not zones:
        return "no RAPL here"
    counters = []
    for folder, name in zones:
        first = number_or_why(files, f"{folder}/energy_uj")
        if isinstance(first, str):
            remedy = f"; {RAPL_REMEDY}" if first == "permission denied" else ""
            return f"RAPL {name}: {first}{remedy}"
        whole = read_number(files, f"{folder}/max_energy_range_uj")
        if whole is None or whole <= 0:
            return f"RAPL {name}: it does not tell where its counter wraps"
        counters.append(Counter(f"RAPL {name}", f"{folder}/energy_uj", whole))
    names = ", ".join(name for _, name in zones)
    covers = sensor.covers or f"processor packages ({names}), without the memory modules"
    return CounterMeter(files, counters, covers, max_power_w)


def _hwmon(sensor: Sensor, files: SysFiles, max_power_w: float) -> Meter | str:
    """A channel of a hwmon device, or of the older driver of the same chip."""
    found: Counter | Channel | None = None
    folder = ""
    for folder in matching(files, _HWMON, "hwmon"):
        if read_text(files, f"{folder}/name") == sensor.name:
            found = next(_channels(sensor, files, folder), None)
            if found is not None:
                break
    else:
        found = next(_iio_channels(sensor, files), None) if sensor.kind == "ina3221" else None
    told = f"{sensor.name} {sensor.label}".strip()
    if found is None:
        return f"no sensor `{told}` here"
    covers = sensor.covers or told
    if isinstance(found, Counter):
        first = number_or_why(files, found.path)
        if isinstance(first, str):
            return f"{told}: {first}"
        return CounterMeter(files, [found], covers, max_power_w)
    power = found.watts(files)
    if isinstance(power, str):
        return f"{told}: {power}"
    update_ms = read_number(files, f"{folder}/update_interval") or 0
    period_s = max(PERIOD_S, min(update_ms, 1000) * 1e-3)
    return PowerMeter(files, found, covers, max_power_w, period_s)


#: Attribute -> what stands before and after the channel's number, factors, and scale to watts.
_POWERS: tuple[tuple[tuple[tuple[str, str], ...], float], ...] = (
    ((("power", "_input"),), 1e-6),
    ((("power", "_average"),), 1e-6),
    ((("in", "_input"), ("curr", "_input")), 1e-6),  # millivolts x milliamperes
)


def _channels(sensor: Sensor, files: SysFiles, folder: str) -> Iterator[Counter | Channel]:
    try:
        names = set(files.names(folder))
    except OSError:
        return
    told = f"{sensor.name} {sensor.label}".strip()
    for number in _numbers(names, r"energy(\d+)_input"):
        if _labelled(sensor, files, folder, number, "energy"):
            yield Counter(told, f"{folder}/energy{number}_input", None)
    for parts, scale in _POWERS:
        for number in _numbers(names, parts[0][0] + r"(\d+)" + parts[0][1]):
            paths = [f"{before}{number}{after}" for before, after in parts]
            if set(paths) <= names and _labelled(sensor, files, folder, number, parts[0][0]):
                yield Channel(told, tuple(f"{folder}/{path}" for path in paths), scale)


def _labelled(sensor: Sensor, files: SysFiles, folder: str, number: int, kind: str) -> bool:
    label = read_text(files, f"{folder}/{kind}{number}_label")
    return not sensor.label or label == sensor.label


def _iio_channels(sensor: Sensor, files: SysFiles) -> Iterator[Channel]:
    for folder in matching(files, _IIO, "iio:device"):
        if read_text(files, f"{folder}/name") not in (sensor.name, "ina3221x"):
            continue
        for number in _numbers(set(files.names(folder)), r"in_power(\d+)_input"):
            rail = read_text(files, f"{folder}/rail_name_{number}")
            if not sensor.label or rail == sensor.label:
                told = f"{sensor.name} {rail or number}"
                yield Channel(told, (f"{folder}/in_power{number}_input",), 1e-3)


def _numbers(names: set[str], pattern: str) -> list[int]:
    found = [re.fullmatch(pattern, name) for name in names]
    return sorted(int(match[1]) for match in found if match)


_FINDERS: dict[str, Callable[[Sensor, SysFiles, float], Meter | str]] = {
    "rapl": _rapl,
    "hwmon": _hwmon,
    "ina3221": _hwmon,
}
