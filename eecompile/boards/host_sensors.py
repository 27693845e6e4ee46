"""Meters of power and energy a running Linux has: RAPL and hwmon."""

from __future__ import annotations

import re

from eecompile.board import Sensor
from eecompile.runtime.sysfs import SysFiles, matching, read_text

__all__ = ["sensors_of"]


def sensors_of(files: SysFiles) -> tuple[tuple[Sensor, ...], dict[str, str]]:
    """Meters of energy and power, and where each was found."""
    found: dict[str, tuple[Sensor, str]] = {}
    for path in matching(files, "/sys/class/powercap", "intel-rapl:"):
        if name := read_text(files, f"{path}/name"):
            covers = "all cores and caches of a processor" if name.startswith("package") else ""
            sensor = Sensor("rapl", name, "", covers)
            found.setdefault(sensor.key, (sensor, f"{path}/energy_uj"))
    for path in matching(files, "/sys/class/hwmon", "hwmon"):
        name = read_text(files, f"{path}/name")
        for channel in _channels(files, path) if name else ():
            label = _label(files, path, channel)
            kind = "ina3221" if name == "ina3221" else "hwmon"
            sensor = Sensor(kind, name or "", label)
            found.setdefault(sensor.key, (sensor, f"{path}/{channel}"))
    sources = {key: source for key, (_, source) in found.items()}
    return tuple(sensor for sensor, _ in found.values()), sources


def _channels(files: SysFiles, path: str) -> list[str]:
    """Files of a hwmon device that tell power or energy; an INA3221 tells currents."""
    try:
        names = files.names(path)
    except OSError:
        return []
    wanted = re.compile(r"(power\d{1,2}_(input|average)|energy\d{1,2}_input|curr[1-3]_input)")
    return [name for name in names if wanted.fullmatch(name)]


def _label(files: SysFiles, path: str, channel: str) -> str:
    """What a channel is called; of an INA3221 the voltage beside the current is."""
    stem = channel.partition("_")[0]
    labels = (f"{path}/{stem}_label", f"{path}/{stem.replace('curr', 'in')}_label")
    return next((text for label in labels if (text := read_text(files, label))), stem)
