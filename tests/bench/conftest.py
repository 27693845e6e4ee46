"""The tiny network as an artifact, and a journal folder of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from eecompile.artifact import PolicyEntry, write_artifact
from eecompile.policies import to_json
from tests.runtime import tiny


@pytest.fixture(autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Its policy `fast` was tested on 40 samples: half leave at each exit."""
    exits = [("early", 0.5, 1.0), ("late", 0.5, 0.75), ("final", 0.0, None)]
    report = {
        "test": {
            "n": 40,
            "accuracy": {"value": 0.875, "low": 0.8, "high": 0.9},
            "exits": [
                {"name": name, "fraction": share, "accuracy": accuracy}
                for name, share, accuracy in exits
            ],
        }
    }
    policies = {name: PolicyEntry(to_json(policy)) for name, policy in tiny.POLICIES.items()}
    policies["fast"] = PolicyEntry(policies["fast"].rule, report)
    write_artifact(tmp_path / "out", tiny.contents(policies=policies))
    return tmp_path / "out"
