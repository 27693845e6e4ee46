"""What choosing clocks gives on recorded samples, beside the same without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.clocks.simulation import (
    Courses,
    Replayed,
    Simulation,
    at_top_clock,
    top_clock,
)
from eecompile.cost_table import CostTable
from eecompile.policies import ExitPolicy, NeverPolicy
from eecompile.policies.base import ExitOutputs
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
    exits: Sequence[ExitOutputs],
    final: np.ndarray[Any, Any],
    table: CostTable,
    scheduler: Scheduler,
) -> Mapping[str, Simulation]:
    """The policy with its clocks chosen, and what it is compared with, on the same samples.

    ``early_exit_top_clock``: the same policy with every sample at the fastest clock.
    ``full_depth_top_clock``: no exits either.
    """
    deadline_s = scheduler.rule.deadline_s
    replayed = Replayed(policy, exits, final)
    never = NeverPolicy(len(exits))
    return {
        "chosen": replayed.run(Courses(scheduler)).simulation(),
        "early_exit_top_clock": replayed.run(Courses(top_clock(table, deadline_s))).simulation(),
        "full_depth_top_clock": at_top_clock(never, exits, final, table, deadline_s),
    }
