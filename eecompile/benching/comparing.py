"""New figures beside those an artifact has, where both were measured in the same conditions."""

from __future__ import annotations

from typing import Any

from eecompile.cost_table import CostTable

__all__ = ["compared", "refusal"]


def compared(now: CostTable, earlier: CostTable | None) -> dict[str, Any] | None:
    """Full depth now over full depth then, by clock, or why they cannot be compared.

    None where the earlier table has no measurements.
    """
    if earlier is None or earlier.device is None:
        return None
    if why := refusal(now, earlier):
        return {"refused": why, "full_depth": []}
    ratios = []
    places = {(state.cluster, state.frequency_hz): i for i, state in enumerate(earlier.states)}
    for index, state in enumerate(now.states):
        place = places.get((state.cluster, state.frequency_hz))
        new = now.full_depth(index)
        old = None if place is None else earlier.full_depth(place)
        if new is None or old is None or {new.provenance, old.provenance} != {"measured"}:
            continue
        ratios.append(
            {
                "cluster": state.cluster,
                "frequency_hz": state.frequency_hz,
                "ratio": new.latency_s / old.latency_s,
            }
        )
    if not ratios:
        return {"refused": "the earlier ones are of other clocks", "full_depth": []}
    return {"refused": None, "full_depth": ratios}


def refusal(now: CostTable, earlier: CostTable) -> str:
    """What differs between the conditions of two measured tables, in words; empty where nothing."""
    pairs = (
        ("on", now.device, earlier.device),
        ("on threads", now.threads, earlier.threads),
        ("under governor", now.governor, earlier.governor),
    )
    told = [
        f"{what} {old or 'none'} (now {new or 'none'})" for what, new, old in pairs if new != old
    ]
    return f"the earlier ones were measured {', '.join(told)}" if told else ""
