"""An artifact whose ``costs.json`` is no cost table says so; nothing crashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eecompile.artifact import read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors
from tests.runtime import tiny


def with_costs(folder: Path, text: bytes) -> Path:
    """An artifact in which another ``costs.json`` stands, and the manifest knows it."""
    write_artifact(folder, tiny.contents())
    (folder / "costs.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    member = manifest["members"]["costs.json"]
    member.update(sha256=hashlib.sha256(text).hexdigest(), bytes=len(text))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "`costs.json` cannot be used: it is no JSON"),
        (b"{}", "`costs.json` cannot be used: `target` is missing"),
        (b"[]", "`costs.json` cannot be used: "),
        (b'{"target": NaN}', "`costs.json` cannot be used: `NaN` is no number"),
        (b"[" * 100_000, "`costs.json` cannot be used: it nests too deep"),
    ],
)
def test_garbage_is_a_diagnostic(tmp_path: Path, text: bytes, message: str) -> None:
    artifact = read_artifact(with_costs(tmp_path / "out", text))
    with pytest.raises(CompileErrors) as caught:
        _ = artifact.costs
    (found,) = caught.value.diagnostics
    assert found.id == "bad-artifact" and message in found.message


def test_costs_of_another_network_are_refused(tmp_path: Path) -> None:
    other = tiny.costs(tiny.network())
    exits = tuple(replace(row, name=f"other {row.name}") for row in other.exits)
    text = json.dumps(replace(other, exits=exits).to_json()).encode()
    artifact = read_artifact(with_costs(tmp_path / "out", text))
    with pytest.raises(CompileErrors, match="`exits` must be the network's"):
        _ = artifact.costs


def test_nothing_known_is_none(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents(costs=None))
    assert read_artifact(tmp_path / "out").costs is None
