"""Artifacts with something changed, by a number: the same number changes the same.

A mutation changes one to three things of a good artifact: bytes, JSON values, the files themselves,
the signature, or the packed form. Most then have their hashes and sizes repaired, so that what is
wrong is met by the deepest check there is for it. What comes of reading each is one of two things:
it is accepted, or refused with a `CompileErrors`; anything else is a bug.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from eecompile.artifact import Artifact, read_artifact
from eecompile.checked_json import JsonError
from eecompile.cli import main
from eecompile.diagnostics import CompileErrors
from eecompile.halt_rule import HaltRule
from eecompile.offload_rule import OffloadRule
from eecompile.packed_form import packed
from eecompile.policies import ExitOutputs
from eecompile.runtime.opening import stored_guard, stored_policy

__all__ = ["Mutator", "outcome"]

_JSON = ("manifest.json", "policies.json", "costs.json", "reports.json", "signature.json")
_NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 63, -(1 << 63)),
    *(10**400, 1e308, -1e308, 5e-324, -0.0, 0.5, "", "x", "../x", "/etc/passwd", "a/b", "a\0b"),
    *("kernels.so", "manifest.json", "signature.json", "float32", "early", "final", "\ud800"),
    *("0" * 64, "x" * 100_000, [], {}, [[]], [None] * 3, {"": None}, [0] * 2000, {"a": {"b": []}}),
)
_NAMES = ("../x", "..", "/x", "a/b", ".hidden", "x" * 101, "KERNELS.SO", "kernels.so ", "é", "-")


def outcome(path: Path, whole: bool = True) -> str:
    """``accepted``, or ids of the diagnostics it was refused with; everything else is raised.

    `whole`: whether `inspect` shows it as well, which takes most of the time.
    """
    try:
        _use(read_artifact(path, must_run=False))
    except CompileErrors as errors:
        found = sorted({diagnostic.id for diagnostic in errors.diagnostics})
        assert found and all(diagnostic.message for diagnostic in errors.diagnostics)
        str(errors), errors.full()
        return " ".join(found)
    if whole:
        _inspect(path)
    return "accepted"


def _inspect(path: Path) -> None:
    """Show it to people and to scripts; segments, reports and gates are read for that only."""
    for options in ((), ("--json",)):
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            status = main(["inspect", str(path), *options])
        assert status in (0, 1), told.getvalue()


def _use(artifact: Artifact) -> None:
    """Everything that is read of an artifact without running its code."""
    artifact.vectors()
    _ = artifact.costs
    for name, entry in artifact.policies.items():
        stored_policy(artifact, name, entry, _scores(artifact))
        stored_guard(artifact, name, entry, 0)
        with contextlib.suppress(JsonError):
            _ = entry.halt and HaltRule.from_json(entry.halt)
            _ = entry.offload and OffloadRule.from_json(entry.offload)


def _scores(artifact: Artifact) -> list[ExitOutputs]:
    """Scores of every exit, as policies are tried on before anything is run."""
    found = []
    for exit_ in artifact.manifest.network.exits:
        logits, means = (
            None if f is None else np.zeros((1, f.outputs[0][1].size), np.float32)
            for f in (exit_.head, exit_.comparator)
        )
        answer = means if logits is None else logits
        assert answer is not None
        found.append(ExitOutputs(answer, means))
    return found


class Mutator:
    """Changes a good artifact, in a folder of its own that is made and removed by others."""

    def __init__(self, files: Mapping[str, bytes], folder: Path) -> None:
        """Of an artifact's files; mutations are written below `folder`."""
        self._good = dict(files)
        self._folder, self._there = folder / "artifact", dict[str, bytes]()
        self._packed = folder / "artifact.eec"

    def path(self, number: int) -> Path:
        """Where a mutation lies, until the next one is asked for."""
        random = Random(number)
        files = dict(self._good)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            random.choice(_CHANGES)(random, files)
        if random.random() < 0.8:
            _repair(random, files)
        if random.random() < 0.35:
            self._packed.write_bytes(_packed(random, files))
            return self._packed
        self._write(files)
        if random.random() < 0.05:
            _strange(random, self._folder)
            self._there = {}
        return self._folder

    def _write(self, files: Mapping[str, bytes]) -> None:
        """Only what differs from the last mutation is written."""
        if not self._there:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        for name in self._there.keys() - files.keys():
            (self._folder / name).unlink()
        for name, data in files.items():
            if self._there.get(name) is not data:
                (self._folder / name).write_bytes(data)
        self._there = dict(files)


