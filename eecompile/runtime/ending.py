"""The end of the process: daemon threads must not be inside a session's native calls then.

Python ends a daemon thread where it next asks for the interpreter's lock (before 3.14: by
`pthread_exit`), which may be deep inside a library written in C++; unwinding its frames there is
"terminate called without an active exception", and a program that had done all its work aborts.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref

__all__ = ["park_if_ending", "session_lock"]

#: The most that the end of a process waits for threads that are in the middle of a call. Endings
#: after a fork find locks that nobody will release.
_PATIENCE_S = 5.0

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_ending = False


def session_lock() -> threading.Lock:
    """A lock to be held while a session is in use; the process's end waits for it and keeps it."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def park_if_ending() -> None:
    """Returns at once; never, in a thread that goes on while the process ends."""
    if _ending:
        threading.Event().wait()


def _end() -> None:
    global _ending
    _ending = True
    until = time.monotonic() + _PATIENCE_S
    for lock in list(_locks):
        lock.acquire(timeout=max(0.0, until - time.monotonic()))


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)
