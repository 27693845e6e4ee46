"""Measured costs in an artifact: whole or not at all, and never over another build."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eecompile.artifact import read_artifact, write_artifact
from eecompile.atomic import write_file
from eecompile.benching.keeping import keep_costs
from eecompile.diagnostics import CompileErrors
from eecompile.manifest import Manifest
from tests.cli.calls import content
from tests.runtime import tiny


def test_the_manifest_has_the_new_hash(artifact: Path) -> None:
    before = read_artifact(artifact)
    table = tiny.costs(before.manifest.network, 2.5)
    manifest = keep_costs(before, table)
    after = read_artifact(artifact)
    assert after.costs == table
    assert after.manifest == manifest
    assert isinstance(manifest, Manifest)
    others = set(before.manifest.members) - {"costs.json", "plan.bin"}
    assert {n: before.manifest.members[n] for n in others} == {
        n: manifest.members[n] for n in others
    }


def test_an_artifact_built_meanwhile_stays(artifact: Path) -> None:
    mine = read_artifact(artifact)
    write_artifact(artifact, tiny.contents(version="0.2.0"))
    theirs = content(artifact)
    with pytest.raises(CompileErrors, match="built anew meanwhile"):
        keep_costs(mine, tiny.costs(mine.manifest.network, 2.5))
    assert content(artifact) == theirs
    assert os.listdir(artifact.parent) == ["out"]


@pytest.mark.parametrize("failing", range(1, 11))
def test_a_full_disk_leaves_the_earlier_one(
    failing: int, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, mine = content(artifact), read_artifact(artifact)
    count = [0]

    def full(path: Path, data: bytes | memoryview) -> None:
        count[0] += 1
        if count[0] == failing:
            raise OSError(28, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr("eecompile.artifact_writing.write_file", full)
    with pytest.raises(CompileErrors, match="no space left"):
        keep_costs(mine, tiny.costs(mine.manifest.network, 2.5))
    assert content(artifact) == before
    assert os.listdir(artifact.parent) == ["out"]


def test_the_file_is_the_table(artifact: Path) -> None:
    mine = read_artifact(artifact)
    table = tiny.costs(mine.manifest.network, 2.5)
    keep_costs(mine, table)
    assert json.loads((artifact / "costs.json").read_text()) == table.to_json()
