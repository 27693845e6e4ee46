"""Samples one after the other through a split policy, from a record, as the runtime would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs
from eecompile.policies.split import SplitPolicy

__all__ = ["StreamReplay", "replay_stream"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StreamReplay:
    """What became of each of n samples, in their order.

    Attributes:
        split: int64 (n,), index of the exit each was split at; the number of exits for the end.
        exit: int64 (n,), index of the exit whose answer it got; the number of exits for the
            network's own, wherever that was computed.
        offloaded: bool (n,), whether a server answered.
        unanswered: bool (n,), whether a server was asked in vain, and the network ran on here.
        logits: float32 (n, classes), the answers.
        evaluated: bool (n, exits), whose heads ran.
        cost: float64 (n,), of its answer, the price of sending it included; a fraction of what the
            whole network costs here.
        reward: float64 (n,), what its split was worth.
    """

    split: Array
    exit: Array
    offloaded: Array
    unanswered: Array
    logits: Array
    evaluated: Array
    cost: Array
    reward: Array

    @property
    def labels(self) -> Array:
        """The answered classes, int64 (n,)."""
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def sent(self) -> Array:
        """Whether a server was asked, bool (n,)."""
        return np.asarray(self.offloaded | self.unanswered)


def replay_stream(
    policy: SplitPolicy,
    exits: Sequence[ExitOutputs],
    final: Array,
    *,
    answered: float = 1.0,
    seed: int = 0,
) -> StreamReplay:
    """What `policy` does to samples that come one by one, learning from each as in the runtime.

    The policy goes on from what it knows, and knows more afterwards.

    Args:
        policy: asked, and told, exactly as at run time.
        exits: outputs of all n samples, per exit.
        final: the network's own logits, float32 (n, classes).
        answered: how likely a server is to answer; where none does, the network runs to its end.
        seed: of who is answered.
    """
    count, last = len(final), len(exits)
    reached = np.random.default_rng(seed).random(count) < answered
    found = StreamReplay(
        split=np.full(count, last),
        exit=np.full(count, last),
        offloaded=np.zeros(count, bool),
        unanswered=np.zeros(count, bool),
        logits=np.array(final, np.float32),
        evaluated=np.zeros((count, last), bool),
        cost=np.zeros(count),
        reward=np.zeros(count),
    )
    for sample in range(count):
        _one(policy, exits, final, sample, bool(reached[sample]), found)
    return found


def _one(
    policy: SplitPolicy,
    exits: Sequence[ExitOutputs],
    final: Array,
    sample: int,
    reached: bool,
    found: StreamReplay,
) -> None:
    """One sample; `reached` says whether a server would answer it."""
    row, last = slice(sample, sample + 1), len(exits)
    index, state, here = policy.first(), policy.start(1), False
    known: Array | None = final[row]
    found.split[sample] = policy.split_of(state.arm)
    while index < last:
        seen = exits[index].rows(row)
        found.evaluated[sample, index] = True
        decision = policy.decide(index, seen, state).item()
        if decision == EXIT:
            known = None  # Nobody computed it.
            found.exit[sample] = index
            found.logits[sample] = policy.answer(index, seen)[0]
            break
        if decision == OFFLOAD:
            here = not reached
            found.offloaded[sample], found.unanswered[sample] = reached, here
            break
        index = decision
    rewards, arm = policy.rewards, state.arm
    sent = bool(found.sent[sample])
    computed = rewards.alone[arm] if here else rewards.spent[arm]
    found.cost[sample] = computed + (rewards.price if sent else 0.0)
    reward = policy.reward(state, known, here)
    assert reward is not None, "of an exit the head, else the network, is asked"
    found.reward[sample] = reward
    policy.learn(state, known, here)
