"""Keeps threads on some CPUs for a while: those of the cluster whose clock is chosen."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

__all__ = ["Placement", "threads_here"]


def threads_here() -> list[int]:
    """Numbers of this process's threads, those of native libraries included."""
    return sorted(int(name) for name in os.listdir("/proc/self/task"))


class Placement:
    """Where threads run by our wish, and where they were allowed to run before.

    CPUs a thread might not use stay forbidden to it, and one that somebody else has moved since is
    left where it is.
    """

    def __init__(self) -> None:
        #: Thread -> the CPUs it had, and those we gave it.
        self._moved: dict[int, tuple[set[int], set[int]]] = {}
        self._everybody = False

    def move(self, cpus: Sequence[int], threads: Sequence[int] | None = None) -> bool:
        """Run threads on these CPUs from now on; whether the caller's then does.

        Args:
            cpus: numbers of CPUs.
            threads: numbers of threads (`threading.get_native_id`), 0 for the caller's; None: every
                one of this process, with those that they start later.
        """
        self._everybody = self._everybody or threads is None
        caller = _caller()
        if not self._had(caller, os.sched_getaffinity(caller)) & set(cpus):
            return False
        had: dict[int, set[int]] = {}
        here = threads_here()
        if threads is not None:  # After a fork, numbers given before are another process's.
            here = [one for one in here if one in {number or caller for number in threads}]
        for thread in here:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                had[thread] = self._had(thread, os.sched_getaffinity(thread))
        for thread, allowed in had.items():
            if wanted := allowed & set(cpus):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, wanted)
                    self._moved[thread] = allowed, wanted
        return True

    def restore(self) -> None:
        """Give every thread the CPUs it had."""
        for thread in threads_here():
            with contextlib.suppress(OSError):
                now = os.sched_getaffinity(thread)
                had = self._had(thread, now)
                if had != now:
                    os.sched_setaffinity(thread, had)
        self._moved, self._everybody = {}, False

    def _had(self, thread: int, now: set[int]) -> set[int]:
        """The CPUs a thread had before we moved it; those it has now where we did not."""
        found = self._moved.get(thread)
        if found is None and self._everybody:  # it was started since, and inherited where it runs
            found = self._moved.get(_caller())
        return found[0] if found is not None and found[1] == now else now


def _caller() -> int:
    """The calling thread's number."""
    return threading.get_native_id()
