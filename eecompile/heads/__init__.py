"""Exit heads: what is computed at an exit. Each is one small file behind `Head`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.heads.base import Head
from eecompile.heads.class_means import ClassMeansHead
from eecompile.heads.linear import LinearHead

__all__ = ["HEADS", "ClassMeansHead", "Head", "LinearHead", "make_head"]

#: Name in the language -> head whose constructor takes the options by name.
HEADS: Mapping[str, type[Head]] = {
    "class_means": ClassMeansHead,
    "linear": LinearHead,
}


def make_head(kind: str, options: Mapping[str, Any]) -> Head:
    """The head of that kind with these (checked) options.

    >>> make_head("linear", {"pool": 2}).options
    {'pool': 2}
    """
    plain = {key: str(value) if isinstance(value, str) else value for key, value in options.items()}
    return HEADS[kind](**plain)