def _member(random: Random, files: Mapping[str, bytes]) -> str:
    return random.choice(sorted(files))


def _truncate(random: Random, files: dict[str, bytes]) -> None:
    name = _member(random, files)
    files[name] = files[name][: random.randrange(len(files[name]) + 1)]


def _extend(random: Random, files: dict[str, bytes]) -> None:
    name = _member(random, files)
    files[name] += random.randbytes(random.choice((1, 1, 7, 64, 5000)))


def _flip(random: Random, files: dict[str, bytes]) -> None:
    name = _member(random, files)
    files[name] = _flipped(random, files[name])


def _flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(random: Random, files: dict[str, bytes]) -> None:
    """A run of bytes: at random, all alike, or from elsewhere in the file."""
    name = _member(random, files)
    data, count = files[name], random.choice((1, 2, 4, 8, 64))
    at, other = random.randrange(len(data) + 1), random.randrange(len(data) + 1)
    runs = (random.randbytes(count), b"\0" * count, b"\xff" * count, data[other : other + count])
    files[name] = data[:at] + random.choice(runs) + data[at + random.choice((0, count)) :]


def _numbers(random: Random, files: dict[str, bytes]) -> None:
    """A 16, 32 or 64 bit number that is extreme, at a place where one may be."""
    name = _member(random, files)
    data, width = bytearray(files[name]), random.choice((2, 4, 8))
    if len(data) < width:
        return
    most = (1 << 8 * width) - 1
    value = random.choice((0, 1, most, most >> 1, (most >> 1) + 1, len(data), len(data) + 1))
    at = random.randrange(len(data) - width + 1) & ~random.choice((0, width - 1))
    data[at : at + width] = (value & most).to_bytes(width, "little")
    files[name] = bytes(data)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for key, part in entries:
        found.append((*at, key))
        if isinstance(part, dict | list):
            found += _places(part, (*at, key))
    return found


def _json(random: Random, files: dict[str, bytes]) -> None:
    """A value of a JSON file is set, removed, renamed, doubled, or comes from elsewhere in it."""
    name = random.choice([name for name in _JSON if name in files])
    try:
        value = json.loads(files[name])
        places = _places(value)
    except (ValueError, TypeError, RecursionError, AttributeError):
        return
    for _ in range(random.choice((1, 1, 2)) if places else 0):
        *path, key = random.choice(places)
        parent = value
        try:
            for step in path:
                parent = parent[step]
            _set(random, parent, key, value)
        except (KeyError, IndexError, TypeError):
            return
    files[name] = _text(random, value)


def _set(random: Random, parent: Any, key: Any, top: Any) -> None:
    how = random.randrange(5)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[random.choice((*_NAMES, "x", "sha256", "early"))] = parent.pop(key)
    elif how == 2 and isinstance(parent, list):
        parent.insert(random.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    elif how == 3:
        other = top
        for step in random.choice(_places(top)):
            other = other[step]
        parent[key] = copy.deepcopy(other)
    elif isinstance(parent[key], int | float) and random.random() < 0.5:
        with contextlib.suppress(OverflowError):  # there are whole numbers beyond all floats
            parent[key] += random.choice((-1, 1, 0.5))
    else:
        parent[key] = random.choice(_NASTY)


def _text(random: Random, value: Any) -> bytes:
    text = json.dumps(value)
    if random.random() < 0.1:
        old, new = random.choice(
            ((": ", ": NaN, "), ("1", "1e999"), ("{", "{" * 50), ("[", "[" * 3000), ("0", "00"))
        )
        text = text.replace(old, new, 1)
    return text.encode(errors="surrogatepass")


def _vectors(random: Random, files: dict[str, bytes]) -> None:
    """A file of arrays that asks for more than there is, for code, or for another reader."""
    header = random.choice(
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 4), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
            "{'descr': ',', 'fortran_order': False, 'shape': (1,), }",
            "(" * 9000,
            "-" * 9000 + "1",
            "__import__('os').abort()",
        )
    )
    version = random.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"))
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    array = b"\x93NUMPY" + version + size + header.encode() + bytes(random.choice((0, 4, 16)))
    how = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    if how == zipfile.ZIP_DEFLATED:
        array += bytes(1 << 16)  # a small bomb
    buffer = io.BytesIO(files.get("vectors.npz", b"") if random.random() < 0.5 else b"")
    try:
        with zipfile.ZipFile(buffer, "a") as archive:
            name = random.choice(("input.x.npy", "../x.npy", "x", "", "/x.npy", "a\\b.npy"))
            archive.writestr(zipfile.ZipInfo(name), array, how)
    except (zipfile.BadZipFile, ValueError, OSError, struct.error):
        return
    files["vectors.npz"] = buffer.getvalue()


