"""eecompile.h by ctypes, as an app in C sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

import numpy as np

STATUS = (
    *("OK", "BAD_ARGUMENT", "BAD_ARTIFACT", "WRONG_VERSION", "WRONG_MACHINE", "NO_MEMORY"),
    *("NO_FILE", "BUSY", "INFEASIBLE", "UNSUPPORTED", "INTERNAL"),
)
LEAVE = -1
OFFLOADED, HALTED, CANCELLED, LATE = 1, 2, 4, 8


class Sized(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"size": ctypes.sizeof(self), **values})


class NetworkInfo(Sized):
    _fields_ = (
        *(("size", c_size_t), ("name", c_char_p)),
        *((name, c_uint32) for name in ("inputs", "exits", "policies", "classes")),
        *((name, c_uint32) for name in ("segments", "blocks")),
        *((name, c_uint64) for name in ("macs", "weights_bytes", "session_bytes")),
    )


class InputInfo(Sized):
    _fields_ = (
        *(("size", c_size_t), ("name", c_char_p), ("dtype", c_int), ("rank", c_uint32)),
        *(("shape", POINTER(c_uint32)), ("bytes", c_size_t), ("normalizes", c_int32)),
    )


class Options(Sized):
    _fields_ = (
        *(("size", c_size_t), ("policy", c_char_p), ("threads", c_int32), ("clocks", c_int32)),
        *((name, c_void_p) for name in ("governor", "meter", "server")),
    )


class Answer(Sized):
    _fields_ = (
        *(("size", c_size_t), ("logits", POINTER(c_float)), ("classes", c_uint32)),
        *(("label", c_uint32), ("exit", c_uint32), ("segments_run", c_uint32)),
        *(("heads_run", c_uint32), ("blocks_run", c_uint32), ("flags", c_uint32)),
        *(("macs", c_uint64), ("latency_s", c_double)),
        *(("energy_j", c_double), ("frequency_hz", c_double)),
    )

    def scores(self) -> np.ndarray:
        """A copy of the logits."""
        return np.ctypeslib.as_array(self.logits, (self.classes,)).copy()


class Statistics(Sized):
    _fields_ = (
        ("size", c_size_t),
        *((n, c_uint64) for n in ("answers", "offloaded", "halted", "cancelled", "late")),
        *(("transitions", c_uint64), ("latency_s", c_double), ("energy_j", c_double)),
        ("macs", c_uint64),
    )


DECIDE = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint32, POINTER(c_float), POINTER(c_float), c_uint32)
ANSWER = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint32, POINTER(c_void_p), c_uint32, POINTER(c_float))
ENERGY = ctypes.CFUNCTYPE(c_double, c_void_p)
OFFERS = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_double)
RESTORE = ctypes.CFUNCTYPE(None, c_void_p)


class Policy(ctypes.Structure):
    _fields_ = (("context", c_void_p), ("first", c_uint32), ("decide", DECIDE))


class Server(ctypes.Structure):
    _fields_ = (("context", c_void_p), ("answer", ANSWER))


class Meter(ctypes.Structure):
    _fields_ = (("context", c_void_p), ("energy_j", ENERGY))


class Governor(ctypes.Structure):
    _fields_ = (("context", c_void_p), ("offers", OFFERS), ("set", OFFERS), ("restore", RESTORE))


def governor(told: list[float | None]) -> Governor:
    """One whose clocks can all be set: it writes down what it was told, None to put them back."""

    def set_(context: int, cluster: bytes, hertz: float) -> int:
        told.append(hertz)
        return 0

    def restore(context: int) -> None:
        told.append(None)

    return Governor(None, OFFERS(lambda *_: 1), OFFERS(set_), RESTORE(restore))


FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "message": (c_char_p,),
    "status_name": (c_char_p, c_int),
    "open": (c_int, c_void_p, c_char_p, POINTER(c_void_p)),
    "open_memory": (c_int, c_void_p, c_void_p, c_size_t, POINTER(c_void_p)),
    "close": (None, c_void_p),
    "network_about": (c_int, c_void_p, c_void_p),
    "input_about": (c_int, c_void_p, c_uint32, c_void_p),
    "exit_name": (c_char_p, c_void_p, c_uint32),
    "policy_name": (c_char_p, c_void_p, c_uint32),
    "label": (c_char_p, c_void_p, c_uint32),
    "session_open": (c_int, c_void_p, c_void_p, POINTER(c_void_p)),
    "session_close": (None, c_void_p),
    "set_policy": (c_int, c_void_p, c_char_p),
    "clocks_reason": (c_char_p, c_void_p),
    "set_own_policy": (c_int, c_void_p, c_void_p),
    "set_halt": (c_int, c_void_p, c_double, c_double, c_double),
    "run": (c_int, c_void_p, c_void_p, c_void_p),
    "run_raw": (c_int, c_void_p, c_void_p, c_void_p),
    "run_whole": (c_int, c_void_p, c_void_p, c_void_p),
    "run_batch": (c_int, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p),
    "output": (c_void_p, c_void_p, c_char_p),
    "cancel": (c_int, c_void_p),
    "statistics_get": (c_int, c_void_p, c_void_p, c_void_p),
    "statistics_reset": (None, c_void_p),
    "state_get": (c_int, c_void_p, c_void_p, POINTER(c_size_t)),
    "state_set": (c_int, c_void_p, c_void_p, c_size_t),
}


class Failed(Exception):
    """A function gave a status; `status` is its name."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUS[status]


