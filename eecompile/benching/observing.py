"""Under which conditions something was measured, and what disturbed it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter, process_time
from typing import Any

from eecompile.board import DvfsState
from eecompile.figures import hertz
from eecompile.runtime.clock_domains import cpu_policies
from eecompile.runtime.sysfs import SysFiles, matching, read_number, read_text

__all__ = ["Conditions", "Watcher", "read_conditions"]

_CPUS = "/sys/devices/system/cpu"
#: By how much a clock may be off what was set: what is set is rounded, what is read is averaged.
_OFF = 0.01
#: Cores that other programs may keep busy where none is left for them; less is noise of a system.
_OTHERS = 0.25
#: Jiffies of a second. Source: Linux, USER_HZ on every architecture eecompile compiles for.
_JIFFIES = 100.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a system tells of its clocks, load and heat; None where it does not.

    Attributes:
        governor: that chooses clocks while nobody sets them.
        clock_hz: now.
        lowest_hz: limit in force.
        highest_hz: limit in force.
        turbo: whether clocks above the table are allowed.
        load: processes that ran or waited to, the mean of the last minute.
        temperature_c: of the hottest zone.
        throttled: how often heat has slowed a core down since it was started.
    """

    governor: str | None
    clock_hz: float | None
    lowest_hz: float | None
    highest_hz: float | None
    turbo: bool | None
    load: float | None
    temperature_c: float | None
    throttled: int | None

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def read_conditions(files: SysFiles, cpus: Sequence[int] = ()) -> Conditions:
    """As a system tells them of some CPUs, or of the first there is."""
    policies = cpu_policies(files)
    found = [folder for folder, theirs in policies.items() if set(theirs) & set(cpus)]
    folder = (found or [*policies, ""])[0]

    def clock(name: str) -> float | None:
        khz = read_number(files, f"{folder}/{name}") if folder else None
        return khz * 1e3 if khz else None

    load = read_text(files, "/proc/loadavg") or ""
    return Conditions(
        read_text(files, f"{folder}/scaling_governor") if folder else None,
        clock("scaling_cur_freq") or _clock_of_cpuinfo(files, cpus),
        clock("scaling_min_freq"),
        clock("scaling_max_freq"),
        _turbo(files),
        float(load.split()[0]) if re.match(r"\d{1,6}\.\d", load) else None,
        _temperature(files),
        _throttled(files),
    )


def _clock_of_cpuinfo(files: SysFiles, cpus: Sequence[int]) -> float | None:
    text = read_text(files, "/proc/cpuinfo") or ""
    clock = re.search(r"^cpu MHz\s*:\s*(\d{1,6}(?:\.\d{1,6})?)\s*$", text, re.MULTILINE)
    return round(float(clock[1]) * 1e6) * 1.0 if clock else None


def _turbo(files: SysFiles) -> bool | None:
    boost = read_number(files, f"{_CPUS}/cpufreq/boost")
    no_turbo = read_number(files, f"{_CPUS}/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    return None if boost is None else boost != 0


def _temperature(files: SysFiles) -> float | None:
    zones = matching(files, "/sys/class/thermal", "thermal_zone")
    told = [read_number(files, f"{zone}/temp") for zone in zones]
    # What no processor lives at is a sensor that is off, or of something else.
    real = [value / 1e3 for value in told if value is not None and -40_000 < value < 150_000]
    return max(real, default=None)


def _throttled(files: SysFiles) -> int | None:
    counts = [
        read_number(files, f"{cpu}/thermal_throttle/core_throttle_count")
        for cpu in matching(files, _CPUS, "cpu")
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _busy_cores_s(files: SysFiles) -> float | None:
    """Seconds that all cores together have worked for anybody, other machines included."""
    first = (read_text(files, "/proc/stat") or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu" or not all(part.isdigit() for part in first[1:9]):
        return None
    user, nice, system, _, _, irq, soft, stolen = (int(part) for part in first[1:9])
    return (user + nice + system + irq + soft + stolen) / _JIFFIES


@dataclass
class Watcher:
    """Sees what disturbs blocks: heat, turbo, clocks set by others, other programs.

    Attributes:
        files: of the system that is measured.
        cpus: the code runs on; empty for any.
        cores: of the system.
        local: whether it is this process that computes.
        clocks_hz: read before and after each block that ran at no clock of ours.
        others: cores that other programs kept busy, for each block.
    """

    files: SysFiles
    cpus: Sequence[int] = ()
    cores: int = 1
    local: bool = True
    clocks_hz: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    _state: DvfsState | None = None
    _before: tuple[Conditions, float | None, float, float] | None = None

    def begin(self, state: DvfsState | None) -> None:
        """A block begins, at a clock that was set (None: at whatever clock there is)."""
        self._state = state
        before = read_conditions(self.files, self.cpus)
        self._before = before, _busy_cores_s(self.files), process_time(), perf_counter()

    def end(self) -> tuple[str, ...]:
        """What disturbed the block, in words."""
        assert self._before is not None, "begun"
        before, busy, own, begun = self._before
        seconds, own = perf_counter() - begun, process_time() - own
        busy_now, now = _busy_cores_s(self.files), read_conditions(self.files, self.cpus)
        found = []
        clocks = [clock for clock in (before.clock_hz, now.clock_hz) if clock is not None]
        if self._state is None:
            self.clocks_hz += clocks
        elif self._state.frequency_hz is not None:
            wanted = self._state.frequency_hz
            off = [clock for clock in clocks if abs(clock - wanted) > _OFF * wanted]
            if off:
                why = "turbo" if off[-1] > wanted else "heat, or somebody else's limit"
                found.append(f"the clock was {hertz(off[-1])} ({why})")
        if None not in (before.throttled, now.throttled) and now.throttled != before.throttled:
            found.append("heat slowed a core down")
        if self.local and busy is not None and busy_now is not None and seconds > 5 / _JIFFIES:
            others = max(0.0, busy_now - busy - own) / seconds
            self.others.append(others)
            if others > _OTHERS and others + own / seconds > self.cores - _OTHERS:
                found.append("other programs kept all cores busy")
        return tuple(found)
