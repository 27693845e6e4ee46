"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Torch and BLAS on one core, here and in workers and what they start: on a machine with other work
# to do, their threads wait for each other at every step of a small network.
os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = ["arm/call.py", "arm/run.py"]  # programs for another machine, no modules


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected half of golden files"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with what a file holds behind its line ``---``; or rewrites that half."""

    def compare(path: Path, found: str) -> None:
        if not path.exists():
            pytest.fail(f"no golden file {path}")
        before, _, expected = path.read_text(encoding="utf-8").partition("\n---\n")
        if request.config.getoption("--update-golden"):
            path.write_text(f"{before}\n---\n{found}", encoding="utf-8")
        else:
            assert found == expected, f"{path}: run with --update-golden if this is right"

    return compare


def _cache_folder() -> Path:
    given = os.environ.get("EECOMPILE_ARM_ENV")
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given) if given else base / "eecompile-tests" / "arm"


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """Signals end this process, and what it starts, though it began with some of them ignored.

    Under nohup, or in the background of a script, it does.
    """
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


@pytest.fixture(scope="session")
def arm() -> Path:
    """Folder of an aarch64 Python that runs here; set up only where it is required."""
    return _set_up("setup", "ready")


@pytest.fixture(scope="session")
def arm_tvm() -> Path:
    """The same with TVM's runtime."""
    return _set_up("setup-tvm", "ready-tvm")


def _set_up(verb: str, mark: str) -> Path:
    folder = _cache_folder()
    if (folder / mark).exists():
        return folder
    setup = f"bash tests/arm/env.sh {verb} {folder}"
    if os.environ.get("EECOMPILE_REQUIRE_ARM") != "1":
        pytest.skip(f"no aarch64 environment: run `{setup}`, or set EECOMPILE_REQUIRE_ARM=1")
    done = subprocess.run(
        ["bash", str(Path(__file__).parent / "arm" / "env.sh"), verb, str(folder)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"`{setup}` failed:\n{done.stdout}\n{done.stderr}")
    return folder
