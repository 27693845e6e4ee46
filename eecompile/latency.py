"""What each compiled function takes on this machine, measured while it is built."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from eecompile.benching.device import timed_round
from eecompile.compiled import CompiledGraph
from eecompile.runtime.lane import Lane
from eecompile.runtime.runner import Runner

__all__ = ["measure"]

#: Rounds over the whole network, after a tenth as many to warm up; fewer for slow networks.
_ROUNDS = 200
_LIMIT_S = 3.0


def measure(
    runner: Runner, network: CompiledGraph, inputs: Mapping[str, np.ndarray], threads: int
) -> np.ndarray:
    """Seconds of every function on real inputs: float64 (rounds, functions), in execution order.

    Functions are timed in turn, round by round: what else the machine does meanwhile hits all of
    them alike, and caches are as in use. Rounds that warm up are left out.

    A call of the compiled code counts, with what ctypes takes for it. What a `Session` does around
    it does not: checking and copying the input, the policy's decisions (about 5 us each) and making
    the answer, some 20 us a sample in all. Networks of less than a millisecond feel that.
    """
    functions = network.functions()
    team = runner.library.team(threads) if threads > 1 else None
    lane = Lane(runner.library, network.inputs, network.steps(), 1, team)
    lane.set_shift(-np.inf)  # Gates are timed; what they decide about is all kept.
    calls = [lane.calls[function.symbol] for function in functions]
    count = len(next(iter(inputs.values())))
    times: list[list[float]] = []
    most, begun = _ROUNDS + _ROUNDS // 10, perf_counter()
    while len(times) < most and (len(times) < 5 or perf_counter() - begun < _LIMIT_S):
        times.append(timed_round(lane, calls, inputs, len(times) % count))
    return np.array(times[len(times) // 11 :])
