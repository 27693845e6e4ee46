"""Split the work with a server: run to a split layer, leave there if sure, else send the rest on.

Which layer, is learned while the network is in use, without labels (SplitEE and SplitEE-S,
arXiv 2309.09195), or fixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.policies.split_bandit import Rewards, SplitBandit, UcbOptions
from eecompile.policies.steps import from_json, to_json

__all__ = ["SplitCosts", "SplitPolicy", "SplitState"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SplitCosts:
    """What samples cost, as fractions of what the whole network costs on the device.

    Attributes:
        backbone: up to each exit, the whole network's last.
        heads: of evaluating each exit; one fewer.
        price: of sending one sample to a server.

    Raises:
        ValueError: they are no costs.
    """

    backbone: tuple[float, ...]
    heads: tuple[float, ...]
    price: float

    def __post_init__(self) -> None:
        values = (*self.backbone, *self.heads, self.price)
        if len(self.backbone) != len(self.heads) + 1:
            raise ValueError(f"{len(self.backbone)} costs of {len(self.heads)} exits and the end")
        if not all(isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"costs must be 0 or more: {self}")


class SplitState:
    """Of samples on their way: where they are split, and how sure the heads were.

    Attributes:
        arm: position of the split among the policy's `exits`; their number means the end.
        seen: per exit of the policy, the confidences float32 (n,), None where its head did not run.
    """

    __slots__ = ("arm", "seen")

    def __init__(self, arm: int, seen: list[Array | None]) -> None:
        self.arm, self.seen = arm, seen


class SplitPolicy(ExitPolicy):
    """Leave at the sample's split if its head is sure enough, else have a server answer.

    Where the split is the network's end, the sample runs to it. Exits before the split are
    evaluated with side observations only, and then nothing leaves there.

    An object changes while it learns: it belongs to one session and its clones, which hold a lock
    from `first` to `start`, and while it learns. `from_json(to_json(policy))` is a fresh one with
    the same rule, and `remember(memory())` gives that what this one knows.

    Args:
        score: measure of confidence, of heads and of the network's own answer. "class_means" asks
            the comparators, whose output is then the answer, and "max_softmax" for the network's.
        thresholds: one per exit; infinity where nothing leaves.
        exits: indices of the exits that may be split at: they have what `score` looks at.
        costs: of exits and of sending a sample.
        learning: how splits are chosen; None where the split is fixed.
        at: the exit a fixed split is at.

    Raises:
        ValueError: these do not fit together.
    """

    kind: ClassVar[str] = "split"
    online: ClassVar[bool] = True

    def __init__(
        self,
        score: str,
        thresholds: Sequence[float],
        exits: Sequence[int],
        costs: SplitCosts,
        learning: UcbOptions | None = None,
        at: int | None = None,
    ) -> None:
        self.score, self.thresholds = score, tuple(map(float, thresholds))
        self.exits, self.costs, self.learning, self.at = tuple(exits), costs, learning, at
        if score != "class_means" and score not in SCORES:
            raise ValueError(f"no measure of confidence `{score}`")
        if len(self.thresholds) != len(costs.heads):
            raise ValueError(f"{len(self.thresholds)} thresholds of {len(costs.heads)} exits")
        if list(self.exits) != sorted({e for e in exits if 0 <= e < len(costs.heads)}):
            raise ValueError(f"no exits in order: {list(exits)}")
        if (learning is None) == (at is None) or at not in (None, *self.exits):
            raise ValueError("a split is learned, or fixed at one of the exits")
        self._measure = SCORES.get(score, max_softmax)
        self._side = learning is not None and learning.observations == "side"
        self.rewards = self._rewards()
        self._bandit = None if learning is None else SplitBandit(self.rewards, learning)
        self._arm: int | None = None if at is None else self.exits.index(at)
        self._prepare()

    def _rewards(self) -> Rewards:
        """In terms of arms."""
        backbone, heads = self.costs.backbone, [self.costs.heads[e] for e in self.exits]
        passed = list(accumulate(heads)) if self._side else heads
        at_end = passed[-1] if self._side and passed else 0.0
        limits = np.array([self.thresholds[e] for e in self.exits], np.float32)
        up_to = [backbone[e] + h for e, h in zip(self.exits, passed, strict=True)]
        return Rewards(
            spent=(*up_to, backbone[-1] + at_end),
            alone=(*(backbone[-1] + h for h in passed), backbone[-1] + at_end),
            thresholds=tuple(limits.tolist()),
            price=self.costs.price,
            weight=self.learning.weight if self.learning else 1.0,
        )

    def _prepare(self) -> None:
        """Arrays that decisions are taken from: making them takes longer than deciding."""
        last = len(self.costs.heads)
        self._places = [*self.exits, last]
        self._arm_of = {exit_: arm for arm, exit_ in enumerate(self.exits)}
        self._limits = [np.array([t], np.float32) for t in self.rewards.thresholds]
        self._outcomes = np.array([OFFLOAD, EXIT])
        after = (next(p for p in self._places if p > index) for index in range(last))
        self._after = [np.array([place]) for place in after]

    def first(self) -> int:
        """The next sample's split; with side observations the first exit."""
        return self._places[0 if self._side else self._chosen()]

    def start(self, count: int) -> SplitState:
        """At the split that `first` had in mind; all of the samples at the same one."""
        return SplitState(self._chosen(), [None] * len(self.exits))

    def select(self, state: SplitState, kept: Array) -> SplitState:
        """The state of some of the samples."""
        return SplitState(state.arm, [None if c is None else c[kept] for c in state.seen])

    def _chosen(self) -> int:
        if self._arm is None:
            assert self._bandit is not None, "a fixed split has its arm"
            self._arm = self._bandit.choose()
        return self._arm

    def decide(self, index: int, outputs: ExitOutputs, state: SplitState) -> Array:
        """At the split `EXIT` where the head is sure and `OFFLOAD` elsewhere; before it, go on."""
        arm = self._arm_of.get(index)
        if arm is None:
            return self._after[index].repeat(len(outputs.logits))
        logits = outputs.class_means if self.score == "class_means" else outputs.logits
        if logits is None:
            raise ValueError(f"exit {index} has no class means to split by")
        confidence = self._measure(logits)
        state.seen[arm] = confidence
        if arm >= state.arm:
            return self._outcomes.take(confidence >= self._limits[arm])
        return self._after[index].repeat(len(confidence))

    def answer(self, index: int, outputs: ExitOutputs) -> Array:
        """The head's logits, or the comparator's output where that was asked."""
        means = outputs.class_means if self.score == "class_means" else None
        return outputs.logits if means is None else means

    def learn(self, state: SplitState, final: Array | None, here: bool = False) -> None:
        """What one sample was worth at its split, and at those before it with side observations.

        Args:
            state: of this one sample.
            final: the network's own logits (1, classes), None where nobody computed them.
            here: whether the device computed them after it asked a server in vain: then the split
                cost the rest of the network, too, and the price of asking.
        """
        if self._bandit is not None:
            self._bandit.learn(state.arm, *self._confidences(state, final), here)
            self._arm = None

    def reward(self, state: SplitState, final: Array | None, here: bool = False) -> float | None:
        """What the split was worth for one sample, None where that is not known; as `learn`."""
        seen, last = self._confidences(state, final)
        return self.rewards.of(state.arm, (*seen, None)[state.arm], last, here)

    def _confidences(
        self, state: SplitState, final: Array | None
    ) -> tuple[list[float | None], float | None]:
        """Of the heads that ran, by arm, and of the network's own answer."""
        seen = [None if confidence is None else confidence.item() for confidence in state.seen]
        return seen, None if final is None else self._measure(final).item()

    def split_of(self, arm: int) -> int:
        """Index of an arm's exit; the number of exits for the network's end."""
        return self._places[arm]

    @property
    def best(self) -> int:
        """Where samples are best split as far as is known: as `split_of`."""
        arm = self._chosen() if self._bandit is None else self._bandit.best
        return self.split_of(arm)

    @property
    def counts(self) -> dict[int, float]:
        """How much is known of each split (as `split_of`): samples, discounted; 0 where fixed."""
        counts = [0.0] * len(self._places) if self._bandit is None else self._bandit.counts
        return dict(zip(self._places, counts, strict=True))

    def memory(self) -> dict[str, Any]:
        """What was learned of the splits, and which policy it is of; empty where fixed."""
        return {} if self._bandit is None else {"of": self._identity(), **self._bandit.memory()}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from what `memory` gave: the same splits follow as would have there.

        Raises:
            ValueError: it is of a policy with other exits, thresholds, costs or options, or
                damaged; nothing has changed then.
        """
        if self._bandit is None:
            if memory:
                raise ValueError("the split is fixed: there is nothing to remember")
            return
        if memory.get("of") != self._identity():
            raise ValueError("it was learned by another policy")
        self._bandit.remember(memory)
        self._arm = None

    def _identity(self) -> str:
        """Rewards depend on every parameter, so what was learned is of use with the same only."""
        text = json.dumps(self.parameters(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def parameters(self) -> dict[str, Any]:
        """All but what was learned."""
        return {
            "score": self.score,
            "thresholds": to_json(self.thresholds),
            "exits": list(self.exits),
            "backbone": list(self.costs.backbone),
            "heads": list(self.costs.heads),
            "price": self.costs.price,
            "learning": self.learning and self.learning.to_json(),
            "at": self.at,
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> SplitPolicy:
        """The inverse of `parameters`: one that has learned nothing."""
        costs = SplitCosts(
            tuple(map(float, parameters["backbone"])),
            tuple(map(float, parameters["heads"])),
            float(parameters["price"]),
        )
        learning = parameters["learning"]
        return cls(
            parameters["score"],
            from_json(parameters["thresholds"]),
            parameters["exits"],
            costs,
            None if learning is None else UcbOptions.from_json(learning),
            parameters["at"],
        )
