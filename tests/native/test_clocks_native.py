"""Clocks in C, against the scheduler in Python: the same choices, clocks, energies and refusals."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eecompile.board import DvfsState
from eecompile.boards.file import read_board
from eecompile.clock_rule import ClockRule
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.hardware import board_names
from eecompile.policies import EXIT
from eecompile.runtime.clock import Clock
from eecompile.runtime.governor import Governor, NoGovernor, RecordingGovernor
from tests.native import native_costs
from tests.native.conftest import Compile
from tests.scheduling.tables import table_of

OK, BAD_ARTIFACT = 0, 2


class Stretch(ctypes.Structure):
    """stretch_t."""

    _fields_ = (("due", ctypes.c_int32), ("answers", ctypes.c_bool))


@pytest.fixture(scope="module")
def library(compiled: Compile) -> ctypes.CDLL:
    found = compiled(native_costs.SOURCES)
    found.clocks_begin.restype = found.clocks_after.restype = Stretch
    found.clocks_begin.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    found.clocks_after.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_double, ctypes.c_bool),
        ctypes.c_void_p,
    ]
    found.clocks_finish.restype = found.clocks_full_speed.restype = None
    found.clocks_finish.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_double),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    ]
    found.clocks_full_speed.argtypes = found.clocks_close.argtypes = [ctypes.c_void_p]
    found.clocks_close.restype = None
    found.clocks_transitions.restype, found.clocks_transitions.argtypes = (
        ctypes.c_uint64,
        [ctypes.c_void_p],
    )
    found.clocks_reason.restype, found.clocks_reason.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return found


class Native:
    """`Clock`, in C."""

    def __init__(
        self,
        library: ctypes.CDLL,
        table: CostTable,
        rule: ClockRule,
        governor: native_costs.Governor | None,
        workers: Sequence[int] = (),
    ) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        self.kept = (native_costs.costs_of(table), governor, native_costs.rule_of(rule))
        self.status = library.clocks_open(
            ctypes.byref(self.handle),
            ctypes.byref(self.kept[0]),
            None,
            ctypes.byref(self.kept[2]),
            None if governor is None else ctypes.byref(governor),
            (ctypes.c_int32 * len(workers))(*workers),
            len(workers),
        )

    def begin(self, first: int) -> tuple[int, bool]:
        found = self.library.clocks_begin(self.handle, first)
        return found.due, found.answers

    def after(self, index: int, due: int, elapsed_s: float, forecast: bool) -> tuple[int, bool]:
        found = self.library.clocks_after(self.handle, index, due, elapsed_s, forecast, None)
        return found.due, found.answers

    def finish(self, index: int, elapsed_s: float) -> tuple[float, float, bool]:
        hz, joules, late = ctypes.c_double(), ctypes.c_double(), ctypes.c_bool()
        told = (ctypes.byref(hz), ctypes.byref(joules), ctypes.byref(late))
        self.library.clocks_finish(self.handle, index, elapsed_s, None, *told)
        return hz.value, joules.value, late.value

    def full_speed(self) -> None:
        self.library.clocks_full_speed(self.handle)

    @property
    def transitions(self) -> int:
        return int(self.library.clocks_transitions(self.handle))

    @property
    def reason(self) -> str:
        return str(self.library.clocks_reason(self.handle).decode())

    def close(self) -> None:
        self.library.clocks_close(self.handle)
        self.handle = ctypes.c_void_p()


class Moody(RecordingGovernor):
    """Takes a clock (0), does not reach it (1), or gives its cluster up (-1), as `moods` say."""

    def __init__(self, states: Sequence[DvfsState], moods: Sequence[int]) -> None:
        super().__init__(states)
        self.moods = list(moods)

    def set(self, state: DvfsState) -> None:
        if state == self.current or state not in self.states:
            return
        self.current = None
        self.asked.append(state)
        mood = self.moods.pop() if self.moods else 0
        if mood == 0:
            self.current = state
        if mood < 0:
            self.states = tuple(one for one in self.states if one.cluster != state.cluster)


def native_governor(governor: Moody) -> native_costs.Governor:
    """The same in C's eyes."""

    def found(cluster: str, hz: float) -> list[DvfsState]:
        return [one for one in governor.states if (one.cluster, one.frequency_hz) == (cluster, hz)]

    def set_(cluster: str, hz: float) -> int:
        (state,) = found(cluster, hz)
        governor.set(state)
        if governor.current == state:
            return 0
        return 1 if state in governor.states else -1

    return native_costs.governor_of(
        lambda cluster, hz: bool(found(cluster, hz)), set_, governor.restore
    )


