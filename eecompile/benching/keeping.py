"""Puts measured costs into an artifact, in the place of those it was built with."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from eecompile.artifact import Artifact, check_unchanged
from eecompile.artifact_files import MANIFEST, PLAN, SIGNATURE
from eecompile.artifact_writing import replace_artifact
from eecompile.checked_json import canonical_json
from eecompile.cost_table import CostTable
from eecompile.manifest import Manifest, Member
from eecompile.native_plan import plan_of

__all__ = ["keep_costs"]

_COSTS = "costs.json"


def keep_costs(artifact: Artifact, table: CostTable) -> Manifest:
    """Write an artifact again with another cost table, also in its plan; all else stays as it is.

    It is replaced in one step: whoever looks finds the earlier artifact or the new one.

    Raises:
        CompileErrors: the artifact is not the one that was read any more, or cannot be written;
            what is there is untouched.
    """
    changed = {_COSTS: canonical_json(table.to_json())}
    if artifact.plan:  # It has what the native runtime decides by, costs among it.
        changed[PLAN] = plan_of(artifact, table)
    members = {
        name: Member(hashlib.sha256(data).hexdigest(), len(data), table.device is not None)
        for name, data in changed.items()
    }
    manifest = replace(artifact.manifest, members={**artifact.manifest.members, **members})
    files = {**artifact.files, **changed, MANIFEST: canonical_json(manifest.to_json())}
    files.pop(SIGNATURE, None)  # it was of the earlier manifest
    replace_artifact(artifact.path, files, lambda: check_unchanged(artifact, "measure"))
    return manifest
