"""Small files through which a kernel tells and takes settings: sysfs and procfs, here or elsewhere.

Whoever reads clocks, sensors or temperatures takes a `SysFiles`, so that the same code works on
this machine, on a board at the other end of a wire, and on a copy of a tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from eecompile.runtime.watchdog import GONE, put

__all__ = [
    "LocalFiles",
    "OpenFile",
    "SysFiles",
    "exists",
    "matching",
    "number_in",
    "number_or_why",
    "opened",
    "read_number",
    "read_text",
]

_MOST_BYTES = 1 << 20  #: of one file; what is longer is no setting


class SysFiles(Protocol):
    """Files of a kernel by their absolute paths ("/sys/...").

    Every method raises `OSError` with the kernel's errno: ENOENT and ENODEV for what is not there
    or not any more, EACCES, EINVAL for a value the kernel does not take, EBUSY.

    Files may have more: `opened` (see the function of that name), `privileged` (whether what the
    kernel makes anew can be written too), `root` or `identity` (of which machine they are, for the
    journal), and `remember` (have a text put back in the end by the machine they are on).
    """

    def read(self, path: str) -> str:
        """Text of a file, as the kernel gives it: mostly with a newline at the end."""

    def read_bytes(self, path: str) -> bytes:
        """Content of a file."""

    def write(self, path: str, text: str) -> None:
        """Hand a text to the kernel in one piece."""

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted."""


class OpenFile(Protocol):
    """One file that is read and written often."""

    def read(self) -> str:
        """As `SysFiles.read`."""

    def write(self, text: str) -> None:
        """As `SysFiles.write`."""

    def close(self) -> None:
        """Give back what it holds; it is not used afterwards."""


class LocalFiles:
    """The files of this machine, or of a copy of a tree that lies under `root`.

    >>> LocalFiles("/tmp/copy").path("/sys/class")
    '/tmp/copy/sys/class'
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._prefix = "" if self.root == "/" else self.root

    @property
    def privileged(self) -> bool:
        """Whether files the kernel makes anew can be written as well: root's are."""
        return os.geteuid() == 0

    def path(self, path: str) -> str:
        """Where a file of the tree lies on this machine."""
        return self._prefix + path

    def read(self, path: str) -> str:
        """Text of a file; what is no UTF-8 is replaced."""
        return self.read_bytes(path).decode(errors="replace")

    def read_bytes(self, path: str) -> bytes:
        """Content of a file, at most a mebibyte of it."""
        with open(self.path(path), "rb", buffering=0) as file:
            parts = []
            left = _MOST_BYTES
            while left and (part := file.read(min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)

    def write(self, path: str, text: str) -> None:
        """Hand a text to the kernel in one `write`; the file must be there."""
        handle = os.open(self.path(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            put(handle, text, plain=bool(self._prefix))
        finally:
            os.close(handle)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(os.listdir(self.path(folder)))

    def opened(self, path: str) -> OpenFile:
        """The file, kept open for reading and writing.

        Raises:
            OSError: it is not there or may not be written; nothing has been written.
        """
        return _Descriptor(self.path(path), plain=bool(self._prefix))


class _Descriptor:
    """An open file, read and written at 0 each time."""

    __slots__ = ("_handle", "_plain")

    def __init__(self, path: str, plain: bool) -> None:
        """`plain`: a file on disk, not the kernel's."""
        self._handle, self._plain = -1, plain
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self) -> str:
        return os.pread(self._handle, 4096, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        put(self._handle, text, self._plain)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()


class _ByPath:
    """A file of files that cannot be kept open."""

    __slots__ = ("_files", "_path")

    def __init__(self, files: SysFiles, path: str) -> None:
        self._files, self._path = files, path

    def read(self) -> str:
        return self._files.read(self._path)

    def write(self, text: str) -> None:
        self._files.write(self._path, text)

    def close(self) -> None:
        pass


def opened(files: SysFiles, path: str) -> OpenFile:
    """A file for frequent use: kept open where the files can (they have `opened`), else by path.

    Raises:
        OSError: it is not there, or may not be read and written.
    """
    keep = getattr(files, "opened", None)
    if keep is not None:
        found: OpenFile = keep(path)
        return found
    files.read(path)
    return _ByPath(files, path)


def read_text(files: SysFiles, path: str) -> str | None:
    """A file without white space around it; None where it cannot be read."""
    try:
        return files.read(path).strip()
    except OSError:
        return None


def number_in(text: str | None) -> int | None:
    """The whole number that a text is, at most 20 digits of it; None where it is none.

    >>> number_in("1800000"), number_in("-5"), number_in("<unsupported>"), number_in(None)
    (1800000, -5, None, None)
    """
    text = "" if text is None else text.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        return None
    return int(text)


def read_number(files: SysFiles, path: str) -> int | None:
    """The whole number in a file; None where it cannot be read or holds none."""
    return number_in(read_text(files, path))


def number_or_why(files: SysFiles, path: str) -> int | str:
    """The number in a file, or why there is none."""
    try:
        found = number_in(files.read(path))
    except OSError as error:
        if error.errno in GONE:
            return "gone"
        return (error.strerror or "unreadable").lower()
    return "not a number" if found is None else found


def exists(files: SysFiles, path: str) -> bool:
    """Whether a file can be read."""
    return read_text(files, path) is not None


def matching(files: SysFiles, folder: str, prefix: str) -> Iterator[str]:
    """Paths in a folder whose names are `prefix` and a number, by that number; none if no folder.

    Names that are such a number and then a colon (``intel-rapl:0:1``) are left out.
    """
    try:
        names = files.names(folder)
    except OSError:
        return
    numbers = sorted(
        int(rest)
        for name in names
        if name.startswith(prefix)
        for rest in [name.removeprefix(prefix)]
        if rest.isascii() and rest.isdigit()
    )
    for number in numbers:
        yield f"{folder}/{prefix}{number}"
