"""The native runtime in an artifact's library, by ctypes: what eecompile.h and python.c declare.

Nothing here decides.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.artifact import Artifact
from eecompile.diagnostics import CompileErrors, Diagnostic, InternalError
from eecompile.ir import TensorType

if TYPE_CHECKING:
    from eecompile.runtime.library import Team

__all__ = ["CANCELLED", "HALTED", "Native", "NativeAnswer"]

#: Flags of an answer, see `ee_flag`.
HALTED, CANCELLED = 2, 4

#: Statuses that are no defect of ours -> the id of their diagnostic.
_EXPECTED = {2: "bad-artifact", 3: "wrong-artifact-version", 4: "wrong-machine", 5: "wrong-machine"}


class NativeAnswer(ctypes.Structure):
    """`ee_answer`, with addresses as numbers."""

    _fields_ = (
        ("size", c_size_t),
        ("logits", c_void_p),
        ("classes", c_uint32),
        ("label", c_uint32),
        ("exit", c_uint32),
        ("segments_run", c_uint32),
        ("heads_run", c_uint32),
        ("blocks_run", c_uint32),
        ("flags", c_uint32),
        ("macs", c_uint64),
        ("latency_s", c_double),
        ("energy_j", c_double),
        ("frequency_hz", c_double),
    )

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(self))


_STATUS = ctypes.c_int
#: Result and arguments of what is called.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ee_message": (c_char_p,),
    "ee_close": (None, c_void_p),
    "ee_session_close": (None, c_void_p),
    "ee_set_halt": (_STATUS, c_void_p, c_double, c_double, c_double),
    "ee_run_whole": (_STATUS, c_void_p, c_void_p, c_void_p),
    "eecompile_open_parts": (
        *(_STATUS, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t),
        POINTER(c_void_p),
    ),
    "eecompile_session_open": (_STATUS, c_void_p, c_void_p, c_int32, POINTER(c_void_p)),
    "eecompile_decide_by": (_STATUS, c_void_p, c_char_p, c_size_t, c_int32),
    "eecompile_run": (_STATUS, c_void_p, c_void_p, c_void_p, c_void_p),
    "eecompile_input": (c_void_p, c_void_p, c_uint32),
    "eecompile_value": (c_void_p, c_void_p, c_uint32),
}


class Native:
    """A network opened by the runtime in its own library; shared by sessions.

    Attributes:
        run: C function (session, inputs, answer, stop) that returns a status, see `failed`.
        run_whole: the same without the last argument.
    """

    def __init__(self, loaded: ctypes.CDLL, symbol: str, artifact: Artifact) -> None:
        """`symbol` names the library's `ee_library`; the artifact's parts are as they were checked.

        Raises:
            AttributeError: the library has no such runtime.
            CompileErrors: the plan is another library's, or damaged.
        """
        self._path, self._loaded = str(artifact.path), loaded
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        self.run: Callable[..., int] = loaded.eecompile_run
        self.run_whole: Callable[..., int] = loaded.ee_run_whole
        plan, weights = np.frombuffer(artifact.plan, np.uint8), artifact.weights
        self._kept = plan, weights  # The network reads them as long as it is open.
        library = ctypes.addressof(c_void_p.in_dll(loaded, symbol))
        self._network = c_void_p()
        status = loaded.eecompile_open_parts(
            *(library, plan.ctypes.data, plan.nbytes, weights.ctypes.data, weights.nbytes),
            byref(self._network),
        )
        if status:
            raise self.failed(status)
        weakref.finalize(self, loaded.ee_close, self._network).atexit = False

    def session(self, team: Team | None) -> c_void_p:
        """A session, decisions off, whose work a team shares.

        Raises:
            CompileErrors: there is not enough memory.
        """
        found = c_void_p()
        handle, threads = (None, 1) if team is None else (team.handle, team.threads)
        status = self._loaded.eecompile_session_open(self._network, handle, threads, byref(found))
        if status:
            raise self.failed(status)
        return found

    def close(self, session: c_void_p) -> None:
        """Frees a session's memory."""
        self._loaded.ee_session_close(session)

    def decide_by(self, session: c_void_p, policy: bytes, gates: bool) -> None:
        """Have a session decide by a policy, see `eecompile.native_policies.policy_bytes`."""
        status = self._loaded.eecompile_decide_by(session, policy, len(policy), gates)
        if status:
            raise self.failed(status)

    def halt(self, session: c_void_p, macs: float, latency_s: float, energy_j: float) -> None:
        """Limit what samples may spend; NaN where that is not limited."""
        status = self._loaded.ee_set_halt(session, macs, latency_s, energy_j)
        if status:
            raise self.failed(status)

    def input(self, session: c_void_p, index: int, type_: TensorType) -> np.ndarray:
        """A session's memory of an input."""
        return view(self._loaded.eecompile_input(session, index), type_)

    def output(self, session: c_void_p, index: int, type_: TensorType) -> np.ndarray:
        """A session's memory of an output of the network."""
        return view(self._loaded.eecompile_value(session, index), type_)

    def failed(self, status: int) -> Exception:
        """The exception for a status that is not 0."""
        message = self._loaded.ee_message().decode(errors="replace")
        if status in _EXPECTED:
            return CompileErrors([Diagnostic(_EXPECTED[status], message, path=self._path)])
        return InternalError(f"native runtime: {message}")


def view(address: int, type_: TensorType) -> np.ndarray:
    """Memory of the native runtime as an array of the type's shape; nothing keeps it alive."""
    raw = memoryview((ctypes.c_uint8 * type_.nbytes).from_address(address))
    found: np.ndarray = np.frombuffer(raw, np.dtype(type_.dtype)).reshape(type_.shape)
    return found
