"""What processor a running Linux has: /proc/cpuinfo and the caches in sysfs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from eecompile.boards.core_kinds import CoreKind, kind_of_part
from eecompile.hardware import Machine, described, parse_cpu_features
from eecompile.runtime.clock_domains import cpu_list
from eecompile.runtime.sysfs import SysFiles, matching, number_in, read_number, read_text

__all__ = ["core_name", "machine_of"]

_CPUS = "/sys/devices/system/cpu"


def machine_of(files: SysFiles, name: str) -> Machine | None:
    """What /proc/cpuinfo and the caches of a running system tell; None where they tell nothing."""
    text = read_text(files, "/proc/cpuinfo") or ""
    arch = "aarch64" if re.search(r"^Features\s*:", text, re.MULTILINE) else "x86_64"
    features = parse_cpu_features(text, arch)
    if not features:
        return None
    cpus = cpu_list(read_text(files, f"{_CPUS}/online") or "")
    caches = {level: _cache_bytes(files, level) for level in (1, 2)}
    base = Machine(name, f"{arch}-linux-gnu")
    found = described(base, features, caches[1], caches[2], len(cpus) or 1)
    sources = {"lanes": "/proc/cpuinfo", "registers": "/proc/cpuinfo"}
    sources |= {f"l{level}_bytes": f"{_CPUS}/cpu0/cache" for level, size in caches.items() if size}
    if cpus:
        sources["cores"] = f"{_CPUS}/online"
    return replace(found, sources=sources)


def _cache_bytes(files: SysFiles, level: int) -> int | None:
    """Size of the first CPU's data cache of a level."""
    for path in matching(files, f"{_CPUS}/cpu0/cache", "index"):
        kind = read_text(files, f"{path}/type")
        if read_number(files, f"{path}/level") == level and kind in ("Data", "Unified"):
            size = re.fullmatch(r"(\d{1,9})([KM]?)", read_text(files, f"{path}/size") or "")
            return int(size[1]) * {"": 1, "K": 1024, "M": 1024**2}[size[2]] if size else None
    return None


def core_name(files: SysFiles, cpus: Sequence[int]) -> str:
    """LLVM's name of the cores that these CPUs are; empty where it is not known."""
    kind = _kind(files, cpus)
    return kind.name if kind else ""


def _kind(files: SysFiles, cpus: Sequence[int]) -> CoreKind | None:
    """What /proc/cpuinfo says the first of these CPUs it tells of is."""
    blocks = (read_text(files, "/proc/cpuinfo") or "").split("\n\n")
    for block in blocks:
        fields = {
            key.strip(): value.strip()
            for key, colon, value in (line.partition(":") for line in block.splitlines())
            if colon
        }
        if number_in(fields.get("processor")) not in cpus:
            continue
        numbers = [fields.get(f"CPU {name}", "") for name in ("implementer", "part")]
        if all(re.fullmatch(r"0x[0-9a-fA-F]{1,4}", number) for number in numbers):
            return kind_of_part(int(numbers[0], 16), int(numbers[1], 16))
    return None
