"""A signature proves who made an artifact, to whoever names the keys they trust, and only then."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import eecompile as ee
from eecompile.artifact import read_artifact, write_artifact
from eecompile.checked_json import JsonError
from eecompile.diagnostics import CompileErrors, ToolError
from eecompile.manifest import FORMAT_VERSION
from eecompile.runtime.vectors import verify_artifact
from eecompile.signatures import DOMAIN, Signature, SigningKey, TrustedKeys
from eecompile.signing import sign_artifact
from tests.helpers import ROOT
from tests.runtime import tiny


class Keys:
    """A pair of keys as files."""

    def __init__(self, folder: Path, seed: int) -> None:
        raw = bytes([seed]) * 32
        self.own = Ed25519PrivateKey.from_private_bytes(raw)
        self.private, self.public = folder / f"{seed}.pem", folder / f"{seed}.pub.pem"
        self.private.write_bytes(
            self.own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self.pem = self.own.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.public.write_bytes(self.pem)
        self.raw = self.own.public_key().public_bytes_raw()
        self.id = hashlib.sha256(self.raw).hexdigest()


@pytest.fixture
def ours(tmp_path: Path) -> Keys:
    return Keys(tmp_path, 1)


@pytest.fixture
def theirs(tmp_path: Path) -> Keys:
    return Keys(tmp_path, 2)


@pytest.fixture(params=["out", "out.eec"])
def signed(request: pytest.FixtureRequest, tmp_path: Path, ours: Keys) -> Path:
    """A signed artifact, as a folder and packed."""
    write_artifact(tmp_path / request.param, tiny.contents(), SigningKey(ours.private))
    return Path(tmp_path / request.param)


@pytest.fixture
def folder(tmp_path: Path, ours: Keys) -> Path:
    write_artifact(tmp_path / "folder", tiny.contents(), SigningKey(ours.private))
    return tmp_path / "folder"


def refused(call: Callable[..., object], *given: object, **named: object) -> tuple[str, str]:
    with pytest.raises(CompileErrors) as failure:
        call(*given, **named)
    (diagnostic,) = failure.value.diagnostics
    return diagnostic.id, diagnostic.message


def test_what_is_signed_loads_with_the_public_key(signed: Path, ours: Keys, theirs: Keys) -> None:
    assert read_artifact(signed).signature == Signature(
        ours.id, SigningKey(ours.private).sign(read_artifact(signed).manifest_bytes).value
    )
    for trusted in (
        *([ours.public], [str(ours.public)], [ours.pem], [ours.raw]),
        *(ours.public, str(ours.public), ours.pem, ours.raw),
        (theirs.raw, ours.raw),
        iter([ours.public]),
    ):
        found = read_artifact(signed, trusted=trusted).signature
        assert found is not None and found.checked and found.key_id == ours.id
    with ee.load(signed, trusted=[ours.public]) as net:
        assert net.run(tiny.inputs(1)).exit
    assert verify_artifact(signed, trusted=[ours.public]).ok


def test_without_trusted_keys_nothing_is_proved_and_nothing_needed(signed: Path) -> None:
    found = read_artifact(signed).signature
    assert found is not None and not found.checked
    code = (
        "import sys; sys.modules['cryptography'] = None; import eecompile as ee;"
        f"ee.load({str(signed)!r}); print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_unsigned_and_signed_by_others_are_refused(
    tmp_path: Path, signed: Path, ours: Keys, theirs: Keys
) -> None:
    write_artifact(tmp_path / "bare", tiny.contents())
    for load in (ee.load, read_artifact, verify_artifact):
        assert refused(load, tmp_path / "bare", trusted=[ours.public]) == (
            *("untrusted-artifact", "The artifact is not signed"),
        )
        assert refused(load, signed, trusted=[theirs.public]) == (
            "untrusted-artifact",
            f"The artifact is signed by the key {ours.id}, which is not trusted",
        )
        assert refused(load, signed, trusted=[])[0] == "untrusted-artifact"


def change_signature(folder: Path, **changes: object) -> None:
    value = json.loads((folder / "signature.json").read_text())
    (folder / "signature.json").write_text(json.dumps({**value, **changes}))


def test_a_changed_manifest_or_signature_is_refused(folder: Path, ours: Keys, theirs: Keys) -> None:
    wrong = (
        "untrusted-artifact",
        f"The artifact is not what the key {ours.id} has signed",
    )

    def refusal() -> tuple[str, str]:
        return refused(read_artifact, folder, trusted=[ours.public])

    text = (folder / "manifest.json").read_bytes()
    # The same JSON value: it is the bytes that are signed.
    (folder / "manifest.json").write_bytes(text + b"\n")
    read_artifact(folder)
    assert refusal() == wrong
    (folder / "manifest.json").write_bytes(text)
    good = SigningKey(ours.private).sign(text)
    for position in (0, 31, 32, 63):
        flipped = bytearray(good.value)
        flipped[position] ^= 1
        change_signature(folder, signature=flipped.hex())
        assert refusal() == wrong
    change_signature(folder, signature=SigningKey(theirs.private).sign(text).value.hex())
    assert refusal() == wrong
    # A key cannot be taken for another one by its name.
    assert refused(read_artifact, folder, trusted=[theirs.public])[0] == wrong[0]
    change_signature(folder, signature=ours.own.sign(text).hex())
    assert refusal() == wrong
    change_signature(folder, signature=ours.own.sign(hashlib.sha256(text).digest()).hex())
    assert refusal() == wrong
    change_signature(folder, signature=ours.own.sign(DOMAIN + hashlib.sha256(text).digest()).hex())
    assert read_artifact(folder, trusted=[ours.public]).signature == Signature(
        ours.id, good.value, checked=True
    )


def test_a_signature_says_nothing_of_what_comes_later(folder: Path, ours: Keys) -> None:
    """Members are bound by the manifest's hashes, checked after the signature."""
    data = bytearray((folder / "kernels.so").read_bytes())
    data[-1] ^= 1
    (folder / "kernels.so").write_bytes(data)
    id_, message = refused(read_artifact, folder, trusted=[ours.public])
    assert id_ == "bad-artifact" and "`kernels.so` has been changed" in message


