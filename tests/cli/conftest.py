"""The demo network, built once for all tests of the command line, and calls of the real command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eecompile.cli import main
from tests.cli.calls import Call, copy_demo, in_process


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A build cache of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("EECOMPILE_CACHE")
    os.environ["EECOMPILE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EECOMPILE_CACHE"]
    else:
        os.environ["EECOMPILE_CACHE"] = before


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], cache: Path) -> Call:
    """Runs a command in this process."""
    return in_process(capfd)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The demo's folder with its artifact in `out`; tests only read it."""
    folder = tmp_path_factory.mktemp("demo")
    file = copy_demo(folder)
    assert main(["build", str(file), "-o", str(folder / "out"), "--quiet"]) == 0
    return folder


@pytest.fixture
def demo(tmp_path: Path, built: Path) -> Path:
    """A copy of the demo's folder, artifact included, to spoil; gives its `.ee` file."""
    shutil.copytree(built, tmp_path / "demo")
    return tmp_path / "demo" / "digits.ee"


@pytest.fixture(scope="session")
def images(built: Path) -> np.ndarray:
    """The test digits as the network reads them, float32 (500, 1, 8, 8)."""
    with np.load(built / "test.npz") as data:
        images: np.ndarray = data["images"].astype(np.float32) / np.float32(255)
    return images[:, None]
