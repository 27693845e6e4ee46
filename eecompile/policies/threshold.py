"""Leave where a head's answer is confident enough: the rule most published systems share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.base import ExitOutputs
from eecompile.policies.scores import SCORES
from eecompile.policies.steps import StepsPolicy, from_json, to_json

__all__ = ["ThresholdPolicy"]


class ThresholdPolicy(StepsPolicy):
    """Leave at the first exit whose head's score is at least the exit's threshold.

    Args:
        score: "max_softmax" (MSDNet), "entropy" (BranchyNet, turned so that 1 is certain) or
            "margin".
        thresholds: one per exit; infinity where the head is not even evaluated.
    """

    kind: ClassVar[str] = "threshold"

    def __init__(self, score: str, thresholds: Sequence[float]) -> None:
        self.score = score
        self._score = SCORES[score]
        super().__init__(thresholds)

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray[Any, Any]:
        """Compares the head's score with the exit's threshold."""
        return self._steps.decide(index, self._score(outputs.logits))

    def parameters(self) -> dict[str, Any]:
        """Score and thresholds."""
        return {"score": self.score, "thresholds": to_json(self.thresholds)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ThresholdPolicy:
        """The inverse of `parameters`."""
        return cls(parameters["score"], from_json(parameters["thresholds"]))
