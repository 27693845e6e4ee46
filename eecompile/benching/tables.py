"""From rounds to a cost table: medians, their quantiles, and what stands beside them in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.benching.blocks import AtClock
from eecompile.board import Board, DvfsState
from eecompile.compiled import CompiledGraph
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable

__all__ = [
    "full_depth_columns",
    "measured_table",
    "quantiles",
    "row_columns",
    "step_columns",
    "with_quantiles",
]

_QUANTILES = (("p50_s", 0.5), ("p90_s", 0.9), ("p95_s", 0.95), ("p99_s", 0.99))


def row_columns(network: CompiledGraph) -> tuple[list[list[int]], list[list[int]]]:
    """Places of each segment's and each exit's functions in execution order, gates left out."""
    segments: list[list[int]] = []
    exits: list[list[int]] = []
    place = 0
    for index, segment in enumerate(network.segments):
        segments.append([place + k for k, step in enumerate(segment.steps) if not step.gate])
        place += len(segment.steps)
        for exit_ in network.exits[index : index + 1]:
            exits.append(list(range(place, place + len(exit_.functions))))
            place += len(exit_.functions)
    return segments, exits


def step_columns(network: CompiledGraph) -> list[int]:
    """Places of the functions that segments with gates consist of."""
    places = {function.symbol: place for place, function in enumerate(network.functions())}
    return [places[function.symbol] for _, function in network.named_steps()]


def full_depth_columns(network: CompiledGraph) -> list[int]:
    """Places of all segments, without heads."""
    return [column for columns in row_columns(network)[0] for column in columns]


def measured_table(
    target: str,
    board: Board,
    device: str,
    threads: int,
    network: CompiledGraph,
    found: Sequence[AtClock],
    governor: str | None,
    energy_covers: str = "",
) -> CostTable:
    """What was measured, as a table of the clocks that could be reached.

    A piece's latency is the median of the rounds; its energy that times the power drawn while it
    ran alone.
    """
    reached = [at for at in found if at.blocks]

    def row(name: str, work: Work, columns: Sequence[int]) -> CostRow:
        return CostRow(name, work, tuple(_cost(at, columns) for at in reached))

    of_segments, of_exits = row_columns(network)
    named = network.named_segments()
    return CostTable(
        target,
        board.name,
        device,
        threads,
        tuple(at.state for at in reached),
        tuple(row(n, f.work, c) for (n, f), c in zip(named, of_segments, strict=True)),
        tuple(row(e.name, e.work, c) for e, c in zip(network.exits, of_exits, strict=True)),
        energy_covers=energy_covers,
        governor=governor,
        steps=tuple(
            row(name, function.work, [place])
            for (name, function), place in zip(
                network.named_steps(), step_columns(network), strict=True
            )
        ),
    )


def _cost(at: AtClock, columns: Sequence[int]) -> Cost:
    times, powers = at.times_s[:, columns], at.powers_w
    latency = float(np.median(times.sum(axis=1)))
    if powers is None or not np.isfinite(powers[columns]).all():
        return Cost(latency, provenance="measured")
    energy = float(np.median(times, axis=0) @ powers[columns])
    return Cost(latency, energy, "measured", "measured")


def quantiles(times_s: np.ndarray) -> dict[str, float]:
    """Median, 90th, 95th and 99th percentile of times in seconds, and of how many.

    >>> quantiles(np.arange(1.0, 102.0))["p95_s"]
    96.0
    """
    found: dict[str, float] = {key: float(np.quantile(times_s, q)) for key, q in _QUANTILES}
    return found | {"rounds": len(times_s)}


def with_quantiles(
    value: Mapping[str, Any], network: CompiledGraph, found: Sequence[AtClock]
) -> dict[str, Any]:
    """A table as JSON, each measured point with the quantiles of its rounds."""
    by_clock = {_clock(at.state): at for at in found if at.blocks}
    of_segments, of_exits = row_columns(network)

    def row(entry: Mapping[str, Any], columns: Sequence[int]) -> dict[str, Any]:
        points = []
        for point in entry["points"]:
            at = by_clock.get((point["cluster"], point["frequency_hz"]))
            told = None
            if at is not None and point["provenance"] == "measured":
                told = quantiles(at.times_s[:, columns].sum(axis=1))
            points.append({**point, "quantiles": told})
        return {**entry, "points": points}

    return {
        **value,
        "segments": [row(e, c) for e, c in zip(value["segments"], of_segments, strict=True)],
        "exits": [row(e, c) for e, c in zip(value["exits"], of_exits, strict=True)],
        "steps": [row(e, [c]) for e, c in zip(value["steps"], step_columns(network), strict=True)],
        "full_depth": row(value["full_depth"], full_depth_columns(network)),
    }


def _clock(state: DvfsState) -> tuple[str, float | None]:
    return state.cluster, state.frequency_hz
