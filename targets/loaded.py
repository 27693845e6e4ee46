"""Compiled functions called with numpy arrays on the machine this runs on, as benchmarks do.

Needs no compiler: a library, its weights and ctypes.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # Importing lowering would import TVM.
    from eecompile.ir import TensorType
    from eecompile.targets.lowering import CompiledFunction, CompiledLibrary

__all__ = ["LoadedLibrary"]

_ALIGNMENT = 64


class LoadedLibrary:
    """A compiled library in this process."""

    def __init__(self, compiled: CompiledLibrary) -> None:
        """Loads the code and copies the weights to an aligned place.

        Raises:
            OSError: the library is for another machine.
        """
        self.functions = {function.symbol: function for function in compiled.functions}
        with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(compiled.library)
            self._library = ctypes.CDLL(str(path))
        self._weights = _aligned(compiled.weights.nbytes)
        self._weights[:] = compiled.weights

    def bind(
        self, symbol: str, inputs: Sequence[np.ndarray], n: int = 1
    ) -> tuple[Callable[[], int], list[np.ndarray]]:
        """A call without arguments that fills the returned outputs, dense over n samples."""
        function = self.functions[symbol]
        outputs = [
            np.zeros((n, *_in_memory(function, name, type_)), type_.dtype)
            for name, type_ in function.outputs
        ]
        dense = [np.ascontiguousarray(x) for x in inputs]
        arrays = [self._weights, _aligned(function.workspace_bytes), *dense, *outputs]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        compiled = self._library[symbol]
        count = ctypes.c_int64(n)

        def call() -> int:
            # `arrays` must live as long as their addresses are used.
            return int(compiled(count, *pointers)) if arrays else 0

        return call, outputs


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _in_memory(function: CompiledFunction, name: str, type_: TensorType) -> tuple[int, ...]:
    shape = type_.shape
    return shape if function.layouts[name] == "source" else (shape[0], *shape[2:], shape[1])
