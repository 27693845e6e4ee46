"""A cpufreq and devfreq tree in a folder, with a kernel behind it that takes and refuses values.

`make_tree` writes the files; real processes use them through `LocalFiles`. `Kernel` is a `SysFiles`
on the same folder that behaves as Linux does:

- ``scaling_governor``: unknown names give EINVAL; leaving a governor forgets its tunables.
- ``scaling_setspeed``: EINVAL and ``<unsupported>`` unless the governor is ``userspace``; a clock
  is clamped to the limits in force and then rounded up to one of the table (RELATION_L).
- limits, since Linux 5.4: requests of their own, of any size; what is shown is what is in force,
  heat included, and the lower one never above the upper one. Before: a lower limit above the upper
  one is EINVAL, and so is the upper below the lower.
- a policy without CPUs that are online: EBUSY; one that has gone: ENOENT, and ENODEV through a file
  that was open.
- permission is asked when a file is opened, not when it is written.

Source: Linux drivers/cpufreq/cpufreq.c and cpufreq_userspace.c, drivers/devfreq/devfreq.c.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CPUFREQ = "/sys/devices/system/cpu/cpufreq"
DEVFREQ = "/sys/class/devfreq"
BOOT = "/proc/sys/kernel/random/boot_id"


def limits(table: tuple[int, ...], low: int, high: int) -> tuple[int, int]:
    """What comes of two requests: within the table, and the lower never above the upper."""
    high = max(table[0], min(high, table[-1]))
    return min(max(low, table[0]), high), high


@dataclass
class Policy:
    """One cpufreq policy as the kernel has it."""

    number: int
    cpus: tuple[int, ...]
    table: tuple[int, ...]  # kHz
    governors: tuple[str, ...] = ("schedutil", "ondemand", "userspace", "performance")
    governor: str = "schedutil"
    low: int = 0  # requests; 0 and a huge number ask for nothing
    high: int = 1 << 30
    speed: int = 0
    heat: int = 1 << 30  # limit a cooling device sets
    tunables: dict[str, str] = field(default_factory=lambda: {"rate_limit_us": "2000"})
    shows_table: bool = True
    online: bool = True

    @property
    def folder(self) -> str:
        return f"{CPUFREQ}/policy{self.number}"

    @property
    def limits(self) -> tuple[int, int]:
        """In force."""
        return limits(self.table, self.low, min(self.high, self.heat))

    @property
    def clock(self) -> int:
        low, high = self.limits
        if self.governor == "userspace":
            wanted = min(max(self.speed, low), high)
        else:
            wanted = high if self.governor == "performance" else low
        return min((one for one in self.table if one >= wanted), default=self.table[-1])

    def files(self) -> dict[str, str]:
        low, high = self.limits
        speed = str(self.clock) if self.governor == "userspace" else "<unsupported>"
        found = {
            "related_cpus": " ".join(map(str, self.cpus)),
            "affected_cpus": " ".join(map(str, self.cpus if self.online else ())),
            "scaling_available_governors": " ".join(self.governors) + " ",
            "scaling_governor": self.governor,
            "scaling_driver": "cpufreq-dt",
            "scaling_min_freq": str(low),
            "scaling_max_freq": str(high),
            "scaling_cur_freq": str(self.clock),
            "scaling_setspeed": speed,
            "cpuinfo_min_freq": str(self.table[0]),
            "cpuinfo_max_freq": str(self.table[-1]),
        }
        if self.shows_table:
            found["scaling_available_frequencies"] = " ".join(map(str, self.table)) + " "
        for name, text in self.tunables.items():
            found[f"{self.governor}/{name}"] = text
        return {name: text + "\n" for name, text in found.items()}


@dataclass
class Device:
    """One devfreq device."""

    name: str
    table: tuple[int, ...]  # Hz
    low: int = 0
    high: int = 1 << 40
    heat: int = 1 << 40

    @property
    def folder(self) -> str:
        return f"{DEVFREQ}/{self.name}"

    @property
    def limits(self) -> tuple[int, int]:
        """In force."""
        return limits(self.table, self.low, min(self.high, self.heat))

    def files(self) -> dict[str, str]:
        low, high = self.limits
        found = {"min_freq": low, "max_freq": high, "cur_freq": low}
        texts = {name: f"{value}\n" for name, value in found.items()}
        return texts | {"available_frequencies": " ".join(map(str, self.table)) + "\n"}


def rpi4() -> Policy:
    """A Raspberry Pi 4's policy, its four CPUs on one clock."""
    return Policy(0, (0, 1, 2, 3), (600_000, 750_000, 1_000_000, 1_200_000, 1_500_000))


