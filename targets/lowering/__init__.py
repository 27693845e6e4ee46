"""From neutral graphs to a shared library of plain C functions, through TVM.

The only package that imports TVM. What it makes needs neither TVM nor Python.
"""

from __future__ import annotations

from eecompile.targets.lowering.compile import compile_functions
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.library import (
    CompiledFunction,
    CompiledLibrary,
    KernelUse,
    Tuned,
)
from eecompile.targets.lowering.link import Linker, find_linkers

__all__ = [
    "CompiledFunction",
    "CompiledLibrary",
    "KernelUse",
    "Linker",
    "Tuned",
    "UnsupportedOperator",
    "compile_functions",
    "find_linkers",
]
