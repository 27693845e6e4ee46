"""Leave where a learned score says so: one small dot product per exit (EENet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import isfinite, log
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import ExitOutputs
from eecompile.policies.steps import StepsPolicy, from_json, to_json

__all__ = ["MEASURES", "MOST_CLASSES", "LearnedScorePolicy", "features", "probabilities_used"]

Array = np.ndarray[Any, Any]

#: What is known of an answer beside its probabilities, each 1 where it is certain but the last two,
#: which are without bound up to `_SUREST`: ln(1 / (1 - largest)), and the largest logit less the
#: second.
MEASURES = ("max_softmax", "entropy", "margin", "sureness", "lead")

#: Up to so many classes each has its own weight; of more, only the largest probabilities, sorted.
MOST_CLASSES = 128
_LARGEST = 16

#: Where `sureness` and `lead` end: a probability of 1 - 1e-5.
_SUREST = 11.5

_largest = np.maximum.reduce
_sum = np.add.reduce
_ZERO, _ONE, _END, _LEAST = (np.array([value], np.float32) for value in (0.0, 1.0, _SUREST, 1e-30))


def probabilities_used(classes: int) -> int:
    """How many features are probabilities.

    >>> probabilities_used(10), probabilities_used(1000)
    (10, 16)
    """
    return classes if classes <= MOST_CLASSES else _LARGEST


def features(logits: Array) -> Array:
    """What a score is made of: probabilities, then `MEASURES`; float32 (n, features).

    Probabilities are those of the classes in their order; of many classes, the largest ones in
    falling order. The first three measures have the very bits of `policies.scores`.

    Args:
        logits: float32 (n, classes), at least two classes.

    Source: EENet (arXiv 2301.07099) for probabilities, largest one and entropy; the others are
    ours, because confidence saturates: 0.99 and 0.999 lie far apart in log odds.

    >>> features(np.float32([[0, 0]])).round(3).tolist()[0][:5]
    [0.5, 0.5, 0.5, 0.0, -0.0]
    """
    classes = logits.shape[1]
    used = probabilities_used(classes)
    shares, measures = _known(logits, True, range(len(MEASURES)))
    assert shares is not None, "asked for"
    return np.concatenate([shares[:, :used], np.stack(measures, 1)], 1)


def _known(
    logits: Array, probabilities: bool, wanted: Sequence[int]
) -> tuple[Array | None, list[Array]]:
    """Probabilities as features, if they are wanted, and the wanted ones of `MEASURES`.

    On one sample it is numpy's calls that cost: nothing is computed that is not wanted.
    """
    top = _largest(logits, 1, keepdims=True)
    shifted = logits - top
    weights = np.exp(shifted)
    total = _sum(weights, 1)
    found: dict[int, Array] = {}
    if 0 in wanted:
        found[0] = np.reciprocal(total)
    if 1 in wanted:
        information = np.vecdot(weights, shifted) / total - np.log(total)
        found[1] = information / _most_information(logits.shape[1]) + _ONE
    if any(place in wanted for place in (2, 3, 4)):
        found |= _seconds(shifted, total)
    shares = None
    if probabilities:
        shares = weights / total[:, None]
        if len(shares[0]) > MOST_CLASSES:
            shares = -np.sort(-shares, 1)[:, :_LARGEST]
    return shares, [found[place] for place in wanted]


def _seconds(shifted: Array, total: Array) -> dict[int, Array]:
    """The measures that look at the second largest logit, by their places."""
    ranked = shifted.copy()
    ranked.partition(-2, 1)
    terms = np.exp(ranked)
    behind = ranked[:, -2]
    # 1 - largest probability, without cancellation: all terms but the 1 of the largest.
    rest = np.maximum(_sum(terms[:, :-1], 1), _LEAST)
    return {
        2: np.expm1(behind) / -_sum(terms, 1),
        3: np.minimum(np.log(total) - np.log(rest), _END),
        4: np.minimum(-behind, _END),
    }


@cache
def _most_information(classes: int) -> Array:
    return np.array([log(classes)], np.float32)


@dataclass(frozen=True, slots=True)
class _Row:
    """The weights of one exit that are not 0.

    Attributes:
        probabilities: of the probabilities, float32; None where all are 0.
        wanted: places in `MEASURES`.
        measures: weight of each, float32 (1,).
        before: of earlier scores, float32 (exits,); None where all are 0.
    """

    probabilities: Array | None
    wanted: tuple[int, ...]
    measures: tuple[Array, ...]
    before: Array | None

    @classmethod
    def of(cls, exit_: int, weights: Array, thresholds: Sequence[float]) -> _Row:
        """From a row as the policy takes it.

        Raises:
            ValueError: it is none.
        """
        exits, measures = len(thresholds), len(MEASURES)
        if weights.ndim != 1 or len(weights) <= exits + measures or not np.isfinite(weights).all():
            raise ValueError(f"weights of exit {exit_} are no row of numbers")
        shares, own, before = np.split(weights, [-exits - measures, -exits])
        if before[exit_:].any():
            raise ValueError(f"weights of exit {exit_} look at scores that are not there yet")
        wanted = tuple(np.flatnonzero(own).tolist())
        return cls(
            shares if shares.any() else None,
            wanted,
            tuple(own[place : place + 1] for place in wanted),
            before if before.any() else None,
        )

    def score(self, logits: Array, state: Any) -> Array:
        """Of each sample, float32 (n,).

        Row by row, unlike a matrix product: a sample gets the same bits alone and among others.
        """
        shares, measures = _known(logits, self.probabilities is not None, self.wanted)
        terms = [own * weight for own, weight in zip(measures, self.measures, strict=True)]
        if shares is not None and self.probabilities is not None:
            terms.append(np.vecdot(shares, self.probabilities))
        if self.before is not None:
            terms.append(np.vecdot(state, self.before))
        return reduce(np.add, terms) if terms else np.zeros(len(logits), np.float32)


class LearnedScorePolicy(StepsPolicy):
    """Leave at the first exit whose learned score is at least the exit's threshold.

    The score of exit k is a dot product of its weights with [`features` of its logits, the scores
    of all exits in order]. Scores of exits that come later, or whose heads did not run, are 0 in
    it; earlier ones are kept to the range from 0 to 1. A score with a single weight of 1 is that
    measure to the bit. Costs less than 200 multiplications per exit for ten classes.

    Args:
        weights: per exit, float32 (features + exits,); None where the exit is never taken.
        thresholds: one per exit; infinity where the head is not even evaluated.

    Source: EENet (arXiv 2301.07099). There earlier scores are kept to that range while weights are
    fitted, and not when they are used: here they are in both.
    """

    kind: ClassVar[str] = "learned_score"

    def __init__(
        self, weights: Sequence[Sequence[float] | Array | None], thresholds: Sequence[float]
    ):
        super().__init__(thresholds)
        if len(weights) != len(self.thresholds):
            raise ValueError(f"{len(weights)} rows of weights for {len(self.thresholds)} exits")
        self.weights = [None if w is None else np.asarray(w, np.float32) for w in weights]
        self._rows = [
            None if own is None else _Row.of(k, own, self.thresholds)
            for k, own in enumerate(self.weights)
        ]
        for k, row in enumerate(self._rows):
            if row is None and isfinite(self.thresholds[k]):
                raise ValueError(f"exit {k} has a threshold and no weights")
        self._remembers = any(row is not None and row.before is not None for row in self._rows)

    def start(self, count: int) -> Any:
        """Scores so far, float32 (count, exits); None where no score looks at earlier ones."""
        return np.zeros((count, len(self.weights)), np.float32) if self._remembers else None

    def select(self, state: Any, kept: Array) -> Any:
        """The scores of the samples that go on."""
        return None if state is None else state[kept]

    def score(self, index: int, logits: Array, state: Any) -> Array:
        """Score of each sample at an exit that has weights, float32 (n,); kept in `state`."""
        row = self._rows[index]
        assert row is not None, "only exits with weights are evaluated"
        score = row.score(logits, state)
        if state is not None:
            state[:, index] = np.minimum(np.maximum(score, _ZERO), _ONE)
        return score

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> Array:
        """Compares the score with the exit's threshold."""
        if self._rows[index] is None:  # another rule wanted this exit
            return self._steps.going_on(index, len(outputs.logits))
        return self._steps.decide(index, self.score(index, outputs.logits, state))

    def parameters(self) -> dict[str, Any]:
        """Weights and thresholds."""
        weights = [None if own is None else own.tolist() for own in self.weights]
        return {"weights": weights, "thresholds": to_json(self.thresholds)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> LearnedScorePolicy:
        """The inverse of `parameters`."""
        return cls(parameters["weights"], from_json(parameters["thresholds"]))
