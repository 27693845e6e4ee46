"""Records of networks that were never run, with known strengths."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from eecompile.outcomes import ExitCosts
from eecompile.record import Record
from eecompile.spec import Rule, RuleTerm

__all__ = ["CLASSES", "COSTS", "EXITS", "RULES", "made", "rule"]

R = TypeVar("R", bound=Record)

CLASSES, EXITS = 5, ("early", "middle", "late")

#: Heads are dear in time and cheap in MACs, so that the two do not rank settings alike.
COSTS = {
    "macs": ExitCosts((0.2, 0.3, 0.3, 0.2), (0.01, 0.01, 0.01), 1.0),
    "latency": ExitCosts((1e-3, 4e-3, 2e-3, 3e-3), (6e-4, 1e-4, 3e-4), 1e-2, "measured"),
}


def rule(*terms: str) -> Rule:
    """``rule("max_softmax", "patience")``: measures of confidence, or other kinds of rules."""
    others = ("patience", "predicted", "auto", "learned_score")
    return Rule(
        tuple(RuleTerm(name) if name in others else RuleTerm("confidence", name) for name in terms)
    )


#: A rule of each kind that has operating points.
RULES = {
    "softmax": rule("max_softmax"),
    "entropy": rule("entropy"),
    "margin": rule("margin"),
    "means": rule("class_means"),
    "patience": rule("patience"),
    "either": rule("class_means", "max_softmax"),
    "patient or sure": rule("patience", "margin"),
    "predicted": rule("predicted"),
}


def made(kind: type[R], seed: int, count: int = 1500, means: bool = True) -> R:
    """A network whose exits see the class through noise that shrinks with depth.

    Args:
        kind: of record.
        seed: equal seeds give equal samples.
        count: of samples.
        means: whether the first and the last exit have class means as well.
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    hardness = generator.exponential(size=(count, 1))

    def scores(noise: float) -> np.ndarray:
        seen = np.eye(CLASSES)[labels] + generator.normal(size=(count, CLASSES)) * noise * hardness
        return (6 * seen).astype(np.float32)

    logits = {name: scores(noise) for name, noise in zip(EXITS, (0.6, 0.4, 0.25), strict=True)}
    found = {name: scores(noise) for name, noise in (("early", 0.7), ("late", 0.35))}
    return kind(EXITS, labels, scores(0.2), {}, logits, found if means else {})
