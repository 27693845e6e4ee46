"""The team of threads in every library: right under stress, asleep when idle, gone when closed."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import write_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.hardware import usable_cores
from eecompile.runtime import opening
from eecompile.runtime.library import Library
from tests.helpers import ROOT
from tests.runtime import tiny

TEAM = ROOT / "eecompile" / "native" / "team.c"
STRESS = Path(__file__).with_name("team_stress.c")
TASKS = Path("/proc/self/task")

needs_tasks = pytest.mark.skipif(not TASKS.is_dir(), reason="needs Linux's /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", tiny.contents())
    return tmp_path / "out"


# -- team.c by itself ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["plain", "thread"])
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stress test in two forms: threads spin and then sleep, or sleep at once."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp(f"stress-{request.param}")
    options = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    if request.param == "thread":
        options.append("-fsanitize=thread")
        (folder / "empty.c").write_text("int main(void) { return 0; }\n")
        probe = [compiler, "-fsanitize=thread", "-o", "empty", "empty.c"]
        built = subprocess.run(probe, cwd=folder, capture_output=True, check=False)
        if built.returncode or subprocess.run([folder / "empty"], check=False).returncode:
            pytest.skip("the compiler has no ThreadSanitizer that runs here")
    for name, more in (("spinning", []), ("sleeping", ["-DSPIN_NS=0"])):
        sources = [str(STRESS), str(TEAM)]
        subprocess.run([compiler, *options, *more, "-o", str(folder / name), *sources], check=True)
    return folder


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("form", ["spinning", "sleeping"])
def test_every_call_gives_the_result_of_one_thread(stress: Path, form: str, threads: int) -> None:
    command = [str(stress / form), str(threads), "200", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- in a process --------------------------------------------------------------------------------


def workers() -> set[str]:
    """Threads of teams in this process, by their number."""
    found = set()
    for task in TASKS.iterdir():
        try:
            if (task / "comm").read_text().strip() == "eecompile":
                found.add(task.name)
        except OSError:
            continue
    return found


def until(wanted: object, look: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for the system to show what must come about in the end."""
    end = time.monotonic() + seconds
    while look() != wanted and time.monotonic() < end:
        time.sleep(0.005)
    assert look() == wanted


def started(count: int, before: set[str]) -> list[str]:
    """The threads of teams that were not there before; each names itself when it is first run."""
    until(count, lambda: len(workers() - before))
    return sorted(workers() - before)


@pytest.fixture
def before() -> Iterator[set[str]]:
    gc.collect()
    yield workers()


def state_and_ticks(thread: str) -> tuple[str, int]:
    """The scheduler's state of a thread, and the clock ticks it has run for."""
    text = (TASKS / thread / "stat").read_text()
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


@needs_tasks
def test_idle_threads_sleep_and_use_no_time(folder: Path, before: set[str]) -> None:
    net = ee.load(folder, threads=4)
    net.run_batch(tiny.inputs(64))
    mine = started(3, before)
    until(["S"] * 3, lambda: [state_and_ticks(thread)[0] for thread in mine])
    then = [state_and_ticks(thread) for thread in mine]
    switches = [switched(thread) for thread in mine]
    time.sleep(0.3)
    assert [state_and_ticks(thread) for thread in mine] == then
    assert [switched(thread) for thread in mine] == switches, "they woke while there was no work"


def switched(thread: str) -> list[str]:
    """How often a thread has been given a core, as the kernel counts it."""
    return re.findall(r"ctxt_switches:\s*(\d+)", (TASKS / thread / "status").read_text())


@needs_tasks
def test_closed_sessions_leave_no_thread_and_no_file(folder: Path, before: set[str]) -> None:
    ee.load(folder, threads=3)
    gc.collect()
    threads, files = len(list(TASKS.iterdir())), len(os.listdir("/proc/self/fd"))
    x = tiny.inputs(5)
    for index in range(200):
        net = ee.load(folder, threads=1 + index % 4)
        if index % 3:
            net.run_batch(x)
        del net
    gc.collect()
    until(before, workers)
    until(threads, lambda: len(list(TASKS.iterdir())))
    assert len(os.listdir("/proc/self/fd")) == files


@needs_tasks
def test_clones_share_their_threads(folder: Path, before: set[str]) -> None:
    net = ee.load(folder, threads=3)
    clones = [net.clone() for _ in range(10)]
    started(2, before)
    assert [clone.threads for clone in clones] == [3] * 10
    del net
    started(2, before)  # The clones still need them.
    clones.clear()
    gc.collect()
    until(before, workers)


@needs_tasks
@needs_tasks
@pytest.mark.skipif(usable_cores() < 2, reason="needs two CPUs")
def test_a_worker_leaves_the_callers_core(folder: Path, before: set[str]) -> None:
    """Where the system would let both wait for each other on one of them."""
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    try:
        os.sched_setaffinity(0, {core})
        net = ee.load(folder, threads=2)
        started(1, before)
        (worker,) = workers() - before
        os.sched_setaffinity(int(worker), allowed)
        net.run(tiny.inputs(1))
        # The 39th field: the CPU it was last on; the second is a name in brackets.
        fields = (TASKS / worker / "stat").read_text().rpartition(")")[2].split()
        assert int(fields[36]) != core
        assert os.sched_getaffinity(int(worker)) == allowed
    finally:
        os.sched_setaffinity(0, allowed)


