"""Measured and modelled costs in one table: what was measured stands, and what it says of the rest.

Where a cluster was measured at two clocks or more, each piece's cycles and its seconds that do not
scale are fitted to those. At one clock, the model is scaled by measured over modelled, piece by
piece. Where nothing was measured the model stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eecompile.board import DvfsState
from eecompile.cost_table import Cost, CostRow, CostTable

__all__ = ["ModelError", "fitted_cycles", "merged"]

_Clock = tuple[str, float | None]

#: Highest over lowest clock from which cycles and seconds are fitted; closer ones count as one.
_APART = 1.1


@dataclass(frozen=True)
class ModelError:
    """How far the model, before anything was fitted, is from what was measured.

    Attributes:
        pieces: compared: segments and exits, at each clock where both are known.
        mean: of ``|modelled / measured - 1|`` over them.
        largest: of the same.
        full_depth: modelled / measured - 1 of all segments together, by clock.
    """

    pieces: int
    mean: float | None
    largest: float | None
    full_depth: Mapping[_Clock, float]

    @classmethod
    def between(cls, measured: CostTable, modelled: CostTable) -> ModelError:
        """Over all that both tables know and that was measured in the first."""
        place = {_clock(state): index for index, state in enumerate(modelled.states)}
        errors, full = [], {}
        for index, state in enumerate(measured.states):
            other = place.get(_clock(state))
            if other is None:
                continue
            for ours, theirs in zip(_rows(measured), _rows(modelled), strict=True):
                errors += _error(ours.costs[index], theirs.costs[other])
            for error in _error(measured.full_depth(index), modelled.full_depth(other)):
                full[_clock(state)] = error
        sizes = np.abs(errors)
        known = len(errors) > 0
        return cls(
            len(errors),
            float(sizes.mean()) if known else None,
            float(sizes.max()) if known else None,
            full,
        )

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "pieces": self.pieces,
            "mean": self.mean,
            "largest": self.largest,
            "full_depth": [
                {"cluster": cluster, "frequency_hz": frequency, "error": error}
                for (cluster, frequency), error in self.full_depth.items()
            ],
        }

    def __str__(self) -> str:
        """In words.

        >>> print(ModelError(3, 0.1, 0.25, {("cpu", 1e9): -0.05}))
        the model alone is 10 % off in the mean of 3 pieces, 25 % at most; full depth by -5 %
        """
        if self.mean is None or self.largest is None:
            return "the model was compared with nothing"
        whole = ", ".join(f"{100 * error:+.0f} %" for error in self.full_depth.values())
        return (
            f"the model alone is {100 * self.mean:.0f} % off in the mean of {self.pieces} pieces, "
            f"{100 * self.largest:.0f} % at most" + (f"; full depth by {whole}" if whole else "")
        )


def merged(measured: CostTable, modelled: CostTable) -> tuple[CostTable, ModelError]:
    """Both in one table, measured costs first, and how far the model was off.

    Args:
        measured: of the same network, at some of the board's clocks.
        modelled: at all of them, by `model_table`.

    Raises:
        ValueError: the tables are of different networks.
    """
    if [row.name for row in _rows(measured)] != [row.name for row in _rows(modelled)]:
        raise ValueError("the tables are of different networks")
    states = _states(measured, modelled)
    rows = [
        replace(
            theirs, costs=_costs(states, _measured(measured, ours), _by_clock(modelled, theirs))
        )
        for ours, theirs in zip(_rows(measured), _rows(modelled), strict=True)
    ]
    error = ModelError.between(measured, modelled)
    segments = len(modelled.segments)
    pieces = segments + len(modelled.exits)
    covers = (measured.energy_covers, modelled.energy_covers)
    table = replace(
        modelled,
        device=measured.device,
        governor=measured.governor,
        threads=measured.threads,
        states=states,
        segments=tuple(rows[:segments]),
        exits=tuple(rows[segments:pieces]),
        steps=tuple(rows[pieces:]),
        energy_covers="; modelled: ".join(filter(None, dict.fromkeys(covers))),
        notes=(*measured.notes, *modelled.notes, *_notes(measured, error)),
    )
    return table, error


def fitted_cycles(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Cycles and seconds that do not scale, from (Hz, seconds) at two clocks or more.

    Least squares of relative errors, neither below zero.

    >>> cycles, still_s = fitted_cycles([(1e9, 3.0), (2e9, 2.0)])
    >>> round(cycles), round(still_s, 6)
    (2000000000, 1.0)
    """
    clocks, seconds = np.array(points).T
    scaled = np.stack([1 / clocks, np.ones_like(clocks)]) / seconds
    # In units of the largest, so that hertz and seconds weigh alike.
    units = scaled.max(axis=1)
    found = np.linalg.lstsq((scaled / units[:, None]).T, np.ones_like(clocks), rcond=None)[0]
    if found.min() < 0:
        # At the edge of what is allowed: one of the two alone.
        alone = [float(row.sum() / (row @ row)) for row in scaled]
        errors = [float(np.square(a * row - 1).sum()) for a, row in zip(alone, scaled, strict=True)]
        best = int(np.argmin(errors))
        return (alone[0], 0.0) if best == 0 else (0.0, alone[1])
    cycles, still_s = found / units
    return float(cycles), float(still_s)


