"""Memory for the values of a network, and its functions bound to that memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import numpy as np

from eecompile.compiled import Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.runtime.library import ALIGNMENT, Code, Library, aligned

__all__ = ["Call", "Lane", "sample_bytes"]

_ONE = ctypes.c_int64(1)


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

    __slots__ = ("_arguments", "_code", "function")

    def __init__(self, function: Function, code: Code, addresses: Sequence[int]) -> None:
        """`addresses` follow the number of samples in the C signature."""
        self.function, self._code = function, code
        self._arguments = tuple(map(ctypes.c_void_p, addresses))

    def one(self) -> None:
        """Run it on the first sample."""
        status = self._code(_ONE, *self._arguments)
        if status:
            self._fail(status)

    def many(self, count: int) -> None:
        """Run it on the first `count` samples."""
        status = self._code(count, *self._arguments)
        if status:
            self._fail(status)

    def _fail(self, status: int) -> None:
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
    ) -> None:
        """Allocates everything; calls allocate nothing."""
        self.capacity = capacity
        self.values = {
            name: aligned(type_.nbytes * capacity)
            .view(type_.dtype)
            .reshape(batch_shape(type_, capacity))
            for name, type_ in _values(inputs, functions)
        }
        self._library = library
        self._workspace = aligned(
            max((function.workspace_bytes for function in functions), default=0) + ALIGNMENT
        )
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
        return Call(function, self._codes[function.symbol], addresses)

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
