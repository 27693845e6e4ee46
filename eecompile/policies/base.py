"""The one interface behind every exit policy.

A policy is a pure rule over what has been seen so far. It is vectorised over samples, so that the
same code drives the replay of a whole recorded data set, a batch in the runtime and one sample.
It needs numpy only: artifacts carry policies as JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["EXIT", "HALT", "OFFLOAD", "ExitOutputs", "ExitPolicy"]

#: Returned by `ExitPolicy.decide`: answer with the exit just evaluated.
EXIT = -1

#: Returned by `ExitPolicy.decide`: have a server answer from here on; where none answers, the
#: network runs to its end.
OFFLOAD = -2

#: Returned by `ExitPolicy.decide`: answer with the exit just evaluated, because a budget is spent.
HALT = -3


@dataclass(frozen=True, slots=True)
class ExitOutputs:
    """What one exit computed for n samples.

    Attributes:
        logits: float32 (n, classes): the exit's answer. Where the exit has a comparator only, these
            are the comparator's.
        class_means: float32 (n, classes), the comparator's output, or None. Softmax of it is E2CM's
            confidence (arXiv 2103.01148).
    """

    logits: np.ndarray
    class_means: np.ndarray | None = None

    def rows(self, samples: np.ndarray | slice) -> ExitOutputs:
        """Those of some of the samples: of an index array, or a slice."""
        means = self.class_means
        return ExitOutputs(self.logits[samples], None if means is None else means[samples])


class ExitPolicy(ABC):
    """Decides, at each evaluated exit, which samples leave.

    Subclasses register themselves by `kind`; `parameters` and `from_parameters` are JSON values.
    """

    kind: ClassVar[str]
    #: Whether what `decide` returns foretells where a sample will leave, so that a clock can be
    #: chosen for the way there; else it only says which head is evaluated next.
    forecasts: ClassVar[bool] = False
    #: What the network's gates subtract from their scores while it decides, where there are gates:
    #: more leaves more out. Those that exits were fitted beside decide as they were trained.
    gate_shift: float = 0.0
    #: Whether it learns from the samples it decides on: the session then tells it of each one
    #: (`learn`), and keeps what it knows across restarts (`memory`, `remember`).
    online: ClassVar[bool] = False
    #: kind -> class, of every policy there is.
    kinds: ClassVar[dict[str, type[ExitPolicy]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):  # else it only serves others
            ExitPolicy.kinds[cls.kind] = cls

    def start(self, count: int) -> Any:
        """A fresh per-sample state for `count` samples (None where the rule has no memory)."""
        return None

    def select(self, state: Any, kept: np.ndarray) -> Any:
        """The state of the samples in `kept` (an index array), after others have left."""
        return state

    def first(self) -> int:
        """Index of the first exit whose head is evaluated."""
        return 0

    @abstractmethod
    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        """For each sample: `EXIT`, `HALT`, `OFFLOAD`, or the index of the next exit to evaluate.

        Heads between `index` and the returned one do not run. An index of ``len(exits)`` means the
        network's own final answer. int64 (n,). May update `state` in place.
        """

    def learn(self, state: Any, final: np.ndarray | None, here: bool = False) -> None:
        """Told of a sample that was answered; only asked where `online`.

        Args:
            state: of this one sample, from `start`, as `decide` left it.
            final: the network's own logits (1, classes), where the sample got that far, here or on
                a server; None where nobody computed them.
            here: whether they were computed here because no server answered, or there is none.
        """
        return

    def memory(self) -> dict[str, Any]:
        """JSON value of what was learned so far; empty where not `online`."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on from what `memory` gave, in an earlier life of this policy.

        Raises:
            ValueError: it is of another policy, or damaged; nothing has changed then.
        """
        return

    def answer(self, index: int, outputs: ExitOutputs) -> np.ndarray:
        """The logits given to a sample that leaves at `index`, float32 (n, classes)."""
        return outputs.logits

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """JSON value from which `from_parameters` makes an equal policy."""

    @classmethod
    @abstractmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ExitPolicy:
        """The policy described by `parameters`."""
