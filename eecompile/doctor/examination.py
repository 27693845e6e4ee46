"""Everything that is looked at: packages, processor, linkers, clocks and meters, the cache."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

from eecompile.cache import Cache
from eecompile.doctor.finding import Finding
from eecompile.doctor.hardware import examine_hardware
from eecompile.hardware import Machine, board_names, cpu_name, machine
from eecompile.runtime.sysfs import LocalFiles

__all__ = ["examine"]


def examine() -> list[Finding]:
    """Everything, the most important first."""
    return [
        Finding("Python", True, f"{platform.python_version()} on {platform.platform()}"),
        _processor(),
        *(_package(*entry) for entry in _PACKAGES),
        *_linkers(),
        *examine_hardware(LocalFiles(), machine("host")),
        _cache(),
    ]


#: Import name, distribution, whether needed, remedy, what for.
_PACKAGES = (
    ("numpy", "numpy", True, "pip install numpy", "running artifacts"),
    ("tvm", "apache-tvm", True, "pip install 'eecompile[build]'", "building artifacts"),
    ("onnx", "onnx", True, "pip install 'eecompile[build]'", "building from ONNX networks"),
    ("torch", "torch", False, "pip install 'eecompile[torch]'", "PyTorch networks, `train`"),
    (
        "tritonclient",
        "tritonclient",
        False,
        "pip install 'eecompile[offload]'",
        "policies that send samples to a server",
    ),
    ("fdt", "fdt", False, "pip install 'eecompile[boards]'", "boards from device tree blobs"),
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


def _linkers() -> Iterator[Finding]:
    """What links code for each kind of system there are boards of."""
    # find_linkers imports no compiler: it only looks for commands.
    from eecompile.targets.linkers import find_linkers, remedy

    triples: dict[str, Machine] = {}
    for name in board_names():  # "host" is the first
        target = machine(name)
        triples.setdefault(target.triple, target)
    for triple, target in triples.items():
        found = find_linkers(target)
        what = f"linker for {triple}"
        if found:
            yield Finding(what, True, ", ".join(linker.name for linker in found))
        else:
            yield Finding(what, False, "none", remedy(target), target.name == "host")


def _cache() -> Finding:
    folder = Cache().folder
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    ok = os.access(parent, os.W_OK)
    remedy = "" if ok else "set EECOMPILE_CACHE to a folder that can be written"
    return Finding("build cache", ok, str(folder), remedy)
