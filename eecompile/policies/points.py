"""Operating points: settings of a policy with what each costs, to choose from at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eecompile.policies.base import ExitPolicy
from eecompile.policies.json_form import from_json

__all__ = ["OperatingPoint", "OutOfReach", "cheapest", "choose", "keeps", "most_accurate", "within"]

#: A limit is not missed by the rounding of a sum.
_ROUNDING = 1e-9


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
        budget: what it was made for ("mean macs <= 60 %"); None where for no budget in particular.
    """

    policy: Mapping[str, Any]
    accuracy: float
    accuracy_drop: float
    costs: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    budget: str | None = None

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
            "budget": self.budget,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """The inverse of `to_json`."""
        return cls(**value)


class OutOfReach(ValueError):
    """No operating point keeps a budget; the text says what can be kept.

    Attributes:
        quantity: of the limit that cannot be kept; None where there are no points at all.
        least: the strictest limit of it that can be kept; None where no point knows the quantity.
    """

    def __init__(self, message: str, quantity: str | None, least: float | None) -> None:
        super().__init__(message)
        self.quantity, self.least = quantity, least


def within(value: float, limit: float) -> bool:
    """Whether a value keeps a limit, rounding apart.

    >>> within(0.1 + 0.2, 0.3), within(0.31, 0.3)
    (True, False)
    """
    return value <= limit + _ROUNDING * abs(limit)


def keeps(point: OperatingPoint, quantity: str, limit: float) -> bool:
    """Whether a point is known to keep a limit of "accuracy_drop" or of a mean cost."""
    if quantity == "accuracy_drop":
        return within(point.accuracy_drop, limit)
    return within(point.at_most.get(quantity, float("inf")), limit)


def most_accurate(
    points: Iterable[OperatingPoint], quantity: str, limit: float
) -> OperatingPoint | None:
    """The most accurate point whose mean `quantity` is at most `limit`, None where there is none.

    >>> points = [OperatingPoint({}, a, 0, {}, {"macs": m}) for a, m in ((.9, .5), (.93, .8))]
    >>> most_accurate(points, "macs", 0.7).accuracy
    0.9
    """
    kept = [point for point in points if keeps(point, quantity, limit)]
    return max(kept, key=lambda point: point.accuracy, default=None)


def cheapest(
    points: Iterable[OperatingPoint], quantity: str, accuracy_drop: float
) -> OperatingPoint | None:
    """The point of the least `quantity` that loses at most `accuracy_drop`, or None."""
    kept = [p for p in points if within(p.accuracy_drop, accuracy_drop) and quantity in p.costs]
    return min(kept, key=lambda point: point.costs[quantity], default=None)


def choose(points: Sequence[OperatingPoint], limits: Mapping[str, float]) -> OperatingPoint:
    """The point for a budget: of those that keep all limits, the most accurate.

    With a limit of "accuracy_drop" it is the cheapest instead, by the first cost there is a limit
    of, else by MACs.

    Args:
        points: of one policy.
        limits: "accuracy_drop" as a fraction, mean "macs" as a fraction of the backbone's,
            "latency" in seconds, "energy" in joules; at least one of them.

    Raises:
        OutOfReach: none keeps them all.

    >>> points = [
    ...     OperatingPoint({}, a, 0.94 - a, {"macs": m}, {"macs": m})
    ...     for a, m in ((.9, .5), (.93, .8))
    ... ]
    >>> choose(points, {"macs": 0.7}).accuracy, choose(points, {"accuracy_drop": 0.02}).accuracy
    (0.9, 0.93)
    """
    if not points:
        raise OutOfReach("there are no operating points to choose from", None, None)
    kept = list(points)
    for quantity, limit in limits.items():
        reached = [_reached(point, quantity) for point in kept]
        known = [value for value in reached if value is not None]
        if not known:
            raise OutOfReach(f"no operating point knows its {quantity}", quantity, None)
        kept = [point for point in kept if keeps(point, quantity, limit)]
        if not kept:
            least = f"the strictest {quantity} that can be kept is {min(known):g}"
            raise OutOfReach(f"{least}, asked for is {limit:g}", quantity, min(known))
    if "accuracy_drop" not in limits:
        return max(kept, key=lambda point: point.accuracy)
    cost = next((quantity for quantity in limits if quantity != "accuracy_drop"), "macs")
    return min(kept, key=lambda point: point.costs[cost])


def _reached(point: OperatingPoint, quantity: str) -> float | None:
    return point.accuracy_drop if quantity == "accuracy_drop" else point.at_most.get(quantity)
