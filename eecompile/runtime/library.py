"""Machine code in memory: a shared library loaded with ctypes, and the weights it reads."""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eecompile.compiled import Function
from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["ALIGNMENT", "Code", "Library", "aligned"]

#: Bytes every buffer given to compiled code is aligned to: a cache line, the widest vector.
ALIGNMENT = 64

#: A compiled function: takes the ctypes values of its signature, returns its status.
Code = Callable[..., int]


def aligned(nbytes: int) -> np.ndarray:
    """Uninitialised bytes at an address that is a multiple of `ALIGNMENT`.

    >>> aligned(100).ctypes.data % 64
    0
    """
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


class Library:
    """Compiled functions and the weights they read.

    Shared by sessions and threads: the functions write only where their arguments say. ctypes
    releases Python's lock while one runs. The code is unloaded when nothing refers to it any more.
    """

    def __init__(self, code: bytes, weights: np.ndarray, name: str = "kernels.so") -> None:
        """Load `code`: these very bytes, whatever happens to the file they came from.

        Args:
            code: the bytes of a shared library whose origin is trusted: loading runs it.
            weights: the blob the functions were compiled against; copied if it is not aligned.
            name: path for messages.

        Raises:
            CompileErrors: the system cannot load it.
        """
        self.name = name
        self.weights = weights.view(np.uint8).reshape(-1)
        if self.weights.ctypes.data % ALIGNMENT:
            self.weights = aligned(weights.nbytes)
            self.weights[:] = weights.view(np.uint8).reshape(-1)
        try:
            self._loaded = _load(code)
        except OSError as error:
            raise self._bad(f"`{Path(name).name}` cannot be loaded: {error}") from error

    def function(self, function: Function) -> Code:
        """The machine code of a function.

        Raises:
            CompileErrors: the library has none of this name.
        """
        try:
            code = self._loaded[function.symbol]
        except AttributeError as error:
            raise self._bad(
                f"`{Path(self.name).name}` has no function `{function.symbol}`"
            ) from error
        code.restype = ctypes.c_int32
        arguments = 2 + len(function.inputs) + len(function.outputs)
        code.argtypes = [ctypes.c_int64] + [ctypes.c_void_p] * arguments
        return code

    def _bad(self, message: str) -> CompileErrors:
        return CompileErrors([Diagnostic("bad-artifact", message, path=self.name)])


def _load(code: bytes) -> ctypes.CDLL:
    if not hasattr(os, "memfd_create"):
        return _load_from_file(code)
    handle = os.memfd_create("eecompile-kernels", os.MFD_CLOEXEC)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(code)
        loaded = ctypes.CDLL(f"/proc/self/fd/{handle}")
    except BaseException:
        os.close(handle)
        raise
    # NOTE: the loader knows libraries by their path. While this one is loaded its number must
    # not be given to another file, or that one's path would be taken for this library.
    weakref.finalize(loaded, _unload, loaded._handle, handle).atexit = False
    return loaded


def _unload(loaded: int, handle: int) -> None:
    import _ctypes

    _ctypes.dlclose(loaded)
    os.close(handle)


def _load_from_file(code: bytes) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        path = Path(folder) / "kernels.so"
        path.write_bytes(code)
        return ctypes.CDLL(str(path))
