"""A cache of expensive results, addressed by the content they were computed from.

Entries are files and folders under ``$EECOMPILE_CACHE``, else ``$XDG_CACHE_HOME/eecompile``, else
``~/.cache/eecompile``. Each carries a checksum: a damaged entry is a miss. Losing the cache costs
time, never results; where it cannot be written, builds go on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache as memoised
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eecompile.ir import Graph

__all__ = ["Cache", "digest", "source_digest"]

T = TypeVar("T")

_MAGIC = b"eecompile-cache-1\n"
_SOURCES = (".py", ".c", ".h", ".lark", ".toml")


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of strings, bytes, numbers, arrays, graphs and containers of them.

    Every part is tagged with its kind and length, so that no two different arguments collide.

    >>> digest("a", "bc") == digest("ab", "c")
    False
    """
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, part: Any) -> None:
    if isinstance(part, Graph):
        part = (part.name, part.inputs, part.outputs, part.ops, part.constants, part.types)
    if isinstance(part, np.ndarray):
        data = np.ascontiguousarray(part)
        state.update(f"array {data.dtype.str} {data.shape};".encode())
        state.update(data.view(np.uint8).reshape(-1) if data.size else b"")
    elif isinstance(part, Mapping):
        state.update(f"mapping {len(part)};".encode())
        for key in sorted(part):
            _feed(state, key)
            _feed(state, part[key])
    elif isinstance(part, tuple | list):
        state.update(f"sequence {len(part)};".encode())
        for item in part:
            _feed(state, item)
    elif isinstance(part, bytes | bytearray | memoryview):
        state.update(f"bytes {len(part)};".encode())
        state.update(part)
    elif hasattr(part, "__slots__") and hasattr(part, "__dataclass_fields__"):
        _feed(state, tuple(getattr(part, name) for name in part.__dataclass_fields__))
    else:
        text = f"{type(part).__name__} {part!r}".encode()
        state.update(f"text {len(text)};".encode())
        state.update(text)


@memoised
def source_digest() -> str:
    """SHA-256 of the tool's own source and of the versions of what it computes with.

    Results of another version are never taken for ours.
    """
    state = hashlib.sha256()
    for name in ("apache-tvm", "numpy", "onnx", "onnxruntime", "scipy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            state.update(f"{name} {importlib.metadata.version(name)};".encode())
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.suffix in _SOURCES and path.is_file():
            state.update(str(path.relative_to(folder)).encode())
            state.update(path.read_bytes())
    for linked in ("passes", "targets", "dsl"):  # rglob does not enter a checkout's links
        if (folder / linked).is_symlink():
            for path in sorted((folder / linked).resolve().rglob("*")):
                if path.suffix in _SOURCES:
                    state.update(path.read_bytes())
    return state.hexdigest()


class Cache:
    """Bytes and sets of arrays by key; the least recently used go when `limit_bytes` are passed."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = 4 << 30) -> None:
        self.folder = folder or _default_folder()
        self.limit_bytes = limit_bytes

    def arrays(
        self, key: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays stored under `key`, computed and stored where there are none."""
        found = self.load_arrays(key)
        if found is None:
            found = dict(compute())
            self.store_arrays(key, found)
        return found

    def load_arrays(self, key: str) -> dict[str, np.ndarray] | None:
        """The stored arrays, or None where there are none or they are damaged."""
        found = self.load(key)
        if found is None:
            return None
        with (
            contextlib.suppress(Exception),  # an entry numpy cannot read is a miss
            np.load(io.BytesIO(found), allow_pickle=False) as stored,
        ):
            return {name: stored[name] for name in stored.files}
        return None

    def store_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep named arrays."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        self.store(key, buffer.getvalue())

    def load(self, key: str) -> bytes | None:
        """The stored value, or None where there is none or it is damaged."""
        path = self.folder / key
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        self.touch(path)  # fails silently: a cache that can only be read serves all the same
        head = len(_MAGIC)
        if (
            raw[:head] != _MAGIC
            or hashlib.sha256(raw[head + 32 :]).digest() != raw[head : head + 32]
        ):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return raw[head + 32 :]

    def store(self, key: str, value: bytes) -> None:
        """Keep a value; a cache that cannot be written is no error."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(value).digest())
                    file.write(value)
                os.replace(name, self.folder / key)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            self.evict()

    def folder_made(self, folder: Path, make: Callable[[Path], T]) -> T:
        """What `make` gives when it writes an entry that is a folder of this cache.

        It must put the folder there whole, and what it gives must stay valid when the folder is
        removed: as mapped files do. Where the cache cannot be written, a temporary folder serves.

        Raises:
            OSError: a temporary folder cannot be written either.
        """
        with contextlib.suppress(OSError):
            made = make(folder)
            self.evict(spare=folder)
            return made
        with tempfile.TemporaryDirectory(prefix="eecompile-") as scratch:
            return make(Path(scratch) / folder.name)

    @staticmethod
    def touch(entry: Path) -> None:
        """An entry has been used: others are dropped before it."""
        with contextlib.suppress(OSError):
            os.utime(entry)

    def evict(self, spare: Path | None = None) -> None:
        """Drop the least recently used entries until the rest fits, and what killed builds left.

        Args:
            spare: an entry in use, which stays.
        """
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            left_over = path.name.startswith(".") and time.time() - used > _LEFT_OVER_S
            if not left_over and (total <= self.limit_bytes or path == spare):
                continue
            if path.name.startswith(".") and not left_over:
                continue  # somebody is writing it
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(time of the latest use, bytes, path) of everything here that is ours."""
        try:
            found = list(self.folder.iterdir())
        except OSError:
            return
        for path in found:
            if not _OURS.fullmatch(path.name):
                continue
            with contextlib.suppress(OSError):  # another build may have dropped it meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_mtime, status.st_size, path
                elif stat.S_ISDIR(status.st_mode):
                    inside = [file.lstat() for file in path.iterdir()]
                    # What is being written changes inside, what is used is touched itself.
                    writing = [file.st_mtime for file in inside if path.name.startswith(".")]
                    used = max((status.st_mtime, *writing))
                    yield used, sum(file.st_size for file in inside), path


#: Entries, and what is being written; nothing else in the folder is ever touched.
_OURS = re.compile(r"([a-z]+-)?[0-9a-f]{64}|\.(new|record)-.*")
#: What has not been written to for so long belongs to a build that was killed.
_LEFT_OVER_S = 3600.0


def _default_folder() -> Path:
    if chosen := os.environ.get("EECOMPILE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "eecompile"
