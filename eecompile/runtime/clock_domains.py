"""What the kernel offers to set one clock: a cpufreq policy or a devfreq device.

A domain counts in the kernel's unit (kHz for cpufreq, Hz for devfreq); `unit_hz` converts. Two ways
to set a clock: the ``userspace`` governor with ``scaling_setspeed``, or the limits, lower = upper.
"""

from __future__ import annotations

import contextlib
from typing import Any

from eecompile.runtime.sysfs import (
    OpenFile,
    SysFiles,
    matching,
    number_in,
    opened,
    read_number,
    read_text,
)
from eecompile.runtime.watchdog import cooling, set_in_order

__all__ = [
    "CPUFREQ",
    "DEVFREQ",
    "ByLimits",
    "BySpeed",
    "ClockDomain",
    "Devfreq",
    "Taken",
    "cpu_list",
    "cpu_policies",
]

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
DEVFREQ = "/sys/class/devfreq"
#: A board file's frequency and the kernel's are the same clock where they differ by less.
_SAME_CLOCK = 0.005
#: A driver without a table may round to what its hardware can.
_ROUNDING = 0.01


class Taken(Exception):
    """Somebody else has changed the clock's settings meanwhile; the message says which."""


def cpu_list(text: str) -> tuple[int, ...]:
    """CPUs of a sysfs list, in either of its forms; empty where it is none.

    >>> cpu_list("0 1 2 3"), cpu_list("0-2,5"), cpu_list("x")
    ((0, 1, 2, 3), (0, 1, 2, 5), ())
    """
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        low, high = number_in(first), number_in(last or first)
        if low is None or high is None or not 0 <= low <= high < 1 << 16:
            return ()
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def cpu_policies(files: SysFiles) -> dict[str, tuple[int, ...]]:
    """Folder of each cpufreq policy -> its CPUs, those that are offline included."""
    found = {}
    for folder in matching(files, CPUFREQ, "policy"):
        cpus = cpu_list(read_text(files, f"{folder}/related_cpus") or "")
        if cpus:
            found[folder] = cpus
    return found


