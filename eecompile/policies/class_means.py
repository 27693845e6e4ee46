"""Leave where the class means are confident enough (E2CM, arXiv 2103.01148)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import ExitOutputs
from eecompile.policies.scores import max_softmax
from eecompile.policies.steps import StepsPolicy, from_json, to_json

__all__ = ["ClassMeansPolicy"]


class ClassMeansPolicy(StepsPolicy):
    """Leave at the first exit whose comparator's confidence is at least the exit's threshold.

    The answer is the nearest mean's class. Nothing leaves at an exit without a comparator.
    """

    kind: ClassVar[str] = "class_means"

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """Compares the comparator's confidence with the exit's threshold."""
        if outputs.class_means is None:
            return self._steps.going_on(index, len(outputs.logits))
        return self._steps.decide(index, max_softmax(outputs.class_means))

    def answer(self, index: int, outputs: ExitOutputs) -> np.ndarray[Any, Any]:
        """The comparator's output."""
        return outputs.logits if outputs.class_means is None else outputs.class_means

    def parameters(self) -> dict[str, Any]:
        """The thresholds."""
        return {"thresholds": to_json(self.thresholds)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ClassMeansPolicy:
        """The inverse of `parameters`."""
        return cls(from_json(parameters["thresholds"]))
