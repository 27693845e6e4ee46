"""Threads in numbers that the tests choose, whatever machine they run on."""

from __future__ import annotations

import pytest

from eecompile.runtime import opening


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session starts no more threads than there are CPUs: it is told that there are eight."""
    monkeypatch.setattr(opening, "usable_cores", lambda: 8)
