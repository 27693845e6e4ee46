"""The form of a packed artifact: a ZIP file in which everything has its one place.

    manifest.json, then the other members in the order of their names; of each
        30 bytes    a local header
                    its name
        6..69 bytes a field for alignment (0xD935, as Android's tools write it): zeros
                    its bytes, at a multiple of 64, as they are: nothing is compressed
    the directory; of each member 46 bytes, and its name
    22 bytes        the end record

Any ZIP tool can unpack it. Reading is strict: what a member's name, size, checksum and the members
before it do not leave open is compared, byte for byte, with what it has to be. So there is nothing
to interpret, nothing between the parts, nothing to unpack, and one file for given members only.
The C runtime reads the same form (native/files.c): both accept the same files and give the same
reasons for refusing others.

Source: PKWARE's APPNOTE 6.3.10, 4.3.7 (local header), 4.3.12 (directory), 4.3.16 (end record).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

__all__ = ["MOST_BYTES", "PackedError", "PackedMember", "first_bytes", "packed", "read_directory"]

ALIGNMENT = 64
MOST_BYTES = 0xFFFFFFFF  #: of a packed file: sizes and places are 32 bits wide
_FIRST = "manifest.json"
_MOST_MEMBERS = 1000
_MOST_NAME = 100
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_LOCAL_BYTES, _CENTRAL_BYTES, _END_BYTES, _PADDING_BYTES = 30, 46, 22, 6
_DATE = 0x21  # 1980-01-01
_READABLE = 0o100644 << 16  # a plain file, as Unix tells it

#: Gives `count` bytes of a file from a place that lies within it, or raises.
Read = Callable[[int, int], bytes]


class PackedError(ValueError):
    """Why a file is no packed artifact."""


@dataclass(frozen=True, slots=True)
class PackedMember:
    """A member and where it lies.

    Attributes:
        name: its file name.
        checksum: CRC-32 of its bytes.
        nbytes: how many they are.
        header, data: offsets of its local header and of its bytes.
    """

    name: str
    checksum: int
    nbytes: int
    header: int = 0
    data: int = 0

    @property
    def end(self) -> int:
        """The offset after its bytes."""
        return self.data + self.nbytes

    def at(self, header: int) -> PackedMember:
        """The member as it lies where its header does.

        >>> PackedMember("manifest.json", 0, 5).at(0).data
        64
        """
        least = header + _LOCAL_BYTES + len(self.name) + _PADDING_BYTES
        return replace(self, header=header, data=-(-least // ALIGNMENT) * ALIGNMENT)

    def _common(self) -> bytes:
        numbers = (10, 0, 0, 0, _DATE, self.checksum, self.nbytes, self.nbytes, len(self.name))
        return struct.pack("<5H3IH", *numbers)

    def local(self) -> bytes:
        """The bytes from its header to its data."""
        name = self.name.encode("ascii")
        padding = self.data - self.header - _LOCAL_BYTES - len(name)
        field = struct.pack("<3H", 0xD935, padding - 4, ALIGNMENT).ljust(padding, b"\0")
        return _LOCAL + self._common() + struct.pack("<H", padding) + name + field

    def central(self) -> bytes:
        """Its entry in the directory."""
        made_by = struct.pack("<H", 3 << 8 | 10)  # Unix, 1.0
        after = struct.pack("<4H2I", 0, 0, 0, 0, _READABLE, self.header)
        return _CENTRAL + made_by + self._common() + after + self.name.encode("ascii")


def packed(files: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The parts of a packed file, one after the other: the same for the same files.

    Raises:
        PackedError: it would be larger than a packed file can be.
    """
    members: list[PackedMember] = []
    for name in (_FIRST, *sorted({*files} - {_FIRST})):
        data = files[name]
        header = members[-1].end if members else 0
        found = PackedMember(name, zlib.crc32(data), len(data)).at(header)
        if found.end > MOST_BYTES:
            raise PackedError("it would have 4 GiB or more")
        members.append(found)
        yield found.local()
        yield data
    directory = b"".join(member.central() for member in members)
    if members[-1].end + len(directory) + _END_BYTES > MOST_BYTES:
        raise PackedError("it would have 4 GiB or more")
    yield directory
    yield _end(len(members), len(directory), members[-1].end)


