"""The files of an artifact: what they are called, how large they may be, how they are opened.

Nothing here trusts a folder or a packed file: links are not followed, sizes are bounded, and what
is read is read through one handle, so that it all belongs to one artifact.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from eecompile.checked_json import JsonError
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.hardware import cpu_features_of_this_machine
from eecompile.manifest import TargetInfo
from eecompile.packed_form import PackedError, PackedMember, read_directory

__all__ = [
    "LIBRARY",
    "LIMITS",
    "MANIFEST",
    "MEMBERS",
    "PLAN",
    "SIGNATURE",
    "WEIGHTS",
    "Data",
    "Folder",
    "Packed",
    "bad_artifact",
    "bad_json",
    "check_machine",
    "members_of",
    "opened",
]

#: The bytes of a file: the weights are mapped, all others are in memory of their own.
Data = bytes | memoryview

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
LIBRARY = "kernels.so"
WEIGHTS = "weights.bin"
PLAN = "plan.bin"
_MIB = 1 << 20
#: The files of an artifact and the most bytes each may have. The limits only have to keep a
#: damaged or hostile folder from filling the memory; real files are far smaller.
LIMITS = {
    MANIFEST: 64 * _MIB,
    SIGNATURE: 4096,
    LIBRARY: 1024 * _MIB,
    WEIGHTS: 64 * 1024 * _MIB,
    PLAN: 64 * _MIB,
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
_SINCE = {PLAN: 6}

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # Source: System V ABI, e_machine


def members_of(version: int) -> tuple[str, ...]:
    """The members that artifacts of a format version have."""
    return tuple(name for name in MEMBERS if _SINCE.get(name, 0) <= version)


@contextmanager
def opened(path: Path) -> Iterator[Folder | Packed]:
    """An artifact's files, by a handle: it stays the same one when another takes its place.

    Raises:
        CompileErrors: there is neither a folder nor a packed artifact, or it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else str(error)
        raise bad_artifact(path, f"The artifact cannot be opened: {reason}") from error
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise bad_artifact(path, "This is neither a folder nor a plain file")
        yield Folder(path, handle) if stat.S_ISDIR(mode) else Packed(path, handle)
    finally:
        os.close(handle)


class _Opened:
    """What folders and packed files have in common."""

    kind: str

    def __init__(self, path: Path, handle: int) -> None:
        self._path, self._handle = path, handle

    def was_replaced(self) -> bool:
        """Whether another one than the opened one stands at its path now."""
        try:
            now, then = os.stat(self._path), os.fstat(self._handle)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)

    def _within_limits(self, sizes: dict[str, int]) -> dict[str, int]:
        for name, limit in LIMITS.items():
            if sizes.get(name, 0) > limit:
                raise bad_artifact(
                    self._path, f"`{name}` has {sizes[name]} bytes, more than the limit of {limit}"
                )
        return sizes


class Folder(_Opened):
    """The files of an opened folder."""

    kind = "folder"

    def sizes(self) -> dict[str, int]:
        """Size of every file by name; nothing is opened yet.

        Raises:
            CompileErrors: there are too many, or a file is larger than it may be.
        """
        sizes = {}
        try:
            with os.scandir(self._handle) as entries:
                for entry in entries:
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                    if len(sizes) > 1000:
                        raise bad_artifact(
                            self._path, "This folder is no artifact: it holds too many files"
                        )
        except OSError as error:
            raise bad_artifact(
                self._path, f"The artifact cannot be read: {error.strerror}"
            ) from error
        return self._within_limits(sizes)

    def read(self, name: str) -> Data:
        """Contents of a plain file; links are not followed.

        Raises:
            CompileErrors: it is none, or cannot be read.
        """
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(name, flags, dir_fd=self._handle), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise bad_artifact(self._path, f"`{name}` is no plain file")
                if name == WEIGHTS and found.st_size:
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                # Room is made for what is asked for; one byte more shows a file that has grown.
                return file.read(min(found.st_size, LIMITS[name]) + 1)
        except OSError as error:
            if error.errno == errno.ELOOP:  # O_NOFOLLOW met a link
                raise bad_artifact(self._path, f"`{name}` is a link, not a plain file") from error
            raise bad_artifact(self._path, f"`{name}` cannot be read: {error.strerror}") from error


class Packed(_Opened):
    """The files in an opened packed artifact; see `eecompile.packed_form`."""

    kind = "file"
    _members: Mapping[str, PackedMember]

    def sizes(self) -> dict[str, int]:
        """Size of every file by name, the form of the whole checked.

        Raises:
            CompileErrors: it is no packed artifact, or a file is larger than it may be.
        """
        try:
            members = read_directory(self._take, os.fstat(self._handle).st_size)
        except PackedError as error:
            raise bad_artifact(self._path, f"This file is no packed artifact: {error}") from error
        self._members = {member.name: member for member in members}
        return self._within_limits({name: m.nbytes for name, m in self._members.items()})

    def read(self, name: str) -> Data:
        """Contents of a file in it, after `sizes` has found it.

        Raises:
            CompileErrors: it has another checksum, or cannot be read.
        """
        member = self._members[name]
        if name == WEIGHTS and member.nbytes:
            data = self._mapped(member)
        else:
            data = self._take(member.data, member.nbytes)
        if zlib.crc32(data) != member.checksum:
            raise bad_artifact(self._path, f"`{name}` has been changed: its CRC-32 is another one")
        return data

    def _take(self, offset: int, count: int) -> bytes:
        parts: list[bytes] = []
        try:
            while count and (part := os.pread(self._handle, count, offset)):
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
        except OSError as error:
            raise bad_artifact(
                self._path, f"The artifact cannot be read: {error.strerror}"
            ) from error
        if count:
            raise bad_artifact(self._path, "The artifact was cut off while it was read")
        return b"".join(parts)

    def _mapped(self, member: PackedMember) -> Data:
        before = member.data % mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(
                self._handle,
                before + member.nbytes,
                offset=member.data - before,
                access=mmap.ACCESS_READ,
            )
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise bad_artifact(self._path, f"`{member.name}` cannot be read: {error}") from error
        return memoryview(mapped)[before:]


def check_machine(path: Path, target: TargetInfo, library: Data) -> None:
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
