"""Compiled functions called with numpy arrays on the machine this runs on, as benchmarks do.

Needs no compiler: a library, its weights and ctypes.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # Importing lowering would import TVM.
    from eecompile.ir import TensorType
    from eecompile.targets.lowering import CompiledFunction, CompiledLibrary, KernelUse

__all__ = ["LoadedLibrary"]

_ALIGNMENT = 64


class LoadedLibrary:
    """A compiled library in this process."""

    def __init__(self, compiled: CompiledLibrary, threads: int = 1) -> None:
        """Loads the code and copies the weights to an aligned place.

        Args:
            compiled: the library.
            threads: cores that share the phases of a call.

        Raises:
            OSError: the library is for another machine, or the system gives no threads.
        """
        self.functions = {function.symbol: function for function in compiled.functions}
        self.threads = threads
        with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(compiled.library)
            self._library = ctypes.CDLL(str(path))
        self._weights = _aligned(compiled.weights.nbytes)
        self._weights[:] = compiled.weights
        self._team: ctypes.c_void_p | None = None
        if threads > 1:
            self._library.eecompile_team_open.restype = ctypes.c_void_p
            self._team = ctypes.c_void_p(self._library.eecompile_team_open(threads))
            if not self._team:
                raise OSError(f"the system gives no {threads} threads")
            close = self._library.eecompile_team_close
            weakref.finalize(self, close, self._team).atexit = False

    def bind(
        self, symbol: str, inputs: Sequence[np.ndarray], n: int = 1
    ) -> tuple[Callable[[], int], list[np.ndarray]]:
        """A call without arguments that fills the returned outputs, dense over n samples."""
        frame, outputs = self._frame(symbol, inputs, n)
        address = ctypes.c_void_p(frame.addresses.ctypes.data)
        code = self._library[symbol]
        run: Callable[..., int] = code
        arguments: tuple[Any, ...] = (address, ctypes.c_int32(0), ctypes.c_int32(1), None)
        if self._team and self.functions[symbol].threads > 1:
            run = self._library.eecompile_team_run
            arguments = (self._team, ctypes.c_int32(self.threads), code, address)

        def call() -> int:
            # The arrays must live as long as their addresses are used.
            return int(run(*arguments)) if frame else 0

        return call, outputs

    def bind_kernels(
        self, symbol: str, inputs: Sequence[np.ndarray]
    ) -> list[tuple[KernelUse, Callable[[], int]]]:
        """The kernel calls of one sample, in order, each by itself on one thread, for profiles.

        The library must have been compiled with `export_kernels`. A call reads what earlier ones
        wrote, so the first round has to go in order.
        """
        function = self.functions[symbol]
        frame, _ = self._frame(symbol, inputs, 1)
        place = {name: int(at) for name, at in zip(frame.names, frame.addresses, strict=True)}
        place["private"] = place["workspace"] + function.workspace_bytes
        return [(use, self._bound_kernel(use, place, frame)) for use in function.kernels]

    def _bound_kernel(
        self, use: KernelUse, place: Mapping[str, int], frame: _Frame
    ) -> Callable[[], int]:
        pointers = [ctypes.c_void_p(place[a.base] + a.offset) for a in use.call.arguments]
        phases = [
            (self._library[phase.symbol], ctypes.c_int32(0), ctypes.c_int32(phase.units))
            for phase in use.call.phases
        ]

        def call() -> int:
            # The frame's arrays must live as long as their addresses are used.
            for code, begin, end in phases if frame else ():
                code(begin, end, *pointers)
            return 0

        return call

    def _frame(
        self, symbol: str, inputs: Sequence[np.ndarray], n: int
    ) -> tuple[_Frame, list[np.ndarray]]:
        function = self.functions[symbol]
        outputs = [
            np.zeros((n, *_in_memory(function, name, type_)), type_.dtype)
            for name, type_ in function.outputs
        ]
        dense = [np.ascontiguousarray(x) for x in inputs]
        workspace = _aligned(function.workspace_bytes + self.threads * function.private_bytes)
        return _Frame(n, [self._weights, workspace, *dense, *outputs], len(dense)), outputs


class _Frame:
    """What a compiled function is called with: n and addresses."""

    def __init__(self, n: int, arrays: Sequence[np.ndarray], inputs: int) -> None:
        self.arrays = arrays
        places = [f"in{i}" for i in range(inputs)]
        places += [f"out{i}" for i in range(len(arrays) - inputs - 2)]
        self.names = ["n", "weights", "workspace", *places]
        self.addresses = np.array([n, *(array.ctypes.data for array in arrays)], np.int64)


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _in_memory(function: CompiledFunction, name: str, type_: TensorType) -> tuple[int, ...]:
    shape = type_.shape
    return shape if function.layouts[name] == "source" else (shape[0], *shape[2:], shape[1])
