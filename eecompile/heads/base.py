"""The one interface behind every exit head.

A head is fitted on recorded features of the frozen backbone and then written as a neutral graph,
so that both hosts can carry it and it compiles like any other part of the network. What is
recorded is the output of `feature_graph`, so that a head on pooled features needs no full maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from eecompile.ir import Graph, TensorType

__all__ = ["Head"]


class Head(ABC):
    """One kind of exit head (or comparator) with its options.

    `options` are the `.ee` file's, already checked. Parameters are a mapping of numpy arrays, which
    is what the build cache stores.
    """

    kind: ClassVar[str]
    #: Output name of the head's graph: "logits", or "class_means" for a comparator.
    output: ClassVar[str] = "logits"

    @abstractmethod
    def feature_graph(self, feature: TensorType) -> Graph:
        """Graph with input ``feature`` and output ``recorded``: what `fit` wants, per sample."""

    @abstractmethod
    def fit(
        self, recorded: np.ndarray, labels: np.ndarray, classes: int, *, seed: int, progress: Any = None
    ) -> dict[str, np.ndarray]:
        """Parameters fitted on `recorded` (n, ...) and `labels` int64 (n,). Never sees other data."""

    @abstractmethod
    def graph(self, feature: TensorType, parameters: Mapping[str, np.ndarray]) -> Graph:
        """Graph with input ``feature`` and output ``logits`` (or ``class_means``): float32 (1, classes)."""
