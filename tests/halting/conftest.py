"""The demo network with policies that halt, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from eecompile.cli import main
from tests.cli.calls import copy_demo
from tests.cli.conftest import built, cache, call, demo, images

__all__ = ["POLICIES", "built", "cache", "call", "demo", "halting", "images"]

POLICIES = """
policy capped { halt at budget macs <= 60 % }
policy both { exit when confidence(max_softmax)   budget accuracy drop <= 0.5 %
              halt at budget macs <= 80 % }
policy patient { exit when patience(count: 1)   halt at budget macs <= 90 % }
policy timed { halt at budget latency <= 100 s }
"""


@pytest.fixture(scope="session")
def halting(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The demo's folder with an artifact of these policies in `out`; tests only read it."""
    folder = tmp_path_factory.mktemp("halting")
    file = copy_demo(folder)
    file.write_text(file.read_text() + POLICIES)
    assert main(["build", str(file), "-o", str(folder / "out"), "--quiet"]) == 0
    return folder
