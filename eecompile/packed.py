"""An artifact's folder into one file, NAME.eec; any ZIP tool turns it back into a folder."""

from __future__ import annotations

from pathlib import Path

from eecompile.artifact import check_unchanged, read_artifact
from eecompile.artifact_writing import SUFFIX, is_packed, replace_artifact
from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = ["pack_artifact"]


def pack_artifact(artifact: str | Path, destination: str | Path | None = None) -> Path:
    """The packed file that was written: the same bytes for the same artifact.

    Args:
        artifact: a folder, or a packed file, which gives the same file again. It may be for
            another machine.
        destination: NAME.eec; None for the artifact's own name with this ending.

    Raises:
        CompileErrors: the artifact is damaged or changed; `destination` is not called NAME.eec,
            other things are in the way there, or it cannot be written.
    """
    found = read_artifact(artifact, must_run=False)
    path = found.path.with_suffix(SUFFIX) if destination is None else Path(destination)
    if not is_packed(path):
        message = f"`{path.name or path}` is no name of a packed artifact"
        raise CompileErrors(
            [Diagnostic("cannot-write", message, path=str(path), help=f"let it end in `{SUFFIX}`")]
        )
    replace_artifact(path, found.files, lambda: check_unchanged(found, "pack"))
    return path
