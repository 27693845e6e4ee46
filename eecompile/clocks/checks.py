"""Whether a clock rule can be kept on a machine, before anything is run there."""

from __future__ import annotations

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.clocks.planning import nearest_clocks
from eecompile.cost_table import CostTable
from eecompile.diagnostics import Diagnostic, Span
from eecompile.figures import hertz, milliseconds
from eecompile.runtime.clock_costs import ClockCosts
from eecompile.runtime.clock_fronts import ClockFronts

__all__ = ["check_rule"]


def check_rule(
    rule: ClockRule,
    table: CostTable,
    deadline: Span | None = None,
    frequency: Span | None = None,
) -> list[Diagnostic]:
    """What is wrong with a rule on a machine with these costs; errors and warnings.

    Args:
        rule: to be kept.
        table: costs of the network's pieces there.
        deadline: where the deadline was asked for.
        frequency: where the clock was.
    """
    try:
        costs = ClockCosts(table)
    except ValueError:
        return [_without_latencies(table, frequency or deadline)]
    try:
        fronts = ClockFronts(costs, rule)
    except ValueError:
        if rule.frequency_hz is None:
            raise  # Nobody writes the start of a rule: it is fitted.
        return [_no_such_clock(rule.frequency_hz, table, frequency)]
    found = []
    if rule.objective == "lowest_energy" and costs.usable.sum() > 1 and not fronts.by_energy:
        found.append(_without_energies(table, frequency))
    if rule.deadline_s is not None:
        found += _deadline(fronts, table, deadline)
    return found


def _without_latencies(table: CostTable, place: Span | None) -> Diagnostic:
    return Diagnostic(
        "unknown-costs",
        f"What the network costs on `{table.board}` is not known at any clock",
        place,
        "decided by those costs",
        notes=tuple(table.notes),
        help="measure it there: `eecompile bench`",
    )


def _without_energies(table: CostTable, place: Span | None) -> Diagnostic:
    return Diagnostic(
        "unknown-costs",
        f"No energy is known on `{table.board}`, so its clocks cannot be compared",
        place,
        "the fastest clock is always used",
        severity="warning",
        notes=tuple(table.notes),
        help="measure energies there, or give its board file voltages and a power coefficient",
    )


def _no_such_clock(frequency_hz: float, table: CostTable, place: Span | None) -> Diagnostic:
    nearest = nearest_clocks(table.states, frequency_hz, frequency_hz)
    return Diagnostic(
        "unknown-frequency",
        f"There is no clock of {hertz(frequency_hz)} to choose on `{table.board}`",
        place,
        "no such clock",
        notes=(f"the nearest that may be used: {nearest}",),
        help="name one of those, or let the target's `cluster` and `frequencies` leave more",
    )


def _deadline(fronts: ClockFronts, table: CostTable, place: Span | None) -> list[Diagnostic]:
    """Whether answers can be there in time: any at all, and those of inputs that go to the end."""
    rule, costs, last = fronts.rule, fronts.costs, fronts.costs.last

    def least_s(index: int, due: int) -> float:
        return float(costs.stretch_s(index, due)[fronts.allowed].min())

    names = [*(f"exit `{row.name}`" for row in table.exits), "the network's own answer"]
    answers = [least_s(-1, due) for due in range(last + 1)]
    soonest = int(np.argmin(answers)) if rule.answers_in_time else last
    if answers[soonest] > fronts.limit_s:
        exits_can = min(answers[:last], default=np.inf) <= fronts.limit_s
        return [_impossible(fronts, table, place, names[soonest], answers[soonest], exits_can)]
    in_vain = [answers[due] + least_s(due, last) for due in range(last)]
    if not in_vain or min(in_vain) <= fronts.limit_s:
        return []
    outcome = "are answered by an exit" if rule.answers_in_time else "are late"
    return [
        Diagnostic(
            "short-deadline",
            f"Inputs that an exit does not answer {outcome}: the deadline is too short for both",
            place,
            f"with its head, the whole network takes {milliseconds(min(in_vain))} at best",
            severity="warning",
            notes=(f"costs on `{table.board}`, every clock looked at",),
            help=f"allow {milliseconds(min(in_vain))} or more to have every answer in time",
        )
    ]


def _impossible(
    fronts: ClockFronts,
    table: CostTable,
    place: Span | None,
    what: str,
    least_s: float,
    exits_can: bool,
) -> Diagnostic:
    rule = fronts.rule
    assert rule.deadline_s is not None, "there is one to keep"
    clock = "any clock" if rule.frequency_hz is None else hertz(rule.frequency_hz)
    help_ = f"allow {milliseconds(least_s)} or more"
    if not rule.answers_in_time and exits_can:
        help_ += f", or write `deadline {milliseconds(rule.deadline_s)} hard`: exits then answer"
    return Diagnostic(
        "impossible-deadline",
        f"The deadline of {milliseconds(rule.deadline_s)} cannot be kept on `{table.board}` at "
        f"{clock}",
        place,
        f"{what} takes {milliseconds(least_s)} at best",
        notes=() if place else (f"{what} takes {milliseconds(least_s)} at best",),
        help=help_,
    )
