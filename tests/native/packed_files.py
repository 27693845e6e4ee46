"""Packed files as this suite writes them: good ones, and any bytes in their form."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from eecompile.packed_form import packed

__all__ = ["ATTACKS", "Entry", "entries", "good", "zipped"]

FILES = {
    "manifest.json": b"{}",
    "plan.bin": b"plan" * 20,
    "weights.bin": bytes(range(256)) * 20,
    "zz.txt": b"",
}


def good(files: Mapping[str, bytes] = FILES) -> bytes:
    """A packed artifact as the writer makes it."""
    return b"".join(packed(files))


@dataclass(frozen=True)
class Entry:
    """A member of a ZIP file, every field to be forged; None: what it has to be."""

    name: bytes
    data: bytes
    flags: int = 0
    method: int = 0
    date: int = 0x21
    checksum: int | None = None
    size: int | None = None
    stored: int | None = None  # the compressed size
    offset: int | None = None
    local_size: int | None = None
    local_name: bytes | None = None
    padding: int | None = None
    filler: bytes = b"\0"
    made_by: int = 3 << 8 | 10
    attributes: int = 0o100644 << 16
    comment: bytes = b""
    extra: bytes = b""
    gap: bytes = b""  # before its header


def entries() -> list[Entry]:
    """The members of `good`."""
    return [Entry(name.encode(), data) for name, data in FILES.items()]


def zipped(
    members: list[Entry],
    *,
    count: int | None = None,
    nbytes: int | None = None,
    offset: int | None = None,
    disk: int = 0,
    comment: bytes = b"",
    gap: bytes = b"",
) -> bytes:
    """A ZIP file of these members: `good` where nothing is forged."""
    body, directory = b"", b""
    for member in members:
        body += member.gap
        size = len(member.data) if member.size is None else member.size
        stored = size if member.stored is None else member.stored
        checksum = zlib.crc32(member.data) if member.checksum is None else member.checksum
        start = len(body)
        name = member.name if member.local_name is None else member.local_name
        room = -(start + 30 + len(name) + 6) % 64 + 6
        room = room if member.padding is None else member.padding
        field = struct.pack("<3H", 0xD935, max(room - 4, 0), 64)[:room].ljust(room, member.filler)
        numbers = (10, member.flags, member.method, 0, member.date, checksum)
        local = size if member.local_size is None else member.local_size
        body += b"PK\3\4" + struct.pack("<5H3I2H", *numbers, stored, local, len(name), room)
        body += name + field + member.data
        at = start if member.offset is None else member.offset
        directory += b"PK\1\2" + struct.pack("<6H3I", member.made_by, *numbers, stored, size)
        lengths = (len(member.name), len(member.extra), len(member.comment), 0, 0)
        directory += struct.pack("<5H2I", *lengths, member.attributes, at)
        directory += member.name + member.extra + member.comment
    body += gap
    found = len(members) if count is None else count
    end = (len(directory) if nbytes is None else nbytes, len(body) if offset is None else offset)
    last = struct.pack("<4H2IH", disk, disk, found, found, *end, len(comment))
    return body + directory + b"PK\5\6" + last + comment


def _changed(member: str, **changes: object) -> Callable[[], bytes]:
    """`good` with one member forged."""

    def make() -> bytes:
        made = [
            replace(entry, **changes) if entry.name == member.encode() else entry  # type: ignore[arg-type]
            for entry in entries()
        ]
        return zipped(made)

    return make


def _renamed(name: bytes) -> Callable[[], bytes]:
    return _changed("zz.txt", name=name)


def _same_data_twice() -> bytes:
    """Two members whose data are the same bytes."""
    first, *others = entries()
    return zipped([first, *(replace(entry, offset=0) for entry in others)])


def _deflated() -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = made.compress(bytes(1 << 24)) + made.flush()
    return _changed("weights.bin", data=bomb, method=8, stored=len(bomb), size=1 << 24)()


def _zip64() -> bytes:
    """The sizes are said to be elsewhere."""
    extra = struct.pack("<2H2Q", 1, 16, 5120, 5120)
    return _changed("weights.bin", size=0xFFFFFFFF, stored=0xFFFFFFFF, extra=extra)()


OTHER_NAME = "its directory holds a name that no file of an artifact has"
TOO_LARGE = "`weights.bin` is larger than the file"
OTHER_ENTRY = "`weights.bin` has another entry in the directory than it should"
OTHER_HEADER = "`weights.bin` has another header than it should"
OTHER_END = "its last bytes are not what they should be"
CUT_OFF = "it does not end as one; it may have been cut off"
FEWER = "its directory has fewer entries than it should"
#: By name: makes a file, and why both readers refuse it.
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is too short"),
    "a text": (lambda: b"eecompile artifact, version 5", "it does not begin as one"),
    "cut off at the end": (lambda: good()[:-1], CUT_OFF),
    "cut off in the middle": (lambda: good()[:3000], CUT_OFF),
    "something after it": (lambda: good() + b"\0", CUT_OFF),
    "something before it": (lambda: b"#!/bin/sh\n" + good(), "it does not begin as one"),
    "two of them": (lambda: good() + good(), OTHER_END),
    "a comment": (lambda: zipped(entries(), comment=b"PK\5\6" + bytes(18)), OTHER_END),
    "several disks": (lambda: zipped(entries(), disk=1), OTHER_END),
    "no members": (lambda: zipped([], gap=b"PK\3\4"), "there is something between its parts"),
    "end record alone": (lambda: zipped([]), "it does not begin as one"),
    "a count too small": (
        lambda: zipped(entries(), count=3),
        "there is something between its parts",
    ),
    "a count too large": (lambda: zipped(entries(), count=5), FEWER),
    "a giant count": (lambda: zipped(entries(), count=0xFFFF), "it holds too many files"),
    "a directory of 4 GiB": (
        lambda: zipped(entries(), nbytes=0xFFFFFFFF),
        "its directory is larger than it can be",
    ),
    "a directory too large for its members": (
        lambda: zipped([entries()[0]], nbytes=147, gap=bytes(200)),
        "its directory is larger than it can be",
    ),
    "a directory elsewhere": (lambda: zipped(entries(), offset=0), OTHER_END),
    "a directory beyond the end": (lambda: zipped(entries(), offset=0xFFFFFFFF), OTHER_END),
    "an empty directory": (lambda: zipped(entries(), nbytes=0), OTHER_END),
    "no manifest": (
        lambda: zipped(entries()[1:]),
        "its first member is not `manifest.json`",
    ),
    "manifest not first": (
        lambda: zipped([*entries()[1:3], entries()[0]]),
        "its first member is not `manifest.json`",
    ),
    "two manifests": (
        lambda: zipped([entries()[0], *entries()]),
        "`manifest.json` is there twice, or not in order",
    ),
    "weights twice": (
        lambda: zipped([*entries()[:3], *entries()[2:]]),
        "`weights.bin` is there twice, or not in order",
    ),
    "not in order": (
        lambda: zipped([entries()[0], *entries()[:0:-1]]),
        "`weights.bin` is there twice, or not in order",
    ),
    "a path upwards": (_renamed(b"../../etc/passwd"), OTHER_NAME),
    "an absolute path": (_renamed(b"/etc/passwd"), OTHER_NAME),
    "a folder": (_renamed(b"zz/"), OTHER_NAME),
    "a path of Windows": (_renamed(b"zz\\x"), OTHER_NAME),
    "a hidden file": (_renamed(b".zz"), OTHER_NAME),
    "no name": (_renamed(b""), OTHER_NAME),
    "a name with an end in it": (_renamed(b"zz\0.txt"), OTHER_NAME),
    "a name of 101 letters": (_renamed(b"z" * 101), OTHER_NAME),
    "a name of 60,000 letters": (_renamed(b"z" * 60_000), "its directory is larger than it can be"),
    "a name in letters beyond ASCII": (_renamed("zoë".encode()), OTHER_NAME),
    "another name there": (_changed("weights.bin", local_name=b"weights.bim"), OTHER_HEADER),
    "a zip bomb": (_deflated, "`weights.bin` is compressed"),
    "encrypted": (_changed("weights.bin", flags=1), "`weights.bin` is encrypted"),
    "sizes after the data": (_changed("weights.bin", flags=8), OTHER_ENTRY),
    "a size of 4 GiB": (_changed("weights.bin", size=0xFFFFFFFF), TOO_LARGE),
    "a size too large": (
        _changed("weights.bin", size=5120 + 64),
        TOO_LARGE.replace("weights.bin", "zz.txt"),
    ),
    "a size too small": (
        _changed("weights.bin", size=5000),
        OTHER_ENTRY.replace("weights.bin", "zz.txt"),
    ),
    "two sizes": (_changed("weights.bin", stored=5119), OTHER_ENTRY),
    "another size in the header": (_changed("weights.bin", local_size=5119), OTHER_HEADER),
    "ZIP64": (_zip64, TOO_LARGE),
    "a place elsewhere": (_changed("weights.bin", offset=0), OTHER_ENTRY),
    "a place beyond the end": (_changed("weights.bin", offset=0xFFFFFFF0), OTHER_ENTRY),
    "members that overlap": (_same_data_twice, OTHER_ENTRY.replace("weights.bin", "plan.bin")),
    "a gap": (_changed("weights.bin", gap=bytes(64)), OTHER_ENTRY),
    "a gap before the directory": (
        lambda: zipped(entries(), gap=b"\0"),
        "there is something between its parts",
    ),
    "data not aligned": (_changed("weights.bin", padding=10), OTHER_HEADER),
    "no padding": (_changed("weights.bin", padding=0), OTHER_HEADER),
    "something in the padding": (_changed("weights.bin", filler=b"x"), OTHER_HEADER),
    "a link": (_changed("weights.bin", attributes=0o120777 << 16), OTHER_ENTRY),
    "a program": (_changed("weights.bin", attributes=0o104755 << 16), OTHER_ENTRY),
    "made elsewhere": (_changed("weights.bin", made_by=10), OTHER_ENTRY),
    "another day": (_changed("weights.bin", date=0x5000), OTHER_ENTRY),
    "a member's comment": (_changed("weights.bin", comment=b"x"), OTHER_ENTRY),
    "more about a member": (_changed("weights.bin", extra=b"\1\0\0\0"), OTHER_ENTRY),
}  # fmt: skip


def sparse(path: str | os.PathLike[str], nbytes: int) -> None:
    """A file that is large and takes no room on disk."""
    with open(path, "wb") as file:
        file.write(b"PK\3\4")
        file.truncate(nbytes)
