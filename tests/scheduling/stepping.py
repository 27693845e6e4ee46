"""Samples one by one through exits and clocks, with nothing shared between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eecompile.policies import EXIT, ExitOutputs, ExitPolicy
from eecompile.runtime.scheduler import Scheduler

#: Time and energy of (sample, from exit, to exit, clock).
Stretch = Callable[[int, int, int, int], tuple[float, float]]


def one_by_one(
    policy: ExitPolicy,
    outputs: Sequence[ExitOutputs],
    final: np.ndarray,
    scheduler: Scheduler,
    stretch: Stretch | None = None,
) -> list[dict[str, Any]]:
    """As a session goes, with times from the table, or from `stretch`: figures of each sample."""
    costs, last, state, found = scheduler.costs, len(outputs), scheduler.home, []
    for sample in range(len(final)):
        elapsed, energy, transitions, forced, index = 0.0, 0.0, 0, False, -1
        evaluated, memory = [False] * last, policy.start(1)
        step = scheduler.begin(policy.first(), state)
        while True:
            time_s, energy_j = scheduler.change(state, step.state)
            transitions += state != step.state
            state = step.state
            paid_s, paid_j = (
                float(of(index, step.due)[state]) for of in (costs.stretch_s, costs.stretch_j)
            )
            if stretch is not None:
                paid_s, paid_j = stretch(sample, index, step.due, state)
            elapsed += time_s + paid_s
            energy += energy_j + paid_j
            index = step.due
            if index == last:
                logits = final[sample]
                break
            evaluated[index] = True
            rows = ExitOutputs(outputs[index].logits[sample : sample + 1])
            due = policy.decide(index, rows, memory).item()
            if due != EXIT and not step.answer:
                step = scheduler.after(index, due, elapsed, state, policy.forecasts)
                if step.due != EXIT:
                    continue
            forced = due != EXIT
            logits = policy.answer(index, rows)[0]
            break
        rest = scheduler.rest(elapsed, state)
        time_s, energy_j = scheduler.change(state, rest)
        transitions += rest != state
        waiting = 0.0
        if scheduler.rule.deadline_s is not None:
            idle_w = costs.idle_power_w or 0.0
            waiting = idle_w * max(0.0, scheduler.rule.deadline_s - elapsed - time_s)
        state = rest
        found.append(
            {
                "exit": index,
                "logits": logits,
                "evaluated": evaluated,
                "latency_s": elapsed,
                "energy_j": energy + energy_j + waiting,
                "waiting_j": waiting,
                "forced": forced,
                "transitions": transitions,
                "missed": elapsed > (scheduler.rule.deadline_s or np.inf) * (1 + 1e-9),
            }
        )
    return found
