"""Running a policy over recorded outputs instead of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.policies.base import EXIT, HALT, OFFLOAD, ExitOutputs, ExitPolicy

__all__ = ["Replay", "replay"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Replay:
    """Where each of n samples left, with which answer, and what was evaluated on the way.

    Attributes:
        exit: int64 (n,), index of the exit; the number of exits for the final one.
        logits: float32 (n, classes), the answers' logits.
        evaluated: bool (n, exits), whose heads ran.
        halted: bool (n,), whether it left because a budget was spent.
    """

    exit: Array
    logits: Array
    evaluated: Array
    halted: Array

    @property
    def labels(self) -> Array:
        """The answered classes, int64 (n,)."""
        return np.asarray(self.logits.argmax(axis=1))

    def correct(self, labels: Array) -> Array:
        """Whether each answer is right, bool (n,)."""
        return np.asarray(self.labels == labels)

    def fractions(self) -> Array:
        """Share of the samples that left at each exit, the final one last."""
        return np.bincount(self.exit, minlength=self.evaluated.shape[1] + 1) / len(self.exit)


def replay(policy: ExitPolicy, exits: Sequence[ExitOutputs], final: Array) -> Replay:
    """What `policy` does to samples of which every exit's outputs are known.

    Where it offloads, no server answers: the sample gets the network's own answer.

    Args:
        policy: asked exactly as at run time; it learns nothing.
        exits: outputs of all n samples, per exit.
        final: logits of the final exit, float32 (n, classes).
    """
    count = len(final)
    left = np.full(count, len(exits))
    logits = np.array(final, np.float32)
    evaluated, halted = np.zeros((count, len(exits)), bool), np.zeros(count, bool)
    # Samples that arrive at an exit from different ones have states that cannot be joined.
    arriving: list[list[tuple[Array, Any]]] = [[] for _ in range(len(exits) + 1)]
    arriving[policy.first()].append((np.arange(count), policy.start(count)))
    for index, outputs in enumerate(exits):
        for samples, state in _joined(arriving[index]):
            seen = outputs.rows(samples)
            evaluated[samples, index] = True
            decision = policy.decide(index, seen, state)
            halting = decision == HALT
            leaving = halting | (decision == EXIT)
            left[samples[leaving]] = index
            halted[samples[halting]] = True
            logits[samples[leaving]] = policy.answer(index, seen)[leaving]
            for after in np.unique(decision[~leaving & (decision != OFFLOAD)]):
                kept = np.flatnonzero(decision == after)
                arriving[after].append((samples[kept], policy.select(state, kept)))
    return Replay(left, logits, evaluated, halted)


def _joined(groups: list[tuple[Array, Any]]) -> list[tuple[Array, Any]]:
    """One group instead of several where there is no state to tell them apart."""
    if len(groups) < 2 or any(state is not None for _, state in groups):
        return groups
    return [(np.concatenate([samples for samples, _ in groups]), None)]
