"""Arrays in a file that nobody vouches for: what is there is read, all else refused in words."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.artifact import read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.inspection import inspect_path
from eecompile.npz import NpzError, arrays_in, npz_bytes
from eecompile.runtime.opening import stored_policy
from tests.runtime import tiny


def member(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file with this header."""
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + data


def archive(data: bytes, how: int = zipfile.ZIP_STORED, name: str = "x.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo(name), data, how)
    return buffer.getvalue()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("ab.", min_size=1, max_size=3),
        st.tuples(
            st.sampled_from(["f4", "f8", "i8", "u1", "?"]),
            st.lists(st.integers(0, 3), max_size=3),
            st.booleans(),
        ),
        max_size=4,
    )
)
def test_what_was_written_is_read(wanted: dict[str, tuple[str, list[int], bool]]) -> None:
    arrays = {
        name: np.asarray(
            np.random.default_rng(0).random(shape) * 9, order="F" if turned else "C"
        ).astype(dtype)
        for name, (dtype, shape, turned) in wanted.items()
    }
    found = arrays_in(npz_bytes(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    with np.load(io.BytesIO(npz_bytes(arrays))) as stored:
        assert sorted(stored.files) == sorted(arrays)


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a zip file"),
        (b"PK", "not a zip file"),
        (archive(member(GOOD, bytes(8)), zipfile.ZIP_DEFLATED), "it is compressed"),
        (archive(bytes(1 << 20), zipfile.ZIP_DEFLATED), "it is compressed"),
        (archive(b"", name="x"), "EOF"),
        (archive(member(GOOD, bytes(7))), "has not the bytes of its shape"),
        (archive(member(GOOD, bytes(9))), "has not the bytes of its shape"),
        (archive(member(GOOD.replace("2", "1 << 40"))), "malformed"),
        (archive(member(GOOD.replace("2", "1099511627776"))), "has not the bytes of its shape"),
        (archive(member(GOOD.replace("2,", "4294967296, 4294967296"))), "bytes of its shape"),
        (archive(member(GOOD.replace("2", "-2"))), "holds no numbers"),
        (archive(member(GOOD.replace("<f4", "|O"), bytes(16))), "holds no numbers"),
        (archive(member(GOOD.replace("<f4", "<U1"), bytes(8))), "holds no numbers"),
        (archive(member(GOOD.replace("'<f4'", "[('a', '<f4')]"), bytes(8))), "holds no numbers"),
        (archive(member(GOOD.replace("<f4", ","), bytes(8))), ""),
        (archive(member("__import__('os').abort()")), ""),
        (archive(member("(" * 9000)), ""),
        (archive(member("-" * 9000 + "1")), ""),
        (archive(member(GOOD + " " * 20_000, bytes(8))), "Header"),
        (archive(member(GOOD, bytes(8), b"\3\0")), "is of another version"),
    ],
)
def test_what_is_no_file_of_arrays_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(NpzError) as failure:
        arrays_in(data)
    assert words in str(failure.value) and str(failure.value)


def test_parts_that_lie_over_each_other_are_refused() -> None:
    """Many entries for the same bytes would make much out of little."""
    one = archive(member(GOOD.replace("2", "2500"), bytes(10_000)))
    start = one.rindex(b"PK\1\2")
    end = one.rindex(b"PK\5\6")
    directory = one[start:end] * 50
    counts = struct.pack("<HHII", 50, 50, len(directory), start)
    with pytest.raises(NpzError, match="its parts are larger than the whole"):
        arrays_in(one[:start] + directory + one[end : end + 8] + counts + b"\0\0")


def test_vectors_are_refused_as_a_damaged_artifact(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    artifact = read_artifact(tmp_path / "out")
    texts = {**artifact.texts, "vectors.npz": archive(bytes(100), zipfile.ZIP_DEFLATED)}
    object.__setattr__(artifact, "texts", texts)
    with pytest.raises(CompileErrors, match=r"`vectors\.npz` holds no test vectors: it is c"):
        artifact.vectors()


@pytest.mark.parametrize("text", ["segments\n", "segments \0", "", "(" * 100_000])
def test_a_text_of_segments_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write_artifact(tmp_path / "out", tiny.contents(segments_text=text))
    with pytest.raises(CompileErrors) as failure:
        inspect_path(tmp_path / "out")
    (diagnostic,) = failure.value.diagnostics
    assert diagnostic.id == "bad-artifact"
    assert diagnostic.message.startswith("`segments.txt` cannot be used: ")


def test_a_policy_of_numbers_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    artifact = read_artifact(tmp_path / "out")
    entry = artifact.policies["fast"]
    rule = {**entry.rule, "thresholds": [10**400, 0.5]}
    object.__setattr__(entry, "rule", rule)
    with pytest.raises(CompileErrors, match="The policy `fast` cannot be used"):
        stored_policy(artifact, "fast", entry, [])
