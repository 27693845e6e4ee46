"""What each compiled function takes on this machine, measured, and the cost table that gives."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from eecompile.board import DvfsState
from eecompile.compiled import CompiledGraph, Function
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.runtime.lane import Lane
from eecompile.runtime.runner import Runner

__all__ = ["Latencies", "cpu_name", "measure", "measured_table"]

#: Rounds over the whole network, after a tenth as many to warm up; fewer for slow networks.
_ROUNDS = 200
_LIMIT_S = 3.0


@dataclass(frozen=True)
class Latencies:
    """Median seconds of one sample by function symbol, measured on `threads` threads.

    A call of the compiled code counts, with what ctypes takes for it. What a `Session` does around
    it does not: checking and copying the input, the policy's decisions (about 5 us each) and making
    the answer, some 20 us a sample in all. Networks of less than a millisecond feel that.
    """

    network: CompiledGraph
    seconds: Mapping[str, float]
    threads: int


def measure(
    runner: Runner, network: CompiledGraph, inputs: Mapping[str, np.ndarray], threads: int
) -> Latencies:
    """Time every function on real inputs, in execution order, so that caches are as in use.

    Functions are timed in turn, round by round, and the median of the rounds is kept: what else
    the machine does meanwhile then hits all of them alike.
    """
    functions = network.functions()
    team = runner.library.team(threads) if threads > 1 else None
    lane = Lane(runner.library, network.inputs, functions, 1, team)
    count = len(next(iter(inputs.values())))
    times: dict[str, list[float]] = {function.symbol: [] for function in functions}
    begun, rounds = perf_counter(), 0
    while rounds < _ROUNDS + _ROUNDS // 10 and (rounds < 5 or perf_counter() - begun < _LIMIT_S):
        for name, array in inputs.items():
            lane.values[name][:1] = array[rounds % count : rounds % count + 1]
        _round(lane, functions, times)
        rounds += 1
    warm = rounds // 11
    seconds = {symbol: float(np.median(found[warm:])) for symbol, found in times.items()}
    return Latencies(network, seconds, threads)


def _round(lane: Lane, functions: tuple[Function, ...], times: dict[str, list[float]]) -> None:
    for function in functions:
        call = lane.calls[function.symbol]
        start = perf_counter()
        call.one()
        times[function.symbol].append(perf_counter() - start)


def measured_table(target: str, board: str, state: DvfsState, latencies: Latencies) -> CostTable:
    """What was measured, all of it at one state of a board."""
    network = latencies.network

    def row(name: str, work: Work, *functions: Function) -> CostRow:
        taken = sum(latencies.seconds[function.symbol] for function in functions)
        return CostRow(name, work, (Cost(taken, provenance="measured"),))

    return CostTable(
        target,
        board,
        cpu_name(),
        latencies.threads,
        (state,),
        tuple(row(name, f.work, f) for name, f in network.named_segments()),
        tuple(row(exit_.name, exit_.work, *exit_.functions) for exit_ in network.exits),
    )


def cpu_name() -> str:
    """The processor as the operating system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
