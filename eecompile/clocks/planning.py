"""From what a `.ee` file says of clocks to what a build needs: states allowed, and a clock rule."""

from __future__ import annotations

from collections.abc import Sequence

from eecompile.board import Board, DvfsState
from eecompile.clock_rule import ClockRule, Objective
from eecompile.cost_table import CostTable, Provenance, together
from eecompile.diagnostics import Diagnostics, did_you_mean_help
from eecompile.figures import hertz
from eecompile.outcomes import ExitCosts
from eecompile.spec import FrequencyRange, Name, Policy, Target

__all__ = ["allowed_states", "budget_costs", "clock_rule", "nearest_clocks"]

_OBJECTIVES: dict[str, Objective] = {
    "lowest_energy": "lowest_energy",
    "race_to_idle": "race_to_idle",
    "highest": "lowest_latency",
    "unchanged": "unchanged",
}


def clock_rule(policy: Policy) -> ClockRule | None:
    """How a policy chooses the clock; None where it leaves it alone and has no deadline."""
    chosen, deadline = policy.frequency, policy.deadline
    if chosen is None and deadline is None:
        return None
    is_fixed = chosen is not None and not isinstance(chosen, Name)
    return ClockRule(
        "fixed" if is_fixed else _OBJECTIVES[str(chosen or "unchanged")],
        deadline.seconds if deadline else None,
        safe=deadline is not None and deadline.kind == "safe",
        hard=deadline is not None and deadline.kind == "hard",
        frequency_hz=float(chosen) if is_fixed and chosen is not None else None,
    )


def allowed_states(board: Board, target: Target | None) -> tuple[DvfsState, ...]:
    """The board's states that a target's ``cluster`` and ``frequencies`` leave.

    Raises:
        CompileErrors: there is no such cluster, or no clock in one of the ranges; the nearest
            clocks are named.
    """
    if target is None:
        return board.states
    found = Diagnostics()
    names = [cluster.name for cluster in board.clusters]
    if target.cluster is not None and target.cluster not in names:
        listed = ", ".join(f"`{name}`" for name in names) or "none: its clocks are not known"
        found.error(
            "unknown-target",
            f"Unknown cluster `{target.cluster}`",
            target.at("cluster"),
            f"clusters of `{board.name}`: {listed}",
            # Without a place there is no label.
            help=did_you_mean_help(target.cluster, names)
            or ("" if target.at("cluster") else f"it has {listed}"),
        )
    states = [s for s in board.states if target.cluster in (None, s.cluster)]
    kept = [s for s in states if not target.frequencies or _within(s, target.frequencies)]
    for written in target.frequencies if states else ():
        if not any(_within(state, (written,)) for state in states):
            # A dictionary: a single clock once, and the lower bound first.
            asked = dict.fromkeys(hertz(bound) for bound in (written.low_hz, written.high_hz))
            found.error(
                "unknown-frequency",
                f"`{board.name}` has no clock of {' to '.join(asked)}",
                written.span or target.at("frequencies"),
                f"nearest: {nearest_clocks(states, written.low_hz, written.high_hz)}",
                help=f"`eecompile targets show {board.name}` lists them",
            )
    if target.frequencies and not states and not found:
        found.error(
            "unknown-frequency",
            f"The clocks of `{board.name}` are not known",
            target.at("frequencies"),
            help="name a board that has them, or write its file: `eecompile targets import`",
        )
    found.raise_errors()
    return tuple(kept)


def _within(state: DvfsState, ranges: Sequence[FrequencyRange]) -> bool:
    # Half a kilohertz: Linux counts clocks in whole ones.
    return state.frequency_hz is not None and any(
        r.low_hz - 500 <= state.frequency_hz <= r.high_hz + 500 for r in ranges
    )


def nearest_clocks(states: Sequence[DvfsState], low_hz: float, high_hz: float) -> str:
    """The clocks next to a range that has none, as people read them.

    >>> at = [DvfsState("cpu", hz) for hz in (600e6, 1e9, 1.5e9)]
    >>> nearest_clocks(at, 1.1e9, 1.2e9)
    '1 GHz and 1.5 GHz'
    """
    clocks = sorted({state.frequency_hz for state in states if state.frequency_hz is not None})
    below = [hz for hz in clocks if hz < low_hz][-1:]
    above = [hz for hz in clocks if hz > high_hz][:1]
    return " and ".join(map(hertz, (*below, *above))) or "none is known"


def budget_costs(table: CostTable) -> dict[str, ExitCosts]:
    """What budgets of latency and energy are solved with: costs at the fastest clock.

    Whichever is known of every piece there. A policy that chooses clocks takes longer than this,
    and less energy.
    """
    fastest = table.fastest
    if fastest is None:
        return {}
    rows = (*table.segments, *table.exits)
    costs = [cost for row in rows if (cost := row.costs[fastest]) is not None]
    if len(costs) < len(rows):
        return {}
    count = len(table.segments)
    latencies = [cost.latency_s for cost in costs]
    energies = [cost.energy_j for cost in costs if cost.energy_j is not None]
    found = {"latency": _exit_costs(latencies, count, [cost.provenance for cost in costs])}
    if len(energies) == len(costs):
        found["energy"] = _exit_costs(energies, count, [cost.energy_provenance for cost in costs])
    return found


def _exit_costs(
    values: Sequence[float], segments: int, provenances: Sequence[Provenance | None]
) -> ExitCosts:
    ways, heads = tuple(values[:segments]), tuple(values[segments:])
    return ExitCosts(ways, heads, sum(ways), together(provenances) or "modelled")
