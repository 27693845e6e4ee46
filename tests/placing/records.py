"""Exits of which all is known: scores and right answers that follow from a sample's difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eecompile.exit_choice import ExitScores, Judge, Objective
from eecompile.outcomes import ExitCosts
from eecompile.spec import Budget

__all__ = ["exits_of", "judge_of"]


def exits_of(seed: int, accuracies: Sequence[float], count: int = 400) -> list[ExitScores]:
    """An exit for each accuracy: it is right, and sure, where a sample is easy, with some noise."""
    generator = np.random.default_rng(seed)
    easy = generator.random(count)
    found = []
    for accuracy in accuracies:
        score = easy + generator.normal(0, 0.15, count)
        right = score >= np.quantile(score, 1 - accuracy)
        found.append(ExitScores(score.astype(np.float32), right))
    return found


def judge_of(
    exits: Sequence[ExitScores],
    budget: Budget | None = None,
    heads: Sequence[float] | None = None,
    seed: int = 0,
) -> Judge:
    """A judge of exits that lie evenly in a network that is always right where one can be."""
    final = exits_of(99, [0.99], len(exits[0].right))[0]
    pieces = len(exits) + 1
    costs = ExitCosts((1 / pieces,) * pieces, tuple(heads or [0.001] * len(exits)), 1.0)
    objective = Objective(budget, 1.0, float(final.right.mean()))
    return Judge(exits, final, costs, objective, guess=0.1, seed=seed)
