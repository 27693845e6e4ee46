"""Leave when several exits in a row agree (the rule of PABEE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import EXIT, ExitOutputs, ExitPolicy

__all__ = ["PatiencePolicy"]

#: An array, because adding a Python number first makes one of it.
_ONE = np.ones(1, np.int64)

#: What is prepared for each exit must not fill the memory, whatever a damaged file says.
_MOST_EXITS = 1 << 16


class PatiencePolicy(ExitPolicy):
    """Leave at the first exit that confirms the previous answer for the `count`-th time in a row.

    With a count of 1 that is the first exit which agrees with the one before it. Every head runs.

    Args:
        count: confirmations wanted, at least 1.
        exits: number of exits.

    Raises:
        ValueError: no network has so many exits.
    """

    kind: ClassVar[str] = "patience"

    def __init__(self, count: int, exits: int) -> None:
        if not 0 <= exits <= _MOST_EXITS:
            raise ValueError(f"no policy is for {exits} exits")
        self.count, self.exits = count, exits
        self._wanted = np.array([count])
        #: By whether it is content: the next exit, leave.
        self._outcomes = [np.array([index + 1, EXIT]) for index in range(exits)]

    def start(self, count: int) -> Any:
        """Per sample: the last answer and how often in a row it was confirmed."""
        state = np.zeros((count, 2), np.int64)
        state[:, 0] = -1
        return state

    def select(self, state: Any, kept: np.ndarray[Any, Any]) -> Any:
        """The rows of the samples that go on."""
        return state[kept]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """Counts confirmations."""
        answers = outputs.logits.argmax(axis=1)
        last, confirmed = state.T
        confirmed += _ONE
        confirmed *= answers == last
        last[:] = answers
        outcome: np.ndarray[Any, Any] = self._outcomes[index].take(confirmed >= self._wanted)
        return outcome

    def parameters(self) -> dict[str, Any]:
        """Count and number of exits."""
        return {"count": self.count, "exits": self.exits}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> PatiencePolicy:
        """The inverse of `parameters`."""
        return cls(int(parameters["count"]), int(parameters["exits"]))
