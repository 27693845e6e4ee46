"""`pack`: an artifact's folder into one file."""

from __future__ import annotations

import argparse

from eecompile.commands.printing import print_json

__all__ = ["pack"]


def pack(options: argparse.Namespace) -> int:
    """Write a packed artifact."""
    from eecompile.packed import pack_artifact

    path = pack_artifact(options.artifact, options.output)
    nbytes = path.stat().st_size
    if options.json:
        print_json(options, {"file": str(path), "bytes": nbytes})
    else:
        print(f"wrote {path}: {nbytes} bytes")
    return 0
