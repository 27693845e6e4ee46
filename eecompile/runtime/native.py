"""The native runtime in an artifact's library, by ctypes: what eecompile.h declares.

Nothing here decides; see eecompile/native/eecompile.h for what each function promises.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

__all__ = ["STATUS", "Answer", "Native", "NativeError", "Options"]

#: Status codes, by number.
STATUS = (
    *("ok", "bad-argument", "bad-artifact", "wrong-version", "wrong-machine", "no-memory"),
    *("no-file", "busy", "infeasible", "unsupported", "internal"),
)


class _Sized(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(ctypes.sizeof(self), **values)


class Options(_Sized):
    """`ee_options`."""

    _fields_ = (
        ("size", c_size_t),
        ("policy", c_char_p),
        ("threads", c_int32),
        ("clocks", c_int32),
        ("governor", c_void_p),
        ("meter", c_void_p),
        ("server", c_void_p),
    )


class Answer(_Sized):
    """`ee_answer`."""

    _fields_ = (
        ("size", c_size_t),
        ("logits", POINTER(c_float)),
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


class NativeError(Exception):
    """A function of the native runtime failed; `status` is one of `STATUS`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUS[status]


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ee_message": (c_char_p,),
    "ee_open": (c_int, c_void_p, c_char_p, POINTER(c_void_p)),
    "ee_open_memory": (c_int, c_void_p, c_void_p, c_size_t, POINTER(c_void_p)),
    "ee_close": (None, c_void_p),
    "ee_session_open": (c_int, c_void_p, POINTER(Options), POINTER(c_void_p)),
    "ee_session_close": (None, c_void_p),
    "ee_set_policy": (c_int, c_void_p, c_char_p),
    "ee_set_halt": (c_int, c_void_p, c_double, c_double, c_double),
    "ee_run": (c_int, c_void_p, c_void_p, POINTER(Answer)),
    "ee_run_raw": (c_int, c_void_p, c_void_p, POINTER(Answer)),
    "ee_run_whole": (c_int, c_void_p, c_void_p, POINTER(Answer)),
    "ee_run_batch": (c_int, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p),
    "ee_output": (c_void_p, c_void_p, c_char_p),
    "ee_cancel": (c_int, c_void_p),
}


class Native:
    """The functions of one library; those with a status raise where it is not 0."""

    def __init__(self, loaded: ctypes.CDLL, network: str) -> None:
        """`network` is as the library's `ee_library` is called."""
        self._loaded = loaded
        self.library = ctypes.addressof(c_void_p.in_dll(loaded, network))
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaded, f"ee_{name}")

    def check(self, status: int) -> None:
        """Raises what went wrong.

        Raises:
            NativeError: something did.
        """
        if status:
            raise NativeError(status, self._loaded.ee_message().decode(errors="replace"))
