"""Decisions off: every sample gets the network's own answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import ExitOutputs, ExitPolicy

__all__ = ["NeverPolicy"]


class NeverPolicy(ExitPolicy):
    """No exit is evaluated, so the output is the source network's and costs what it costs."""

    kind: ClassVar[str] = "never"

    def __init__(self, exits: int) -> None:
        self.exits = exits

    def first(self) -> int:
        """The final exit."""
        return self.exits

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """On to the final exit."""
        return np.full(len(outputs.logits), self.exits)

    def parameters(self) -> dict[str, Any]:
        """The number of exits."""
        return {"exits": self.exits}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> NeverPolicy:
        """The inverse of `parameters`."""
        return cls(int(parameters["exits"]))
