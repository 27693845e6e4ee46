"""Leave where a learned score says so: one small dot product per exit (EENet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_ZERO, _ONE, _END = (np.array([value], np.float32) for value in (0.0, 1.0, _SUREST))


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
    ranked = logits.copy()
    ranked.partition(-2, 1)
    top, second = ranked[:, -1:], ranked[:, -2]
    shifted = logits - top
    weights = np.exp(shifted)
    total = _sum(weights, 1)
    found = np.empty((len(logits), used + len(MEASURES)), np.float32)
    shares = weights / total[:, None]
    if used < classes:
        shares = -np.sort(-shares, 1)
    found[:, :used] = shares[:, :used]
    measures = found[:, used:]
    measures[:, 0] = np.reciprocal(total)
    information = np.vecdot(weights, shifted) / total - np.log(total)
    measures[:, 1] = information / np.float32(log(classes)) + _ONE
    behind = second - top[:, 0]
    normaliser = _sum(np.exp(ranked - top), 1)
    measures[:, 2] = np.expm1(behind) / -normaliser
    # 1 - largest probability, without cancellation: all weights but the 1 of the largest.
    rest = _sum(np.exp(ranked[:, :-1] - top), 1)
    with np.errstate(divide="ignore"):
        measures[:, 3] = np.minimum(np.log(total) - np.log(rest), _END)
    measures[:, 4] = np.minimum(-behind, _END)
    return found


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

    def __init__(self, weights: Sequence[Sequence[float] | None], thresholds: Sequence[float]):
        super().__init__(thresholds)
        if len(weights) != len(self.thresholds):
            raise ValueError(f"{len(weights)} rows of weights for {len(self.thresholds)} exits")
        self.weights = [None if w is None else np.asarray(w, np.float32) for w in weights]
        self._now: list[Array | None] = [None] * len(weights)
        self._before: list[Array | None] = [None] * len(weights)
        for k, own in enumerate(self.weights):
            if own is None:
                if isfinite(self.thresholds[k]):
                    raise ValueError(f"exit {k} has a threshold and no weights")
                continue
            if own.ndim != 1 or len(own) <= len(weights) or not np.isfinite(own).all():
                raise ValueError(f"weights of exit {k} are no row of numbers")
            self._now[k] = own[: -len(weights)]
            before = own[-len(weights) :]
            self._before[k] = before if before.any() else None
        self._remembers = any(before is not None for before in self._before)

    def start(self, count: int) -> Any:
        """Scores so far, float32 (count, exits); None where no score looks at earlier ones."""
        return np.zeros((count, len(self.weights)), np.float32) if self._remembers else None

    def select(self, state: Any, kept: Array) -> Any:
        """The scores of the samples that go on."""
        return None if state is None else state[kept]

    def score(self, index: int, logits: Array, state: Any) -> Array:
        """Score of each sample at an exit that has weights, float32 (n,); kept in `state`."""
        now, before = self._now[index], self._before[index]
        assert now is not None, "only exits with weights are evaluated"
        # Row by row, unlike a matrix product: a sample gets the same bits alone and among others.
        score: Array = np.vecdot(features(logits), now)
        if before is not None:
            score = score + np.vecdot(state, before)
        if state is not None:
            state[:, index] = np.minimum(np.maximum(score, _ZERO), _ONE)
        return score

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> Array:
        """Compares the score with the exit's threshold."""
        if self._now[index] is None:  # another rule wanted this exit
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
