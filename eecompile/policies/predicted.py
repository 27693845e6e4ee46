"""Leave where the forecast says, and run no head before (Predictive Exit, arXiv 2206.04685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan
from typing import Any, ClassVar

import numpy as np

from eecompile.policies.activations import ACTIVATIONS
from eecompile.policies.base import EXIT, ExitOutputs, ExitPolicy
from eecompile.policies.forecasts import ConvolutionForecast, Forecast, TableForecast
from eecompile.policies.steps import from_json, to_json

__all__ = ["FORECASTS", "PredictedPolicy"]

Array = np.ndarray[Any, Any]

#: How a forecast is made; the first is the published one, the others are ours.
FORECASTS = ("class_order", "sorted", "fitted")


class PredictedPolicy(ExitPolicy):
    """Leave where an activation reaches the exit's threshold, else go on to the exit forecast.

    What is compared is the largest absolute activation; the forecast is made from the same output.
    Heads in between do not run. A wrong forecast is followed by another, from where it led. A
    forecast past the last exit means the last exit; after that, or where a `fitted` forecast
    expects no exit to be sure, the network's own answer is due.

    Source: Predictive Exit (arXiv 2206.04685): thresholds ``beta * mu_n``, raw logits, and the
    forecast of `ConvolutionForecast` in the order of the classes.

    Args:
        thresholds: one per exit; infinity (None in JSON) where nothing can leave, because there is
            no trained head: such an exit is not evaluated.
        start: the first exit evaluated.
        window: how far a forecast reaches; 1 evaluates every head in order.
        activation: "logits" as published, or "probability" (see `ACTIVATIONS`).
        forecast: "class_order" as published; "sorted": the same with the classes sorted by their
            activation, so that their order means nothing; "fitted": by `limits`.
        limits: of the forecast "fitted", see `TableForecast`.

    Raises:
        ValueError: arguments that cannot be meant.
    """

    kind: ClassVar[str] = "predicted"
    forecasts: ClassVar[bool] = True

    def __init__(
        self,
        thresholds: Sequence[float],
        start: int,
        window: int,
        *,
        activation: str = "logits",
        forecast: str = "class_order",
        limits: Sequence[Sequence[float] | None] | None = None,
    ) -> None:
        self.thresholds = tuple(map(float, thresholds))
        if not 0 <= start < len(self.thresholds) or self.thresholds[start] == inf:
            raise ValueError(f"nothing can leave at the start, exit {start}")
        if window < 1 or any(isnan(t) or t < 0 for t in self.thresholds):
            raise ValueError("a window is at least 1, a threshold at least 0")
        if activation not in ACTIVATIONS or forecast not in FORECASTS:
            raise ValueError(f"there is no {activation!r} activation or no {forecast!r} forecast")
        # What lies behind the last exit is no matter.
        self.start_exit, self.window = start, min(window, len(self.thresholds))
        self.activation, self.kind_of_forecast = activation, forecast
        self._activation = ACTIVATIONS[activation]
        self._forecast = self._made_forecast(limits)
        self._limits = [np.array([t]) for t in self.thresholds]
        self._targets = [self._targets_of(index) for index in range(len(self.thresholds))]

    def _made_forecast(self, limits: Sequence[Sequence[float] | None] | None) -> Forecast:
        if self.kind_of_forecast == "fitted":
            if limits is None or len(limits) != len(self.thresholds):
                raise ValueError("a fitted forecast needs limits for each exit")
            return TableForecast(limits, self.window)
        if limits is not None:
            raise ValueError("limits are for a fitted forecast")
        ordered = self.kind_of_forecast == "class_order"
        return ConvolutionForecast(self.thresholds, self.window, ordered)

    def _targets_of(self, index: int) -> Array:
        """Where each forecast leads, by the forecast; its place 0 means leaving."""
        live = [k for k, threshold in enumerate(self.thresholds) if threshold < inf]
        final = len(self.thresholds)
        found = [EXIT]
        for jump in range(1, self.window + 1):
            due = index + jump
            if self.kind_of_forecast != "fitted":
                due = min(due, live[-1])  # as published: the last exit is asked in any case
            found.append(next((k for k in live if k >= due and k > index), final))
        return np.array(found)

    @property
    def limits(self) -> Sequence[tuple[float, ...] | None] | None:
        """Of a fitted forecast, as `TableForecast` takes them; else None."""
        return self._forecast.limits if isinstance(self._forecast, TableForecast) else None

    def in_order(self) -> PredictedPolicy:
        """The policy with the same thresholds that evaluates every head from the start on."""
        return PredictedPolicy(
            self.thresholds, self.start_exit, 1, activation=self.activation, forecast="class_order"
        )

    def first(self) -> int:
        """The start."""
        return self.start_exit

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> Array:
        """Compares the peak with the exit's threshold and forecasts where it is too small."""
        peak, seen = self._looked_at(outputs)
        if (peak >= self._limits[index]).all():
            return np.full(len(peak), EXIT)
        return self.due(index, peak, self._forecast.features(seen))

    def due(self, index: int, peak: Array, features: Array) -> Array:
        """`decide`, from what it looks at: peaks (n,) and the forecast's features."""
        jumps = self._forecast.jumps(index, features)
        jumps[peak >= self._limits[index]] = 0
        due: Array = self._targets[index].take(jumps)
        return due

    def features(self, outputs: ExitOutputs) -> tuple[Array, Array]:
        """What decisions look at, whatever the thresholds: peaks (n,), the forecast's features."""
        peak, seen = self._looked_at(outputs)
        return peak, self._forecast.features(seen)

    def forecast(self, index: int, outputs: ExitOutputs) -> Array:
        """In how many exits each sample leaves, as forecast at exit `index`: int64 (n,)."""
        return self._forecast.jumps(index, self.features(outputs)[1])

    def confident(self, index: int, outputs: ExitOutputs) -> Array:
        """Whether each sample would leave at exit `index`, bool (n,)."""
        found: Array = self._activation.peak(outputs.logits) >= self._limits[index]
        return found

    def _looked_at(self, outputs: ExitOutputs) -> tuple[Array, Array]:
        """Peaks (n,), and what the forecast's features are made from."""
        if self._forecast.per_class:
            seen = self._activation.per_class(outputs.logits)
            return np.maximum.reduce(np.abs(seen), 1), seen
        peak = self._activation.peak(outputs.logits)
        return peak, peak

    def parameters(self) -> dict[str, Any]:
        """Everything it was made of."""
        found: dict[str, Any] = {
            "thresholds": to_json(self.thresholds),
            "start": self.start_exit,
            "window": self.window,
            "activation": self.activation,
            "forecast": self.kind_of_forecast,
        }
        if self.limits is not None:
            found["limits"] = [None if own is None else to_json(own) for own in self.limits]
        return found

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> PredictedPolicy:
        """The inverse of `parameters`."""
        limits = parameters.get("limits")
        return cls(
            from_json(parameters["thresholds"]),
            int(parameters["start"]),
            int(parameters["window"]),
            activation=parameters["activation"],
            forecast=parameters["forecast"],
            limits=limits and [None if own is None else from_json(own) for own in limits],
        )
