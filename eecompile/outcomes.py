"""What a policy does to recorded samples: accuracy, cost, exits taken, each with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.policies import ExitPolicy, Replay, replay
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.segments import SegmentGraph
from eecompile.spec import Budget

__all__ = [
    "ExitCosts",
    "Interval",
    "Report",
    "commonest_share",
    "evaluate",
    "exits_json",
    "exits_taken",
    "reported",
    "standard_error",
    "wilson",
]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ExitCosts:
    """What a sample pays, in one unit, by where it leaves and which heads it passes.

    Attributes:
        segments: cost of each segment, in order; one more than exits.
        heads: cost of evaluating each exit: head and comparator; the decision itself is free here.
        full_depth: cost of the untouched backbone, which budgets in per cent refer to.
        provenance: where they come from.
        sampled: split -> what each sample of its record paid for the backbone up to each exit and
            the end, float64 (n, exits + 1), where gates made it differ; `segments` are then means.
    """

    segments: tuple[float, ...]
    heads: tuple[float, ...]
    full_depth: float
    provenance: Literal["counted", "measured", "modelled"] = "counted"
    sampled: Mapping[str, Array] = field(default_factory=dict, compare=False)

    @classmethod
    def macs(cls, graph: SegmentGraph | CompiledGraph) -> ExitCosts:
        """Multiply-accumulates as a fraction of the untouched backbone's, heads included."""
        full = graph.macs or 1
        segments = tuple(segment.macs / full for segment in graph.segments)
        return cls(segments, tuple(exit_.macs / full for exit_ in graph.exits), 1.0)

    @property
    def leaving(self) -> tuple[float, ...]:
        """Cost of the backbone up to each exit, the final one last.

        >>> ExitCosts((0.5, 0.25, 0.25), (0.01, 0.01), 1.0).leaving
        (0.5, 0.75, 1.0)
        """
        return tuple(accumulate(self.segments))

    def of(self, replayed: Replay, split: str = "") -> Array:
        """Cost of each sample of a split's record, float64 (n,)."""
        return self.paid(replayed.exit, replayed.evaluated, split)

    def paid(self, exit_: Array, evaluated: Array, split: str = "") -> Array:
        """Cost of each sample, float64 (n,).

        Args:
            exit_: int64 (n,), where each leaves.
            evaluated: bool (n, exits), whose heads ran.
            split: whose samples these are, in order. Of a part of them each pays what all do in the
                mean, as where it is empty.
        """
        own = self.sampled.get(split)
        backbone = np.asarray(self.leaving)[exit_]
        if own is not None and len(own) == len(exit_):
            backbone = np.take_along_axis(own, exit_[:, None], axis=1)[:, 0]
        return np.asarray(backbone + evaluated @ np.asarray(self.heads, np.float64))


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval (95 %)."""

    value: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, samples: Array) -> Interval:
        """Mean of independent samples, by the normal approximation.

        >>> Interval.of_mean(np.array([1.0, 1.0])).high
        1.0
        """
        half = 1.96 * standard_error(samples)
        mean = float(samples.mean())
        return cls(mean, mean - half, mean + half)


def commonest_share(labels: Array) -> float:
    """Accuracy of naming the commonest class always.

    >>> commonest_share(np.array([0, 2, 2, 1]))
    0.5
    """
    return float(np.bincount(labels).max() / len(labels))


def wilson(successes: int, count: int) -> Interval:
    """A proportion with Wilson's score interval, which also holds near 0 and 1.

    >>> interval = wilson(9, 10)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.596, 0.982)
    """
    z = NormalDist().inv_cdf(0.975)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Report:
    """What a policy does on a record.

    Attributes:
        n: number of samples.
        accuracy: share of right answers, Wilson interval.
        full_depth_accuracy: of the network's own answers.
        accuracy_drop: the loss against them, paired by sample.
        costs: quantity -> mean cost of a sample ("macs" as a fraction of the backbone's).
        provenance: quantity -> where its costs come from.
        exits: per exit, the final one last: (name, share of the samples, their accuracy or None).
    """

    n: int
    accuracy: Interval
    full_depth_accuracy: Interval
    accuracy_drop: Interval
    costs: Mapping[str, Interval]
    provenance: Mapping[str, str]
    exits: tuple[tuple[str, float, float | None], ...]

    def measured(self, budget: Budget) -> Interval | None:
        """What the budget limits, as found here; None where no such cost is known."""
        if budget.quantity == "accuracy_drop":
            return self.accuracy_drop
        return self.costs.get(budget.quantity)

    def missed_by(self, budget: Budget) -> float:
        """How far the mean lies above the budget's limit; 0 where the budget is kept."""
        found = self.measured(budget)
        return max(0.0, found.value - budget.limit) if found else 0.0


def evaluate(
    policy: ExitPolicy, record: TestRecord | CalibrateRecord, costs: Mapping[str, ExitCosts]
) -> Report:
    """What `policy` does to the samples of a record."""
    replayed = replay(policy, record.outputs(), record.final)
    return reported(
        record,
        replayed.exit,
        replayed.correct(record.labels),
        {name: cost.of(replayed, record.split) for name, cost in costs.items()},
        {name: cost.provenance for name, cost in costs.items()},
    )


def reported(
    record: TestRecord | CalibrateRecord,
    exit_: Array,
    right: Array,
    costs: Mapping[str, Array],
    provenance: Mapping[str, str],
) -> Report:
    """What became of a record's samples.

    Args:
        record: the samples.
        exit_: int64 (n,), which exit each took; the final one last.
        right: bool (n,), whether its answer was right.
        costs: quantity -> what it cost, (n,).
        provenance: quantity -> where its costs come from.
    """
    full = record.right_as_built
    return Report(
        n=len(record),
        accuracy=wilson(int(right.sum()), len(record)),
        full_depth_accuracy=wilson(int(full.sum()), len(record)),
        accuracy_drop=Interval.of_mean(full.astype(float) - right),
        costs={name: Interval.of_mean(cost) for name, cost in costs.items()},
        provenance=provenance,
        exits=exits_taken((*record.exits, "final"), exit_, right),
    )


def exits_taken(
    names: Sequence[str], taken: Array, right: Array
) -> tuple[tuple[str, float, float | None], ...]:
    """Per exit: name, share of the samples, their accuracy or None where there are none.

    Args:
        names: of the exits, the final one last.
        taken: int64 (n,), index of the exit each sample left at.
        right: bool (n,), whether its answer is right.

    >>> exits_taken(["early", "final"], np.array([0, 0]), np.array([True, False]))
    (('early', 1.0, 0.5), ('final', 0.0, None))
    """
    found = []
    for index, name in enumerate(names):
        here = taken == index
        accuracy = float(right[here].mean()) if here.any() else None
        found.append((name, float(here.mean()), accuracy))
    return tuple(found)


def exits_json(exits: Iterable[tuple[str, float, float | None]]) -> list[dict[str, Any]]:
    """What `exits_taken` gives, as JSON; keys scripts rely on."""
    return [
        {"name": name, "fraction": fraction, "accuracy": accuracy}
        for name, fraction, accuracy in exits
    ]


def standard_error(samples: Array) -> float:
    """Of the mean of independent samples."""
    return float(samples.std()) / sqrt(len(samples))
