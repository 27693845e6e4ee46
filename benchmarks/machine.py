"""What every benchmark prints first: the machine it ran on, and where the shared data are."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from eecompile.hardware import cpu_name, machine

__all__ = ["describe_machine", "shared_data"]


def describe_machine() -> str:
    """Processor, cores, vector width, Python.

    Machines that run benchmarks are often shared: read ratios within one run, not seconds.
    """
    here = machine("host")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"machine: {cpu_name()}, {here.cores} cores, {here.lanes} float32 lanes, "
        f"load {load:.1f}; Python {platform.python_version()}, {platform.system()}"
    )


def shared_data() -> Path:
    """The folder with the data sets and trained networks; ends the program where there is none."""
    found = os.environ.get("EECOMPILE_DATA")
    folder = Path(found) if found else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: set EECOMPILE_DATA to the folder with the data sets")
    return folder