@contextmanager
def opened(
    library: ctypes.CDLL, table: CostTable, rule: ClockRule, governor: Moody | None, **more: Any
) -> Iterator[Native]:
    native = Native(
        library, table, rule, None if governor is None else native_governor(governor), **more
    )
    try:
        yield native
    finally:
        native.close()


# Random tables, rules and ways.


def random_table(random: np.random.Generator) -> CostTable:
    """Of one to three clusters; some costs, transitions and the migration may be unknown."""
    exits = int(random.integers(0, 5))
    names = ("little", "big", "gpu")[: random.integers(1, 4)]
    states = tuple(
        DvfsState(name, float(hz))
        for name in names
        for hz in np.sort(random.choice(np.arange(2, 9), random.integers(1, 5), False)) * 1e8
    )
    unknown_s, unknown_j = random.choice([0, 0, 0, 0.1]), random.choice([0, 0, 0.1, 1.0])
    # Whole numbers of cycles, and powers that are alike: there are ties.
    power = random.integers(1, 4, len(states))
    lost_s = random.random(len(states)) < unknown_s
    lost_j = random.random(len(states)) < unknown_j
    lost_s[random.integers(len(states))] = False

    def row(name: str, cycles: float) -> CostRow:
        costs: list[Cost | None] = []
        for k, state in enumerate(states):
            time_s = cycles / (state.frequency_hz or 1.0) * (1.5 if state.cluster == "gpu" else 1.0)
            energy_j = None if lost_j[k] else float(power[k]) * time_s
            costs.append(None if lost_s[k] else Cost(time_s, energy_j))
        return CostRow(name, Work(), tuple(costs))

    segments = [row(f"s{k}", float(random.integers(1, 9)) * 1e6) for k in range(exits + 1)]
    heads = [row(f"e{k}", float(random.integers(0, 3)) * 1e5) for k in range(exits)]
    transitions = {
        name: float(random.choice([0.0, 1e-4, 2e-3])) for name in names if random.random() < 0.8
    }
    migration = (None, 0.0, 5e-4, 5e-3)[random.integers(4)]
    idle = (None, 0.0, 0.5, 2.0)[random.integers(4)]
    return CostTable(
        *("test", "test", None, 1, states, tuple(segments), tuple(heads), transitions),
        *(migration, idle),
    )


def random_rule(random: np.random.Generator, table: CostTable) -> ClockRule:
    objective: Any = random.choice(native_costs.OBJECTIVES)
    times = [cost.latency_s for row in table.segments for cost in row.costs if cost]
    deadline = float(np.sum(times) / len(table.states) * random.uniform(0.1, 2.5))
    kind = random.choice(["none", "soft", "safe", "hard"])
    hz = table.states[int(random.integers(len(table.states)))].frequency_hz
    start = int(random.integers(len(table.states))) if random.random() < 0.3 else None
    return ClockRule(
        objective,
        None if kind == "none" else deadline,
        kind == "safe",
        kind == "hard",
        hz if objective == "fixed" else None,
        start if objective == "lowest_energy" else None,
    )