class ClockDomain:
    """One clock, its legal values and its settings as they were found.

    Attributes:
        folder: in sysfs.
        values: clocks of its table, rising; empty where the driver tells none.
        lowest, highest: the limits that were found: the owner's, and never passed.
        before: settings this way of setting it changes, as found.
        ours: what may stand there afterwards and be ours.
        tunables: path -> text of the settings that switching governors would lose.
    """

    unit_hz = 1000.0
    low_name, high_name = "scaling_min_freq", "scaling_max_freq"
    tables: tuple[str, ...] = ("scaling_available_frequencies", "scaling_boost_frequencies")

    def __init__(self, files: SysFiles, folder: str) -> None:
        """Opens what it will write.

        Raises:
            OSError: a file is not there or may not be written.
        """
        self.files, self.folder = files, folder
        self.values = tuple(
            sorted(
                {
                    value
                    for name in self.tables
                    for text in (read_text(files, f"{folder}/{name}") or "").split()
                    if (value := number_in(text))
                }
            )
        )
        self.lowest = read_number(files, f"{folder}/{self.low_name}") or 0
        self.highest = read_number(files, f"{folder}/{self.high_name}") or 0
        self.before: dict[str, str] = {}
        self.ours: dict[str, list[str]] = {}
        self.tunables: dict[str, str] = {}
        self._open: dict[str, OpenFile] = {}
        try:
            self.reopen()
        except BaseException:
            self.close()
            raise

    #: Files it writes.
    written: tuple[str, ...] = ()

    def reopen(self) -> None:
        """Open its files anew: a CPU that was unplugged has others when it comes back.

        Raises:
            OSError: as the constructor.
        """
        self.close()
        for name in self.written:
            self._open[name] = opened(self.files, f"{self.folder}/{name}")

    def close(self) -> None:
        """Close its files."""
        for file in self._open.values():
            file.close()
        self._open = {}

    def value_of(self, frequency_hz: float | None) -> int | None:
        """The kernel's number for a clock; None where it has none or the limits forbid it."""
        if frequency_hz is None:
            return None
        wanted = frequency_hz / self.unit_hz
        if self.values:
            value = min(self.values, key=lambda one: abs(one - wanted))
            if abs(value - wanted) > _SAME_CLOCK * wanted:
                return None
        else:
            value = round(wanted)
        return value if self.lowest <= value <= self.highest else None

    def read(self, name: str) -> str:
        """A setting as it stands."""
        file = self._open.get(name)
        text = self.files.read(f"{self.folder}/{name}") if file is None else file.read()
        return text.strip()

    def find(self, values: list[int]) -> dict[str, Any]:
        """Look at the settings before they are changed to any of `values`: the watchdog's domain.

        Raises:
            OSError: they cannot be read.
            Taken: they make no sense, or forbid some of the values.
        """
        low, high = (number_in(self.read(name)) for name in self._limits)
        if low is None or high is None or not low <= min(values) <= max(values) <= high:
            raise Taken(f"it has other {self.describe()} than before")
        self.lowest, self.highest = low, high
        return self._find(list(map(str, values)))

    def _find(self, texts: list[str]) -> dict[str, Any]:
        raise NotImplementedError

    def claim(self) -> None:
        """Write what comes before the first clock; the same errors as `move`."""

    def move(self, value: int) -> bool:
        """Set the clock; whether the kernel then says it runs at that.

        False: limits hold it elsewhere, which heat does as well.

        Raises:
            OSError: the kernel does not take it.
            Taken: another process sets this clock.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """The limits in force, for messages."""
        low, high = (read_number(self.files, f"{self.folder}/{n}") for n in self._limits)
        return f"limits {_mhz(low, self.unit_hz)} to {_mhz(high, self.unit_hz)}"

    @property
    def _limits(self) -> tuple[str, str]:
        return self.low_name, self.high_name

    def record(self) -> dict[str, Any]:
        """What `find` found, as the watchdog and the journal take it."""
        return {
            "folder": self.folder,
            "before": self.before,
            "ours": self.ours,
            "tunables": self.tunables,
        }

    def _is(self, found: int | None, value: int) -> bool:
        if found is None:
            return False
        return found == value if self.values else abs(found - value) <= _ROUNDING * value


def _mhz(value: int | None, unit_hz: float) -> str:
    return "unknown" if value is None else f"{value * unit_hz / 1e6:g} MHz"


class BySpeed(ClockDomain):
    """The ``userspace`` governor: one write a clock.

    Switching away from a governor makes the kernel forget its tunables: they are kept and put back,
    which only root can do, as the kernel makes their files anew.
    """

    written = ("scaling_governor", "scaling_setspeed")

    @staticmethod
    def offered(files: SysFiles, folder: str) -> bool:
        """Whether the policy has that governor, and leaving the one in use would lose nothing."""
        text = read_text(files, f"{folder}/scaling_available_governors") or ""
        if "userspace" not in text.split():
            return False
        governor = read_text(files, f"{folder}/scaling_governor") or ""
        return getattr(files, "privileged", False) or not _tunables(files, folder, governor)

    def _find(self, texts: list[str]) -> dict[str, Any]:
        governor, speed = self.read("scaling_governor"), self.read("scaling_setspeed")
        if not governor:
            raise Taken("no governor is set")
        self.before = {"scaling_governor": governor}
        self.ours = {"scaling_governor": ["userspace"]}
        if governor == "userspace":
            self.before["scaling_setspeed"] = speed
            self.ours["scaling_setspeed"] = texts
        self.tunables = _tunables(self.files, self.folder, governor)
        #: The clock that was asked for last, with the one before while that is being written.
        self._asked: tuple[int, ...] = ()
        return self.record()

    def claim(self) -> None:
        """Switch to ``userspace``."""
        if self.before["scaling_governor"] != "userspace":
            if remember := getattr(self.files, "remember", None):
                for path in self.tunables:
                    with contextlib.suppress(OSError):  # none is worth a failure
                        remember(path)
            self._open["scaling_governor"].write("userspace\n")

    def move(self, value: int) -> bool:
        """As `ClockDomain.move`."""
        file = self._open["scaling_setspeed"]
        if self._asked:
            found = number_in(file.read())
            if not any(self._is(found, asked) for asked in self._asked):
                self._look()
        self._asked = (*self._asked[-1:], value)
        try:
            file.write(f"{value}\n")
        except OSError:
            self._look_governor()
            raise
        self._asked = (value,)
        if self._is(number_in(file.read()), value):
            return True
        self._look_governor()
        self._asked = ()  # what the kernel made of it is no measure for the next time
        return False

    def _look_governor(self) -> None:
        governor = self.read("scaling_governor")
        if governor != "userspace":
            raise Taken(f"the governor was changed to `{governor}`")

    def _look(self) -> None:
        """Another clock than we left: the limits' doing, or another process's."""
        self._look_governor()
        low, high = (read_number(self.files, f"{self.folder}/{n}") for n in self._limits)
        if (low, high) == (self.lowest, self.highest):
            raise Taken("`scaling_setspeed` was changed")


def _tunables(files: SysFiles, policy: str, governor: str) -> dict[str, str]:
    """Path -> text of a governor's numbers, its own for the policy or those for all policies."""
    found: dict[str, str] = {}
    for folder in (f"{CPUFREQ}/{governor}", f"{policy}/{governor}") if governor else ():
        try:
            names = files.names(folder)
        except OSError:
            continue
        for name in names:
            text = read_text(files, f"{folder}/{name}")
            if text and number_in(text) is not None:
                found[f"{folder}/{name}"] = text
    return found


