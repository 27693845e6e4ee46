"""Arrays in .npy and .npz files, read a block of rows at a time."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["UNREADABLE", "ArrayFile", "ArrayFileError", "npz_keys", "open_npy", "open_npz"]

Array = np.ndarray[Any, Any]

#: What numpy and zipfile raise for damaged files. A flipped bit may ask for a password
#: (RuntimeError), for another compression, or for more memory than there is.
UNREADABLE = (
    *(EOFError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, ValueError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class ArrayFileError(Exception):
    """A file cannot be read as an array; the text says why, without the file's name."""


@dataclass(frozen=True)
class ArrayFile:
    """An array on disk.

    Attributes:
        path: the file.
        shape: of the whole array.
        dtype: element type.
        key: its name in an .npz file, None for .npy.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key: str | None = None

    def blocks(self, start: int, stop: int, size: int) -> Iterator[Array]:
        """Rows `start` to `stop` (excluded), at most `size` at a time.

        Memory holds one block: .npy files are mapped, members of .npz files are read as a stream,
        what lies before `start` included.

        Raises:
            ArrayFileError: the file ends early or is damaged.
        """
        with _reading():
            if self.key is None:
                mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
                for at in range(start, stop, size):
                    yield np.asarray(mapped[at : min(at + size, stop)])
                return
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as stream:
                _header(stream)
                _skip(stream, start * self._row_bytes)
                for at in range(start, stop, size):
                    yield self._rows(stream, min(size, stop - at))
                if stop == self.shape[0]:
                    stream.read(1)  # At the end, the member's checksum is compared.

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def _rows(self, stream: IO[bytes], count: int) -> Array:
        data = stream.read(count * self._row_bytes)
        if len(data) < count * self._row_bytes:
            raise ArrayFileError("the file is truncated")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _skip(stream: IO[bytes], count: int) -> None:
    while count:
        found = len(stream.read(min(count, 1 << 20)))
        if not found:
            raise ArrayFileError("the file is truncated")
        count -= found


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArrayFileError("there is no such file") from error
    except UNREADABLE as error:
        raise ArrayFileError(str(error).strip('"').rstrip(".") or type(error).__name__) from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that starts here; the stream stands at its first element."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ArrayFileError(f"arrays of format {version} are not supported")
    if dtype.hasobject:
        raise ArrayFileError("it holds Python objects, which are never loaded")
    if fortran and len(shape) > 1:
        raise ArrayFileError("its array is in Fortran order; save it with np.ascontiguousarray")
    return shape, dtype


def open_npy(path: Path) -> ArrayFile:
    """The array of a .npy file.

    Raises:
        ArrayFileError: the file is missing, unreadable, truncated or holds objects.
    """
    with _reading(), path.open("rb") as stream:
        shape, dtype = _header(stream)
        expected = stream.tell() + prod(shape) * dtype.itemsize
        if path.stat().st_size < expected:
            raise ArrayFileError("the file is truncated")
    return ArrayFile(path, shape, dtype)


def npz_keys(path: Path) -> list[str]:
    """Names of the arrays in an .npz file.

    Raises:
        ArrayFileError: the file is missing or is no .npz file.
    """
    with _reading(), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def open_npz(path: Path, key: str) -> ArrayFile:
    """One array of an .npz file.

    Raises:
        ArrayFileError: the array is missing, unreadable or holds objects.
    """
    with _reading(), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
        shape, dtype = _header(stream)
    return ArrayFile(path, shape, dtype, key)
