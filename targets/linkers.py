"""What links shared libraries here. Looks for commands only; no compiler is imported."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass

from eecompile.hardware import Machine

__all__ = ["Linker", "find_linkers", "remedy"]

#: Oldest glibc that libraries for other machines are linked against: Debian 10, 2019.
_GLIBC = "2.28"


@dataclass(frozen=True)
class Linker:
    """A command that links shared libraries for a machine."""

    name: str
    command: tuple[str, ...]


def find_linkers(machine: Machine) -> list[Linker]:
    """The linkers found for a machine, the preferred one first."""
    found = []
    here = ["cc", "gcc", "clang"]
    names = here if machine.is_native else [f"{machine.arch}-linux-gnu-gcc"]
    for name in names:
        path = shutil.which(name)
        if path:
            found.append(Linker(name, (path,)))
    if importlib.util.find_spec("ziglang") is not None:
        target = f"{machine.arch}-linux-gnu.{_GLIBC}"
        command = (sys.executable, "-m", "ziglang", "cc", "-target", target)
        found.append(Linker("ziglang", command))
    return found


def remedy(machine: Machine) -> str:
    """How to get a linker for a machine."""
    if machine.is_native:
        return "install a C compiler (Debian: apt install gcc) or `pip install ziglang`"
    package = f"gcc-{machine.arch.replace('_', '-')}-linux-gnu"
    return f"`pip install ziglang`, or install a cross compiler (Debian: apt install {package})"
