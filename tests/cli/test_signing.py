"""`sign`, `build --sign` and `--trusted`: who made an artifact, on the command line."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from eecompile.artifact import read_artifact
from tests.cli.calls import Call


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key `mine.pem` and others' public key `other.pub.pem`."""
    for seed, name in enumerate(("mine", "other")):
        key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        own = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(own)
        (tmp_path / f"{name}.pub.pem").write_bytes(public)
    return tmp_path


@pytest.fixture
def signed(call: Call, keys: Path, built: Path) -> Path:
    shutil.copytree(built / "out", keys / "out")
    done = call("sign", keys / "out", "--key", keys / "mine.pem")
    assert done.status == 0 and "out is signed by the key " in done.out
    return keys / "out"


def test_every_command_that_loads_asks_for_the_key(
    call: Call, keys: Path, built: Path, signed: Path
) -> None:
    test = built / "test.npz"
    commands: list[tuple[object, ...]] = [
        ("inspect", signed),
        ("verify", signed),
        ("run", signed, "--input", keys / "x.npy"),
        ("eval", signed, "--data", test, "--samples", 5),
        ("eval", signed, "--data", test, "--samples", 5, "--sweep"),
        ("eval", signed, "--data", test, "--samples", 5, "--board", "raspberry-pi-4"),
        ("bench", signed, "--rounds", 1),
    ]
    import numpy as np

    np.save(keys / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    for command in commands:
        done = call(*command, "--trusted", keys / "mine.pub.pem", "--json")
        assert done.status == 0, done.err
        done = call(*command, "--trusted", keys / "other.pub.pem", "--json")
        assert (done.status, done.ids) == (1, ["untrusted-artifact"]), command
        both = ("--trusted", keys / "other.pub.pem", "--trusted", keys / "mine.pub.pem")
        assert call(*command, *both, "--json").status == 0, command


def test_inspect_tells_who_signed_and_whether_that_was_checked(
    call: Call, keys: Path, built: Path, signed: Path
) -> None:
    found = read_artifact(signed).signature
    assert found is not None
    assert "\nnot signed\n" in call("inspect", built / "out").out
    assert call("inspect", built / "out", "--json").json["signature"] is None
    told = f"signed by the key {found.key_id}, it says: not checked, which `--trusted KEY.pub.pem`"
    assert told in call("inspect", signed).out
    assert call("inspect", signed, "--json").json["signature"] == {
        "key_id": found.key_id,
        "checked": False,
    }
    trusted = ("--trusted", keys / "mine.pub.pem")
    told = f"signed by the key {found.key_id}, which is trusted"
    assert told in call("inspect", signed, *trusted).out
    assert call("inspect", signed, *trusted, "--json").json["signature"]["checked"] is True


def test_a_build_signs(call: Call, keys: Path, demo: Path) -> None:
    """Also one that has nothing to do but that; and without the key nothing is signed."""
    out = keys / "fresh"
    build = ("build", demo, "-o", out, "--json")
    sign, trusted = ("--sign", keys / "mine.pem"), ("--trusted", keys / "mine.pub.pem")
    assert call(*build, "--sign", keys / "none.pem").ids == ["bad-key"]
    assert not out.exists()
    time.sleep(0.03)  # what was written just before a build counts as changed during it
    assert call(*build, *sign).json["unchanged"] is False
    assert call("inspect", out, *trusted).status == 0
    assert call(*build).json["unchanged"] is True
    assert call("inspect", out, *trusted).status == 0, "a fresh artifact is left as it is"
    (out / "signature.json").unlink()
    assert call(*build, *sign).json["unchanged"] is True
    assert call("inspect", out, *trusted).status == 0
    assert call(*build, "--sign", keys / "other.pem").json["unchanged"] is True
    assert call("inspect", out, *trusted).status == 1


def test_new_costs_need_a_new_signature(call: Call, keys: Path, signed: Path) -> None:
    done = call("bench", signed, "--rounds", 1, "--update", "--json")
    assert done.status == 0
    assert any("sign it again" in note for note in done.json["notes"])
    assert read_artifact(signed).signature is None


def test_packed_artifacts_keep_their_signature(call: Call, keys: Path, signed: Path) -> None:
    assert call("pack", signed, "-o", keys / "net.eec").status == 0
    assert call("verify", keys / "net.eec", "--trusted", keys / "mine.pub.pem").status == 0


def test_keys_of_openssl_serve(call: Call, keys: Path, built: Path) -> None:
    """The commands that `sign --help` shows."""
    shutil.copytree(built / "out", keys / "out")
    make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"]
    publish = ["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub.pem"]
    try:
        for command in (make, publish):
            subprocess.run(command, cwd=keys, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no OpenSSL that knows Ed25519: {error}")
    assert call("sign", keys / "out", "--key", keys / "key.pem", "--json").json.keys() == {
        "artifact",
        "key_id",
    }
    assert call("verify", keys / "out", "--trusted", keys / "key.pub.pem").status == 0
