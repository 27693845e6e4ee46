"""Candidates for a learned score, each judged by scores of samples it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.learned.scheduler import Schedule, fit_schedule
from eecompile.learned.scores import CONFIDENCES, Seen, gain_weights, measure_weights, played
from eecompile.operating_points import quota_thresholds
from eecompile.policies.learned_score import MEASURES

__all__ = ["Candidate", "candidates", "schedule_candidate", "shifted"]

Array = np.ndarray[Any, Any]
Weights = list[list[float] | None]

#: Parts the samples are cut into: each is scored by a fit to the others.
_FOLDS = 4

#: Of random restarts, so much of the spread of the measures is their start's noise.
_NOISE = 0.1


@dataclass(frozen=True)
class Candidate:
    """A score.

    Attributes:
        name: of its kind.
        weights: as `LearnedScorePolicy` takes them.
        scores: of each exit, float32 (n,): what decides.
        judged: the same, of each sample by weights it had no part in.
        quotas: the share of samples that is to leave at each exit with a head, the final one last;
            None where no exit distribution was fitted.
    """

    name: str
    weights: Weights
    scores: tuple[Array, ...]
    judged: tuple[Array, ...]
    quotas: Array | None = None


def candidates(seen: Seen, seed: int) -> list[Candidate]:
    """The measures of confidence, and what is fitted on them."""
    found = []
    for name in CONFIDENCES:
        weights = measure_weights(name, seen)
        scores = tuple(played(weights, seen))
        found.append(Candidate(name, weights, scores, scores))
    found.append(_crossed("right", seen, seed, lambda own: gain_weights(own, later=False)))
    found.append(_crossed("gain", seen, seed, lambda own: gain_weights(own, later=True)))
    return found


def _crossed(
    name: str, seen: Seen, seed: int, fit: Callable[[Seen], tuple[Weights, Array]]
) -> Candidate:
    """Fitted on all samples, and on all but each part of them.

    Args:
        name: of the score.
        seen: all samples.
        seed: of the parts.
        fit: weights, and per exit what has to be added for scores of several fits to be comparable.
    """
    count = len(seen.right)
    part = np.random.default_rng(seed).permutation(count) % _FOLDS
    weights, short = fit(seen)
    judged = [np.zeros(count, np.float32) for _ in seen.outputs]
    for fold in range(_FOLDS):
        held = np.flatnonzero(part == fold)
        own, own_short = fit(seen.rows(np.flatnonzero(part != fold)))
        for k, scores in enumerate(played(own, seen.rows(held))):
            judged[k][held] = scores + (own_short[k] - short[k])
    return Candidate(name, weights, tuple(played(weights, seen)), tuple(judged))


def schedule_candidate(
    seen: Seen, costs: Array, budget: float, restarts: int, seed: int
) -> Candidate:
    """EENet's scheduler: the best of several restarts, by samples they were not fitted on.

    Args:
        seen: the record.
        costs: of leaving at each exit with a head, the final one last.
        budget: target of the mean cost.
        restarts: random starts.
        seed: of all of them.
    """
    count = len(seen.right)
    order = np.random.default_rng(seed).permutation(count)
    inside, outside = (seen.rows(np.sort(rows)) for rows in np.split(order, [count * 3 // 4]))
    tried = [
        (_worth(_fitted(inside, costs, budget, one), outside, costs, budget), -one)
        for one in range(seed, seed + restarts)
    ]
    best = -max(tried)[1]
    quotas: list[Array] = []

    def fit(own: Seen) -> tuple[Weights, Array]:
        made = _fitted(own, costs, budget, best)
        quotas.append(made.quotas)
        return _rows(made, own), np.zeros(len(own.outputs))  # scores are chances

    found = _crossed("schedule", seen, seed, fit)
    return Candidate(found.name, found.weights, found.scores, found.judged, quotas[0])


def _fitted(seen: Seen, costs: Array, budget: float, seed: int) -> Schedule:
    """One restart, on EENet's features: from the largest probability, with some noise."""
    generator = np.random.default_rng(seed)
    ends = [*seen.trained, len(seen.features) - 1]
    used = [seen.features[k][:, : 2 - len(MEASURES)] for k in ends]
    starts = []
    for k, own in enumerate(used):
        start = generator.normal(size=own.shape[1] + k) * _NOISE / own.shape[1]
        start[own.shape[1] - 2] += 1.0
        starts.append(start)
    return fit_schedule(used, seen.right[:, ends], costs, budget, starts, seed)


def _rows(made: Schedule, seen: Seen) -> Weights:
    """Rows as a policy takes them: no final exit, earlier scores at their exits' places."""
    exits = len(seen.outputs)
    found: Weights = [None] * exits
    for place, k in enumerate(seen.trained):
        own = made.weights[place]
        row = np.zeros(seen.features[k].shape[1] + exits)
        size = seen.features[k].shape[1] + 2 - len(MEASURES)
        row[:size] = own[:size]
        row[seen.features[k].shape[1] + np.array(seen.trained[:place], np.int64)] = own[size:]
        found[k] = row.tolist()
    return found


def _worth(made: Schedule, seen: Seen, costs: Array, budget: float) -> tuple[bool, float]:
    """Whether quotas come within 10 % of the budget on other samples, and the share of right ones.

    Source: EENet's selection among restarts.
    """
    scores = played(_rows(made, seen), seen)
    own = [scores[k] for k in seen.trained]
    limits = quota_thresholds(own, made.quotas[:-1].tolist())
    passing = [score >= limit for score, limit in zip(own, limits, strict=True)]
    left = np.argmax([*passing, np.ones(len(seen.right), bool)], axis=0)
    ends = np.array([*seen.trained, seen.right.shape[1] - 1])
    right = seen.right[np.arange(len(left)), ends[left]].mean()
    return bool(abs(costs[left].mean() - budget) <= 0.1 * budget), float(right)


def shifted(quotas: Array, costs: Sequence[float], shift: float) -> Array:
    """Quotas moved towards the cheap exits, or by a negative shift to the dear ones.

    >>> shifted(np.array([0.5, 0.5]), [1.0, 2.0], 0.0).tolist()
    [0.5, 0.5]
    >>> bool(shifted(np.array([0.5, 0.5]), [1.0, 2.0], 1.0)[0] > 0.5)
    True
    """
    away = np.asarray(costs) / max(costs)
    found = np.maximum(quotas, 1e-4) * np.exp(-shift * (away - away.mean()))
    return np.asarray(found / found.sum())
