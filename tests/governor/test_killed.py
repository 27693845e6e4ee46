"""However a process ends, the clocks it set are as they were before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.governor.killing import policies
from tests.governor.sysfs_tree import make_tree, settings

pytestmark = pytest.mark.usefixtures("signals_heard")
ROOT = Path(__file__).parent.parent.parent
#: Kills of one test; raise it to kill at every line.
KILLS = int(os.environ.get("EECOMPILE_TEST_KILLS", "12"))
WAYS = ("speed", "limits", "userspace")


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.governor.killing", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("at", ["writes", "lines"])
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_step_the_watchdog_restores(tmp_path: Path, way: str, at: str) -> None:
    done = program("kills", str(tmp_path), way, at, "alive", str(KILLS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["steps"] > 20
    assert len(found["alive"]) <= 1, "a few lines fewer than in the first run, at most"


@pytest.mark.parametrize("at", ["writes", "lines"])
@pytest.mark.parametrize("way", WAYS)
def test_killed_together_with_the_watchdog_a_later_start_restores(
    tmp_path: Path, way: str, at: str
) -> None:
    done = program("kills", str(tmp_path), way, at, "killed", str(KILLS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and found["changed"] > 0


@pytest.mark.parametrize("way", ["speed", "limits"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("end", 0),
        ("exception", 1),
        ("SIGINT", -signal.SIGINT),
        ("SIGTERM", -signal.SIGTERM),
        ("SIGHUP", -signal.SIGHUP),
        ("_exit", 3),
        ("abort", -signal.SIGABRT),
        ("exec", 0),
    ],
)
def test_ways_to_end(tmp_path: Path, how: str, status: int, way: str) -> None:
    make_tree(tmp_path, *policies(way))
    before = settings(tmp_path)
    done = program("ends", str(tmp_path), way, how)
    assert done.returncode == status, done.stderr
    until = time.monotonic() + 20  # the watchdog may be at work still
    while settings(tmp_path) != before and time.monotonic() < until:
        time.sleep(0.005)
    assert settings(tmp_path) == before
