"""Leave where any of several rules would: "the class-mean test or the trained head passes"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import EXIT, ExitOutputs, ExitPolicy
from eecompile.policies.json_form import from_json, to_json

__all__ = ["EitherPolicy"]


class EitherPolicy(ExitPolicy):
    """Leave at the first exit where at least one of the rules says so.

    The answer is the exit's own (its trained head's, where it has one), whichever rule fired: the
    comparator's confidence is a second opinion on how easy the sample is, not a better answer.
    An exit is evaluated when any of the rules wants it.

    Source: algorithm of the "two-test exit" variant of E2CM (arXiv 2103.01148); ours in detail.
    """

    kind: ClassVar[str] = "either"

    def __init__(self, rules: Sequence[ExitPolicy]) -> None:
        self.rules = tuple(rules)

    def start(self, count: int) -> Any:
        """The states of all rules."""
        return [rule.start(count) for rule in self.rules]

    def select(self, state: Any, kept: np.ndarray[Any, Any]) -> Any:
        """The states of all rules, of the samples that go on."""
        return [rule.select(own, kept) for rule, own in zip(self.rules, state, strict=True)]

    def first(self) -> int:
        """The first exit any rule wants."""
        return min(rule.first() for rule in self.rules)

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """Leave if a rule says so, else on to the nearest exit that one of them wants."""
        # EXIT is below every index, so the minimum says both.
        assert EXIT < 0, "the minimum over rules relies on it"
        decisions = [
            rule.decide(index, outputs, own) for rule, own in zip(self.rules, state, strict=True)
        ]
        return reduce(np.minimum, decisions)

    def parameters(self) -> dict[str, Any]:
        """The rules, as JSON."""
        return {"rules": [to_json(rule) for rule in self.rules]}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> EitherPolicy:
        """The inverse of `parameters`."""
        return cls([from_json(rule) for rule in parameters["rules"]])
