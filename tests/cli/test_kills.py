"""A build that is killed leaves an artifact that loads; benchmarks/kills.py kills a hundred."""

from __future__ import annotations

from pathlib import Path

from benchmarks.kills import kill_builds


def test_killed_builds_leave_the_earlier_or_the_new_artifact(demo: Path, cache: Path) -> None:
    kills = kill_builds(demo, 4, cache)
    assert kills.wrong == []
    assert kills.during["writing"] and kills.during["building"]
    assert sum(kills.found.values()) == 6  # and after the builds at the end
