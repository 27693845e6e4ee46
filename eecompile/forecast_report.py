"""What is said of a policy's forecasts: how often they are right, and what they save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from eecompile.policies import ExitOutputs, ExitPolicy, PredictedPolicy, replay
from eecompile.record import Record

__all__ = ["ForecastHits", "forecast_hits", "forecast_line", "forecast_report"]


def forecast_report(policy: ExitPolicy, record: Record) -> dict[str, Any] | None:
    """JSON value about the forecasts for one record's samples, None for a policy without any.

    ``heads`` and ``heads_in_order`` are heads run per sample, with the forecasts and with the same
    thresholds at every head in order. ``starts`` has, for each exit as the start, the share of
    right forecasts, of how many samples, and the share that would be right if each forecast were
    the window's end.
    """
    if not isinstance(policy, PredictedPolicy):
        return None
    outputs = record.outputs()
    evaluated = [replay(p, outputs, record.final).evaluated for p in (policy, policy.in_order())]
    heads, in_order = (float(seen.sum(axis=1).mean()) for seen in evaluated)
    return {
        "start": record.exits[policy.first()],
        "window": policy.window,
        "heads": heads,
        "heads_in_order": in_order,
        "starts": [
            {
                "exit": record.exits[found.exit],
                "n": found.staying,
                "hits": found.hits / found.staying,
                "always_window": found.beyond / found.staying,
            }
            for found in forecast_hits(policy, outputs)
        ],
    }


def forecast_line(forecast: Mapping[str, Any]) -> str:
    """What a person reads.

    >>> start = {"exit": "early", "n": 400, "hits": 0.7, "always_window": 0.6}
    >>> forecast_line(
    ...     {"start": "early", "heads": 2.5, "heads_in_order": 6.0, "starts": [start], "window": 8}
    ... )
    'forecast at early right for 70.0 % of 400 samples that stay; 2.50 heads each, 6.00 in order'
    """
    own = [found for found in forecast["starts"] if found["exit"] == forecast["start"]]
    right = "".join(
        f"forecast at {found['exit']} right for {100 * found['hits']:.1f} % of {found['n']} "
        "samples that stay; "
        for found in own
    )
    return f"{right}{forecast['heads']:.2f} heads each, {forecast['heads_in_order']:.2f} in order"


@dataclass(frozen=True)
class ForecastHits:
    """How often the forecast made at one exit was right.

    Attributes:
        exit: index of the exit.
        staying: samples that do not leave there: those that are forecast.
        hits: those of them whose forecast was right.
        beyond: those of them that leave behind the window or at its end: what would be right if
            the end of the window were forecast always.
    """

    exit: int
    staying: int
    hits: int
    beyond: int


def forecast_hits(policy: PredictedPolicy, outputs: Sequence[ExitOutputs]) -> list[ForecastHits]:
    """For each exit as the start, how often the forecast is right when every later head is asked.

    With p the forecast and a the number of exits to the first at which the sample would leave (the
    network's own answer counts as one after the last exit), it is right where p = a, or where p is
    the window and a lies beyond it.

    Source: the prediction accuracy of Predictive Exit (arXiv 2206.04685).

    Args:
        policy: whose thresholds and forecast.
        outputs: of all n samples, per exit.
    """
    exits, window = len(outputs), policy.window
    found = []
    # Where a sample at hand would leave next.
    leaves = np.full(len(outputs[0].logits), exits)
    for index in reversed(range(exits)):
        if policy.thresholds[index] == inf:
            continue
        confident = policy.confident(index, outputs[index])
        staying = np.flatnonzero(~confident)
        if len(staying):
            actual = leaves[staying] - index
            forecast = policy.forecast(index, ExitOutputs(outputs[index].logits[staying]))
            hits = (forecast == actual) | ((forecast == window) & (actual > window))
            beyond = int((actual >= window).sum())
            found.append(ForecastHits(index, len(staying), int(hits.sum()), beyond))
        leaves[confident] = index
    return found[::-1]
