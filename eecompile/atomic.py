"""Folders and files that are written whole or not at all.

A new folder is built beside its destination, brought to disk and then put in the destination's
place in one step, so that whoever looks, and whenever the process or the machine stops, finds
either the earlier folder or the new one, complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from eecompile.diagnostics import CompileErrors, Diagnostic

__all__ = [
    "check_file",
    "check_replaceable",
    "check_replaceable_file",
    "replaced_directory",
    "replaced_file",
    "replaced_plain_file",
    "write_errors",
    "write_file",
]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MARK = "eecompile-tmp"


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and bring it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_directory(destination: Path, refusal: Callable[[Path], str]) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `destination` at the end.

    Every `OSError` of the body is taken for a failed write. On any exception, Ctrl-C included, the
    fresh folder is removed and `destination` is as it was. What a killed process left behind is
    removed when the same destination is written again.

    Args:
        destination: a folder, or a path where there is nothing yet; links are followed. Parents
            are created.
        refusal: says of a folder that is not empty why it may not be replaced ("is no artifact"),
            empty where it may.

    Raises:
        CompileErrors: `destination` may not be replaced, the disk is full or not writable.
    """
    wanted, destination = destination, Path(os.path.realpath(destination))
    with write_errors(wanted):
        _refuse_foreign(wanted, destination, refusal)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(destination)
        fresh = _fresh(destination)
        lock = None
        try:
            fresh.mkdir()
            lock = os.open(fresh, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield fresh
            _refuse_foreign(wanted, destination, refusal)
            _sync_directory(fresh)
            _swap(fresh, destination)
        finally:
            # After a swap `fresh` holds what was there before.
            if lock is not None:
                os.close(lock)
            _remove(fresh)


@contextmanager
def replaced_plain_file(destination: Path, refusal: Callable[[Path], str]) -> Iterator[BinaryIO]:
    """A fresh file to write into, which takes the place of `destination` at the end.

    As `replaced_directory`, for one file.

    Raises:
        CompileErrors: `destination` may not be replaced, the disk is full or not writable.
    """
    wanted, destination = destination, Path(os.path.realpath(destination))
    with write_errors(wanted):
        _refuse_other_file(wanted, destination, refusal)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(destination)
        fresh = _fresh(destination)
        try:
            with open(fresh, "xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
            _refuse_other_file(wanted, destination, refusal)
            if destination.exists():
                fresh.chmod(destination.stat().st_mode & 0o777)
            fresh.replace(destination)
            _sync_directory(destination.parent)
        finally:
            fresh.unlink(missing_ok=True)


def _fresh(destination: Path) -> Path:
    return destination.with_name(
        f".{destination.name}.{_MARK}-{os.getpid()}-{secrets.token_hex(4)}"
    )


def check_replaceable_file(destination: Path, refusal: Callable[[Path], str]) -> None:
    """Refuses what `replaced_plain_file` would refuse, as far as can be told beforehand.

    Raises:
        CompileErrors: `destination` may not be replaced, or its folder not be written to.
    """
    with write_errors(destination):
        _refuse_other_file(destination, Path(os.path.realpath(destination)), refusal)
    check_file(destination)


def check_replaceable(destination: Path, refusal: Callable[[Path], str]) -> None:
    """Refuses what `replaced_directory` would refuse, as far as can be told beforehand.

    Raises:
        CompileErrors: `destination` may not be replaced, or its folder not be written to.
    """
    real = Path(os.path.realpath(destination))
    with write_errors(destination):
        _refuse_foreign(destination, real, refusal)
        there = next(path for path in real.parents if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=there):
            pass


def check_file(destination: Path, *, may_make_folder: bool = True) -> None:
    """Refuses a place where no file can be written, as far as can be told beforehand.

    Args:
        destination: the file.
        may_make_folder: whether its folder is made where there is none.

    Raises:
        CompileErrors: `destination` is a folder, or its folder cannot be written to.
    """
    real = Path(os.path.realpath(destination))
    with write_errors(destination):
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (may_make_folder or real.parent.is_dir()):
            raise FileNotFoundError(errno.ENOENT, f"there is no folder `{destination.parent}`")
        there = next(path for path in real.parents if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=there):
            pass


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns what the system says of writing to `path` into a diagnostic.

    Raises:
        CompileErrors: the body raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise CompileErrors(
            [
                Diagnostic(
                    "cannot-write",
                    f"Cannot write `{path.name}`: {reason[:1].lower()}{reason[1:]}",
                    path=str(path),
                    notes=("what was there before is untouched",),
                    help="free some space, or write to another disk" if full else "",
                )
            ]
        ) from error


def _refuse_foreign(wanted: Path, destination: Path, refusal: Callable[[Path], str]) -> None:
    if not os.path.lexists(destination):
        return
    if not destination.is_dir():
        found = "is a file, not a folder"
    else:
        found = refusal(destination) if any(destination.iterdir()) else ""
    if not found:
        return
    raise CompileErrors(
        [
            Diagnostic(
                "cannot-write",
                f"`{wanted.name or wanted}` {found}",
                path=str(wanted),
                help="only an empty folder or an earlier artifact is replaced; name another one",
            )
        ]
    )


def _refuse_other_file(wanted: Path, destination: Path, refusal: Callable[[Path], str]) -> None:
    if not os.path.lexists(destination):
        return
    found = refusal(destination) if destination.is_file() else "is no plain file"
    if not found:
        return
    raise CompileErrors(
        [
            Diagnostic(
                "cannot-write",
                f"`{wanted.name or wanted}` {found}",
                path=str(wanted),
                help="only an empty file or an earlier packed artifact is replaced; name another",
            )
        ]
    )


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(fresh: Path, destination: Path) -> None:
    if destination.exists() and not _exchange(fresh, destination):
        # File systems without an exchange: between the two renames nothing stands at
        # `destination`; `_remove_stale` puts the earlier folder back if we are killed there.
        earlier = fresh.with_name(fresh.name + ".old")
        destination.rename(earlier)
        try:
            fresh.rename(destination)
        except BaseException:
            earlier.rename(destination)
            raise
        earlier.rename(fresh)
    elif not destination.exists():
        fresh.rename(destination)
    _sync_directory(destination.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = renameat2(
        _AT_FDCWD,
        os.fsencode(first),
        _AT_FDCWD,
        os.fsencode(second),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _remove_stale(destination: Path) -> None:
    """Clean up after processes that were killed while writing `destination`."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.{_MARK}-(\d+)-[^.]*(\.old)?")
    for path in sorted(destination.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if not match or path.is_symlink() or not (path.is_dir() or path.is_file()):
            continue
        if _in_use(path, int(match[1])):
            continue
        if match[2] and not destination.exists():
            path.rename(destination)
        else:
            _remove(path)


def _in_use(path: Path, process: int) -> bool:
    """Whether the process that made a temporary folder may still be at work in it.

    Its lock says so even from another container; before it has taken the lock, its being alive.
    (A number may belong to another process by now: hence the limit of a minute.)
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return time.time() - path.stat().st_ctime < 60


def _remove(path: Path) -> None:
    """Remove what is ours; a second Ctrl-C while doing so does not stop it half-way."""
    if path.is_file():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(path, ignore_errors=True)
        raise


def replaced_file(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file, which is either the old or the new one at any moment.

    What is there and no plain file, such as ``/dev/stdout``, is written to.

    Raises:
        CompileErrors: it cannot be written; the old file is as it was.
    """
    with write_errors(path):
        _replace_file(Path(os.path.realpath(path)), data)  # a link stays a link


def _replace_file(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    fresh = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_file(fresh, data)
        if path.exists():
            fresh.chmod(path.stat().st_mode & 0o777)
        os.replace(fresh, path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
