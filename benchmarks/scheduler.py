"""How long a decision of the scheduler takes, beside trying every clock for each.

    python -m benchmarks.scheduler [--exits 27] [--rounds 20]

The board is made up (two clusters of 8 and 6 clocks), as what costs are does not matter here. Both
sides decide the same, which is checked, in turns of 500 decisions each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np

from eecompile.board import DvfsState
from eecompile.clock_rule import ClockRule
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.runtime.scheduler import Scheduler, Step

__all__ = ["EveryClock", "made_up"]

#: What a decision may take, in microseconds.
BAR_US = 5.0

_TURN = 500

Question = tuple[int, int, float, int]


def made_up(exits: int) -> CostTable:
    """A network of `exits` exits on a big cluster and a little one; 40 ms at the top clock."""
    clocks = [("big", (4 + 2 * k) * 1e8, 0.6 + 0.08 * k, 1.0) for k in range(8)]
    clocks += [("little", (4 + 2 * k) * 1e8, 0.6 + 0.08 * k, 2.5) for k in range(6)]

    def row(name: str, cycles: float) -> CostRow:
        times = [slower * cycles / hz for _, hz, _, slower in clocks]
        watts = [volts**2 * hz * 1e-9 / slower**2 for _, hz, volts, slower in clocks]
        costs = [Cost(t, t * w) for t, w in zip(times, watts, strict=True)]
        return CostRow(name, Work(), tuple(costs))

    cycles = 0.04 * 1.8e9 / (exits + 1)
    return CostTable(
        "made-up",
        "made-up",
        None,
        1,
        tuple(DvfsState(cluster, hz, volts) for cluster, hz, volts, _ in clocks),
        tuple(row(f"segment{k}", cycles) for k in range(exits + 1)),
        tuple(row(f"exit{k}", cycles / 50) for k in range(exits)),
        {"big": 50e-6, "little": 50e-6},
        200e-6,
        0.2,
    )


class EveryClock:
    """The same choice by looking at every clock, with sums of costs made beforehand.

    Of deadlines that are neither safe nor hard, on boards of which everything is known.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        costs, last = scheduler.costs, scheduler.costs.last
        self.deadline_s = (scheduler.rule.deadline_s or 0.0) * (1 + 1e-9)
        self.change_s, self.change_j = costs.change_s.tolist(), costs.change_j.tolist()
        self.home, self.idle_w = scheduler.home, costs.idle_power_w or 0.0
        ways = [(i, due) for i in range(last) for due in range(i + 1, last + 1)]
        self.time_s = {way: costs.stretch_s(*way).tolist() for way in ways}
        self.energy_j = {way: costs.stretch_j(*way).tolist() for way in ways}

    def after(self, index: int, due: int, elapsed_s: float, state: int) -> Step:
        """As `Scheduler.after`."""
        left = self.deadline_s - elapsed_s
        times, energies = self.time_s[index, due], self.energy_j[index, due]
        best, least, quickest, soonest = -1, float("inf"), -1, float("inf")
        for s in range(len(times)):
            need = self.change_s[state][s] + times[s]
            cost = self.change_j[state][s] + energies[s] + self.change_j[s][self.home]
            cost -= self.idle_w * need
            if need <= left and cost < least:
                best, least = s, cost
            if need < soonest:
                quickest, soonest = s, need
        return Step(due, best if best >= 0 else quickest)


def questions(exits: int, states: int, deadline_s: float, count: int) -> list[Question]:
    """Random progress of samples; some are late already."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        index = int(draw.integers(0, exits))
        due = int(draw.integers(index + 1, exits + 1))
        found.append(
            (index, due, float(draw.uniform(0, deadline_s)), int(draw.integers(0, states)))
        )
    return found


def timed(side: Callable[..., Step], asked: Sequence[Question]) -> list[float]:
    """Microseconds of each decision, the clock's own reading included."""
    found = []
    for question in asked:
        start = time.perf_counter_ns()
        side(*question)
        found.append((time.perf_counter_ns() - start) / 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exits", type=int, default=27)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    table, rule = made_up(options.exits), ClockRule("lowest_energy", 0.06)
    start = time.process_time()
    scheduler = Scheduler(table, rule).warm()
    ready_s = time.process_time() - start
    plain = EveryClock(scheduler)
    asked = questions(options.exits, len(table.states), 0.06, _TURN)
    assert all(scheduler.after(*q) == plain.after(*q) for q in asked), "both decide the same"
    sides: dict[str, Callable[..., Step]] = {"scheduler": scheduler.after, "plain": plain.after}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            times[name] += timed(sides[name], asked)
    print(f"{options.exits} exits, {len(table.states)} clocks; made in {ready_s:.3f} s of CPU time")
    for name, found in times.items():
        median, high = np.quantile(found, [0.5, 0.99])
        print(f"{name:9}: median {median:.2f} us, 99th percentile {high:.2f} us")
    median, high = np.quantile(times["scheduler"], [0.5, 0.99])
    print(f"<= {BAR_US:g} us: {'met' if high <= BAR_US else 'missed by the 99th percentile'}")


if __name__ == "__main__":
    main()