def rk3399() -> list[Policy]:
    """Two clusters."""
    little = (408_000, 600_000, 816_000, 1_008_000, 1_200_000, 1_416_000)
    return [
        Policy(0, (0, 1, 2, 3), little),
        Policy(4, (4, 5), (*little, 1_608_000, 1_800_000)),
    ]


def make_tree(root: Path, *domains: Policy | Device, boot: str = "boot-1") -> Path:
    """Files of these below `root`; returns it."""
    _put(root, BOOT, boot + "\n")
    for domain in domains:
        for name, text in domain.files().items():
            _put(root, f"{domain.folder}/{name}", text)
    return root


def _put(root: Path, path: str, text: str) -> None:
    file = root / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def settings(root: Path) -> dict[str, str]:
    """Every file of a tree that a user can set; derived ones are the kernel's own business.

    Without newlines at the end: a process may be killed while it shortens a plain file.
    """
    derived = ("scaling_cur_freq", "cur_freq", "affected_cpus")
    found = {
        str(path.relative_to(root)): path.read_text().strip()
        for path in sorted((root / "sys").rglob("*"))
        if path.is_file() and path.name not in derived
    }
    for name in list(found):
        if name.endswith("scaling_setspeed"):
            governor = found[name.replace("scaling_setspeed", "scaling_governor")]
            if governor != "userspace":
                del found[name]
    return found


