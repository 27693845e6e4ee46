"""`eecompile doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from eecompile.cache import Cache
from eecompile.hardware import machine, machine_names
from eecompile.latency import cpu_name

__all__ = ["Finding", "examine"]

_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: what was looked at.
        ok: whether it is there.
        found: what was found, in words.
        remedy: how to get it, empty where nothing is to be done.
        needed: whether nothing can be built without it.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False


def examine() -> list[Finding]:
    """Everything, the most important first."""
    return [
        Finding("Python", True, f"{platform.python_version()} on {platform.platform()}"),
        _processor(),
        *(_package(*entry) for entry in _PACKAGES),
        *(_linker(name) for name in machine_names()),
        _frequency(),
        _energy(),
        _cache(),
    ]


#: Import name, distribution, whether needed, remedy, what for.
_PACKAGES = (
    ("tvm", "apache-tvm", True, "pip install apache-tvm", "compiling"),
    ("onnx", "onnx", True, "pip install onnx", "ONNX networks"),
    ("torch", "torch", False, "pip install 'eecompile[torch]'", "PyTorch networks, trained heads"),
    (
        "onnxruntime",
        "onnxruntime",
        False,
        "pip install onnxruntime",
        "faster comparison with ONNX networks (onnx's own evaluator is used without it)",
    ),
)


def _package(name: str, distribution: str, needed: bool, remedy: str, use: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(distribution, False, f"not installed; for {use}", remedy, needed)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # built from source, perhaps
        version = "version unknown"
    return Finding(distribution, True, f"{version}, for {use}", needed=needed)


def _processor() -> Finding:
    here = machine("host")
    features = ", ".join(here.features) or "none known"
    return Finding("processor", True, f"{cpu_name()}; {here.cores} cores; {features}")


def _linker(name: str) -> Finding:
    # find_linkers imports no compiler: it only looks for commands.
    from eecompile.targets.linkers import find_linkers, remedy

    target = machine(name)
    found = find_linkers(target)
    what = f"linker for {name}"
    if not found:
        return Finding(what, False, f"none for {target.triple}", remedy(target), name == "host")
    return Finding(what, True, ", ".join(linker.name for linker in found))


def _frequency() -> Finding:
    what = "frequency control"
    if not _CPUFREQ.is_dir():
        return Finding(what, False, "no cpufreq here: latencies are those of whatever clock runs")
    governor = _read(_CPUFREQ / "scaling_governor")
    low, high = (_read(_CPUFREQ / f"cpuinfo_{end}_freq") for end in ("min", "max"))
    told = f"governor {governor}, {low} to {high} kHz"
    return Finding(what, os.access(_CPUFREQ / "scaling_max_freq", os.W_OK), told)


def _energy() -> Finding:
    if os.access(_RAPL, os.R_OK):
        return Finding("energy counter", True, "RAPL")
    there = "RAPL is not readable" if _RAPL.exists() else "none found"
    return Finding("energy counter", False, f"{there}: no energy is measured")


def _cache() -> Finding:
    folder = Cache().folder
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    ok = os.access(parent, os.W_OK)
    remedy = "" if ok else "set EECOMPILE_CACHE to a folder that can be written"
    return Finding("build cache", ok, str(folder), remedy)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"
