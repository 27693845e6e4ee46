"""Chooses the schedules of a network's kernels by measuring them on this machine.

The most expensive kernels come first, for as many seconds as there are. What is chosen is written
down by the caller and given to `compile_functions`: no build depends on a clock, only on a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from eecompile.hardware import Machine
from eecompile.ir import Graph
from eecompile.targets.lowering.compile import KernelCount, kernel_counts
from eecompile.targets.lowering.identity import described, kernel_key
from eecompile.targets.lowering.measuring import Measured
from eecompile.targets.lowering.measuring import measure as timed
from eecompile.targets.lowering.schedules import Choice, choices
from eecompile.targets.lowering.spec import KernelSpec

__all__ = ["Winner", "tune", "winner"]

#: Largest difference between two choices' results, relative to the largest element: direct and
#: Winograd's kernels differ by their error bounds, 2e-5 at most (schedules/winograd.py); a wrong
#: kernel by about 1.
_TOLERANCE = 1e-4
#: Least gain for which the model's choice is left, and how many standard errors it must be away
#: from none.
_GAIN, _ERRORS = 0.01, 2.0
#: Fewer rounds tell nothing about their noise.
_FEWEST = 5
_NOTHING: Mapping[str, str] = MappingProxyType({})

Measure = Callable[[KernelSpec, Machine, Sequence[Choice], float], list[Measured]]
#: Kernels measured, kernels in all, seconds left.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Winner:
    """The choice for one kernel.

    Attributes:
        key: of the kernel.
        kernel: what it computes, for people.
        choice, time_s: what won, and the median seconds of a call.
        model, model_time_s: what is taken without a measurement; often the same.
        uses: how often the network calls it.
    """

    key: str
    kernel: str
    choice: str
    time_s: float
    model: str
    model_time_s: float
    uses: int


def tune(
    graphs: Sequence[Graph],
    machine: Machine,
    plain: Collection[str],
    seconds: float,
    *,
    known: Mapping[str, str] = _NOTHING,
    progress: Progress | None = None,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Winner]:
    """The best choices for the kernels of some graphs, as they are found.

    Args:
        graphs: as for `compile_functions`.
        machine: this one.
        plain: as there.
        seconds: to take, from the call on; a kernel of which no two choices could be measured by
            then is left out.
        known: kernel's key -> its choice by an earlier measurement; these kernels come last.
        progress: told before each kernel, and at the end.
        measure: in place of `measuring.measure`.
        clock: seconds; the one `measure` is given the end of.

    Raises:
        UnsupportedOperator: an operator has no compiled form.
    """
    end = clock() + seconds
    constants = {name: array.nbytes for graph in graphs for name, array in graph.constants.items()}
    compare = measure or partial(timed, weight_bytes=sum(constants.values()))
    waiting = _in_order(kernel_counts(graphs, machine, plain), machine, known)
    tell = progress or (lambda done, total, left: None)
    spent, tried = 0.0, 0
    for done, (count, candidates) in enumerate(waiting):
        begun = clock()
        left = end - begun
        tell(done, len(waiting), max(0.0, left))
        if left <= 0 or 2 * spent > left * tried:
            return
        affordable = int(left * tried / spent) if spent else len(candidates)
        found = compare(count.spec, machine, candidates[:affordable], end)
        spent, tried = spent + clock() - begun, tried + len(found)
        if len(found) > 1 and len(found[0].times_s) >= _FEWEST:
            yield _winner(count, found)
    tell(len(waiting), len(waiting), max(0.0, end - clock()))


def _in_order(
    counts: Sequence[KernelCount], machine: Machine, known: Mapping[str, str]
) -> list[tuple[KernelCount, list[Choice]]]:
    """Kernels with something to choose, each key once, the most expensive first."""
    merged: dict[str, tuple[KernelCount, float]] = {}
    for count in counts:
        key = kernel_key(count.spec)
        first, total = merged.get(key, (count, 0.0))
        merged[key] = first, total + count.uses * count.work
    offered = {key: choices(count.spec, machine) for key, (count, _) in merged.items()}

    def rank(key: str) -> tuple[bool, float, str]:
        is_known = any(known.get(key) == str(choice) for choice in offered[key])
        return is_known, -merged[key][1], key

    order = sorted((key for key in offered if len(offered[key]) > 1), key=rank)
    return [(merged[key][0], offered[key]) for key in order]


def _winner(count: KernelCount, measured: Sequence[Measured]) -> Winner:
    first, best = measured[0], winner(measured)
    return Winner(
        kernel_key(count.spec),
        described(count.spec),
        str(best.choice),
        float(np.median(best.times_s)),
        str(first.choice),
        float(np.median(first.times_s)),
        count.uses,
    )


def winner(measured: Sequence[Measured]) -> Measured:
    """The quickest that is right, and quicker than the first by more than noise; else the first."""
    first = measured[0]
    better = [m for m in measured[1:] if m.error <= _TOLERANCE and _is_quicker(m, first)]
    return min(better, key=lambda m: np.median(m.times_s), default=first)


def _is_quicker(one: Measured, other: Measured) -> bool:
    """Whether the ratios of neighbouring turns are below 1, by more than they are uncertain."""
    both = list(zip(one.times_s, other.times_s, strict=False))
    if len(both) < _FEWEST:
        return False
    ratios = np.array([a / b for a, b in both])
    middle = float(np.median(ratios))
    # A median's standard error is 1.25 of a mean's; 1.48 median deviations are a normal one.
    deviation = 1.48 * float(np.median(np.abs(ratios - middle)))
    uncertain = 1.25 * deviation / len(ratios) ** 0.5
    return middle <= 1 - _GAIN and middle + _ERRORS * uncertain < 1
