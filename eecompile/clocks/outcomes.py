"""What choosing clocks gives on recorded samples, beside the same without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.simulation import (
    Courses,
    Replayed,
    Simulation,
    at_top_clock,
    top_clock,
)
from eecompile.cost_table import CostTable
from eecompile.policies import ExitPolicy, NeverPolicy
from eecompile.record import Record
from eecompile.runtime.scheduler import Scheduler

__all__ = ["clock_outcomes", "costs_of", "outcome"]


def outcome(found: Simulation, labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Figures of one run as JSON; SI units, energies None where not known."""
    return {"accuracy": float(found.correct(labels).mean()), **costs_of(found)}


def costs_of(found: Simulation) -> dict[str, Any]:
    """The same without what labels say."""
    return {
        "n": len(found.exit),
        "mean_latency_s": float(found.latency_s.mean()),
        "p50_latency_s": float(np.quantile(found.latency_s, 0.5)),
        "p99_latency_s": float(np.quantile(found.latency_s, 0.99)),
        "mean_energy_j": found.mean_energy_j,
        "deadline_misses": int(found.missed.sum()),
        "mean_lateness_s": float(found.late_s.mean()),
        "forced_answers": int(found.forced.sum()),
        "transitions_per_sample": float(found.transitions.mean()),
        "heads_per_sample": float(found.evaluated.sum(axis=1).mean()),
    }


def clock_outcomes(
    policy: ExitPolicy,
    record: Record,
    table: CostTable,
    scheduler: Scheduler,
    paid: PaidCosts | None = None,
) -> Mapping[str, Simulation]:
    """The policy with its clocks chosen, and what it is compared with, on the same samples.

    ``early_exit_top_clock``: the same policy, gates included, with every sample at the fastest
    clock. ``full_depth_top_clock``: neither exits nor gates, nothing left out.

    Args:
        policy: asked as at run time.
        record: of the samples, with every exit's outputs, gates shifted as the policy does.
        table: costs that are to be counted.
        scheduler: made from them.
        paid: what the record's samples pay of them, where gates leave something out.
    """
    deadline_s, exits = scheduler.rule.deadline_s, record.outputs()
    replayed, never = Replayed(policy, exits, record.final), NeverPolicy(len(exits))
    top = Courses(top_clock(table, deadline_s), paid)
    return {
        "chosen": replayed.run(Courses(scheduler, paid)).simulation(),
        "early_exit_top_clock": replayed.run(top).simulation(),
        "full_depth_top_clock": at_top_clock(never, exits, record.as_built, table, deadline_s),
    }
