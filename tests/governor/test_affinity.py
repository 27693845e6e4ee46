"""Threads run on some CPUs for a while, and where they ran before afterwards."""

from __future__ import annotations

import os
import threading

import pytest

from eecompile.runtime.affinity import Placement, threads_here

HERE = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(HERE) < 2, reason="one CPU")


class Sleeper:
    """A thread that does nothing until told to end."""

    def __init__(self) -> None:
        self.ended, started = threading.Event(), threading.Event()

        def sleep() -> None:
            started.set()
            self.ended.wait()

        self.thread = threading.Thread(target=sleep, daemon=True)
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
    old, placement = Sleeper(), Placement()
    assert placement.move(HERE[-1:])
    assert old.cpus == sorted(os.sched_getaffinity(0)) == HERE[-1:]
    new = Sleeper()
    assert new.cpus == HERE[-1:]
    assert placement.move(HERE[:1])
    assert old.cpus == new.cpus == sorted(os.sched_getaffinity(0)) == HERE[:1]
    late = Sleeper()
    placement.restore()
    assert sorted(os.sched_getaffinity(0)) == old.cpus == new.cpus == late.cpus == HERE
    for sleeper in (old, new, late):
        sleeper.end()


@several
def test_only_the_threads_that_are_named_move() -> None:
    one, other, placement = Sleeper(), Sleeper(), Placement()
    assert placement.move(HERE[-1:], [one.number])
    assert one.cpus == HERE[-1:] and other.cpus == sorted(os.sched_getaffinity(0)) == HERE
    placement.restore()
    assert one.cpus == HERE
    assert placement.move(HERE[-1:], [0])
    assert sorted(os.sched_getaffinity(0)) == HERE[-1:] and other.cpus == HERE
    placement.restore()
    assert sorted(os.sched_getaffinity(0)) == HERE
    one.end()
    other.end()


@several
def test_threads_that_have_ended_do_not_matter() -> None:
    gone, one, placement = Sleeper(), Sleeper(), Placement()
    gone.end()
    assert placement.move(HERE[:1], [gone.number, one.number, 0])
    one.end()
    placement.restore()
    assert sorted(os.sched_getaffinity(0)) == HERE


@several
def test_a_thread_that_somebody_else_has_moved_stays_there() -> None:
    one, placement = Sleeper(), Placement()
    placement.move(HERE[-1:], [one.number])
    os.sched_setaffinity(one.number, HERE[:1])
    placement.restore()
    assert one.cpus == HERE[:1]
    one.end()


def test_nothing_moves_where_there_is_nowhere_to_go() -> None:
    placement = Placement()
    assert not placement.move([4000])
    assert sorted(os.sched_getaffinity(0)) == HERE


@several
def test_forbidden_cpus_stay_forbidden() -> None:
    one, placement = Sleeper(), Placement()
    os.sched_setaffinity(one.number, HERE[:1])
    placement.move(HERE, [one.number])
    assert one.cpus == HERE[:1]
    placement.restore()
    assert one.cpus == HERE[:1]
    one.end()


def test_threads_here_are_this_process_s() -> None:
    assert threading.get_native_id() in threads_here()
