"""`sign`: an artifact that exists already."""

from __future__ import annotations

import argparse

from eecompile.commands.printing import print_json

__all__ = ["sign"]


def sign(options: argparse.Namespace) -> int:
    """Sign an artifact with a private key."""
    from eecompile.signatures import SigningKey
    from eecompile.signing import sign_artifact

    signature = sign_artifact(options.artifact, SigningKey(options.key))
    if options.json:
        print_json(options, {"artifact": str(options.artifact), "key_id": signature.key_id})
    else:
        print(f"{options.artifact} is signed by the key {signature.key_id}")
    return 0
