"""From neutral graphs to a shared library of plain C functions, through TVM.

The only package that imports TVM. What it makes needs neither TVM nor Python.
"""

from __future__ import annotations

from .compile import CompiledFunction, CompiledLibrary, KernelUse, compile_functions
from .errors import UnsupportedOperator
from .link import Linker, find_linkers

__all__ = [
    "CompiledFunction",
    "CompiledLibrary",
    "KernelUse",
    "Linker",
    "UnsupportedOperator",
    "compile_functions",
    "find_linkers",
]
