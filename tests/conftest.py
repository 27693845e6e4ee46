"""Options and fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


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
