"""Signing an artifact that exists already."""

from __future__ import annotations

from pathlib import Path

from eecompile.artifact import check_unchanged, read_artifact
from eecompile.artifact_files import SIGNATURE
from eecompile.artifact_writing import replace_artifact
from eecompile.signatures import Signature, SigningKey

__all__ = ["sign_artifact"]


def sign_artifact(path: str | Path, key: SigningKey) -> Signature:
    """Sign an artifact that is whole, in place of any earlier signature; the rest stays as it is.

    Whoever looks meanwhile finds the artifact as it was or signed, complete.

    Raises:
        CompileErrors: it is no artifact, damaged, or cannot be written; what was there before is
            untouched.
    """
    artifact = read_artifact(path, must_run=False)
    signature = key.sign(artifact.manifest_bytes)
    if artifact.signature is None or artifact.signature.value != signature.value:
        files = {**artifact.files, SIGNATURE: signature.to_bytes()}
        replace_artifact(artifact.path, files, lambda: check_unchanged(artifact, "sign"))
    return signature