def test_the_signature_is_looked_at_after_the_version_and_before_the_schema(
    folder: Path, ours: Keys, theirs: Keys
) -> None:
    text = (folder / "manifest.json").read_text()
    value = json.loads(text)
    value["surprise"] = 1

    def message(key: Keys) -> str:
        (folder / "manifest.json").write_text(json.dumps(value))
        change_signature(
            folder,
            key_id=key.id,
            signature=SigningKey(key.private)
            .sign((folder / "manifest.json").read_bytes())
            .value.hex(),
        )
        return refused(read_artifact, folder, trusted=[ours.public])[1]

    assert "which is not trusted" in message(theirs)
    assert "`surprise` is no field" in message(ours)
    value["format_version"] = FORMAT_VERSION + 1
    assert f"artifact has {FORMAT_VERSION + 1}" in message(theirs)
    value["format"] = "other"
    assert "no artifact" in message(theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "`format` must be `eecompile signature`"),
        ({"version": 2}, "`version` must be `1`"),
        ({"version": True}, "`version` must be `1`"),
        ({"algorithm": "none"}, "`algorithm` must be `ed25519`"),
        ({"key_id": "A" * 64}, "`key_id`"),
        ({"signature": "0" * 126}, "`signature`"),
        ({"signature": "0" * 130}, "`signature`"),
        ({"signature": None}, "`signature`"),
        ({"more": 1}, "`more` is no field"),
    ],
)
def test_other_signature_files_are_refused(
    folder: Path, ours: Keys, changes: dict[str, object], message: str
) -> None:
    change_signature(folder, **changes)
    for trusted in (None, [ours.public]):
        id_, found = refused(read_artifact, folder, trusted=trusted)
        assert id_ == "bad-artifact" and message in found and "`signature.json`" in found


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"{" * 4000])
def test_what_is_no_signature_is_refused(folder: Path, data: bytes) -> None:
    with pytest.raises(JsonError):
        Signature.from_bytes(data)
    (folder / "signature.json").write_bytes(data)
    assert refused(read_artifact, folder)[0] == "bad-artifact"


def test_links_pipes_and_huge_files_are_no_signatures(folder: Path, tmp_path: Path) -> None:
    file = folder / "signature.json"
    file.rename(tmp_path / "signature.json")
    file.symlink_to(tmp_path / "signature.json")
    assert refused(read_artifact, folder)[1] == ("`signature.json` is a link, not a plain file")
    file.unlink()
    os.mkfifo(file)
    assert refused(read_artifact, folder)[1] == "`signature.json` is no plain file"
    file.unlink()
    file.write_bytes(b" " * 4097)
    assert "more than the limit of 4096" in refused(read_artifact, folder)[1]


