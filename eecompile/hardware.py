"""What a build must know about the machine its kernels run on, and what this machine is.

A `Machine` is read from a board file (`targets/boards/*.toml`) and says how to generate code
(triple, CPU, features) and how to choose schedules (vector lanes, registers, caches). Nothing
here needs TVM: the runtime uses `cpu_features_of_this_machine` to refuse foreign artifacts.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = [
    "BOARDS",
    "Machine",
    "board_names",
    "cpu_features_of_this_machine",
    "cpu_name",
    "cpuinfo_names",
    "described",
    "detected",
    "efficient_group",
    "is_board_path",
    "machine",
    "parse_cpu_features",
    "processor_name",
    "usable_cores",
]

#: Folder of the board files that are shipped.
BOARDS = Path(__file__).parent / "targets" / "boards"

#: /proc/cpuinfo's flag -> LLVM's feature, for every feature generated float code may rely on.
#: Source: Linux arch/x86/kernel/cpu/capflags and LLVM's X86.td; only names that differ are odd.
_X86 = {
    "sse3": "sse3", "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2",
    "popcnt": "popcnt", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c",
    "movbe": "movbe", "bmi1": "bmi", "bmi2": "bmi2", "abm": "lzcnt",
    "avx512f": "avx512f", "avx512dq": "avx512dq", "avx512bw": "avx512bw", "avx512vl": "avx512vl",
    "avx512cd": "avx512cd", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni", "gfni": "gfni",
}  # fmt: skip
#: Source: Linux Documentation/arch/arm64/elf_hwcaps.rst and LLVM's AArch64Features.td.
_ARM64 = {
    "fp": "fp-armv8", "asimd": "neon", "crc32": "crc", "atomics": "lse", "asimdhp": "fullfp16",
    "asimddp": "dotprod", "asimdrdm": "rdm", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
}  # fmt: skip
_ARCHITECTURES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM64, "arm64": _ARM64}

#: Where /proc/cpuinfo names the board or its processor, the most telling first.
_NAMES = ("Model", "model name", "Hardware")

#: Architectures' names in triples, by the name the operating system gives.
_TRIPLE_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Machine:
    """A processor to generate code for.

    Attributes:
        name: what the user calls it ("host", "arm-cpu", a board's name).
        triple: LLVM's target triple.
        mcpu: LLVM's CPU name; empty for "whatever this machine is", found when building.
        features: LLVM's names of the CPU features the code may use. A CPU that lacks one must
            not load the code.
        lanes: float32 elements of one vector register.
        registers: number of vector registers.
        fma_latency, fma_per_cycle: of one core's vector multiply-accumulate; their product is the
            number of independent accumulators that hide the latency.
        l1_bytes, l2_bytes: data caches as seen by one core.
        cores: all it has; where kernels are chosen, those that work on an answer.
        sources: where each number comes from.
    """

    name: str
    triple: str
    mcpu: str = ""
    features: tuple[str, ...] = ()
    lanes: int = 4
    registers: int = 16
    fma_latency: int = 4
    fma_per_cycle: int = 2
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    cores: int = 1
    description: str = ""
    sources: dict[str, str] = field(default_factory=dict, compare=False, hash=False)

    @property
    def arch(self) -> str:
        """The triple's architecture: "x86_64", "aarch64".

        >>> Machine("a", "aarch64-linux-gnu").arch
        'aarch64'
        """
        return self.triple.split("-", 1)[0]

    @property
    def fused(self) -> bool:
        """Whether a vector is multiplied and added in one instruction.

        >>> Machine("a", "aarch64-linux-gnu").fused, Machine("b", "x86_64-linux-gnu").fused
        (True, False)
        """
        # Vectors of 16 are AVX-512's, which has it.
        return self.arch == "aarch64" or "fma" in self.features or self.lanes == 16

    @property
    def tile_registers(self) -> int:
        """Registers for the sums of a tile, a vector of weights for each block, and one input.

        The others hold what the compiler loads ahead: several inputs that one instruction fetches
        on ARM, a product that waits to be added where there is no fused multiply-add.
        Source: kernels of tests/lowering/test_instructions.py; with more, LLVM 22 spills sums.

        >>> Machine("a", "aarch64-linux-gnu", registers=32).tile_registers
        28
        """
        if self.arch == "aarch64":
            return self.registers - 4
        return self.registers if self.fused else self.registers - 3

    @property
    def short_lanes(self) -> int:
        """Elements of the shortest vectors worth multiplying: of AVX-512 two halves are as quick.

        Measured on an AMD EPYC (family 25 model 17, benchmarks/channel_gates.py), all groups of
        channels kept: ResNet-56's blocks of 16, 32 and 64 channels take 1.12, 1.05 and 1.00 of
        their time without a gate with groups of 8, 8 and 16.

        >>> [Machine("m", "x86_64-linux-gnu", lanes=lanes).short_lanes for lanes in (16, 8, 4)]
        [8, 8, 4]
        """
        return 8 if self.lanes >= 16 else self.lanes

    @property
    def is_native(self) -> bool:
        """Whether this machine can run the code (same architecture, all features present)."""
        here = platform.machine().lower()
        same = _TRIPLE_ARCH.get(here, here) == self.arch
        return same and set(self.features) <= cpu_features_of_this_machine()


def efficient_group(machine: Machine, channels: int) -> int:
    """The smallest run of channels that leaves whole vectors to what computes them.

    Gates over shorter runs are right, but the convolution before them computes every channel; those
    that read the result skip runs of any length. With AVX-512 runs of 8 channels are efficient, up
    to an eighth slower where all are kept; runs of 16 cost nothing.

    Args:
        machine: the one that runs the kernels.
        channels: of the convolution's result; runs divide them.

    >>> avx512 = Machine("m", "x86_64-linux-gnu", lanes=16, registers=32)
    >>> neon = Machine("m", "aarch64-linux-gnu", lanes=4, registers=32)
    >>> efficient_group(avx512, 64), efficient_group(avx512, 24), efficient_group(neon, 24)
    (8, 8, 4)
    >>> efficient_group(avx512, 10)
    10
    """
    step = machine.short_lanes
    return next((n for n in range(step, channels, step) if channels % n == 0), channels)


def parse_cpu_features(cpuinfo: str, arch: str) -> frozenset[str]:
    r"""LLVM's names of the known features a /proc/cpuinfo text lists (first processor).

    >>> sorted(parse_cpu_features("flags\t\t: fpu avx2 fma sse4_1 whatever", "x86_64"))
    ['avx2', 'fma', 'sse4.1']
    >>> sorted(parse_cpu_features("Features\t: fp asimd evtstrm crc32", "aarch64"))
    ['crc', 'fp-armv8', 'neon']
    """
    known = _ARCHITECTURES.get(arch.lower(), {})
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(known[flag] for flag in value.split() if flag in known)
    return frozenset()


def cpuinfo_names(features: Iterable[str], arch: str) -> tuple[str, ...]:
    """What /proc/cpuinfo calls features that are known by LLVM's names, sorted.

    >>> cpuinfo_names(["neon", "crc"], "aarch64")
    ('asimd', 'crc32')
    """
    known = {name: flag for flag, name in _ARCHITECTURES.get(arch.lower(), {}).items()}
    return tuple(sorted(known[feature] for feature in features))


def cpu_features_of_this_machine() -> frozenset[str]:
    """The features of the CPU this process runs on, by LLVM's names.

    Where the operating system has no /proc/cpuinfo only what the architecture guarantees is
    reported (NEON on 64-bit ARM, nothing on x86-64).
    """
    arch = platform.machine().lower()
    found = parse_cpu_features(_cpuinfo(), arch)
    if not found and arch in ("aarch64", "arm64"):
        return frozenset({"fp-armv8", "neon"})
    return found


def _cpuinfo() -> str:
    """What Linux says of this machine's CPUs; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor_name(cpuinfo: str) -> str:
    r"""What a /proc/cpuinfo text calls the board, or its processor; empty where it does not.

    >>> processor_name("processor\t: 0\nmodel\t: 17\nmodel name\t: AMD EPYC\n")
    'AMD EPYC'
    >>> processor_name("processor\t: 0\nHardware\t: BCM2835\nModel\t: Raspberry Pi 4\n")
    'Raspberry Pi 4'
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    found = {key.strip(): value.strip()[:200] for key, _, value in lines}
    return next((name for key in _NAMES if (name := found.get(key))), "")


def cpu_name() -> str:
    """This machine's processor as the operating system names it."""
    return processor_name(_cpuinfo()) or platform.processor() or platform.machine()


def board_names() -> tuple[str, ...]:
    """Names of the boards that are shipped, sorted, "host" first: this very machine."""
    names = sorted(path.stem for path in BOARDS.glob("*.toml"))
    return ("host", *(name for name in names if name != "host"))


def is_board_path(name: str) -> bool:
    """Whether a board's name is the path of a file of the user's own.

    >>> is_board_path("raspberry-pi-4"), is_board_path("./mine"), is_board_path("mine.toml")
    (False, True, True)
    """
    return name.endswith(".toml") or "/" in name or os.sep in name


def machine(name: str, cores: int | None = None) -> Machine:
    """The machine of a board that is shipped; "host" is this very machine.

    Users' names, and files of their own, are for `eecompile.boards.file.read_board`, which checks
    what it reads.
    """
    text = (BOARDS / f"{name}.toml").read_text(encoding="utf-8")
    found = _from_table(name, tomllib.loads(text))
    if not found.triple:
        found = detected(found)
    return found if cores is None else replace(found, cores=cores)


def _from_table(name: str, table: dict[str, Any]) -> Machine:
    """A machine from a board file: every number is ``{ value = ..., source = "..." }``."""
    values: dict[str, Any] = {"name": name, "description": table.get("description", "")}
    sources = {}
    for key, entry in table["machine"].items():
        if isinstance(entry, dict):
            values[key], sources[key] = entry["value"], entry["source"]
        else:
            values[key] = entry
    values["features"] = tuple(values.get("features", ()))
    return Machine(**values, sources=sources)


def detected(base: Machine) -> Machine:
    """`base` with what the operating system says about this machine."""
    features = cpu_features_of_this_machine()
    here = platform.machine().lower()
    arch = _TRIPLE_ARCH.get(here, here)
    if platform.system() == "Darwin":
        triple = f"{arch.replace('aarch64', 'arm64')}-apple-darwin"
    elif platform.system() == "Windows":
        triple = f"{arch}-pc-windows-msvc"
    else:
        triple = f"{arch}-linux-gnu"
    return described(
        replace(base, triple=triple), features, _cache_bytes(1), _cache_bytes(2), usable_cores()
    )


def described(
    base: Machine, features: frozenset[str], l1_bytes: int | None, l2_bytes: int | None, cores: int
) -> Machine:
    """`base` with these features, the vectors they mean, and the caches that are known."""
    lanes, registers = 4, 32 if base.arch in ("aarch64", "arm64") else 16
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= features:
        lanes, registers = 16, 32
    elif {"avx2", "fma"} <= features:
        lanes = 8
    return replace(
        base,
        features=tuple(sorted(features)),
        lanes=lanes,
        registers=registers,
        l1_bytes=l1_bytes or base.l1_bytes,
        l2_bytes=l2_bytes or base.l2_bytes,
        cores=cores,
    )


def usable_cores() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache_bytes(level: int) -> int | None:
    """Size of this CPU's data cache of a level, where Linux tells it."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            at, kind, size = (
                (index / entry).read_text().strip() for entry in ("level", "type", "size")
            )
        except OSError:
            continue
        if int(at) == level and kind in ("Data", "Unified"):
            return int(size.rstrip("KM")) * (1024**2 if size.endswith("M") else 1024)
    return None
