"""The files of an artifact: what they are called, how large they may be, how they are opened.

Nothing here trusts a folder: links are not followed, sizes are bounded, and what is read is read
through one handle of the folder, so that it all belongs to one artifact.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eecompile.checked_json import JsonError
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.hardware import cpu_features_of_this_machine
from eecompile.manifest import TargetInfo

__all__ = [
    "LIBRARY",
    "LIMITS",
    "MANIFEST",
    "MEMBERS",
    "SIGNATURE",
    "WEIGHTS",
    "bad_artifact",
    "bad_json",
    "check_machine",
    "file_sizes",
    "members_of",
    "opened",
    "read_file",
    "was_replaced",
]

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
LIBRARY = "kernels.so"
WEIGHTS = "weights.bin"
_MIB = 1 << 20
#: The files of an artifact and the most bytes each may have. The limits only have to keep a
#: damaged or hostile folder from filling the memory; real files are far smaller.
LIMITS = {
    MANIFEST: 64 * _MIB,
    SIGNATURE: 4096,
    LIBRARY: 1024 * _MIB,
    WEIGHTS: 64 * 1024 * _MIB,
    "policies.json": 64 * _MIB,
    "costs.json": 64 * _MIB,
    "reports.json": 64 * _MIB,
    "vectors.npz": 1024 * _MIB,
    "segments.txt": 64 * _MIB,
    "model.ee": 16 * _MIB,
}
#: Files of an artifact besides its manifest and the manifest's signature.
MEMBERS = tuple(name for name in LIMITS if name not in (MANIFEST, SIGNATURE))
#: The format version from which on artifacts have a member, where that is not the first one.
_SINCE: dict[str, int] = {}

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # Source: System V ABI, e_machine


def members_of(version: int) -> tuple[str, ...]:
    """The members that artifacts of a format version have."""
    return tuple(name for name in MEMBERS if _SINCE.get(name, 0) <= version)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A handle of the folder: it stays the same one when another takes its place."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else str(error)
        raise bad_artifact(path, f"The artifact cannot be opened: {reason}") from error
    try:
        yield folder
    finally:
        os.close(folder)


def was_replaced(path: Path, folder: int) -> bool:
    """Whether another folder than the opened one stands at `path` now."""
    try:
        now, then = os.stat(path), os.fstat(folder)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)


def file_sizes(path: Path, folder: int) -> dict[str, int]:
    """Size of every file by name; nothing is opened yet."""
    sizes = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                if len(sizes) > 1000:
                    raise bad_artifact(path, "This folder is no artifact: it holds too many files")
    except OSError as error:
        raise bad_artifact(path, f"The artifact cannot be read: {error.strerror}") from error
    for name, limit in LIMITS.items():
        if sizes.get(name, 0) > limit:
            raise bad_artifact(
                path, f"`{name}` has {sizes[name]} bytes, more than the limit of {limit}"
            )
    return sizes


def read_file(path: Path, folder: int, name: str) -> mmap.mmap | bytes:
    """Contents of a plain file; links are not followed. The weights are mapped, not copied."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise bad_artifact(path, f"`{name}` is no plain file")
            if name == WEIGHTS and found.st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # Room is made for what is asked for; one byte more shows a file that has grown since.
            return file.read(min(found.st_size, LIMITS[name]) + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:  # O_NOFOLLOW met a link
            raise bad_artifact(path, f"`{name}` is a link, not a plain file") from error
        raise bad_artifact(path, f"`{name}` cannot be read: {error.strerror}") from error


def check_machine(path: Path, target: TargetInfo, library: mmap.mmap | bytes) -> None:
    """Refuse code this machine cannot run: another architecture or system, a CPU feature too few.

    Raises:
        CompileErrors: it cannot, or the library's file is no library of that architecture.
    """
    here = platform.machine().lower()
    here = _ARCHITECTURES.get(here, here)
    wanted = _ARCHITECTURES.get(target.architecture, target.architecture)
    linux = "linux" in target.triple
    problem = help_ = ""
    if wanted != here or linux != (sys.platform == "linux"):
        problem = (
            f"Artifact was built for {target.triple} (target `{target.name}`),"
            f" this machine is {here} with {platform.system()}"
        )
        help_ = "build it with `--target host` on this machine"
    elif missing := sorted(set(target.features) - cpu_features_of_this_machine()):
        problem = f"This CPU lacks what the artifact needs: {', '.join(missing)}"
        help_ = "build it on this machine, or for a target without these CPU features"
    if problem:
        raise CompileErrors([Diagnostic("wrong-machine", problem, path=str(path), help=help_)])
    if linux and not _is_elf(bytes(library[:64]), len(library), wanted):
        raise bad_artifact(path, f"`{LIBRARY}` is no complete shared library for {wanted}")


def _is_elf(header: bytes, size: int, architecture: str) -> bool:
    """Whether a file of `size` bytes can be a whole 64-bit ELF library for an architecture."""
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return False
    kind, machine = struct.unpack_from("<HH", header, 16)
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    complete = sections + entry * count <= size
    return bool(kind == 3 and machine == _ELF_MACHINES.get(architecture, machine) and complete)


@contextmanager
def bad_json(path: Path, name: str) -> Iterator[None]:
    """Turns a `JsonError` about the file `name` into a diagnostic about the artifact."""
    try:
        yield
    except JsonError as error:
        raise bad_artifact(path, f"`{name}` cannot be used: {error}") from error


def bad_artifact(path: Path, *messages: str) -> CompileErrors:
    """The exception for an artifact that cannot be used, one diagnostic a message."""
    return CompileErrors(
        Diagnostic("bad-artifact", message, path=str(path)) for message in messages
    )