class Kernel:
    """Files of a tree with a kernel behind them; a `SysFiles` whose files are opened by path.

    Attributes:
        writes: every (path, text) that was taken, in order.
        refused: every (path, errno) that was not.
        denied: paths that may not be written, as regular expressions.
        before_write: called before each write: another process, or a hand on the plug.
        identity: for the journal.
        privileged: whether the user is root.
    """

    def __init__(self, root: Path, *domains: Policy | Device, modern: bool = True) -> None:
        self.root_path, self.domains, self.modern = root, list(domains), modern
        self.writes: list[tuple[str, str]] = []
        self.refused: list[tuple[str, int]] = []
        self.denied: list[str] = []
        self.before_write: Callable[[str, str], None] = lambda path, text: None
        self.identity = f"kernel {root}"
        self.privileged = True
        self.generation = 0
        make_tree(root, *domains)

    # SysFiles

    def read(self, path: str) -> str:
        return self.read_bytes(path).decode()

    def read_bytes(self, path: str) -> bytes:
        self._check_online(path)
        return Path(f"{self.root_path}{path}").read_bytes()

    def write(self, path: str, text: str) -> None:
        self.before_write(path, text)
        if any(re.fullmatch(pattern, path) for pattern in self.denied):
            self._refuse(path, errno.EACCES)
        self.store(path, text)
        self.writes.append((path, text.strip()))

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(f"{self.root_path}{folder}"))

    # What the kernel does with a write.

    def store(self, path: str, text: str) -> None:
        """A write by anybody who may."""
        self._check_online(path)
        folder, _, name = path.rpartition("/")
        domain = next((one for one in self.domains if folder.startswith(one.folder)), None)
        if domain is None or not Path(f"{self.root_path}{path}").exists():
            self._refuse(path, errno.ENOENT)
        assert domain is not None
        if name in ("scaling_min_freq", "scaling_max_freq", "min_freq", "max_freq"):
            self._store_limit(domain, path, "min" in name, text)
        elif isinstance(domain, Policy):
            self._store_policy(domain, path, name, text)
        else:
            self._refuse(path, errno.EACCES)
        self.show()

    def _store_limit(self, domain: Policy | Device, path: str, lower: bool, text: str) -> None:
        value = self._number(path, text)
        if not self.modern:
            low, high = limits(domain.table, domain.low, domain.high)
            if (value > high) if lower else (value < low):
                self._refuse(path, errno.EINVAL)
        if lower:
            domain.low = value
        else:
            domain.high = value

    def _store_policy(self, policy: Policy, path: str, name: str, text: str) -> None:
        if name == "scaling_governor":
            wanted = text.split()[0][:15] if text.split() else ""
            if wanted not in policy.governors:
                self._refuse(path, errno.EINVAL)
            if wanted != policy.governor:
                policy.speed = policy.clock
                self._remove_tunables(policy)
                policy.governor = wanted
                policy.tunables = {} if wanted == "userspace" else {"rate_limit_us": "2000"}
        elif name == "scaling_setspeed":
            if policy.governor != "userspace":
                self._refuse(path, errno.EINVAL)
            policy.speed = self._number(path, text)
        elif name in policy.tunables:
            policy.tunables[name] = str(self._number(path, text))
        else:
            self._refuse(path, errno.EACCES)

    def _remove_tunables(self, policy: Policy) -> None:
        for name in policy.tunables:
            Path(f"{self.root_path}{policy.folder}/{policy.governor}/{name}").unlink()

    def _number(self, path: str, text: str) -> int:
        """As sscanf("%u") reads it: what follows the digits is not looked at."""
        digits = re.match(r"\s*(\d+)", text)
        if digits is None:
            self._refuse(path, errno.EINVAL)
        assert digits is not None
        return int(digits[1])

    def _check_online(self, path: str) -> None:
        for domain in self.domains:
            asleep = isinstance(domain, Policy) and not domain.online
            if asleep and path.startswith(domain.folder + "/") and not path.endswith("_cpus"):
                self._refuse(path, errno.EBUSY)

    def _refuse(self, path: str, code: int) -> None:
        self.refused.append((path, code))
        raise OSError(code, os.strerror(code), path)

    def show(self) -> None:
        """Bring the files up to date with the kernel's state."""
        make_tree(self.root_path, *self.domains)

    # What happens to a machine.

    def unplug(self, domain: Policy) -> None:
        """The policy and its files go away."""
        self.domains.remove(domain)
        self.generation += 1
        folder = Path(f"{self.root_path}{domain.folder}")
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()

    def plug(self, domain: Policy) -> None:
        """A policy appears, with the kernel's defaults or whatever it holds."""
        self.domains.append(domain)
        self.show()

    def heat(self, domain: Policy, limit: int) -> None:
        """A cooling device caps the clock; a limit above the table lets go."""
        domain.heat = limit
        held = limit < domain.table[-1]
        device = "/sys/class/thermal/cooling_device0"
        _put(self.root_path, f"{device}/type", "cpufreq-cpu0\n")
        _put(self.root_path, f"{device}/cur_state", f"{int(held)}\n")
        self.show()


class KernelKept(Kernel):
    """The same, whose files can be kept open."""

    def opened(self, path: str) -> _Kept:
        if any(re.fullmatch(pattern, path) for pattern in self.denied):
            self._refuse(path, errno.EACCES)
        if not Path(f"{self.root_path}{path}").exists():
            self._refuse(path, errno.ENOENT)
        return _Kept(self, path)


class _Kept:
    def __init__(self, kernel: KernelKept, path: str) -> None:
        self.kernel, self.path, self.generation = kernel, path, kernel.generation

    def _check(self) -> None:
        if self.generation != self.kernel.generation:
            self.kernel._refuse(self.path, errno.ENODEV)

    def read(self) -> str:
        self._check()
        return self.kernel.read(self.path)

    def write(self, text: str) -> None:
        self.kernel.before_write(self.path, text)
        self._check()
        self.kernel.store(self.path, text)
        self.kernel.writes.append((self.path, text.strip()))

    def close(self) -> None:
        pass
