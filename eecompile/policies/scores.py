"""Confidence measures of an answer: float32, one per sample, 1 is certain.

One implementation serves one sample at run time and thousands in a replay, so that both decide
alike: every operation works row by row, so that a row gives the same bits alone and among others
(a matrix product would not). On one sample it is numpy's calls that cost, not the sums: ufuncs are
called directly, and constants are arrays, because numpy first makes arrays of Python's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import log
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["SCORES", "Score", "entropy", "margin", "max_softmax"]

Array = np.ndarray[Any, Any]
Score = Callable[[Array], Array]

_largest = np.maximum.reduce
_sum = np.add.reduce


def max_softmax(logits: Array) -> Array:
    """The largest softmax probability.

    >>> max_softmax(np.log(np.float32([[1, 3, 4], [1, 1, 1]]))).round(3).tolist()
    [0.5, 0.3330000042915344]
    """
    # The largest term of the normaliser is e^0 = 1.
    normaliser: Array = _sum(np.exp(logits - _largest(logits, 1, keepdims=True)), 1)
    return np.reciprocal(normaliser)


def entropy(logits: Array) -> Array:
    """One minus the softmax's entropy over that of a uniform one.

    Source: EENet's certainty feature (arXiv 2301.07099), there from probabilities.

    >>> entropy(np.float32([[50, 0, 0], [2, 2, 2]])).round(3).tolist()
    [1.0, 0.0]
    """
    shifted = logits - _largest(logits, 1, keepdims=True)
    weights = np.exp(shifted)
    total = _sum(weights, 1)
    # sum p log p with log p = shifted - log(total).
    information = np.vecdot(weights, shifted) / total - np.log(total)
    score: Array = information / _most_information(logits.shape[1]) + _ONE
    return score


@cache
def _most_information(classes: int) -> Array:
    return np.array([log(classes)], np.float32)


_ONE = np.ones(1, np.float32)


def margin(logits: Array) -> Array:
    """The largest softmax probability minus the second.

    >>> margin(np.log(np.float32([[1, 3, 4], [1, 1, 1]]))).round(3).tolist()
    [0.125, -0.0]
    """
    ranked = logits.copy()
    ranked.partition(-2, 1)
    shifted = ranked - ranked[:, -1:]
    normaliser = _sum(np.exp(shifted), 1)
    score: Array = np.expm1(shifted[:, -2]) / -normaliser
    return score


#: Name in the language -> measure of a head's logits.
SCORES: Mapping[str, Score] = MappingProxyType(
    {"max_softmax": max_softmax, "entropy": entropy, "margin": margin}
)
