"""Thousands of mutated artifacts: each is accepted or refused in words, and none crashes.

`mutate.py` beside this reads a million, in processes of their own.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from eecompile.artifact import read_artifact
from eecompile.diagnostics import CompileErrors
from eecompile.signatures import DOMAIN, Signature
from tests.attacks.mutate import good_files, tiny_artifact
from tests.attacks.mutations import Mutator, outcome
from tests.golden.test_golden import GOLDEN

_IDS = {"accepted", "bad-artifact", "wrong-artifact-version"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("base")
    golden = {path.name: path for path in GOLDEN if path.name.startswith("gated-x86-64")}
    return {"tiny": tiny_artifact(folder), **golden}


def test_mutated_artifacts_are_accepted_or_refused_in_words(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    found: dict[str, int] = {}
    for name, base in bases.items():
        (tmp_path / name).mkdir()
        mutator = Mutator(good_files(base), tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mutation puts one name twice into a ZIP file
            for number in range(1000):
                said = outcome(mutator.path(number), number % 8 == 0)
                found[said] = found.get(said, 0) + 1
    assert found.keys() <= _IDS
    # Neither everything is noise, nor is most of it harmless.
    assert min(found["accepted"], found["bad-artifact"]) > 200


def test_mutations_are_the_same_for_the_same_number(bases: dict[str, Path], tmp_path: Path) -> None:
    def content(folder: Path, number: int) -> dict[str, bytes] | bytes:
        path = mutators[folder].path(number)
        if path.is_file():
            return path.read_bytes()
        return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}

    folders = [tmp_path / "one", tmp_path / "two"]
    mutators = {}
    for folder in folders:
        folder.mkdir()
        mutators[folder] = Mutator(good_files(bases["tiny"]), folder)
    mutators[folders[0]].path(7)
    for number in (11, 3, 60, 61):
        assert content(folders[0], number) == content(folders[1], number)


def test_nothing_but_what_was_signed_is_accepted_with_a_trusted_key(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    raw = key.public_key().public_bytes_raw()
    good = good_files(bases["tiny"])
    value = key.sign(DOMAIN + hashlib.sha256(good["manifest.json"]).digest())
    good["signature.json"] = Signature(hashlib.sha256(raw).hexdigest(), value).to_bytes()
    mutator, accepted = Mutator(good, tmp_path), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(800):
            path = mutator.path(number)
            try:
                artifact = read_artifact(path, must_run=False, trusted=raw)
            except CompileErrors:
                continue
            accepted += 1
            assert {name: bytes(data) for name, data in artifact.files.items()} == good
    assert accepted < 100
