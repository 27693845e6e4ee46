"""What is said of a policy's forecasts: how often they are right, and what they save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.policies import ExitPolicy, PredictedPolicy, forecast_hits, replay
from eecompile.record import Record

__all__ = ["forecast_line", "forecast_report"]


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
