"""The one interface behind every exit head.

A head is fitted on recorded features of the frozen backbone and then written as a neutral graph,
so that both hosts can carry it and it compiles like any other part of the network. What is
recorded is the output of `feature_graph`, so that a head on pooled features needs no full maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from eecompile.heads.temperature import likeliest_scale
from eecompile.ir import Graph, TensorType
from eecompile.reference import run_graph

__all__ = ["Array", "Head", "HeadMismatch", "Progress"]

Array = np.ndarray[Any, Any]

#: Told what is being tried, in a few words.
Progress = Callable[[str], None] | None

#: By how much logits are scaled at most, up or down.
_MOST_SCALE = 100.0

#: Samples at a time in `Head.logits`.
_BATCH = 128


class HeadMismatch(ValueError):
    """A head does not fit the tensor it is to stand behind; the text says why."""


class Head(ABC):
    """One kind of exit head (or comparator) with its options.

    `options` are the `.ee` file's, already checked. Parameters are a mapping of numpy arrays, which
    is what the build cache stores.
    """

    kind: ClassVar[str]
    #: Output name of the head's graph: "logits", or "class_means" for a comparator.
    output: ClassVar[str] = "logits"
    #: Whether `calibrate` scales the logits: "fitted" or "none"; an option of most heads.
    temperature: str = "none"

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The options with their defaults filled in: JSON values, part of the cache's key."""

    @abstractmethod
    def feature_graph(self, feature: TensorType) -> Graph:
        """Graph with input ``feature`` and output ``recorded``: what `fit` wants, per sample.

        Raises:
            HeadMismatch: this head cannot stand behind such a tensor.
        """

    def check_environment(self) -> None:
        """Refuses to be fitted where something for it is missing; most heads need nothing.

        Raises:
            ToolError: what is missing, and how to get it.
        """
        return

    @abstractmethod
    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """Parameters fitted on `recorded` (n, ...) and `labels` int64 (n,). Never sees other data.

        `recorded` may be memory-mapped and is visited in blocks. Equal arguments give equal bits.
        """

    def calibrate(
        self, parameters: Mapping[str, Array], recorded: Array, labels: Array
    ) -> dict[str, Array]:
        """The parameters with the scale of their logits fitted on calibration data.

        Where `temperature` is "fitted"; else as they are. Answers do not change.
        """
        if self.temperature == "none":
            return dict(parameters)
        unscaled = self.logits(recorded, parameters)
        factor = likeliest_scale(unscaled, labels, 1 / _MOST_SCALE, _MOST_SCALE)
        return self.scaled(parameters, factor)

    def scaled(self, parameters: Mapping[str, Array], factor: np.float32) -> dict[str, Array]:
        """The parameters whose logits are `factor` times as large: of the last, linear layer."""
        last = {name: parameters[name] * factor for name in ("weight", "bias")}
        return {**parameters, **last}

    def logits(self, recorded: Array, parameters: Mapping[str, Array]) -> Array:
        """What `graph` computes, from recorded features: float32 (n, classes)."""
        out = []
        for at in range(0, len(recorded), _BATCH):
            block = np.asarray(recorded[at : at + _BATCH], np.float32)
            graph = self.graph(TensorType.of(block), parameters)
            (result,) = run_graph(graph, {graph.inputs[0]: block}).values()
            out.append(result)
        return np.concatenate(out)

    @abstractmethod
    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """Graph from ``feature`` to `self.output`, float32 (1, classes).

        A leading dimension of n samples is carried through.
        """
