"""Puts measured costs into an artifact, in the place of those it was built with."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from eecompile.artifact import Artifact, refusal_to_replace
from eecompile.artifact_files import LIBRARY, MANIFEST, WEIGHTS, bad_artifact
from eecompile.atomic import replaced_directory, write_file
from eecompile.checked_json import canonical_json, parse_json
from eecompile.cost_table import CostTable
from eecompile.manifest import Manifest, Member

__all__ = ["keep_costs"]

_COSTS = "costs.json"


def keep_costs(artifact: Artifact, table: CostTable) -> Manifest:
    """Write an artifact again with another cost table; all else stays, byte for byte.

    The folder is replaced in one step: whoever looks finds the earlier artifact or the new one.

    Raises:
        CompileErrors: the artifact is not the one that was read any more, or cannot be written;
            what is there is untouched.
    """
    costs = canonical_json(table.to_json())
    entry = Member(hashlib.sha256(costs).hexdigest(), len(costs), measured=table.device is not None)
    manifest = replace(artifact.manifest, members={**artifact.manifest.members, _COSTS: entry})
    files = {
        LIBRARY: memoryview(artifact.library),
        WEIGHTS: artifact.weights.data,
        **{name: memoryview(data) for name, data in artifact.texts.items()},
        _COSTS: memoryview(costs),
    }
    with replaced_directory(artifact.path, refusal_to_replace) as folder:
        for name, data in files.items():
            write_file(folder / name, data)
        write_file(folder / MANIFEST, canonical_json(manifest.to_json()))
        there = artifact.path / MANIFEST
        if parse_json(there.read_bytes()) != parse_json(
            canonical_json(artifact.manifest.to_json())
        ):
            raise bad_artifact(
                artifact.path, "The artifact was built anew meanwhile: measure it again"
            )
    return manifest
