"""Exit heads: what is computed at an exit. Each is one small file behind `Head`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.heads.bag_of_features import BagOfFeaturesHead
from eecompile.heads.base import Head, HeadMismatch
from eecompile.heads.class_means import ClassMeansHead
from eecompile.heads.convolution import ConvHead
from eecompile.heads.jobs import HeadJob, fit_heads
from eecompile.heads.linear import LinearHead

__all__ = [
    "HEADS",
    "BagOfFeaturesHead",
    "ClassMeansHead",
    "ConvHead",
    "Head",
    "HeadJob",
    "HeadMismatch",
    "LinearHead",
    "fit_heads",
    "make_head",
]

#: Name in the language -> head whose constructor takes the options by name.
HEADS: Mapping[str, type[Head]] = {
    "bag_of_features": BagOfFeaturesHead,
    "class_means": ClassMeansHead,
    "conv": ConvHead,
    "linear": LinearHead,
}


def make_head(kind: str, options: Mapping[str, Any]) -> Head:
    """The head of that kind with these (checked) options.

    >>> make_head("linear", {"pool": 2}).options
    {'pool': 2, 'temperature': 'none'}
    """
    plain = {key: str(value) if isinstance(value, str) else value for key, value in options.items()}
    return HEADS[kind](**plain)
