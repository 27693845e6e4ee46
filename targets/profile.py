"""Measures compiled functions on the machine this runs on.

Needs no compiler: a library, its weights and ctypes. Inputs are random, since the time of a
compiled function depends on values only where they are denormal.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # Importing lowering would import TVM.
    from eecompile.ir import TensorType
    from eecompile.targets.lowering import CompiledFunction, CompiledLibrary

__all__ = ["Latency", "LoadedLibrary", "measure"]

_ALIGNMENT = 64


@dataclass(frozen=True)
class Latency:
    """Measured time of one sample through one function.

    `latency_s` is the median of `repeats` measurements, `low_s` and `high_s` their quartiles.
    """

    symbol: str
    latency_s: float
    low_s: float
    high_s: float
    repeats: int
    provenance: str = "measured"


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


def measure(
    compiled: CompiledLibrary, *, repeats: int = 51, seconds: float = 0.2
) -> tuple[Latency, ...]:
    """Latency of every function, one sample a call, one thread.

    The functions take turns, so that a disturbance hits all of them alike.

    Args:
        compiled: for the machine this runs on.
        repeats: measurements of each function.
        seconds: time to spend on each function, about; short calls are timed several at once.
    """
    loaded = LoadedLibrary(compiled)
    rng = np.random.default_rng(0)
    calls, counts = [], []
    for function in compiled.functions:
        inputs = [_random(type_, rng) for _, type_ in function.inputs]
        call, _ = loaded.bind(function.symbol, inputs)
        call()
        counts.append(max(1, int(seconds / repeats / max(_time(call, 1), 1e-7))))
        calls.append(call)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for index, (call, count) in enumerate(zip(calls, counts, strict=True)):
            times[index].append(_time(call, count))
    return tuple(
        _summary(function.symbol, found)
        for function, found in zip(compiled.functions, times, strict=True)
    )


def _summary(symbol: str, times: Sequence[float]) -> Latency:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Latency(symbol, float(middle), float(low), float(high), len(times))


def _time(call: Callable[[], int], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _random(type_: TensorType, rng: np.random.Generator) -> np.ndarray:
    if np.dtype(type_.dtype).kind == "f":
        return rng.standard_normal(type_.shape).astype(type_.dtype)
    # Integers may be indices: 0 is a valid one of everything.
    return np.zeros(type_.shape, type_.dtype)


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _in_memory(function: CompiledFunction, name: str, type_: TensorType) -> tuple[int, ...]:
    shape = type_.shape
    return shape if function.layouts[name] == "source" else (shape[0], *shape[2:], shape[1])
