"""SplitEE's bandit: which split layer pays, learned from what a device can know.

Arms are the exits a sample may be split at, in order, and last the network's end. Everything here
is floats and lists: a choice takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf, isfinite, log, sqrt
from typing import Any, Literal

__all__ = ["Rewards", "SplitBandit", "UcbOptions"]

#: Confidences lie in 0 .. 1, up to rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class UcbOptions:
    """How splits are learned.

    Attributes:
        observations: "own" (SplitEE): only the split's head runs, and only the split is learned
            of. "side" (SplitEE-S): all heads up to it run, and all of these splits are learned of.
        unknown: what becomes of a side observation whose reward needs the network's confidence
            where nobody computed it. "impute": the mean of the confidences known so far stands in
            for it, of samples that were unsure at the same split; where there are none yet, it is
            skipped. "skip": nothing is learned of that split. Only unsure samples, the dear ones,
            are skipped: splits before the one in use look better than they are, and may keep being
            chosen (measured with benchmarks/split.py).
        discount: what a sample's weight is multiplied with at each later one. 1 never forgets;
            below 1 the split follows inputs that change (discounted UCB, arXiv 0805.3415), and
            about 1 / (1 - discount) samples count.
        exploration: how much uncertainty is worth, in rewards; the papers' c.
        weight: how much the network's whole cost is worth, in confidence; the papers' mu.

    Raises:
        ValueError: a number out of its range.
    """

    observations: Literal["own", "side"] = "own"
    unknown: Literal["skip", "impute"] = "impute"
    discount: float = 1.0
    exploration: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.observations not in ("own", "side") or self.unknown not in ("skip", "impute"):
            raise ValueError(f"no such observations or unknown: {self}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, not {self.discount}")
        if not (0 <= self.exploration < inf and 0 <= self.weight < inf):
            raise ValueError(f"exploration and weight must be 0 or more: {self}")

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes equal options."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UcbOptions:
        """The inverse of `to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class Rewards:
    """What a sample is worth at each arm: confidence in its answer, less what the answer cost.

    Costs are fractions of what the whole network costs on the device.

    Attributes:
        spent: cost up to each arm, its heads included.
        alone: the same where nobody answered and the network ran to its end after all.
        thresholds: confidence at which a sample leaves, of each arm but the end.
        price: of sending one sample.
        weight: how much the network's cost is worth, in confidence.

    Source: SplitEE (arXiv 2309.09195).
    """

    spent: tuple[float, ...]
    alone: tuple[float, ...]
    thresholds: tuple[float, ...]
    price: float
    weight: float = 1.0

    def of(
        self, arm: int, confidence: float | None, final: float | None, here: float = False
    ) -> float | None:
        """The reward of an arm for one sample, None where it is not known.

        Args:
            arm: at which the sample is split.
            confidence: the head's there; of no matter at the end.
            final: the network's own, None where nobody computed it.
            here: whether the device had to compute it because no server answered, or how likely
                it would have had to.

        >>> rewards = Rewards((0.25, 1.0), (1.0, 1.0), (0.75,), price=0.5)
        >>> rewards.of(0, 0.75, None), rewards.of(0, 0.5, 1.0), rewards.of(1, None, 1.0)
        (0.5, 0.25, 0.0)
        >>> rewards.of(0, 0.5, None), rewards.of(0, 0.5, 1.0, here=True)
        (None, -0.5)
        """
        if arm == len(self.thresholds):
            return None if final is None else final - self.weight * self.spent[arm]
        if confidence is None:
            return None
        if confidence >= self.thresholds[arm]:
            return confidence - self.weight * self.spent[arm]
        if final is None:
            return None
        computed = here * self.alone[arm] + (1 - here) * self.spent[arm]
        return final - self.weight * (computed + self.price)

    @property
    def bound(self) -> float:
        """No reward is further from zero."""
        return 1 + _ROUNDING + self.weight * (max((*self.spent, *self.alone)) + self.price)


class SplitBandit:
    """UCB1 over the arms of some rewards: the arm that may be the best, until it is known not to.

    Each arm is played once, in order, then always the one with the largest
    ``sum / count + exploration * sqrt(log(rounds) / count)``; the lowest of equal ones. With a
    discount, sums, counts and rounds are discounted ones.

    Source: SplitEE and SplitEE-S (arXiv 2309.09195), which take `rounds` for the samples so far.
    Those read the network's confidence of every sample from a table, also where no device could
    know it; here such an observation is skipped or imputed (`UcbOptions.unknown`). Whether a server
    would have answered a sample that was not sent is taken from the share of those that were.
    """

    __slots__ = (
        *("_asked", "_known", "_known_sums", "_vain"),
        *("counts", "options", "rewards", "rounds", "sums"),
    )

    def __init__(self, rewards: Rewards, options: UcbOptions) -> None:
        self.rewards, self.options = rewards, options
        arms = len(rewards.spent)
        self.rounds = 0.0
        self.counts = [0.0] * arms
        self.sums = [0.0] * arms
        # Per arm but the end: the network's confidence in samples that were unsure there.
        self._known = [0.0] * (arms - 1)
        self._known_sums = [0.0] * (arms - 1)
        self._asked = self._vain = 0.0  # Samples sent, and those of them that nobody answered.

    def choose(self) -> int:
        """The arm of the next sample. The same until something is learned."""
        explored = log(self.rounds) if self.rounds > 1 else 0.0
        scale, best, most = self.options.exploration, 0, -inf
        for arm, (count, total) in enumerate(zip(self.counts, self.sums, strict=True)):
            if count <= 0:
                return arm
            index = total / count + scale * sqrt(explored / count)
            if index > most:
                best, most = arm, index
        return best

    @property
    def best(self) -> int:
        """The arm with the largest mean reward so far; the first one where nothing is known."""
        means = [s / n if n > 0 else -inf for s, n in zip(self.sums, self.counts, strict=True)]
        return means.index(max(means))

    def learn(
        self,
        arm: int,
        confidences: Sequence[float | None],
        final: float | None,
        here: bool = False,
    ) -> None:
        """One more sample.

        Args:
            arm: it was split at.
            confidences: of the heads that ran, by arm; None, or nothing, for the others.
            final: the network's own confidence, None where nobody computed it.
            here: whether the device had to compute it because no server answered.
        """
        self._forget()
        self.rounds += 1.0
        side, alone = self.options.observations == "side", float(here)
        if self._unsure(arm, confidences):
            self._asked += 1.0
            self._vain += alone
        elif self._asked > 0:
            alone = self._vain / self._asked
        for at in range(0 if side else arm, arm + 1):
            known = self._known_or_imputed(at, final) if self._unsure(at, confidences) else final
            self._observe(at, confidences[at] if at < len(confidences) else None, known, alone)

    def _unsure(self, arm: int, confidences: Sequence[float | None]) -> bool:
        """Whether a sample is sent where it is split at an arm; one that is no number is."""
        limits = self.rewards.thresholds
        confidence = confidences[arm] if arm < len(limits) else None
        return confidence is not None and not confidence >= limits[arm]

    def _observe(
        self, arm: int, confidence: float | None, final: float | None, here: float
    ) -> None:
        reward = self.rewards.of(arm, confidence, final, here)
        # Logits that are no numbers say nothing, and would be remembered for ever.
        if reward is not None and isfinite(reward):
            self.counts[arm] += 1.0
            self.sums[arm] += reward

    def _known_or_imputed(self, arm: int, final: float | None) -> float | None:
        """The network's confidence in a sample that is unsure at an arm."""
        if final is None:
            impute = self.options.unknown == "impute" and self._known[arm] > 0
            return self._known_sums[arm] / self._known[arm] if impute else None
        if isfinite(final):
            self._known[arm] += 1.0
            self._known_sums[arm] += final
        return final

    def _forget(self) -> None:
        discount = self.options.discount
        if discount < 1:
            self.rounds *= discount
            self._asked *= discount
            self._vain *= discount
            for values in (self.counts, self.sums, self._known, self._known_sums):
                values[:] = [discount * value for value in values]

    def memory(self) -> dict[str, Any]:
        """JSON value of all that was learned."""
        return {
            "rounds": self.rounds,
            "counts": list(self.counts),
            "sums": list(self.sums),
            "known_counts": list(self._known),
            "known_sums": list(self._known_sums),
            "asked": self._asked,
            "vain": self._vain,
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from what `memory` gave.

        Raises:
            ValueError: no bandit with these arms can have learned this; nothing has changed then.
        """
        arms = len(self.counts)
        (rounds,) = _numbers(memory, "rounds", None)
        counts, sums = _numbers(memory, "counts", arms), _numbers(memory, "sums", arms)
        known = _numbers(memory, "known_counts", arms - 1)
        known_sums = _numbers(memory, "known_sums", arms - 1)
        (asked,), (vain,) = _numbers(memory, "asked", None), _numbers(memory, "vain", None)
        most = rounds * (1 + 1e-9)
        if not 0 <= vain <= asked:
            raise ValueError("`vain` must lie between 0 and `asked`")
        if not all(0 <= count <= most for count in (*counts, *known, asked)):
            raise ValueError(f"counts must lie between 0 and the {rounds:g} rounds")
        limits = [count * self.rewards.bound for count in counts]
        limits += [count * (1 + _ROUNDING) for count in known]
        pairs = zip((*sums, *known_sums), limits, strict=True)
        if not all(abs(total) <= limit * (1 + 1e-9) for total, limit in pairs):
            raise ValueError("sums must be of as many rewards as were counted")
        self.rounds = rounds
        self.counts, self.sums = counts, sums
        self._known, self._known_sums = known, known_sums
        self._asked, self._vain = asked, vain


def _numbers(memory: Mapping[str, Any], key: str, count: int | None) -> list[float]:
    """The numbers under a key: so many, or a single one where `count` is None."""
    value = memory.get(key)
    found = [value] if count is None else value
    wanted = 1 if count is None else count
    if (
        not isinstance(found, list)
        or len(found) != wanted
        or not all(type(o) in (int, float) and isfinite(o) for o in found)
    ):
        raise ValueError(f"`{key}` must be {'a number' if count is None else f'{count} numbers'}")
    return [float(number) for number in found]
