"""What `eecompile doctor` finds: one thing each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: what was looked at.
        ok: whether it is there, or as it should be.
        found: what was found, in words.
        remedy: how to get it, lines to copy; empty where nothing is to be done.
        needed: whether nothing can be built without it.
        warning: whether it is no lack but something to know.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False
    warning: bool = False