def _costs(
    states: Sequence[DvfsState], measured: Mapping[_Clock, Cost], modelled: Mapping[_Clock, Cost]
) -> tuple[Cost | None, ...]:
    """One piece's costs at `states`."""
    return tuple(_cost(_clock(state), measured, modelled) for state in states)


def _cost(
    clock: _Clock, measured: Mapping[_Clock, Cost], modelled: Mapping[_Clock, Cost]
) -> Cost | None:
    found, model = measured.get(clock), modelled.get(clock)
    if found is None:
        latency_s = _latency(clock, measured, modelled)
        if latency_s is None:
            return None
        found = Cost(latency_s)
    if found.energy_j is None and model is not None and model.energy_j is not None:
        power_w = model.energy_j / model.latency_s if model.latency_s else 0.0
        found = replace(found, energy_j=power_w * found.latency_s, energy_provenance="modelled")
    return found


def _latency(
    clock: _Clock, measured: Mapping[_Clock, Cost], modelled: Mapping[_Clock, Cost]
) -> float | None:
    """Modelled, by what was measured in the same cluster."""
    model = modelled.get(clock)
    cluster, frequency = clock
    known = {at: cost for at, cost in measured.items() if at[0] == cluster}
    points = [(at[1], cost.latency_s) for at, cost in known.items() if at[1] is not None]
    if frequency is not None and _tell_apart(points):
        cycles, still_s = fitted_cycles(points)
        return cycles / frequency + still_s
    if model is None:
        return None
    for at, cost in known.items():
        there = modelled.get(at)
        if there is not None and there.latency_s:
            return model.latency_s * cost.latency_s / there.latency_s
    return model.latency_s


def _tell_apart(points: Sequence[tuple[float, float]]) -> bool:
    """Whether clocks lie far enough apart for noise not to decide what scales."""
    clocks = [clock for clock, _ in points]
    return len(points) > 1 and max(clocks) >= _APART * min(clocks) and min(points)[1] > 0


def _states(measured: CostTable, modelled: CostTable) -> tuple[DvfsState, ...]:
    """The clocks of both, clusters in the board's order, each by rising frequency."""
    found = {_clock(state): state for state in measured.states}
    found |= {_clock(state): state for state in modelled.states}
    names = [state.cluster for state in (*modelled.states, *measured.states)]
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return tuple(sorted(found.values(), key=lambda s: (order[s.cluster], s.frequency_hz or 0.0)))


def _notes(measured: CostTable, error: ModelError) -> list[str]:
    clocks: dict[str, int] = {}
    for state in measured.states:
        clocks[state.cluster] = clocks.get(state.cluster, 0) + 1
    notes = []
    for cluster, count in clocks.items():
        how = "by measured over modelled at its one measured clock"
        if count > 1:
            how = f"by cycles and memory time fitted to its {count} measured clocks"
        notes.append(f"{cluster}: each piece is modelled {how}")
    return [*notes, str(error)] if error.pieces else notes


def _error(measured: Cost | None, modelled: Cost | None) -> list[float]:
    """Relative, where both are there."""
    if measured is None or modelled is None or measured.provenance != "measured":
        return []
    return [modelled.latency_s / measured.latency_s - 1] if measured.latency_s else []


def _rows(table: CostTable) -> tuple[CostRow, ...]:
    return (*table.segments, *table.exits, *table.steps)


def _measured(table: CostTable, row: CostRow) -> dict[_Clock, Cost]:
    found = _by_clock(table, row)
    return {clock: cost for clock, cost in found.items() if cost.provenance == "measured"}


def _by_clock(table: CostTable, row: CostRow) -> dict[_Clock, Cost]:
    known = zip(table.states, row.costs, strict=True)
    return {_clock(state): cost for state, cost in known if cost is not None}


def _clock(state: DvfsState) -> _Clock:
    return state.cluster, state.frequency_hz
