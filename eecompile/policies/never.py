"""No exit is taken: every sample gets the network's own answer."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import ExitOutputs, ExitPolicy

__all__ = ["NeverPolicy"]


class NeverPolicy(ExitPolicy):
    """No exit is evaluated; what is saved is what the network's gates leave out, if it has any.

    Attributes:
        gate_shift: as in `ExitPolicy`.
    """

    kind: ClassVar[str] = "never"

    def __init__(self, exits: int, gate_shift: float = 0.0) -> None:
        if not isfinite(gate_shift):
            raise ValueError(f"gates cannot be shifted by {gate_shift}")
        self.exits, self.gate_shift = exits, gate_shift

    def first(self) -> int:
        """The final exit."""
        return self.exits

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """On to the final exit."""
        return np.full(len(outputs.logits), self.exits)

    def parameters(self) -> dict[str, Any]:
        """The number of exits, and the gates' shift where there is one."""
        shift = {"gate_shift": self.gate_shift} if self.gate_shift else {}
        return {"exits": self.exits, **shift}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> NeverPolicy:
        """The inverse of `parameters`."""
        return cls(int(parameters["exits"]), float(parameters.get("gate_shift", 0.0)))
