"""Machine code in memory: a shared library loaded with ctypes, and the weights it reads."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eecompile.artifact import Artifact
from eecompile.compiled import CompiledGraph, Function
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.memory import plan_network
from eecompile.native_names import library_symbol
from eecompile.packing import ALIGNMENT
from eecompile.runtime.affinity import threads_here
from eecompile.runtime.native import Native

__all__ = ["Code", "Library", "Team", "aligned"]

#: A compiled function: takes (frame, thread, threads, team) as ctypes values, returns its status.
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
        self._teams: dict[int, Team] = {}
        self._native: Native | None = None
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
        code.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p]
        return code

    def chain(self) -> Code:
        """The code that runs several functions one after the other, see team.c.

        Raises:
            CompileErrors: the library has none.
        """
        return self._code("eecompile_chain", "teams")

    def steps(self) -> Code:
        """The code that runs some of a network's steps, see steps.c.

        Raises:
            CompileErrors: the library has none.
        """
        return self._code("eecompile_steps", "gates")

    def _code(self, symbol: str, what: str) -> Code:
        try:
            code: Code = getattr(self._loaded, symbol)
            return code
        except AttributeError as error:
            raise self._bad(f"`{Path(self.name).name}` has no code for {what}: {error}") from error

    def native(self, artifact: Artifact) -> Native:
        """The artifact's network, opened by the runtime that the library carries.

        Raises:
            CompileErrors: it carries none, or the plan is another library's.
        """
        if self._native is None:
            symbol = library_symbol(artifact.manifest.network.name)
            try:
                self._native = Native(self._loaded, symbol, artifact)
            except (AttributeError, ValueError) as error:
                raise self._bad(f"`{Path(self.name).name}` has no runtime: {error}") from error
        return self._native

    def check(self, network: CompiledGraph) -> None:
        """That a network's functions are all there, and one sample fits into this machine.

        Raises:
            CompileErrors: one is missing, or there is not so much memory.
        """
        for function in network.functions():
            self.function(function)
        nbytes = plan_network(network.inputs, network.steps(), 1, 1).nbytes
        if nbytes > _physical_bytes():
            raise self._too_large(nbytes)

    def memory(self, nbytes: int) -> np.ndarray:
        """Aligned bytes for the functions to work in.

        Raises:
            CompileErrors: there are not so many.
        """
        # The system promises memory it does not have; a network larger than the machine is a
        # damaged or hostile one.
        if nbytes <= _physical_bytes():
            try:
                return aligned(nbytes)
            except MemoryError:
                pass
        raise self._too_large(nbytes)

    def _too_large(self, nbytes: int) -> CompileErrors:
        most = _physical_bytes()
        message = (
            f"The network needs {nbytes / 1e9:.3g} GB of memory beside its weights,"
            f" this machine has {most / 1e9:.3g} GB"
        )
        return CompileErrors([Diagnostic("wrong-machine", message, path=self.name)])

    def team(self, threads: int) -> Team:
        """The calling thread and `threads` - 1 more, to run the functions together.

        Equal numbers give the same team, so that many sessions do not ask for more cores.

        Raises:
            CompileErrors: the library has no code for it, or the system gives no threads.
        """
        team = self._teams.get(threads)
        if team is None or not team.handle:  # In a forked process an earlier one is gone.
            try:
                team = self._teams[threads] = Team(self._loaded, threads)
            except AttributeError as error:
                message = f"`{Path(self.name).name}` has no code for teams: {error}"
                raise self._bad(message) from error
        return team

    def _bad(self, message: str) -> CompileErrors:
        return CompileErrors([Diagnostic("bad-artifact", message, path=self.name)])


class Team:
    """Threads that share the work of one call; they sleep while there is none.

    For one call at a time: one made while another runs is carried out by its caller alone, with
    the same result. So is every call in a forked process, where the threads are gone.

    Attributes:
        threads: how many, the caller's included.
        handle: the team in the library; NULL in a forked process.
        workers: the system's numbers of its own threads, none where it does not tell.
        run, samples: C functions that lead it through a function's phases or samples, see team.c;
            they return the function's status.
    """

    def __init__(self, loaded: ctypes.CDLL, threads: int) -> None:
        """Starts the threads.

        Raises:
            AttributeError: the library has no such functions.
            CompileErrors: the system gives no threads.
        """
        self.threads = threads
        self.run: Code = loaded.eecompile_team_run
        self.samples: Code = loaded.eecompile_team_samples
        close = loaded.eecompile_team_close
        # What refers to a function refers to the library: it cannot be unloaded while threads
        # wait in it.
        loaded.eecompile_team_open.restype = ctypes.c_void_p
        before = threads_here()
        self.handle = ctypes.c_void_p(loaded.eecompile_team_open(ctypes.c_int32(threads)))
        # The code tells no numbers. A thread somebody else starts at this very moment counts too.
        self.workers = tuple(sorted({*threads_here()} - {*before}))
        if not self.handle:
            message = f"The system gives no {threads} threads"
            raise CompileErrors([Diagnostic("bad-argument", message)])
        weakref.finalize(self, _close, close, self.handle).atexit = False
        _TEAMS.add(self)


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()


def _close(close: Code, handle: ctypes.c_void_p) -> None:
    if handle:
        close(handle)


def _forget_teams() -> None:
    for team in _TEAMS:
        team.handle.value = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


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