def walk(clock: Clock, native: Native, random: np.random.Generator, last: int) -> None:
    """One sample, which both clocks lead the same way."""
    if random.random() < 0.1:
        clock.full_speed()
        native.full_speed()
    forecast, elapsed = bool(random.integers(2)), 0.0
    due, answers = int(random.integers(0, last + 1)), False
    step = clock.begin(due)
    assert native.begin(due) == (step.due, step.answer)
    pace = (clock.rule.deadline_s or 0.05) * random.choice([0.05, 0.3, 0.8])
    while True:
        due, answers = step.due, step.answer
        elapsed += float(random.uniform(0, pace))
        if due == last or answers or random.random() < 0.2:
            break
        index, due = due, int(random.integers(due + 1, last + 1))
        step = clock.after(index, due, elapsed, forecast)
        found = native.after(index, due, elapsed, forecast)
        assert found == (step.due, step.answer)
        if step.due == EXIT:
            due = index
            break
    late = clock.late
    hz, joules = clock.finish(due, elapsed)
    found_hz, found_j, found_late = native.finish(due, elapsed)
    assert found_late == (clock.late > late)
    assert isnan(found_hz) if hz is None else found_hz == hz
    assert isnan(found_j) if joules is None else found_j == pytest.approx(joules, rel=1e-9)
    assert native.transitions == clock.transitions


