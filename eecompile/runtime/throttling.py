"""What the clocks of a machine were doing while something was measured.

A latency means little without it: which governor, which clocks, turbo, load, temperature, and
whether heat or a weak supply slowed the processor down. `clock_conditions` looks once; `changes`
says what happened between two looks.

Sources: Linux Documentation/admin-guide/pm/cpufreq.rst and intel_pstate.rst,
Documentation/ABI/testing/sysfs-devices-system-cpu (thermal_throttle), sysfs-class-thermal,
drivers/hwmon/raspberrypi-hwmon.c, and Raspberry Pi's documentation of ``get_throttled``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from eecompile.runtime.clock_domains import CPUFREQ, cpu_list, cpu_policies
from eecompile.runtime.sysfs import SysFiles, matching, read_number, read_text

__all__ = ["Conditions", "PolicyConditions", "changes", "clock_conditions"]

_CPU = "/sys/devices/system/cpu"
_THERMAL, _HWMON = "/sys/class/thermal", "/sys/class/hwmon"
_PI_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
#: Bits of get_throttled: those of now; the same 16 bits higher mean since boot.
_PI_BITS = {
    0: "under-voltage",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
_BUSY_LOAD = 0.25  #: of a CPU for each CPU: others are at work as well
_HOT_C = 75.0  #: boards and laptops begin to throttle at 80 to 85 degrees


@dataclass(frozen=True, slots=True)
class PolicyConditions:
    """One cpufreq policy. Clocks in hertz, None where not told.

    Attributes:
        cpus: on this clock.
        driver, governor: as Linux names them.
        current_hz: what it runs at, as the driver has it.
        low_hz, high_hz: limits in force.
        fastest_hz: of the hardware.
    """

    cpus: tuple[int, ...]
    driver: str
    governor: str
    current_hz: float | None
    low_hz: float | None
    high_hz: float | None
    fastest_hz: float | None

    @property
    def pinned(self) -> bool:
        """Whether nothing but heat can change the clock."""
        fixed = self.low_hz is not None and self.low_hz == self.high_hz
        return fixed or self.governor == "userspace"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Clocks and what bears upon them, at one moment.

    Attributes:
        policies: empty on a machine that has no cpufreq.
        turbo: whether the processor may run above its nominal clock; None where not told.
        load: runnable processes on average over the last minute; None where not told.
        cpus: that are online, 0 where not told.
        temperature_c: of the hottest thermal zone; None where there is none.
        throttle_counts: how often heat has slowed it since boot, by counter.
        throttled: what slows it just now, in words.
        throttled_before: what has since boot, in words.
    """

    policies: tuple[PolicyConditions, ...] = ()
    turbo: bool | None = None
    load: float | None = None
    cpus: int = 0
    temperature_c: float | None = None
    throttle_counts: dict[str, int] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    throttled_before: tuple[str, ...] = ()

    def policy_of(self, cpus: Collection[int]) -> PolicyConditions | None:
        """The first policy that has some of these CPUs; None where no cpufreq has."""
        return next((one for one in self.policies if set(one.cpus) & set(cpus)), None)

    def to_json(self) -> dict[str, Any]:
        """JSON value with these names."""
        return asdict(self)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why latencies measured now would not be those of another time, in sentences."""
        found = []
        if not self.policies:
            found.append("the machine does not tell its clock (no cpufreq)")
        if loose := sorted({one.governor for one in self.policies if not one.pinned}):
            found.append(f"the clock is free to change (governor {', '.join(loose)})")
        if self.turbo and any(not one.pinned for one in self.policies):
            found.append("turbo is on: the clock depends on heat and on what other cores do")
        if self.load is not None and self.load > _BUSY_LOAD * max(self.cpus, 1):
            found.append(f"other work is running (load {self.load:g} on {self.cpus or '?'} CPUs)")
        if self.temperature_c is not None and self.temperature_c >= _HOT_C:
            found.append(f"it is hot ({self.temperature_c:g} °C)")
        found += [f"it is slowed down: {what}" for what in self.throttled]
        return tuple(found)


def clock_conditions(files: SysFiles) -> Conditions:
    """How things stand now. Never raises for what cannot be read: that is left out."""
    pi_now, pi_before = _pi_throttled(files)
    alarm = _pi_undervoltage(files)
    now = [*pi_now, *(alarm if alarm and alarm[0] not in pi_now else []), *_cooling(files)]
    return Conditions(
        policies=_policies(files),
        turbo=_turbo(files),
        load=_load(files),
        cpus=_online(files),
        temperature_c=_temperature(files),
        throttle_counts=_throttle_counts(files),
        throttled=tuple(now),
        throttled_before=tuple(pi_before),
    )


def changes(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What happened in between that makes measurements doubtful, in sentences.

    >>> changes(Conditions(turbo=True), Conditions(turbo=False))
    ('turbo was switched off',)
    """
    found = []
    for old in before.policies:
        new = next((one for one in after.policies if one.cpus == old.cpus), None)
        name = "CPUs " + ", ".join(map(str, old.cpus))
        if new is None:
            found.append(f"{name} went away")
            continue
        if new.governor != old.governor:
            found.append(f"{name}: the governor changed from {old.governor} to {new.governor}")
        if (new.low_hz, new.high_hz) != (old.low_hz, old.high_hz):
            found.append(f"{name}: the limits of the clock changed")
    if None not in (before.turbo, after.turbo) and before.turbo != after.turbo:
        found.append(f"turbo was switched {'on' if after.turbo else 'off'}")
    for counter, count in after.throttle_counts.items():
        if (more := count - before.throttle_counts.get(counter, 0)) > 0:
            found.append(f"heat slowed it down {more} times ({counter})")
    found += [f"it is slowed down: {what}" for what in after.throttled]
    new_ones = set(after.throttled_before) - set(before.throttled_before) - set(after.throttled)
    found += [f"it was slowed down: {what}" for what in sorted(new_ones)]
    return tuple(found)