def test_a_signature_is_no_member(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    value = json.loads(text)
    data = (folder / "signature.json").read_bytes()
    value["members"]["signature.json"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "measured": False,
    }
    (folder / "manifest.json").write_text(json.dumps(value))
    assert refused(read_artifact, folder)[1] == ("`signature.json` is no file of this format")


def test_signing_changes_nothing_else_and_replaces_other_signatures(
    signed: Path, ours: Keys, theirs: Keys
) -> None:
    before = read_artifact(signed)
    sign_artifact(signed, SigningKey(theirs.private))
    read_artifact(signed, trusted=[theirs.public])
    assert refused(read_artifact, signed, trusted=[ours.public])[0] == "untrusted-artifact"
    files = read_artifact(signed).files
    assert {k: bytes(v) for k, v in files.items() if k != "signature.json"} == {
        k: bytes(v) for k, v in before.files.items() if k != "signature.json"
    }
    # Signed again by the first: the same bytes as at first.
    sign_artifact(signed, SigningKey(ours.private))
    assert read_artifact(signed).signature == before.signature


def test_the_same_key_signs_with_the_same_bytes(tmp_path: Path, ours: Keys) -> None:
    for name in ("one", "two"):
        write_artifact(tmp_path / name, tiny.contents(), SigningKey(ours.private))
    one, two = ((tmp_path / name / "signature.json").read_bytes() for name in ("one", "two"))
    assert one == two and Signature.from_bytes(one).to_bytes() == one


def test_an_artifact_that_is_written_again_is_not_signed_any_more(signed: Path, ours: Keys) -> None:
    write_artifact(signed, tiny.contents())
    assert read_artifact(signed).signature is None


def test_a_damaged_artifact_is_not_signed(folder: Path, ours: Keys) -> None:
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[:-1] + b"x")
    before = (folder / "signature.json").read_bytes()
    assert refused(sign_artifact, folder, SigningKey(ours.private))[0] == "bad-artifact"
    assert (folder / "signature.json").read_bytes() == before


def test_keys_that_are_none_are_refused(tmp_path: Path, ours: Keys) -> None:
    def own(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    other = generate_private_key(SECP256R1())
    pem = (Encoding.PEM, PrivateFormat.PKCS8)
    p256 = own("p256", other.private_bytes(*pem, NoEncryption()))
    locked = own("locked", ours.own.private_bytes(*pem, BestAvailableEncryption(b"x")))
    cases = [
        (tmp_path / "none", "cannot be read: no such file"),
        (tmp_path, "cannot be read: is a directory"),
        (own("text", b"key"), "is no private key in PEM form"),
        (own("huge", b"x" * 70_000), "has more than 65536 bytes"),
        (ours.public, "is no private key in PEM form"),
        (p256, "is no Ed25519 key"),
        (locked, "is behind a password"),
    ]
    for path, words in cases:
        id_, message = refused(SigningKey, path)
        assert id_ == "bad-key" and words in message
    p256_public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for given, words in (
        (tmp_path / "none", "cannot be read: no such file"),
        (own("text", b"key"), "is no public key in PEM form"),
        (ours.private, "is a private key, which only its owner should have"),
        (p256_public, "is no Ed25519 key"),
        (ours.raw[:31], "is no public key in PEM form"),
        (b"", "given as bytes"),
    ):
        id_, message = refused(TrustedKeys, [given])
        assert id_ == "bad-key" and words in message
        # Keys are looked at before the artifact is.
        assert refused(ee.load, "nowhere", trusted=[given])[0] == "bad-key"


def test_without_the_package_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, ours: Keys, folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for call in (
        lambda: ee.load(folder, trusted=[ours.public]),
        lambda: SigningKey(ours.private),
    ):
        with pytest.raises(ToolError) as failure:
            call()
        assert str(failure.value) == (
            "Signatures need the package `cryptography`: pip install 'eecompile[sign]'"
        )


def test_a_signature_by_openssl_is_the_same(folder: Path, ours: Keys, tmp_path: Path) -> None:
    """The format is written down well enough for other tools."""
    text = (folder / "manifest.json").read_bytes()
    (tmp_path / "message").write_bytes(DOMAIN + hashlib.sha256(text).digest())
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(ours.private)]
    try:
        done = subprocess.run(
            [*command, "-in", str(tmp_path / "message")], capture_output=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no OpenSSL that signs with Ed25519: {error}")
    assert done.stdout.hex() == json.loads((folder / "signature.json").read_text())["signature"]
