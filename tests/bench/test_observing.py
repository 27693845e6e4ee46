"""What disturbs a block, from the files of a kernel."""

from __future__ import annotations

import time
from pathlib import Path

from eecompile.benching.observing import Watcher
from eecompile.board import DvfsState
from eecompile.runtime.sysfs import LocalFiles
from tests.governor.sysfs_tree import KernelKept, Policy, rpi4

PINNED = DvfsState("cpu", 1e9)
POLICY = "/sys/devices/system/cpu/cpufreq/policy0"


def pinned(tmp_path: Path) -> tuple[KernelKept, Policy, Watcher]:
    """A kernel that runs at 1 GHz because it was told to."""
    kernel = KernelKept(tmp_path, rpi4())
    kernel.store(f"{POLICY}/scaling_governor", "userspace")
    kernel.store(f"{POLICY}/scaling_setspeed", "1000000")
    (policy,) = kernel.domains
    assert isinstance(policy, Policy)
    return kernel, policy, Watcher(kernel, {"cpu": (0, 1, 2, 3)}, 4)


def test_a_clock_that_stays_disturbs_nothing(tmp_path: Path) -> None:
    _, _, watch = pinned(tmp_path)
    watch.begin(PINNED)
    assert watch.end() == ()


def test_heat(tmp_path: Path) -> None:
    kernel, policy, watch = pinned(tmp_path)
    watch.begin(PINNED)
    kernel.heat(policy, 750_000)
    assert watch.end() == (
        "the clock was 750 MHz",
        "CPUs 0, 1, 2, 3: the limits of the clock changed",
        "it is slowed down: heat (cpufreq-cpu0 at level 1)",
    )


def test_somebody_else_sets_the_clock(tmp_path: Path) -> None:
    kernel, _, watch = pinned(tmp_path)
    watch.begin(PINNED)
    kernel.store(f"{POLICY}/scaling_governor", "performance")
    assert watch.end() == (
        "the clock was 1.5 GHz",
        "CPUs 0, 1, 2, 3: the governor changed from userspace to performance",
    )


def test_turbo(tmp_path: Path) -> None:
    _, _, watch = pinned(tmp_path)
    boost = tmp_path / "sys/devices/system/cpu/cpufreq/boost"
    boost.write_text("0\n")
    watch.begin(PINNED)
    boost.write_text("1\n")
    assert watch.end() == ("turbo was switched on",)


def test_a_clock_nobody_set_is_written_down(tmp_path: Path) -> None:
    _, _, watch = pinned(tmp_path)
    watch.begin(None)
    assert watch.end() == ()
    assert watch.clocks_hz == [1e9, 1e9]


def test_garbage_disturbs_nothing(tmp_path: Path) -> None:
    for name in ("scaling_cur_freq", "scaling_min_freq", "related_cpus", "scaling_governor"):
        path = tmp_path / POLICY[1:] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xfe nonsense")
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()
    stat.write_text("cpu x y z\n")
    watch = Watcher(LocalFiles(tmp_path), {"cpu": (0,)})
    watch.begin(None)
    assert watch.end() == ()
    assert (watch.clocks_hz, watch.others) == ([], [])


def busy(jiffies: int) -> str:
    return f"cpu {jiffies} 0 0 5 0 0 0 0 0 0\n"


def test_programs_that_leave_no_core(tmp_path: Path) -> None:
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()
    stat.write_text(busy(0))
    watch = Watcher(LocalFiles(tmp_path), {}, cores=2)
    watch.begin(None)
    time.sleep(0.06)
    stat.write_text(busy(10_000))
    assert watch.end() == ("other programs kept all cores busy",)
    watch.begin(None)
    time.sleep(0.06)
    assert watch.end() == ()
    assert len(watch.others) == 2
    assert watch.others[1] == 0.0
