"""Who made an artifact: an Ed25519 signature of its manifest, which names the hash of all else.

    signature.json   beside manifest.json: algorithm, id of the key, signature

What is signed is `DOMAIN` and the SHA-256 of the manifest's bytes, so that the same key's signature
of something else is never one of an artifact. The id of a key is the SHA-256 of its 32 bytes. A
signature says that the holder of a key has approved exactly these files; whose the key is, is known
from where the public key came from, which is why it is never taken from the artifact itself.

Source: RFC 8032 (Ed25519), in the implementation of the package `cryptography`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eecompile.checked_json import ObjectReader, canonical_json, parse_json
from eecompile.diagnostics import CompileErrors, Diagnostic, ToolError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = [
    "DOMAIN",
    "PublicKey",
    "Signature",
    "SigningKey",
    "Trusted",
    "TrustedKeys",
]

DOMAIN = b"eecompile artifact manifest, version 1\0"
_FORMAT = "eecompile signature"
_VERSION = 1
_ALGORITHM = "ed25519"
_KEY_ID, _SIGNATURE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{128}")
_MOST_KEY_BYTES = 64 << 10  #: of a file with a key; real ones have some hundred

#: A public key: a PEM file, its bytes, or the key's own 32 bytes.
PublicKey = str | Path | bytes
#: Public keys, any of which may have signed.
Trusted = PublicKey | Iterable[PublicKey]


@dataclass(frozen=True)
class Signature:
    """What ``signature.json`` says.

    Attributes:
        key_id: of the key it claims to be by, 64 hexadecimal digits.
        value: the signature, 64 bytes.
        checked: whether it was found to be right, by a key that the reader trusts.
    """

    key_id: str
    value: bytes
    checked: bool = False

    def to_bytes(self) -> bytes:
        """The file `from_bytes` reads."""
        return canonical_json(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "algorithm": _ALGORITHM,
                "key_id": self.key_id,
                "signature": self.value.hex(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature:
        """The signature in a file, not checked.

        Raises:
            JsonError: it holds none, or one of another kind.
        """
        top = ObjectReader(parse_json(data), "")
        for key, known in (("format", _FORMAT), ("version", _VERSION), ("algorithm", _ALGORITHM)):
            found = top.take(key)
            if type(found) is not type(known) or found != known:
                top.fail(key, f"`{known}`")
        key_id, value = top.text("key_id", _KEY_ID), top.text("signature", _SIGNATURE)
        top.done()
        return cls(key_id, bytes.fromhex(value))


class SigningKey:
    """A private key, ready to sign manifests."""

    def __init__(self, path: str | Path) -> None:
        """The key in a PEM file, as ``openssl genpkey -algorithm ed25519`` writes it.

        Raises:
            CompileErrors: the file holds no such key, or one behind a password.
            ToolError: the package `cryptography` is not installed.
        """
        data = _key_bytes(path)
        ed25519, serialization, unsupported = _library()
        help_ = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except TypeError as error:
            message = "is behind a password"
            remedy = "`openssl pkey -in KEY.pem -out PLAIN.pem` writes it without one"
            raise _bad_key(path, message, remedy) from error
        except (ValueError, unsupported) as error:
            raise _bad_key(path, "is no private key in PEM form", help_) from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise _bad_key(path, "is no Ed25519 key", help_)
        self._key: Ed25519PrivateKey = key
        self.key_id = _key_id(key.public_key().public_bytes_raw())

    def sign(self, manifest: bytes) -> Signature:
        """The signature of a manifest's bytes: the same key and bytes give the same one."""
        return Signature(self.key_id, self._key.sign(_message(manifest)), checked=True)


class TrustedKeys:
    """Public keys, any of which may have signed an artifact."""

    def __init__(self, keys: Trusted) -> None:
        """The keys given, one or several.

        Raises:
            CompileErrors: one of them is no Ed25519 public key.
            ToolError: the package `cryptography` is not installed.
        """
        given = [keys] if isinstance(keys, str | Path | bytes) else list(keys)
        _library()
        self._keys: Mapping[str, Ed25519PublicKey] = dict(map(_public_key, given))

    def check(self, path: Path, signature: Signature | None, manifest: bytes) -> Signature:
        """The signature, found to be right.

        Args:
            path: of the artifact, for messages.
            signature: what its file says, None where there is none.
            manifest: bytes of the manifest it should be of.

        Raises:
            CompileErrors: there is none, it is by another key, or of other bytes.
        """
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise _untrusted(path, "The artifact is not signed")
        if signature.key_id not in self._keys:
            raise _untrusted(
                path,
                f"The artifact is signed by the key {signature.key_id}, which is not trusted",
                "trusted: " + (", ".join(sorted(self._keys)) or "no key at all"),
            )
        try:
            self._keys[signature.key_id].verify(signature.value, _message(manifest))
        except InvalidSignature as error:
            message = f"The artifact is not what the key {signature.key_id} has signed"
            note = "the manifest has been changed since, or the signature is another artifact's"
            raise _untrusted(path, message, note) from error
        return Signature(signature.key_id, signature.value, checked=True)


def _message(manifest: bytes) -> bytes:
    return DOMAIN + hashlib.sha256(manifest).digest()


def _key_id(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _library() -> tuple[Any, Any, type[Exception]]:
    """What is used of `cryptography`: its keys, their files, and its error for other kinds."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ToolError(
            "Signatures need the package `cryptography`", "pip install 'eecompile[sign]'"
        ) from error
    return ed25519, serialization, UnsupportedAlgorithm


def _public_key(given: PublicKey) -> tuple[str, Ed25519PublicKey]:
    ed25519, serialization, unsupported = _library()
    name = "given as bytes" if isinstance(given, bytes) else given
    data = given if isinstance(given, bytes) else _key_bytes(given)
    help_ = "`openssl pkey -in KEY.pem -pubout -out KEY.pub.pem` writes the public one"
    try:
        if len(data) == 32:
            key = ed25519.Ed25519PublicKey.from_public_bytes(data)
        else:
            key = serialization.load_pem_public_key(data)
    except (ValueError, unsupported) as error:
        private = b"PRIVATE KEY" in data
        message = "is a private key, which only its owner should have" if private else ""
        raise _bad_key(name, message or "is no public key in PEM form", help_) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _bad_key(name, "is no Ed25519 key", help_)
    return _key_id(key.public_bytes_raw()), key


def _key_bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_KEY_BYTES + 1)
    except OSError as error:
        raise _bad_key(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(data) > _MOST_KEY_BYTES:
        raise _bad_key(path, f"has more than {_MOST_KEY_BYTES} bytes, so it is no key")
    return data


def _bad_key(path: str | Path, message: str, help_: str = "") -> CompileErrors:
    return CompileErrors(
        [Diagnostic("bad-key", f"The key `{path}` {message}", path=str(path), help=help_)]
    )


def _untrusted(path: Path, message: str, note: str = "") -> CompileErrors:
    notes = (note,) if note else ()
    help_ = "get it from who you trust, or, if you trust its maker, add their public key"
    return CompileErrors(
        [Diagnostic("untrusted-artifact", message, path=str(path), notes=notes, help=help_)]
    )