def _members(random: Random, files: dict[str, bytes]) -> None:
    """A file is missing, empty, another one's, or there are more."""
    name, other = _member(random, files), _member(random, files)
    how = random.randrange(4)
    if how == 0:
        del files[name]
    elif how == 1:
        files[name] = b""
    elif how == 2:
        files[name], files[other] = files[other], files[name]
    else:
        files[random.choice(("more", ".x", "x.so", "plan", "Manifest.json"))] = b"more"


_CHANGES: tuple[Callable[[Random, dict[str, bytes]], None], ...] = (
    *(_truncate, _extend, _flip, _flip, _overwrite, _numbers, _numbers),
    *(_json, _json, _json, _json, _vectors, _members),
)


def _repair(random: Random, files: dict[str, bytes]) -> None:
    """Hashes and sizes as the manifest asks for them, or nearly."""
    try:
        value = json.loads(files["manifest.json"])
        listed = value["members"]
        for name, data in files.items():
            if name in listed:
                listed[name]["sha256"] = hashlib.sha256(data).hexdigest()
                listed[name]["bytes"] = len(data)
        if random.random() < 0.05:
            name = random.choice(sorted(listed))
            listed[name]["bytes"] = random.choice((0, -1, 1 << 40, 1 << 70, len(files[name]) + 1))
        if random.random() < 0.03:
            name = random.choice(sorted(listed))
            listed[random.choice(_NAMES)] = listed.pop(name)
        files["manifest.json"] = json.dumps(value).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return


def _packed(random: Random, files: Mapping[str, bytes]) -> bytes:
    """The packed form of files, with tricks of its own half of the time."""
    valid = {name: data for name, data in files.items() if name.isascii()}
    valid.setdefault("manifest.json", b"")
    try:
        data = b"".join(bytes(part) for part in packed(valid))
    except ValueError:
        data = b""
    how = random.randrange(12)
    if how == 0:
        return data[: random.randrange(len(data) + 1)]
    if how == 1:
        return _flipped(random, data)
    if how == 2:
        return random.choice((b"PK\3\4", b"\x7fELF", random.randbytes(22))) + data
    if how == 3:
        return data + random.choice((b"x", bytes(22), data[-22:], random.randbytes(100)))
    if how == 4:
        return _directory(random, data)
    if how == 5:
        return _plain_zip(random, files)
    return data


def _directory(random: Random, data: bytes) -> bytes:
    """Sizes, places and counts of the end record or of the directory are forged."""
    changed = bytearray(data)
    if len(changed) < 100:
        return data
    if random.random() < 0.4:
        at = len(changed) - 22 + random.choice((4, 6, 8, 10, 12, 14, 16, 18, 20))
    else:
        entry = changed.rfind(b"PK\1\2", 0, random.randrange(50, len(changed)))
        at = max(entry, 0) + random.choice(
            (4, 6, 8, 10, 16, 20, 22, 24, 28, 30, 32, 34, 38, 42, 44)
        )
    value = random.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, len(data), len(data) - 22, 64))
    width = random.choice((2, 4))
    changed[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(changed[: len(data)])


def _plain_zip(random: Random, files: Mapping[str, bytes]) -> bytes:
    """What other tools make: compressed, with folders, links, names twice, or a bomb."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(random.choice((name, name, name, "a/" + name, "../" + name)))
            info.external_attr = random.choice((0, 0o120777 << 16, 0o100644 << 16))
            how = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(info, data, how)
        if random.random() < 0.2:
            archive.writestr("weights.bin.z", bytes(1 << 18), zipfile.ZIP_DEFLATED)
    found = bytearray(buffer.getvalue())
    if random.random() < 0.3:
        at = found.rfind(b"PK\1\2") + 24
        found[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(found)


def _strange(random: Random, folder: Path) -> None:
    """One of the files is no plain file."""
    file = folder / random.choice(sorted(os.listdir(folder)) or ["manifest.json"])
    if file.exists():
        file.unlink()
    how = random.randrange(5)
    if how == 0:
        file.symlink_to(random.choice(("/etc/passwd", "/dev/zero", "weights.bin", "nowhere", ".")))
    elif how == 1:
        os.mkfifo(file)
    elif how == 2:
        file.mkdir()
    elif how == 3:
        with open(file, "wb") as sparse:
            sparse.truncate(random.choice((1 << 27, 1 << 31, (1 << 36) + 1)))
