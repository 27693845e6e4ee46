"""What every benchmark prints first: the machine it ran on, and where the shared data are."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eecompile.hardware import cpu_name, machine

__all__ = ["describe_machine", "shared_data", "working_folder"]


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


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder `kept`, made where it is not there; one that vanishes in the end if it is None."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (kept or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def shared_data() -> Path:
    """The folder with the data sets and trained networks; ends the program where there is none."""
    found = os.environ.get("EECOMPILE_DATA")
    folder = Path(found) if found else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: set EECOMPILE_DATA to the folder with the data sets")
    return folder
