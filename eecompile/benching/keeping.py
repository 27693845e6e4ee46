"""Puts measured costs into an artifact, in the place of those it was built with."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from eecompile.artifact import Artifact, check_unchanged
from eecompile.artifact_files import MANIFEST, SIGNATURE
from eecompile.artifact_writing import replace_artifact
from eecompile.checked_json import canonical_json
from eecompile.cost_table import CostTable
from eecompile.manifest import Manifest, Member

__all__ = ["keep_costs"]

_COSTS = "costs.json"


def keep_costs(artifact: Artifact, table: CostTable) -> Manifest:
    """Write an artifact again with another cost table; all else stays, byte for byte.

    It is replaced in one step: whoever looks finds the earlier artifact or the new one.

    Raises:
        CompileErrors: the artifact is not the one that was read any more, or cannot be written;
            what is there is untouched.
    """
    costs = canonical_json(table.to_json())
    entry = Member(hashlib.sha256(costs).hexdigest(), len(costs), measured=table.device is not None)
    manifest = replace(artifact.manifest, members={**artifact.manifest.members, _COSTS: entry})
    files = {**artifact.files, _COSTS: costs, MANIFEST: canonical_json(manifest.to_json())}
    files.pop(SIGNATURE, None)  # it was of the earlier manifest
    replace_artifact(artifact.path, files, lambda: check_unchanged(artifact, "measure"))
    return manifest
