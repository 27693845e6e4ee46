"""Threads run on one cluster's CPUs for a while, and where they ran before afterwards."""

from __future__ import annotations

import os
import threading

import pytest

from eecompile.board import Cluster, DvfsState
from eecompile.runtime.affinity import on_cluster, threads_here

HERE = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(HERE) < 2, reason="one CPU")


def cluster(name: str, *cpus: int) -> Cluster:
    return Cluster(name, "", cpus, (DvfsState(name, 1e9),))


def clusters() -> tuple[Cluster, Cluster]:
    return cluster("big", HERE[-1]), cluster("little", *HERE[:-1])


class Sleeper:
    """A thread that does nothing until told to end."""

    def __init__(self) -> None:
        self.ended, started = threading.Event(), threading.Event()

        def sleep() -> None:
            started.set()
            self.ended.wait()

        self.thread = threading.Thread(target=sleep)
        self.thread.start()
        started.wait()
        self.number = self.thread.native_id or 0

    @property
    def cpus(self) -> list[int]:
        return sorted(os.sched_getaffinity(self.number))

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


@several
def test_every_thread_moves_and_comes_back() -> None:
    big, little = clusters()
    old = Sleeper()
    with on_cluster(big, (big, little)) as moved:
        assert moved and old.cpus == list(big.cpus)
        assert sorted(os.sched_getaffinity(0)) == list(big.cpus)
        new = Sleeper()
        assert new.cpus == list(big.cpus)
    assert sorted(os.sched_getaffinity(0)) == old.cpus == new.cpus == HERE
    old.end()
    new.end()


@several
def test_only_the_threads_that_are_named_move() -> None:
    big, little = clusters()
    one, other = Sleeper(), Sleeper()
    with on_cluster(big, (big, little), [one.number]):
        assert one.cpus == list(big.cpus) and other.cpus == HERE
    assert one.cpus == HERE
    one.end()
    other.end()


@several
def test_an_error_inside_brings_them_back_and_dead_threads_do_not_matter() -> None:
    big, little = clusters()
    gone, one = Sleeper(), Sleeper()
    numbers = [gone.number, one.number, threading.get_native_id()]
    gone.end()
    with pytest.raises(ZeroDivisionError), on_cluster(big, (big, little), numbers):
        one.end()
        raise ZeroDivisionError
    assert sorted(os.sched_getaffinity(0)) == HERE


@pytest.mark.parametrize(
    "where", [(cluster("cpu", HERE[0]),), (cluster("far", 4000), cluster("near", HERE[0]))]
)
def test_nothing_moves_where_there_is_nowhere_to_go(where: tuple[Cluster, ...]) -> None:
    with on_cluster(where[0], where) as moved:
        assert not moved and sorted(os.sched_getaffinity(0)) == HERE
    assert sorted(os.sched_getaffinity(0)) == HERE


def test_threads_here_are_this_process_s() -> None:
    assert threading.get_native_id() in threads_here()
