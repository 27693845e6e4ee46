"""A cache of expensive results, addressed by the content they were computed from.

Entries are files under ``$EECOMPILE_CACHE``, else ``$XDG_CACHE_HOME/eecompile``, else
``~/.cache/eecompile``. Each carries a checksum: a damaged entry is a miss. Losing the cache costs
time, never results; where it cannot be written, builds go on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache as memoised
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.ir import Graph

__all__ = ["Cache", "digest", "source_digest"]

_MAGIC = b"eecompile-cache-1\n"


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
    """SHA-256 of the tool's own source: results of another version are never taken for ours."""
    state = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".lark", ".toml") and path.is_file():
            state.update(str(path.relative_to(folder)).encode())
            state.update(path.read_bytes())
    for linked in ("passes", "targets", "dsl"):  # rglob does not enter a checkout's links
        if (folder / linked).is_symlink():
            for path in sorted((folder / linked).resolve().rglob("*")):
                if path.suffix in (".py", ".lark", ".toml"):
                    state.update(path.read_bytes())
    return state.hexdigest()


class Cache:
    """Bytes and sets of arrays by key, kept below `limit_bytes` by dropping the least recently used."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = 4 << 30) -> None:
        self.folder = folder or _default_folder()
        self.limit_bytes = limit_bytes

    def bytes(self, key: str, compute: Callable[[], bytes]) -> bytes:
        """The value stored under `key`, computed and stored where there is none."""
        found = self.load(key)
        if found is None:
            found = compute()
            self.store(key, found)
        return found

    def arrays(
        self, key: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Like `bytes`, for named arrays."""
        found = self.load(key)
        if found is not None:
            with contextlib.suppress(Exception):  # an entry numpy cannot read is a miss
                with np.load(io.BytesIO(found), allow_pickle=False) as stored:
                    return {name: stored[name] for name in stored.files}
        computed = dict(compute())
        buffer = io.BytesIO()
        np.savez(buffer, **computed)  # type: ignore[arg-type]
        self.store(key, buffer.getvalue())
        return computed

    def load(self, key: str) -> bytes | None:
        """The stored value, or None where there is none or it is damaged."""
        path = self.folder / key
        try:
            raw = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
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
            self._evict()

    def _evict(self) -> None:
        entries = [(path.stat(), path) for path in self.folder.iterdir() if path.is_file()]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def _default_folder() -> Path:
    if chosen := os.environ.get("EECOMPILE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "eecompile"
