"""What the runtime gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Answer", "BatchAnswer"]


@dataclass(slots=True, eq=False)  # A frozen one takes four times as long to make, more than 1 us.
class Answer:
    """The answer for one sample, and what it took. It is the caller's: nothing writes to it later.

    Attributes:
        logits: scores of the classes, float32 (classes,); for a network whose output is no class
            vector the output itself, without its leading 1.
        exit: name of the exit that answered, ``final`` for the network's own output, wherever that
            was computed.
        segments_run: segments computed, counted as they were called.
        heads_run: exit heads and comparators computed, likewise.
        macs: multiply-accumulates of all of them.
        latency_s: time from the call to the answer, measured.
        energy_j: what the artifact's cost table says it took, at the clocks it ran at, changes of
            clock included; measured or modelled as the table is. None where the policy sets no
            clock, one of them was not reached, or an energy is not known.
        frequency_hz: the clock it was answered at, as it was set and read back then: what heat did
            to it since is not seen. None where none was set or it was not reached.
        offloaded: whether a server computed the rest; the other figures are of what was done here.
        audited: whether it ran to the end so that a guard knows how exits would have answered.
        halted: whether it is what a budget for every sample allowed, and not more.
        cancelled: whether it is what was there when the call was cancelled.
        outputs: the network's outputs by name, with the shapes the source network gives them;
            empty where an earlier exit answered, or a server.
        label_names: names of the classes, where the artifact has them.
        blocks_run: blocks computed of those that gates may leave out; None where there are none.
        blocks: how many of those the network has.
    """

    logits: np.ndarray
    exit: str
    segments_run: int
    heads_run: int
    macs: int
    latency_s: float
    energy_j: float | None = None
    frequency_hz: float | None = None
    offloaded: bool = False
    audited: bool = False
    halted: bool = False
    cancelled: bool = False
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    label_names: tuple[str, ...] | None = field(default=None, repr=False)
    blocks_run: int | None = None
    blocks: int = 0

    @property
    def label(self) -> int | None:
        """The class with the highest score; None where the output is no class vector.

        >>> Answer(np.float32([1, 3, 2]), "early", 1, 1, 0, 0.0).label
        1
        """
        return int(self.logits.argmax()) if self.logits.ndim == 1 else None

    @property
    def label_name(self) -> str | None:
        """Its name, where the artifact has names."""
        label = self.label
        return None if label is None or self.label_names is None else self.label_names[label]

    @property
    def confidence(self) -> float | None:
        """Softmax probability of the label; None where the output is no class vector.

        >>> Answer(np.float32([0, 0]), "early", 1, 1, 0, 0.0).confidence
        0.5
        """
        if self.logits.ndim != 1:
            return None
        scores = self.logits.tolist()
        highest = max(scores)
        return 1 / math.fsum(math.exp(score - highest) for score in scores)


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The answers for n samples; arrays have one entry a sample.

    Attributes:
        logits: float32 (n, classes), or the network's output (n, ...).
        exits: int64, index of the exit that answered, into `exit_names`.
        exit_names: names by exit index, the last ``final``.
        segments_run, heads_run, macs: int64, what each sample took.
        latency_s: time of the whole batch, measured.
        offloaded: bool, whether a server computed the rest.
        halted: bool, whether it is what a budget for every sample allowed, and not more.
        outputs: the network's outputs by name, (n, ...); filled in only where every sample went
            all the way, here and together.
        blocks_run: int64, blocks computed of those that gates may leave out; None where there are
            none.
        blocks: how many of those the network has.
    """

    logits: np.ndarray
    exits: np.ndarray
    exit_names: tuple[str, ...]
    segments_run: np.ndarray
    heads_run: np.ndarray
    macs: np.ndarray
    latency_s: float
    offloaded: np.ndarray
    halted: np.ndarray
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    blocks_run: np.ndarray | None = None
    blocks: int = 0

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.logits)

    @property
    def labels(self) -> np.ndarray | None:
        """The class with the highest score, int64 (n,); None where there are no classes."""
        return self.logits.argmax(axis=1) if self.logits.ndim == 2 else None

    @property
    def confidence(self) -> np.ndarray | None:
        """Softmax probability of each label, float32 (n,); None where there are no classes."""
        if self.logits.ndim != 2:
            return None
        highest = self.logits.max(axis=1, keepdims=True)
        total: np.ndarray = np.exp(self.logits - highest).sum(axis=1)
        return np.asarray(1 / total)

    @property
    def exit_counts(self) -> dict[str, int]:
        """How many samples each exit answered."""
        counts = np.bincount(self.exits, minlength=len(self.exit_names))
        return dict(zip(self.exit_names, counts.tolist(), strict=True))
