"""Arrays by name as one file, in numpy's .npz form: written in one way, read without trust.

Nothing is compressed, so that a file cannot be larger than it looks, and no array is made before it
is known that its bytes are there.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from math import prod

import numpy as np

from eecompile.array_files import UNREADABLE

__all__ = ["NpzError", "arrays_in", "npz_bytes"]

_MOST_HEADER_BYTES = 10_000  #: of an array; numpy's own limit for files that are not trusted


class NpzError(ValueError):
    """A file is not what `npz_bytes` writes."""


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A .npz with the same bytes for the same arrays: no times, one order, no compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asanyarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return buffer.getvalue()


def arrays_in(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file; they are read-only.

    >>> arrays_in(npz_bytes({"x": np.arange(3)}))["x"].tolist()
    [0, 1, 2]

    Raises:
        NpzError: it is no .npz file, a part of it is compressed or damaged, or holds no array of
            numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise NpzError("it is compressed")
            if sum(entry.file_size for entry in entries) > len(data):
                raise NpzError("its parts are larger than the whole")
            return {
                entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries
            }
    except NpzError:
        raise
    except (*UNREADABLE, SyntaxError, TypeError, LookupError, struct.error) as error:
        # The last four are of numpy's and zipfile's own parsers.
        raise NpzError(str(error) or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    data = archive.read(entry)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise NpzError(f"`{entry.filename}` is of another version")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream, max_header_size=_MOST_HEADER_BYTES)
    if dtype.kind not in "biuf" or not all(extent >= 0 for extent in shape):
        raise NpzError(f"`{entry.filename}` holds no numbers")
    if prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise NpzError(f"`{entry.filename}` has not the bytes of its shape")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if by_columns else "C")
