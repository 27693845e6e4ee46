"""Fitting the clock that samples begin at, on calibration data."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan

import numpy as np

from eecompile.clock_rule import ClockRule
from eecompile.clocks.simulation import Simulation, simulate
from eecompile.cost_table import CostTable
from eecompile.diagnostics import InternalError
from eecompile.policies import ExitPolicy
from eecompile.record import CalibrateRecord
from eecompile.runtime.scheduler import Scheduler

__all__ = ["fit_start"]


def fit_start(
    policy: ExitPolicy, record: CalibrateRecord, table: CostTable, rule: ClockRule
) -> ClockRule:
    """The rule with the start at which the samples of the record take the least energy.

    Only starts with no more misses and no more answers that the deadline forces than starting at
    the fastest clock. The rule as it is, where energies do not decide.

    Args:
        policy: with its fitted thresholds.
        record: with every exit's outputs.
        table: costs where it will run.
        rule: whose `start` is replaced.
    """
    if not isinstance(record, CalibrateRecord):
        raise InternalError(f"a start was to be fitted on a {type(record).__name__}")
    scheduler = Scheduler(table, replace(rule, start=None))
    usable, known = scheduler.costs.usable, scheduler.costs.has_energy
    if rule.objective != "lowest_energy" or not known.any():
        return rule

    def tried(start: int) -> Simulation:
        fitted = Scheduler(table, replace(rule, start=start))
        return simulate(policy, record.outputs(), record.final, fitted)

    fastest = int(np.where(usable, scheduler.costs.way_s(-1), np.inf).argmin())
    runs = {start: tried(start) for start in {fastest, *np.flatnonzero(known).tolist()}}
    late, forced = runs[fastest].missed.sum(), runs[fastest].forced.sum()
    energies = {
        start: float(run.energy_j.mean())
        for start, run in runs.items()
        if run.missed.sum() <= late and run.forced.sum() <= forced
    }
    least = min((e for e in energies.values() if not isnan(e)), default=inf)
    # Of those that cost the same, the fastest: clocks at one voltage differ by rounding only.
    best = [start for start, energy in energies.items() if energy <= least * (1 + 1e-9)]
    return replace(rule, start=min(best or [fastest], key=scheduler.costs.way_s(-1).__getitem__))