def _policies(files: SysFiles) -> tuple[PolicyConditions, ...]:
    found = []
    for folder, cpus in cpu_policies(files).items():
        governor = read_text(files, f"{folder}/scaling_governor")
        if governor is None:  # its CPUs are offline
            continue
        current, low, high, fastest = (
            None if khz is None or khz <= 0 else khz * 1e3
            for name in (
                *("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq"),
                "cpuinfo_max_freq",
            )
            for khz in [read_number(files, f"{folder}/{name}")]
        )
        driver = read_text(files, f"{folder}/scaling_driver") or ""
        found.append(PolicyConditions(cpus, driver, governor, current, low, high, fastest))
    return tuple(found)


def _turbo(files: SysFiles) -> bool | None:
    off = read_number(files, f"{_CPU}/intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    on = read_number(files, f"{CPUFREQ}/boost")
    return None if on is None else on != 0


def _load(files: SysFiles) -> float | None:
    try:
        return float((read_text(files, "/proc/loadavg") or "").split()[0])
    except (ValueError, IndexError):
        return None


def _online(files: SysFiles) -> int:
    return len(cpu_list(read_text(files, f"{_CPU}/online") or ""))


def _temperature(files: SysFiles) -> float | None:
    readings = [
        millidegrees * 1e-3
        for zone in matching(files, _THERMAL, "thermal_zone")
        if (millidegrees := read_number(files, f"{zone}/temp")) is not None
        # A sensor that is off tells 0, -273 or a huge number.
        if 0 < millidegrees < 200_000
    ]
    return max(readings, default=None)


def _throttle_counts(files: SysFiles) -> dict[str, int]:
    """By kind of counter, over all CPUs: the worst of cores, as packages count for each of them."""
    found: dict[str, int] = {}
    for cpu in matching(files, _CPU, "cpu"):
        for name in ("core_throttle_count", "package_throttle_count"):
            count = read_number(files, f"{cpu}/thermal_throttle/{name}")
            if count is not None and count >= 0:
                found[name] = max(found.get(name, 0), count)
    return found


def _cooling(files: SysFiles) -> list[str]:
    found = []
    for device in matching(files, _THERMAL, "cooling_device"):
        kind = read_text(files, f"{device}/type") or ""
        level = read_number(files, f"{device}/cur_state") or 0
        if ("cpufreq" in kind or kind == "Processor") and level > 0:
            found.append(f"heat ({kind} at level {level})")
    return found


def _pi_throttled(files: SysFiles) -> tuple[list[str], list[str]]:
    """What slows a Raspberry Pi now, and what has since boot."""
    try:
        bits = int(read_text(files, _PI_THROTTLED) or "0", 16)
    except ValueError:
        return [], []
    now = [what for bit, what in _PI_BITS.items() if bits >> bit & 1]
    before = [what for bit, what in _PI_BITS.items() if bits >> (16 + bit) & 1]
    return now, before


def _pi_undervoltage(files: SysFiles) -> list[str]:
    for device in matching(files, _HWMON, "hwmon"):
        if read_text(files, f"{device}/name") == "rpi_volt":
            alarm = read_number(files, f"{device}/in0_lcrit_alarm")
            return ["under-voltage"] if alarm else []
    return []
