"""The files of a board's kernel, read and written through a session with it."""

from __future__ import annotations

import errno
import os

from eecompile.diagnostics import InternalError, ToolError
from eecompile.hardware import processor_name
from eecompile.targets.lowering.remote_connection import Connection

__all__ = ["RemoteFiles", "board_model"]


class RemoteFiles:
    """The files of a board's kernel under /sys and /proc, by their absolute paths.

    What is written to is put back by the board itself when the session is over.

    Methods raise `OSError` with the board's errno; where the session is lost it is ECONNRESET.
    """

    def __init__(self, connection: Connection) -> None:
        """`connection` has the board's library loaded."""
        self._connection = connection

    def read(self, path: str) -> str:
        """Text of a file; what is no UTF-8 is replaced."""
        return self.read_bytes(path).decode(errors="replace")

    def read_bytes(self, path: str) -> bytes:
        """Content of a file, at most a mebibyte of it."""
        return self._bytes("read", path)

    def write(self, path: str, text: str) -> None:
        """Hand a text to the kernel in one piece; only under /sys.

        The board remembers what the file held before the session first wrote to it.
        """
        self._call("write", path, text.encode())

    def remember(self, path: str) -> None:
        """Have what a file holds now put back in the end, though only the kernel may change it.

        A governor's own settings are such: the kernel forgets them with the governor.
        """
        self._call("remember", path)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted."""
        found = self._bytes("names", folder).split(b"\0")[:-1]
        return sorted(name.decode(errors="surrogateescape") for name in found)

    def _bytes(self, name: str, path: str) -> bytes:
        found = self._call(name, path)
        if not isinstance(found, bytes):
            raise InternalError(f"`{name}` of the board's library gave {found}")
        return found

    def _call(self, name: str, path: str, *arguments: bytes) -> int | bytes:
        try:
            found = self._connection.call(f"eecompile_{name}", path.encode(), *arguments)
        except ToolError as error:
            raise OSError(errno.ECONNRESET, error.message, path) from error
        if isinstance(found, int) and found < 0:
            raise OSError(-found, os.strerror(-found), path)
        return found


def board_model(files: RemoteFiles) -> str:
    """The board's model from its device tree, else its CPU's name; empty where neither is told."""
    try:
        return files.read("/proc/device-tree/model").strip("\0 \n")
    except OSError:
        pass
    try:
        return processor_name(files.read("/proc/cpuinfo"))
    except OSError:
        return ""