def addresses(inputs: Sequence[np.ndarray]) -> ctypes.Array[c_void_p]:
    """Dense arrays as functions take them."""
    assert all(array.flags.c_contiguous for array in inputs)
    return (c_void_p * len(inputs))(*(array.ctypes.data for array in inputs))


class Api:
    """The functions of one library; those with a status raise where it is not 0."""

    def __init__(self, loaded: ctypes.CDLL, network: str) -> None:
        """`network` is its name."""
        self.loaded, self.name = loaded, network
        self.library = ctypes.addressof(c_void_p.in_dll(loaded, f"ee_library_{network}"))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(loaded, f"ee_{name}")
            function.restype, function.argtypes = result, arguments

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self.loaded, f"ee_{name}")
        if FUNCTIONS[name][0] is not c_int or name == "cancel":
            return function

        def checked(*arguments: Any) -> None:
            if status := function(*arguments):
                raise Failed(status, self.message().decode())

        return checked

    @contextmanager
    def opened(self, path: Any) -> Iterator[c_void_p]:
        """A network."""
        network = c_void_p()
        self.open(self.library, str(path).encode(), ctypes.byref(network))
        try:
            yield network
        finally:
            self.close(network)

    def session(self, network: c_void_p, policy: str | None = None, **options: Any) -> c_void_p:
        """A session; `policy` as in ee_options."""
        name = None if policy is None else policy.encode()
        found = c_void_p()
        given = Options(policy=name, **options)
        self.session_open(network, ctypes.byref(given), ctypes.byref(found))
        return found

    def ask(self, session: c_void_p, *inputs: np.ndarray, how: str = "run") -> Answer:
        """One answer, by `ee_run` or another of its kind."""
        answer = Answer()
        getattr(self, how)(session, addresses(inputs), ctypes.byref(answer))
        return answer

    def batch(
        self, session: c_void_p, count: int, classes: int, *inputs: np.ndarray
    ) -> tuple[list[Answer], np.ndarray]:
        """Answers and logits of `count` samples."""
        answers = (Answer * max(count, 1))(*(Answer() for _ in range(max(count, 1))))
        logits = np.full((count, classes), np.nan, np.float32)
        self.run_batch(session, addresses(inputs), count, logits.ctypes.data, answers)
        return list(answers)[:count], logits

    def counted(self, session: c_void_p, exits: int) -> tuple[Statistics, list[int]]:
        """Statistics, and answers by exit."""
        found, by_exit = Statistics(), (c_uint64 * exits)()
        self.statistics_get(session, ctypes.byref(found), by_exit)
        return found, list(by_exit)