def test_one_thread_starts_none(folder: Path, before: set[str]) -> None:
    net = ee.load(folder, threads=1)
    net.run_batch(tiny.inputs(70))
    assert workers() == before


@needs_tasks
def test_signals_are_left_to_the_programs_own_threads(folder: Path, before: set[str]) -> None:
    net = ee.load(folder, threads=2)
    (worker,) = started(1, before)
    status = (TASKS / worker / "status").read_text()
    (blocked,) = re.findall(r"SigBlk:\s*([0-9a-f]+)", status)
    numbers = {number for number in range(1, 32) if int(blocked, 16) >> (number - 1) & 1}
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD} <= numbers
    assert not {signal.SIGSEGV, signal.SIGFPE, signal.SIGBUS, signal.SIGILL} & numbers
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "the caller's own mask is as it was"
    assert net.threads == 2


@needs_tasks
def test_a_forked_process_answers_alone_and_a_clone_there_with_threads(folder: Path) -> None:
    x = tiny.inputs(50)
    net = ee.load(folder, threads=3)
    expected = net.run_batch(x)
    child = os.fork()
    if not child:
        status = 1
        try:
            alone = net.run_batch(x)
            same = np.array_equal(alone.logits, expected.logits)
            threads_here = workers()
            clone = net.clone()
            again = clone.run_batch(x)
            same &= np.array_equal(again.logits, expected.logits)
            begun = len(workers()) == 2
            del clone, net
            gc.collect()
            until(set(), workers)
            status = 0 if same and not threads_here and begun else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(net.run_batch(x).logits, expected.logits)


def test_python_threads_may_call_at_once(folder: Path) -> None:
    x = tiny.inputs(80)
    net = ee.load(folder, threads=2)
    expected = net.run_batch(x)
    wrong: list[int] = []

    def work(clone: ee.Session, index: int) -> None:
        for _ in range(30):
            found = clone.run_batch(x[index:])
            one = clone.run(x[index])
            if not np.array_equal(found.logits, expected.logits[index:]):
                wrong.append(index)
            if not np.array_equal(one.logits, expected.logits[index]):
                wrong.append(index)

    callers = [threading.Thread(target=work, args=(net.clone(), i)) for i in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_program_may_end_while_threads_wait_or_work(folder: Path) -> None:
    code = f"""
import threading, eecompile as ee, numpy as np
net = ee.load({str(folder)!r}, threads=4)
x = np.zeros((300, 4), np.float32)
net.run_batch(x)
def work(net):
    while True:
        net.run_batch(x)
threading.Thread(target=work, args=(net.clone(),), daemon=True).start()
net.run_batch(x)
print("done")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_program_ends_only_between_calls_of_its_daemon_threads(folder: Path) -> None:
    code = f"""
import atexit, threading, time
inside = 0
def look():
    time.sleep(0.1)
    print(inside)
atexit.register(look)  # Before eecompile's own, so that it is called after that.
import eecompile as ee, numpy as np
net = ee.load({str(folder)!r})
x = np.zeros((300, 4), np.float32)
real = net._batches.run
def slow(*arguments):
    global inside
    inside += 1
    time.sleep(0.3)
    answers = real(*arguments)
    inside -= 1
    return answers
net._batches.run = slow
def work():
    while True:
        net.run_batch(x)
threading.Thread(target=work, daemon=True).start()
while not inside:
    pass
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_impossible_numbers_of_threads_are_refused(folder: Path) -> None:
    for threads in (0, -1, np.int64(0)):
        with pytest.raises(CompileErrors, match=f"Expected 1 or more threads, found {threads}"):
            ee.load(folder, threads=threads)  # type: ignore[arg-type]
    for other in ("2", 2.0, True, [2]):
        with pytest.raises(CompileErrors) as failure:
            ee.load(folder, threads=other)  # type: ignore[arg-type]
        (found,) = failure.value.diagnostics
        expected = f"Expected a whole number of threads, found {other!r}"
        assert (found.id, found.message) == ("bad-argument", expected)


def test_more_threads_than_cpus_are_not_started(
    folder: Path, before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "usable_cores", lambda: 3)
    nets = [ee.load(folder, threads=threads) for threads in (4, 1000, 1 << 40)]
    nets.append(nets[0].clone())
    assert [net.threads for net in nets] == [3] * 4
    assert ee.load(folder, threads=np.int64(2)).threads == 2  # type: ignore[arg-type]


def test_the_artifact_says_how_many_but_never_more_than_there_are(tmp_path: Path) -> None:
    made = tiny.contents()
    for cores in (1, 2, 1000):
        where = tmp_path / str(cores)
        write_artifact(where, replace(made, target=replace(made.target, cores=cores)))
        assert ee.load(where).manifest.target.cores == cores
        assert ee.load(where).threads == min(cores, 8)  # see conftest.py
        assert ee.load(where, threads=3).threads == 3


def test_a_library_without_a_team_runs_on_one_thread_only() -> None:
    compiled = tiny.machine_code()
    library = Library(
        compiled.replace(b"eecompile_team_open", b"eecompile_team_0pen"), tiny.WEIGHTS
    )
    with pytest.raises(CompileErrors, match="has no code for teams"):
        library.team(2)
