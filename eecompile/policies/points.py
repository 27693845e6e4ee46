"""Operating points: settings of a policy with what each costs, to choose from at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eecompile.policies.base import ExitPolicy
from eecompile.policies.json_form import from_json

__all__ = ["OperatingPoint", "cheapest", "most_accurate"]


@dataclass(frozen=True)
class OperatingPoint:
    """One setting of a policy and what it does on the calibration data.

    Attributes:
        policy: the policy as JSON.
        accuracy: share of right answers.
        accuracy_drop: what it loses against full depth; at most, with the build's confidence.
        costs: quantity ("macs" as a fraction of the backbone's, "latency" in seconds, "energy" in
            joules) -> mean cost of a sample.
        at_most: the same with the build's confidence: what a budget is compared with.
    """

    policy: Mapping[str, Any]
    accuracy: float
    accuracy_drop: float
    costs: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)

    def make(self) -> ExitPolicy:
        """The policy in this setting."""
        return from_json(self.policy)

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal point."""
        return {
            "policy": dict(self.policy),
            "accuracy": self.accuracy,
            "accuracy_drop": self.accuracy_drop,
            "costs": dict(self.costs),
            "at_most": dict(self.at_most),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of `to_json`."""
        return cls(**value)


def most_accurate(
    points: Iterable[OperatingPoint], quantity: str, limit: float
) -> OperatingPoint | None:
    """The most accurate point whose mean `quantity` is at most `limit`, None where there is none.

    >>> points = [OperatingPoint({}, a, 0, {}, {"macs": m}) for a, m in ((.9, .5), (.93, .8))]
    >>> most_accurate(points, "macs", 0.7).accuracy
    0.9
    """
    within = [p for p in points if p.at_most.get(quantity, float("inf")) <= limit]
    return max(within, key=lambda p: p.accuracy, default=None)


def cheapest(
    points: Iterable[OperatingPoint], quantity: str, accuracy_drop: float
) -> OperatingPoint | None:
    """The point of the least `quantity` that loses at most `accuracy_drop`, or None."""
    within = [p for p in points if p.accuracy_drop <= accuracy_drop and quantity in p.costs]
    return min(within, key=lambda p: p.costs[quantity], default=None)
