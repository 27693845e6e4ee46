"""Keeps threads on the CPUs of one cluster for a while."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eecompile.board import Cluster

__all__ = ["on_cluster", "threads_here"]


def threads_here() -> list[int]:
    """Numbers of this process's threads, those of native libraries included."""
    return sorted(int(name) for name in os.listdir("/proc/self/task"))


@contextmanager
def on_cluster(
    cluster: Cluster, clusters: Sequence[Cluster], threads: Sequence[int] | None = None
) -> Iterator[bool]:
    """Runs threads on a cluster's CPUs, and gives them back the CPUs they had.

    Yields whether it did: not where there is only one cluster, nor where the process may use none
    of its CPUs. CPUs the process may not use stay forbidden. A thread that is started meanwhile
    gets what the caller had.

    Args:
        cluster: where to run.
        clusters: all of the board.
        threads: numbers of threads (`threading.get_native_id`); None: every one of this process.
    """
    if len(clusters) < 2:
        yield False
        return
    mine = os.sched_getaffinity(0)
    wanted = mine & set(cluster.cpus)
    if not wanted:
        yield False
        return
    before: dict[int, set[int]] = {}
    try:
        for thread in threads_here() if threads is None else threads:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, wanted)
        yield True
    finally:
        for thread in threads_here():
            given = before.get(thread)
            if given is None and threads is None and _cpus_of(thread) == wanted:
                given = mine
            if given is not None:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(thread, given)


def _cpus_of(thread: int) -> set[int] | None:
    try:
        return os.sched_getaffinity(thread)
    except OSError:
        return None
