"""A linear classifier on pooled features: the cheapest head that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from eecompile.heads.base import Array, Head, Progress
from eecompile.heads.graphs import GraphBuilder
from eecompile.heads.logistic import Linear, fit_logistic
from eecompile.heads.one_core import one_core
from eecompile.heads.pooling import Pool, flatten, pool, pooled_row
from eecompile.ir import Graph, TensorType

__all__ = ["LinearHead"]


@dataclass(frozen=True)
class LinearHead(Head):
    """Average pooling to ``pool x pool`` cells (default 4), then multinomial logistic regression.

    The regression's L2 penalty is chosen on a fifth of the fit data; standardisation of the
    features is folded into the weights, so that the head is one matrix product.
    """

    kind: ClassVar[str] = "linear"
    pool: Pool = None
    temperature: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {"pool": self.pool, "temperature": self.temperature}

    def feature_graph(self, feature: TensorType) -> Graph:
        """The pooled features as a row: float32 (1, F)."""
        return pooled_row(feature, self.pool)

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """``weight`` float32 (F, classes) and ``bias`` (classes,)."""
        with one_core():
            linear = fit_logistic(recorded, labels, classes, seed=seed, progress=progress)
        return {"weight": linear.weight, "bias": linear.bias}

    def logits(self, recorded: Array, parameters: Mapping[str, Array]) -> Array:
        """Logits of recorded features, in blocks."""
        return Linear(parameters["weight"], parameters["bias"])(recorded)

    def graph(self, feature: TensorType, parameters: Mapping[str, Array]) -> Graph:
        """Pooling, one matrix product, the bias."""
        builder = GraphBuilder("linear", "feature", feature)
        row = flatten(builder, pool(builder, "feature", self.pool))
        return builder.classifier(row, parameters)
