"""A program that sets clocks in a tree of plain files and comes to all kinds of ends.

``killing.py ends ROOT WAY HOW``: sets clocks and ends as HOW says.
``killing.py kills ROOT WAY AT WATCHDOG COUNT``: forks processes that kill themselves one step
further each time, waits for what they leave behind, and prints as JSON which left the tree changed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from eecompile.board import Cluster, DvfsState
from eecompile.runtime import sysfs_governor
from eecompile.runtime.sysfs import LocalFiles, OpenFile
from eecompile.runtime.sysfs_governor import SysfsGovernor
from tests.governor.sysfs_tree import Policy, make_tree, rk3399, settings

_PR_SET_CHILD_SUBREAPER = 36
_TRACED = (
    *("sysfs_governor.py", "levers.py", "clock_domains.py", "journal.py", "watchdog.py"),
    *("watchdog_process.py", "sysfs.py"),
)
Step = Callable[[], None]


def policies(way: str) -> list[Policy]:
    found = rk3399()
    for policy in found:
        if way == "limits":
            policy.governors = ("schedutil", "performance")
        if way == "userspace":
            policy.governor, policy.speed, policy.tunables = "userspace", policy.table[2], {}
    return found


def boards(way: str) -> tuple[Cluster, ...]:
    return tuple(
        Cluster(
            f"c{p.number}", "", p.cpus, tuple(DvfsState(f"c{p.number}", k * 1e3) for k in p.table)
        )
        for p in policies(way)
    )


class Counted(LocalFiles):
    """Files that tell before and after each write."""

    def __init__(self, root: str, step: Step) -> None:
        super().__init__(root)
        self.step = step

    def write(self, path: str, text: str) -> None:
        self.step()
        super().write(path, text)
        self.step()

    def opened(self, path: str) -> OpenFile:
        return CountedFile(super().opened(path), self.step)


class CountedFile:
    def __init__(self, file: OpenFile, step: Step) -> None:
        self.file, self.step = file, step

    def read(self) -> str:
        return self.file.read()

    def write(self, text: str) -> None:
        self.step()
        self.file.write(text)
        self.step()

    def close(self) -> None:
        self.file.close()


def work(files: LocalFiles, way: str) -> None:
    """Clocks up and down on both clusters, put back, and once more."""
    clusters = boards(way)
    governor = SysfsGovernor(files, clusters)
    for _ in range(2):
        for cluster, index in ((0, 4), (1, 5), (0, 1), (1, 0)):
            governor.set(clusters[cluster].states[index])
        governor.restore()


class Killer:
    """Kills this process, and its watchdog where asked to, at the n-th step."""

    def __init__(self, at: int, watchdog: bool) -> None:
        self.left, self.watchdog, self.steps = at, watchdog, 0

    def __call__(self) -> None:
        self.steps += 1
        if self.steps == self.left:
            for governor in sysfs_governor._LIVE if self.watchdog else ():
                governor._watchdog.kill()
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(_TRACED):
            return None
        if event == "line":
            self()
        return self.trace


def one(root: str, way: str, at: str, killer: Killer) -> bool:
    """Whether the work came to its end; by then nothing of it runs any more."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if at == "lines":
                sys.settrace(killer.trace)
            work(Counted(root, killer if at == "writes" else lambda: None), way)
            sys.settrace(None)
            os.write(writer, str(killer.steps).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    told = os.read(reader, 100)
    os.close(reader)
    while True:  # the watchdog becomes our child when its parent is gone
        try:
            os.wait()
        except ChildProcessError:
            break
    killer.steps = int(told or 0)
    return bool(told)


def kills(root: Path, way: str, at: str, watchdog: bool, count: int) -> dict[str, Any]:
    """What `count` kills, evenly spread over all steps, leave behind."""
    make_tree(root, *policies(way))
    before = settings(root)
    whole = Killer(0, False)
    assert one(str(root), way, at, whole) and settings(root) == before
    stride = max(1, whole.steps // count)
    wrong: list[int] = []
    alive: list[int] = []  # the work came to its end before that step
    changed = 0
    for step in range(1, whole.steps + 1, stride):
        if one(str(root), way, at, Killer(step, watchdog)):
            alive.append(step)
        if watchdog:
            changed += settings(root) != before
            # The next start is killed as well, while it restores; the one after it is not.
            one(str(root), way, "writes", Killer(1 + step % 4, False))
            SysfsGovernor(LocalFiles(root), boards(way))
        if settings(root) != before:
            wrong.append(step)
            shutil.rmtree(root / "sys")
            make_tree(root, *policies(way))
    done = {"steps": whole.steps, "stride": stride, "changed": changed}
    return done | {"wrong": wrong, "alive": alive}


def ends(root: str, way: str, how: str) -> None:
    """Sets a clock and ends."""
    clusters = boards(way)
    governor = SysfsGovernor(LocalFiles(root), clusters)
    governor.set(clusters[0].states[4])
    assert governor.current == clusters[0].states[4]
    if how == "exception":
        raise RuntimeError("on purpose")
    if how == "_exit":
        os._exit(3)
    if how == "exec":
        os.execv("/bin/true", ["true"])
    if how == "abort":
        os.abort()
    if how.startswith("SIG"):
        signal.raise_signal(signal.Signals[how])


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    what, folder, *rest = sys.argv[1:]
    if what == "ends":
        ends(folder, *rest)
    else:
        found = kills(Path(folder), rest[0], rest[1], rest[2] == "killed", int(rest[3]))
        print(json.dumps(found))