def compare(
    library: ctypes.CDLL,
    table: CostTable,
    rule: ClockRule,
    governors: tuple[Moody, Moody],
    random: np.random.Generator,
) -> Native | None:
    """Both clocks over some samples; None where both refuse the table."""
    with opened(library, table, rule, governors[1]) as native:
        try:
            clock = Clock(table, rule, governors[0])
        except ValueError:
            assert native.status == BAD_ARTIFACT and not native.handle
            return None
        assert native.status == OK
        for _ in range(8):
            walk(clock, native, random, len(table.exits))
            assert governors[1].asked == governors[0].asked
    assert governors[1].restored == bool(governors[1].asked), "put back where any was set"
    return native


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_the_same_clocks_are_chosen_and_set(library: ctypes.CDLL, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random_table(random)
    rule = random_rule(random, table)
    compare(library, table, rule, (Moody(table.states, ()), Moody(table.states, ())), random)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_clocks_that_cannot_be_set_or_not_any_more(library: ctypes.CDLL, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random_table(random)
    rule = random_rule(random, table)
    offered = [state for state in table.states if random.random() < random.choice([0.3, 0.9])]
    moods = random.choice([0, 0, 0, 1, -1], 12).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(library, table, rule, (Moody(offered, moods), Moody(offered, moods)), random)


# What is certain to occur.

CLOCKS = [("cpu", 1e9, 1.0), ("cpu", 2e9, 3.0), ("cpu", 4e9, 9.0)]


def small(**more: Any) -> CostTable:
    return table_of(CLOCKS, [8e6] * 4, [1e6] * 3, **{"transitions": {"cpu": 0.0}, **more})


def both(
    library: ctypes.CDLL, table: CostTable, rule: ClockRule, governor: Governor
) -> tuple[Clock, Native]:
    other = None if isinstance(governor, NoGovernor) else native_governor(Moody(table.states, ()))
    return Clock(table, rule, governor), Native(library, table, rule, other)


@pytest.mark.parametrize("kind", ["safe", "hard"])
def test_a_deadline_that_nothing_keeps_forces_answers(library: ctypes.CDLL, kind: str) -> None:
    rule = ClockRule("lowest_energy", 0.0042, kind == "safe", kind == "hard")
    clock, native = both(library, small(), rule, RecordingGovernor(small().states))
    step = clock.begin(3)
    assert native.begin(3) == (step.due, step.answer) == (0, True)
    assert clock.after(1, 3, 0.005, True).due == EXIT
    assert native.after(1, 3, 0.005, True) == (EXIT, False)
    native.close()


def test_without_a_governor_deadlines_are_kept_and_no_clock_is_told(library: ctypes.CDLL) -> None:
    rule = ClockRule(deadline_s=0.006, hard=True)
    clock, native = both(library, small(), rule, NoGovernor())
    step = clock.begin(3)
    assert native.begin(3) == (step.due, step.answer)
    hz, joules, late = native.finish(step.due, 0.007)
    assert isnan(hz) and isnan(joules) and late
    assert (native.reason, native.transitions) == ("", 0)
    native.close()


def test_a_fixed_clock_that_cannot_be_set_leaves_clocks_alone(library: ctypes.CDLL) -> None:
    rule, governor = ClockRule("fixed", frequency_hz=1e9), Moody(small().states[1:], ())
    with opened(library, small(), rule, governor) as native:
        native.begin(3)
        assert isnan(native.finish(3, 0.0)[0]) and governor.asked == []
        assert native.reason.startswith("clocks are left alone: of those that can be set here")
    assert governor.restored == 0


def test_what_is_given_up_is_not_asked_for_again(library: ctypes.CDLL) -> None:
    table = table_of([("little", 1e9, 1.0), ("big", 2e9, 3.0)], [8e6] * 2, [1e6], migration_s=0.0)
    governor = Moody(table.states, [0, -1])
    with opened(library, table, ClockRule("lowest_energy"), governor) as native:
        for _ in range(3):
            native.begin(1)
            native.finish(1, 0.0)
        assert governor.asked == list(table.states)
        assert native.reason == "its clock cannot be set any more: cluster little"


@pytest.mark.parametrize(
    "change",
    [
        {"segments": 5},
        {"segments": 0},
        {"states": 0},
        {"states": 70_000},
        {"exits": 0xFFFFFFFF, "segments": 0},
        {"clusters": 0},
        {"migration_s": -1.0},
        {"idle_power_w": float("inf")},
    ],
)
def test_costs_that_make_no_sense_are_refused(
    library: ctypes.CDLL, change: dict[str, float]
) -> None:
    costs, rule = native_costs.costs_of(small()), native_costs.rule_of(ClockRule())
    for name, value in change.items():
        setattr(costs, name, value)
    handle = ctypes.c_void_p()
    arguments = (ctypes.byref(costs), None, ctypes.byref(rule), None, None, 0)
    assert library.clocks_open(ctypes.byref(handle), *arguments) == BAD_ARTIFACT
    assert handle.value is None


@pytest.mark.parametrize("value", [-1.0, float("inf"), 1e200])
def test_a_latency_that_is_none_is_refused(library: ctypes.CDLL, value: float) -> None:
    costs, rule = native_costs.costs_of(small()), native_costs.rule_of(ClockRule())
    costs.latency_s[4] = value
    handle = ctypes.c_void_p()
    arguments = (ctypes.byref(costs), None, ctypes.byref(rule), None, None, 0)
    assert library.clocks_open(ctypes.byref(handle), *arguments) == BAD_ARTIFACT


@pytest.mark.parametrize(
    "change",
    [
        {"objective": 5},
        {"objective": -1},
        {"deadline_s": 0.0},
        {"deadline_s": float("inf")},
        {"safe": True},
        {"hard": True},
        {"safe": True, "hard": True, "deadline_s": 1.0},
        {"frequency_hz": 1e9},
        {"objective": 3},
        {"objective": 1, "start": 0},
        {"start": 3},
        {"objective": 3, "frequency_hz": 3e9},
    ],
)
def test_rules_that_make_no_sense_are_refused(
    library: ctypes.CDLL, change: dict[str, float]
) -> None:
    costs, rule = native_costs.costs_of(small()), native_costs.rule_of(ClockRule())
    for name, value in change.items():
        setattr(rule, name, value)
    handle = ctypes.c_void_p()
    arguments = (ctypes.byref(costs), None, ctypes.byref(rule), None, None, 0)
    assert library.clocks_open(ctypes.byref(handle), *arguments) == BAD_ARTIFACT


# Threads and processes.

HERE = sorted(os.sched_getaffinity(0))


def two_clusters() -> CostTable:
    table = table_of([("little", 1e9, 1.0), ("big", 4e9, 9.0)], [8e6] * 2, [1e6], migration_s=1e-4)
    return replace(table, cpus={"little": tuple(HERE[:1]), "big": tuple(HERE[-1:])})


class Waiting:
    """A thread that was started before anything moved, and then runs one piece of work."""

    def __init__(self) -> None:
        self.ready, self.go, self.work = threading.Event(), threading.Event(), [lambda: None]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.ready.wait()

    def _run(self) -> None:
        self.number = threading.get_native_id()
        self.ready.set()
        self.go.wait()
        self.work[0]()

    def end(self, work: Callable[[], Any] = lambda: None) -> None:
        self.work[0] = work
        self.go.set()
        self.thread.join()


@pytest.mark.skipif(len(HERE) < 2, reason="one CPU")
def test_threads_run_on_the_cluster_whose_clock_is_set(library: ctypes.CDLL) -> None:
    worker, callers = Waiting(), [Waiting() for _ in range(20)]  # more than are remembered

    def places(caller: int = 0) -> list[list[int]]:
        return [sorted(os.sched_getaffinity(one)) for one in (caller, worker.number)]

    table, governor = two_clusters(), Moody(two_clusters().states, ())
    rule = ClockRule("lowest_energy", 100.0)
    with opened(library, table, rule, governor, workers=[worker.number]) as native:
        assert places() == [HERE, HERE], "nothing moves before it is needed"
        native.begin(1)
        assert places() == [HERE[:1], HERE[:1]]
        native.full_speed()
        assert places() == [HERE[-1:], HERE[-1:]]
        moved: list[list[list[int]]] = []

        def call() -> None:
            native.begin(1)
            moved.append(places())

        for caller in callers:
            caller.end(call)
        assert moved == [[HERE[:1]] * 2] * 20, "another caller moves too"
        os.sched_setaffinity(worker.number, HERE[-1:])
    assert places() == [HERE, HERE[-1:]], "one that somebody else has moved stays there"
    worker.end()


@pytest.mark.skipif(len(HERE) < 2, reason="one CPU")
def test_workers_that_have_ended_do_not_matter(library: ctypes.CDLL) -> None:
    gone = Waiting()
    gone.end()
    governor = Moody(two_clusters().states, ())
    workers = [gone.number, 1, -1, 0]  # of another process, and none
    with opened(library, two_clusters(), ClockRule(), governor, workers=workers) as native:
        native.begin(1)
        assert sorted(os.sched_getaffinity(0)) == HERE[:1]
    assert sorted(os.sched_getaffinity(0)) == HERE


@pytest.mark.parametrize("name", [n for n in board_names() if read_board(n).states])
def test_clocks_of_every_board_are_chosen_for_64_exits(library: ctypes.CDLL, name: str) -> None:
    """The limits of memory and work in clocks.c and clock_fronts.c are above them."""
    states = read_board(name).states
    rows = [CostRow(f"r{k}", Work(), (Cost(0.01, 1.0),) * len(states)) for k in range(129)]
    table = CostTable("test", "test", None, 1, states, tuple(rows[:65]), tuple(rows[65:]))
    with opened(library, table, ClockRule("lowest_energy", 1.0, safe=True), None) as native:
        assert native.status == OK and native.begin(0) == (0, False)


def test_a_forked_process_sets_nothing(library: ctypes.CDLL) -> None:
    governor = Moody(two_clusters().states, ())
    with opened(library, two_clusters(), ClockRule("lowest_energy", 100.0), governor) as native:
        native.begin(1)
        native.finish(1, 0.001)
        child = os.fork()
        if not child:
            due = native.begin(1)
            hz, joules, _ = native.finish(1, 0.001)
            native.full_speed()
            told = "forked" in native.reason and due == (1, False)
            native.close()
            quiet = len(governor.asked) == 1 and not governor.restored
            os._exit(0 if told and isnan(hz) and isnan(joules) and quiet else 1)
        assert os.waitpid(child, 0)[1] == 0
        native.begin(1)
        assert native.finish(1, 0.001)[0] == 1e9
