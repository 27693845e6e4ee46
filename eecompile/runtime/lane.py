"""Memory for the values of a network, and its functions bound to that memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eecompile.compiled import Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.runtime.library import ALIGNMENT, Code, Library, Team, aligned

__all__ = ["Call", "Lane", "sample_bytes"]


def sample_bytes(inputs: Sequence[Value], functions: Iterable[Function]) -> int:
    """Bytes of all values of one sample.

    >>> from eecompile.ir import TensorType
    >>> sample_bytes([("x", TensorType("float32", (1, 3)))], [])
    12
    """
    return sum(type_.nbytes for _, type_ in _values(inputs, functions))


def _values(inputs: Sequence[Value], functions: Iterable[Function]) -> list[Value]:
    return [*inputs, *(value for function in functions for value in function.outputs)]


class Call:
    """A function with all its arguments but the number of samples."""

    __slots__ = ("_arguments", "_frame", "_run", "_team", "function")

    def __init__(
        self, function: Function, code: Code, addresses: Sequence[int], team: Team | None = None
    ) -> None:
        """`addresses` follow the number of samples in the frame."""
        self.function, self._team = function, team
        self._frame = (ctypes.c_int64 * (1 + len(addresses)))(1, *addresses)
        frame = ctypes.c_void_p(ctypes.addressof(self._frame))
        self._run: Code = code
        self._arguments: tuple[Any, ...] = (frame, 0, 1, None)
        if team is not None and function.threads > 1:
            self._run, self._arguments = team.run, (team.handle, code, frame)

    def one(self) -> None:
        """Run it on the first sample."""
        self.many(1)

    def many(self, count: int) -> None:
        """Run it on the first `count` samples."""
        self._frame[0] = count
        status = self._run(*self._arguments)
        if status:
            raise InternalError(f"compiled function {self.function.symbol} returned {status}")


class Lane:
    """Room for `capacity` samples of every value, and the functions bound to it. For one thread.

    Attributes:
        values: value name -> array (capacity, ...), aligned; `batch_shape` says its shape.
        calls: symbol -> the function, reading and writing `values`.
    """

    def __init__(
        self,
        library: Library,
        inputs: Sequence[Value],
        functions: Sequence[Function],
        capacity: int,
        team: Team | None = None,
    ) -> None:
        """Allocates everything; calls allocate nothing. `team` shares the work of every call."""
        self.capacity, self._team = capacity, team
        self.values = {
            name: aligned(type_.nbytes * capacity)
            .view(type_.dtype)
            .reshape(batch_shape(type_, capacity))
            for name, type_ in _values(inputs, functions)
        }
        self._library = library
        threads = 1 if team is None else team.threads
        needed = (f.workspace_bytes + threads * f.private_bytes for f in functions)
        self._workspace = aligned(max(needed, default=0) + ALIGNMENT)
        self._codes = {function.symbol: library.function(function) for function in functions}
        self.calls = {
            function.symbol: self.bound(
                function,
                [self.values[name] for name, _ in function.inputs],
                [self.values[name] for name, _ in function.outputs],
            )
            for function in functions
        }

    def bound(
        self, function: Function, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> Call:
        """`function` on other arrays than the lane's own; the caller keeps them alive."""
        arrays = (self._library.weights, self._workspace, *inputs, *outputs)
        addresses = [array.ctypes.data for array in arrays]
        return Call(function, self._codes[function.symbol], addresses, self._team)

    def keep(self, names: Iterable[str], rows: np.ndarray) -> None:
        """Move the samples `rows` (ascending) of some values to the front, in their order."""
        for name in names:
            values = self.values[name]
            values[: len(rows)] = values[rows]

    def copied(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some samples of a value in memory of their own, aligned."""
        values = self.values[name]
        shape = (len(rows), *values.shape[1:])
        found = aligned(values[0].nbytes * len(rows)).view(values.dtype).reshape(shape)
        return np.take(values, rows, axis=0, out=found, mode="clip")