class ByLimits(ClockDomain):
    """Lower and upper limit at the same clock, whatever the governor."""

    written = ("scaling_min_freq", "scaling_max_freq")

    def _find(self, texts: list[str]) -> dict[str, Any]:
        if cooling(self.files.read):
            raise Taken("heat holds clocks down, so that its limits cannot be told from heat's")
        low, high = self.lowest, self.highest
        self.before = {self.low_name: str(low), self.high_name: str(high)}
        self.ours = {self.low_name: texts, self.high_name: texts}
        self._seen = self._asked = (low, high)
        return self.record()

    def move(self, value: int) -> bool:
        """As `ClockDomain.move`."""
        found = self._read()
        if found != self._seen:
            self._look(found)
        self._asked = (value, value)
        # Older kernels refuse a lower limit above the upper one, at any moment.
        pairs = [(name, f"{value}\n") for name in self._limits]
        set_in_order(pairs, value > found[1], lambda name, text: self._open[name].write(text))
        self._seen = self._read()
        return all(self._is(number, value) for number in self._seen)

    def _read(self) -> tuple[int, int]:
        low, high = (number_in(self._open[name].read()) for name in self._limits)
        return (low or 0, high or 0)

    def _look(self, found: tuple[int, int]) -> None:
        """Other limits than we saw: what we asked for since, or heat, which comes and goes."""
        expected = zip(found, self._seen, self._asked, strict=True)
        if all(now in (seen, asked) for now, seen, asked in expected):
            return
        if found[1] < self._asked[1] and cooling(self.files.read):
            return
        raise Taken(f"its limits were changed ({self.describe()})")


class Devfreq(ByLimits):
    """A clock that is no CPU's: of memory, or of an accelerator."""

    unit_hz = 1.0
    low_name, high_name = "min_freq", "max_freq"
    tables = ("available_frequencies",)
    written = ("min_freq", "max_freq")