def _end(count: int, nbytes: int, offset: int) -> bytes:
    return _END + struct.pack("<4H2IH", 0, 0, count, count, nbytes, offset, 0)


def first_bytes() -> tuple[int, bytes]:
    """Where a packed artifact can be told by, and what stands there."""
    return _LOCAL_BYTES, _FIRST.encode("ascii")


def read_directory(read: Read, nbytes: int) -> list[PackedMember]:
    """The members of a packed file of `nbytes` bytes; of their own bytes nothing is read.

    Raises:
        PackedError: it is no packed artifact.
    """
    if nbytes < _END_BYTES:
        raise PackedError("it is too short")
    if nbytes > MOST_BYTES:
        raise PackedError("it has 4 GiB or more")
    if read(0, 4) != _LOCAL:
        raise PackedError("it does not begin as one")
    end = read(nbytes - _END_BYTES, _END_BYTES)
    count, length = struct.unpack_from("<HI", end, 10)
    if end[:4] != _END:
        raise PackedError("it does not end as one; it may have been cut off")
    if count > _MOST_MEMBERS:
        raise PackedError("it holds too many files")
    offset = nbytes - _END_BYTES - length
    if offset < 0 or length > count * (_CENTRAL_BYTES + _MOST_NAME):
        raise PackedError("its directory is larger than it can be")
    if end != _end(count, length, offset):
        raise PackedError("its last bytes are not what they should be")
    return _members(read, read(offset, length), count, offset)


def _members(read: Read, directory: bytes, count: int, end: int) -> list[PackedMember]:
    members: list[PackedMember] = []
    at = header = 0
    for index in range(count):
        member, entry = _entry(directory, at)
        before = members[-1].name if index > 1 else ""
        if index == 0 and member.name != _FIRST:
            raise PackedError(f"its first member is not `{_FIRST}`")
        if index and (member.name == _FIRST or member.name <= before):
            raise PackedError(f"`{member.name}` is there twice, or not in order")
        member = member.at(header)
        _check_member(read, member, entry, end)
        members.append(member)
        header = member.end
        at += len(entry)
    if at != len(directory) or header != end:
        raise PackedError("there is something between its parts")
    assert all(one.end == two.header for one, two in pairwise(members)), "no gaps, no overlaps"
    return members


def _entry(directory: bytes, at: int) -> tuple[PackedMember, bytes]:
    """What an entry of the directory says, and the entry."""
    fixed = directory[at : at + _CENTRAL_BYTES]
    if len(fixed) < _CENTRAL_BYTES or fixed[:4] != _CENTRAL:
        raise PackedError("its directory has fewer entries than it should")
    flags, method = struct.unpack_from("<2H", fixed, 8)
    checksum, nbytes, length = struct.unpack_from("<I4xIH", fixed, 16)
    name = directory[at + _CENTRAL_BYTES : at + _CENTRAL_BYTES + length]
    if len(name) != length or not _NAME.fullmatch(name):
        raise PackedError("its directory holds a name that no file of an artifact has")
    member = PackedMember(name.decode("ascii"), checksum, nbytes)
    if flags & 1:
        raise PackedError(f"`{member.name}` is encrypted")
    if method:
        raise PackedError(f"`{member.name}` is compressed")
    return member, fixed + name


def _check_member(read: Read, member: PackedMember, entry: bytes, end: int) -> None:
    if member.end > end:
        raise PackedError(f"`{member.name}` is larger than the file")
    if entry != member.central():
        raise PackedError(f"`{member.name}` has another entry in the directory than it should")
    if read(member.header, member.data - member.header) != member.local():
        raise PackedError(f"`{member.name}` has another header than it should")
