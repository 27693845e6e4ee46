"""What a governor found before it changed a clock, on disk: the next start restores from it.

One small file per machine and user, ``clocks.json`` in ``$XDG_STATE_HOME/eecompile`` (else
``~/.local/state/eecompile``, else a folder of the user's own in the temporary one), for its owner's
eyes only. Whoever holds its lock sets clocks. It is empty while nothing is to be restored.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from eecompile.runtime.watchdog import parse_record

__all__ = ["Busy", "Journal", "journal_folders"]


class Busy(Exception):
    """Another process sets clocks; `process` is its number where it has said so."""

    def __init__(self, process: int | None) -> None:
        self.process = process
        told = "" if process is None else f" ({process})"
        super().__init__(f"another process{told} is setting clocks")


def journal_folders() -> list[Path]:
    """Where a journal may lie, the best first."""
    user = os.getuid()
    found = []
    if (given := os.environ.get("XDG_STATE_HOME")) and os.path.isabs(given):
        found.append(Path(given) / "eecompile")
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        found.append(Path(home) / ".local" / "state" / "eecompile")
    found.append(Path(tempfile.gettempdir()) / f"eecompile-{user}")
    return found


def _usable(folder: Path) -> bool:
    """Whether a folder is ours alone: in another's, a journal could name what root should write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = folder.lstat()
        # Group and others may look into a state folder, never write to it.
        own = there.st_uid == os.getuid() and not there.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return stat.S_ISDIR(there.st_mode) and own and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


class Journal:
    """The journal of one machine; `take` it before anything is written.

    Attributes:
        path: the file.
    """

    def __init__(self, identity: str, folder: Path) -> None:
        """`identity` says which tree of files it is about: "/" is this machine."""
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = folder / ("clocks.json" if identity == "/" else f"clocks-{digest}.json")
        self._handle = -1

    @classmethod
    def find(cls, identity: str) -> Journal | None:
        """The journal in the first folder where one can be written; None where there is none."""
        for folder in journal_folders():
            if not _usable(folder):
                continue
            found = cls(identity, folder)
            try:
                found.take()
            except Busy:
                return found
            except OSError:
                continue
            found.release()
            return found
        return None

    def take(self) -> dict[str, Any] | None:
        """Lock it, and the record that an earlier process left, if any.

        Raises:
            Busy: another process has it, or another governor of this one.
            OSError: it cannot be opened, or is no plain file of this user.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.path, flags, 0o600)
        try:
            there = os.fstat(handle)
            if not stat.S_ISREG(there.st_mode) or there.st_uid != os.getuid():
                raise PermissionError(f"{self.path} is not this user's")
            os.fchmod(handle, 0o600)
            found = parse_record(os.pread(handle, 1 << 20, 0).decode(errors="replace"))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(found["process"] if found else None) from None
            found = parse_record(os.pread(handle, 1 << 20, 0).decode(errors="replace"))
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return found

    def write(self, record: dict[str, Any] | None) -> None:
        """Replace what it holds and bring that to disk; None empties it.

        Raises:
            OSError: the disk is full or has gone.
        """
        text = b"" if record is None else json.dumps(record).encode()
        # One write over all there is, so that a kill leaves the old record or the new one.
        if text:
            os.pwrite(self._handle, text.ljust(os.fstat(self._handle).st_size), 0)
        os.ftruncate(self._handle, len(text))
        os.fsync(self._handle)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def release(self) -> None:
        """Let others have it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
