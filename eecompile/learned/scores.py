"""The scores a learned rule chooses among, each as weights of `LearnedScorePolicy`.

The three measures of confidence are among them, so that no budget is served worse than by the best
of them. The other kinds are fitted:

* ``right``: the chance that the exit is right, from the measures of confidence;
* ``gain``: the chance that going on is of no use, from the same. A sample that no exit gets right
  may as well leave at the first one, which its chance of being right does not say;
* ``schedule``: EENet's own (arXiv 2301.07099), from probabilities, two measures and earlier scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from eecompile.policies import ExitOutputs
from eecompile.policies.learned_score import MEASURES, LearnedScorePolicy, features
from eecompile.record import CalibrateRecord

__all__ = ["CONFIDENCES", "Seen", "gain_weights", "logistic_weights", "measure_weights", "played"]

Array = np.ndarray[Any, Any]

#: The measures that are rules of their own.
CONFIDENCES = ("max_softmax", "entropy", "margin")

#: Strength of the ridge on weights of standardised measures: a prior of so many samples' worth.
_RIDGE = 30.0

_STEPS = 30


@dataclass(frozen=True)
class Seen:
    """A record as scores see it.

    Attributes:
        outputs: of each exit but the final one.
        features: of each exit, the final one last, float64 (n, features).
        right: bool (n, exits + 1), whether each exit's answer is right.
        trained: the exits that have a head, and so can be left.
    """

    outputs: tuple[ExitOutputs, ...]
    features: tuple[Array, ...]
    right: Array
    trained: tuple[int, ...]

    @classmethod
    def of(cls, record: CalibrateRecord) -> Seen:
        """What is recorded; exits with class means only are never taken."""
        outputs = record.outputs()
        logits = [*(own.logits for own in outputs), record.final]
        right = [own.argmax(axis=1) == record.labels for own in logits]
        return cls(
            tuple(outputs),
            tuple(features(own).astype(np.float64) for own in logits),
            np.stack(right, 1),
            tuple(k for k, name in enumerate(record.exits) if name in record.logits),
        )

    def rows(self, kept: Array) -> Seen:
        """The samples of an index array."""
        outputs = tuple(ExitOutputs(own.logits[kept]) for own in self.outputs)
        return Seen(
            outputs, tuple(own[kept] for own in self.features), self.right[kept], self.trained
        )

    def full(self, weights: Mapping[int, Array]) -> list[list[float] | None]:
        """Rows as a policy takes them, from weights of the features by exit."""
        exits = len(self.outputs)
        after = [0.0] * exits
        return [[*weights[k].tolist(), *after] if k in weights else None for k in range(exits)]


def played(weights: Sequence[Sequence[float] | None], seen: Seen) -> list[Array]:
    """Each exit's scores, float32 (n,), as the policy computes them; zeros without weights."""
    never = [inf] * len(weights)
    policy = LearnedScorePolicy(weights, never)
    count = len(seen.right)
    state = policy.start(count)
    return [
        np.zeros(count, np.float32) if own is None else policy.score(k, outputs.logits, state)
        for k, (own, outputs) in enumerate(zip(weights, seen.outputs, strict=True))
    ]


def measure_weights(name: str, seen: Seen) -> list[list[float] | None]:
    """The weights with which a score is one measure, to the bit."""
    own = np.zeros(seen.features[0].shape[1])
    own[MEASURES.index(name) - len(MEASURES)] = 1.0
    return seen.full(dict.fromkeys(seen.trained, own))


def gain_weights(seen: Seen, later: bool) -> tuple[list[list[float] | None], Array]:
    """Weights of a score of the measures, and what it is short of the log odds of leaving.

    The latter, one number per exit, is of no use to a policy, whose thresholds take it up, but
    makes scores of several fits comparable.

    Args:
        seen: what they are fitted on.
        later: whether a sample may leave where later exits are no better ("gain"), or only where
            the exit is right ("right").
    """
    found, short = {}, np.zeros(len(seen.outputs))
    for k in seen.trained:
        here = seen.right[:, k].astype(np.float64)
        after = seen.right[:, [*(j for j in seen.trained if j > k), -1]].mean(1) if later else 1.0
        # Samples that later exits lose count for leaving, twice: going on would harm them.
        against = np.maximum(after - here, 0.0)
        leave = 1.0 - against + (np.maximum(here - after, 0.0) if later else 0.0)
        measures = seen.features[k][:, -len(MEASURES) :]
        weights = np.zeros(seen.features[k].shape[1])
        weights[-len(MEASURES) :], short[k] = logistic_weights(measures, leave, against, _RIDGE)
        found[k] = weights
    return seen.full(found), short


def logistic_weights(x: Array, leave: Array, against: Array, ridge: float) -> tuple[Array, float]:
    """Weights of a logistic regression, and its intercept.

    Args:
        x: (n, features); they are standardised for the ridge, and the weights are not.
        leave: weight of each sample as one of the first class, (n,).
        against: as one of the second.
        ridge: half of it times the squared weights is added to the loss.

    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> weights, at_0 = logistic_weights(x, np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), 1.0)
    >>> bool(weights[0] > 0), round(float(at_0 + 1.5 * weights[0]), 3)
    (True, 0.0)
    """
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, np.inf)  # a constant has no weight
    z = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], 1)
    pull = np.full(z.shape[1], ridge)
    pull[-1] = 1e-6
    total, w = leave + against, np.zeros(z.shape[1])
    for _ in range(_STEPS):
        chance = 0.5 + 0.5 * np.tanh(0.5 * (z @ w))
        slope = z.T @ (total * chance - leave) + pull * w
        bend = (z * (total * chance * (1 - chance))[:, None]).T @ z + np.diag(pull)
        step = np.linalg.solve(bend, slope)
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    weights = np.asarray(w[:-1] / spread)
    return weights, float(w[-1] - mean @ weights)
