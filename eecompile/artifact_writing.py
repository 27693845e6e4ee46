"""Puts an artifact in its place, as a folder or packed into one file: whole, or not at all.

What stands at that place is replaced where it is an earlier artifact and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from eecompile.artifact_files import LIMITS, MANIFEST, SIGNATURE
from eecompile.atomic import (
    check_replaceable,
    check_replaceable_file,
    replaced_directory,
    replaced_plain_file,
    write_file,
)
from eecompile.checked_json import JsonError, parse_json, shortened
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.manifest import FORMAT
from eecompile.packed_form import PackedError, first_bytes, packed

__all__ = ["SUFFIX", "check_destination", "is_packed", "replace_artifact"]

SUFFIX = ".eec"  #: of packed artifacts


def is_packed(destination: Path) -> bool:
    """Whether an artifact is written there as one file: as the name says, or what is there."""
    return destination.suffix == SUFFIX or (destination.is_file() and _begins_packed(destination))


def check_destination(destination: str | Path) -> None:
    """Refuses a place where no artifact may be written, before anything is computed for it.

    Raises:
        CompileErrors: other things are in the way, or nothing can be written there.
    """
    path = Path(destination)
    if is_packed(path):
        check_replaceable_file(path, _refusal_of_file)
    else:
        check_replaceable(path, _refusal_of_folder)


def replace_artifact(
    destination: Path,
    files: Mapping[str, bytes | memoryview],
    last_look: Callable[[], None] = lambda: None,
) -> None:
    """Write an artifact's files, the manifest among them, in the place of `destination`.

    Args:
        destination: NAME.eec or an earlier packed file: one file is written; else a folder.
        files: the contents by name.
        last_look: called when all is written, before it takes its place; may raise.

    Raises:
        CompileErrors: other things are in the way, or it cannot be written; whatever was there
            before is untouched.
    """
    if is_packed(destination):
        with replaced_plain_file(destination, _refusal_of_file) as file:
            try:
                for part in packed(files):
                    file.write(part)
            except PackedError as error:
                raise _too_large(destination, error) from error
            last_look()
        return
    with replaced_directory(destination, _refusal_of_folder) as folder:
        for name in (*sorted({*files} - {MANIFEST}), MANIFEST):
            write_file(folder / name, files[name])
        last_look()


def _too_large(destination: Path, error: PackedError) -> CompileErrors:
    return CompileErrors(
        [
            Diagnostic(
                "cannot-write",
                f"`{destination.name}` cannot be a packed artifact: {error}",
                path=str(destination),
                help="write a folder: give it a name that does not end in `.eec`",
            )
        ]
    )


def _refusal_of_folder(folder: Path) -> str:
    """Why a folder may not be replaced by an artifact, empty where it is one and nothing else."""
    try:
        with open(folder / MANIFEST, "rb") as file:
            value = parse_json(file.read(LIMITS[MANIFEST]))
        ours = value["format"] == FORMAT
        known = {MANIFEST, SIGNATURE, *value["members"]}
        others = {path.name for path in folder.iterdir()} - known
    except (OSError, JsonError, TypeError, KeyError):
        return "is a folder with other things in it"
    if not ours:
        return "is a folder with other things in it"
    names = ", ".join(map(shortened, sorted(others)))
    return f"is an artifact with other files in it: {names}" if others else ""


def _refusal_of_file(file: Path) -> str:
    """Why a file may not be replaced by a packed artifact, empty where it is one, or empty."""
    return "" if not file.stat().st_size or _begins_packed(file) else "is a file of another kind"


def _begins_packed(path: Path) -> bool:
    offset, wanted = first_bytes()
    try:
        with open(path, "rb") as file:
            return file.read(offset + len(wanted))[offset:] == wanted
    except OSError:
        return False
