"""Times schedules of one kernel against each other on this machine.

All are compiled into one library and take turns, so that they see the same neighbours, clock and
temperature. Operands change from call to call: activations come from the second cache, and weights
from where they lie after all the network's others have been read.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import numpy as np
from tvm.tirx import PrimFunc

from eecompile.hardware import Machine, usable_cores
from eecompile.ir import TensorType
from eecompile.targets.lowering.build import Phase, emit_objects, plain_phases, target_of
from eecompile.targets.lowering.link import link_kernels
from eecompile.targets.lowering.schedules import Choice, schedule
from eecompile.targets.lowering.schedules.kept import gate_lists
from eecompile.targets.lowering.spec import (
    KernelSpec,
    Output,
    Packed,
    Passed,
    PerThread,
    Scheduled,
    Scratch,
)
from eecompile.targets.lowering.strides import StridesLost, strided

__all__ = ["Measured", "in_time", "measure"]

#: Calls change between copies of activations that fill the first cache so many times, and between
#: copies of weights that do so with the second, or are as many as the network has of their size.
_TIMES = 2
#: Copies, and bytes of them, at most; of what has more than half of these bytes there are two.
_COPIES, _MOST_BYTES = 64, 64 << 20

#: Seconds of calls that make a turn; a clock read takes some 0.3 us.
_TURN_S = 0.5e-3
#: Rounds of turns, at least and at most, and the seconds that one kernel's rounds aim at.
_ROUNDS, _AIM_S = (7, 31), 0.25
#: After so many rounds whatever takes this much longer than the quickest is left out.
_EARLY, _HOPELESS = 3, 1.25
#: Choices compiled at once, at most, so that the clock is looked at often.
_AT_ONCE = 4

_ALIGNMENT = 64

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Measured:
    """One way to schedule a kernel.

    Attributes:
        choice: the way.
        times_s: of a call, one for each round until it was left out.
        error: largest difference from the first choice's result, relative to its largest element.
    """

    choice: Choice
    times_s: tuple[float, ...]
    error: float = 0.0


def measure(
    spec: KernelSpec,
    machine: Machine,
    choices: Sequence[Choice],
    until: float,
    weight_bytes: int = 0,
) -> list[Measured]:
    """Times of the choices there is time for, but those that cannot write where the kernel must.

    Args:
        spec: what the kernels compute.
        machine: this one.
        choices: to be compared; the first is the one the others are compared with.
        until: `time.monotonic` when to end: no choice is compiled or given its data that would
            then not be done, as far as is known, and no round is begun after it.
        weight_bytes: of the whole network.

    Returns:
        One for each choice that was ready in time, in order; none where fewer than two were.
    """
    kernels = _compiled(spec, machine, choices, until - _AIM_S)
    if len(kernels) < 2:
        return []
    data = _Data(spec, machine, weight_bytes)
    runs = in_time(kernels, lambda some: [_Run(kernel, data) for kernel in some], until)
    if len(runs) < 2:
        return []
    errors = [_error(run.result(), runs[0].result()) for run in runs]
    times = _rounds([run.turn for run in runs], until)
    return [
        Measured(kernel.choice, tuple(found), error)
        for kernel, found, error in zip(kernels[: len(runs)], times, errors, strict=True)
    ]


def in_time(
    items: Sequence[_Item],
    make: Callable[[Sequence[_Item]], Sequence[_Made]],
    until: float,
    at_once: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> list[_Made]:
    """What is made of the first items, as many as there is time for.

    The first is begun if the time has not come; others if they would be done by then, were none of
    them slower than any before.

    Args:
        items: in order of preference.
        make: from some neighbours; it may make fewer of them.
        until: the clock when to end.
        at_once: items given to `make` together at most; the first comes alone.
        clock: seconds.
    """
    made: list[_Made] = []
    slowest, done = 0.0, 0
    while done < len(items):
        begun = clock()
        left = until - begun
        if left <= 0 or slowest > left:
            break
        size = 1
        if done:
            size = at_once if slowest * at_once <= left else int(left / slowest)
        some = items[done : done + size]
        made += make(some)
        slowest, done = max(slowest, (clock() - begun) / len(some)), done + len(some)
    return made


def _rounds(turns: Sequence[Callable[[int], float]], until: float) -> list[list[float]]:
    """Seconds of a call, for each turn's taker and round."""
    once = min(turns[0](1) for _ in range(4))
    calls = max(1, min(100, round(_TURN_S / max(once, 1e-7))))
    most = int(_AIM_S / max(once * calls * len(turns), 1e-6))
    most = max(_ROUNDS[0], min(_ROUNDS[1], most))
    times: list[list[float]] = [[] for _ in turns]
    taking = set(range(len(turns)))
    for index in range(most):
        if index and time.monotonic() > until:
            break
        for side in sorted(taking):
            turns[side](1)  # brings in code and what the side before has pushed out
            times[side].append(turns[side](calls) / calls)
        if index + 1 == _EARLY:
            quickest = min(map(min, times))
            taking = {s for s in taking if s == 0 or min(times[s]) <= _HOPELESS * quickest}
    return times


# --- Code -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    choice: Choice
    scheduled: Scheduled
    phases: tuple[tuple[Callable[..., int], int], ...]


def _compiled(
    spec: KernelSpec, machine: Machine, choices: Sequence[Choice], until: float
) -> list[_Kernel]:
    """The choices that can be compiled until then, or none where they are fewer than two."""
    target = target_of(machine)
    objects: list[bytes] = []

    def lowered(some: Sequence[Choice]) -> list[tuple[Choice, Scheduled, tuple[Phase, ...]]]:
        made = []
        for choice in some:
            number = choices.index(choice)
            try:
                scheduled = strided(spec, schedule(spec, machine, choice))
            except StridesLost:
                if not number:
                    raise
                continue
            phases = plain_phases(scheduled.function, f"choice{number}", target)
            made.append((choice, scheduled, phases))
        code: dict[str, PrimFunc] = {p.symbol: p.function for *_, ps in made for p in ps}
        objects.extend(emit_objects(code, target) if code else ())
        return made

    found = in_time(choices, lowered, until, max(1, min(usable_cores(), _AT_ONCE)))
    if len(found) < 2:
        return []
    symbols = [phase.symbol for _, _, phases in found for phase in phases]
    library = _loaded(link_kernels(objects, symbols, machine))
    return [
        _Kernel(choice, made, tuple((library[p.symbol], p.units) for p in phases))
        for choice, made, phases in found
    ]


def _loaded(code: bytes) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        path = Path(folder) / "choices.so"
        path.write_bytes(code)
        return ctypes.CDLL(str(path))


# --- Data -----------------------------------------------------------------------------------------


class _Data:
    """Operands with random values, and copies of them; the same for all choices."""

    def __init__(self, spec: KernelSpec, machine: Machine, weight_bytes: int) -> None:
        rng = np.random.default_rng(0)
        self.spec = spec
        self.near, self.far = _TIMES * machine.l1_bytes, _TIMES * machine.l2_bytes
        self.values = [_random(_span(o.type, o.strides), rng) for o in spec.operands]
        for index in gate_lists(spec):
            # Schedules are chosen for everything kept.
            groups = self.values[index].size - 1
            self.values[index] = np.array([groups, *range(groups)], np.int32)
        constants = sum(o.type.nbytes for o in spec.operands if o.constant)
        self.like_it = -(-weight_bytes // max(1, constants))
        self.passed = [
            self.weights(value) if operand.constant else _copies(value, self.near)
            for value, operand in zip(self.values, spec.operands, strict=True)
        ]

    def weights(self, value: np.ndarray) -> list[np.ndarray]:
        """Copies of weights, as they are or packed."""
        return _copies(value, max(self.far, self.like_it * value.nbytes))

    def constant(self, operand: int) -> np.ndarray:
        """A constant operand in its shape."""
        return self.values[operand].reshape(self.spec.operands[operand].type.shape)


class _Run:
    """A kernel bound to its data."""

    def __init__(self, kernel: _Kernel, data: _Data) -> None:
        result = _span(data.spec.result, data.spec.strides)
        self._outputs = _copies(np.zeros(result.shape, result.dtype), data.near)
        self._phases = kernel.phases
        columns = [self._arrays(argument, data) for argument in kernel.scheduled.arguments]
        count = max(map(len, columns))
        self._keep = columns
        self._calls = [
            tuple(ctypes.c_void_p(c[i % len(c)].ctypes.data) for c in columns) for i in range(count)
        ]
        self._next = cycle(self._calls)

    def _arrays(self, argument: object, data: _Data) -> list[np.ndarray]:
        match argument:
            case Passed(operand):
                return data.passed[operand]
            case Packed(operand, pack):
                return data.weights(pack(data.constant(operand)))
            case Scratch(nbytes) | PerThread(nbytes):
                return [_aligned(np.zeros(nbytes, np.uint8))]
            case Output():
                return self._outputs
        raise AssertionError(f"no argument of a kernel: {argument}")

    def result(self) -> np.ndarray:
        """What the first call writes."""
        self._call(self._calls[0])
        return self._outputs[0]

    def _call(self, pointers: tuple[ctypes.c_void_p, ...]) -> None:
        for code, units in self._phases:
            code(ctypes.c_int32(0), ctypes.c_int32(units), *pointers)

    def turn(self, calls: int) -> float:
        """Seconds of this thread that some calls take, whatever other programs do."""
        begun = time.thread_time_ns()
        for _ in range(calls):
            self._call(next(self._next))
        return (time.thread_time_ns() - begun) / 1e9


def _span(type_: TensorType, strides: tuple[int, ...] | None) -> TensorType:
    """All memory from a tensor's first element to its last."""
    if strides is None:
        return replace(type_, shape=(type_.size,))
    last = sum((extent - 1) * s for extent, s in zip(type_.shape, strides, strict=True))
    return replace(type_, shape=(last + 1,))


def _random(type_: TensorType, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(type_.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(type_.shape).astype(dtype)
    return rng.integers(0, 2, type_.shape).astype(dtype)


def _copies(value: np.ndarray, nbytes: int) -> list[np.ndarray]:
    """As many copies as take `nbytes` together, in bounds."""
    each = max(1, value.nbytes)
    count = max(1, min(-(-nbytes // each), _COPIES, max(2, _MOST_BYTES // each)))
    return [_aligned(value) for _ in range(count)]


def _aligned(value: np.ndarray) -> np.ndarray:
    memory = np.zeros(value.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    found = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    found[...] = value
    return found


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest element; infinite where one is no number."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)) or not finite.any():
        return 0.0 if np.array_equal(found, expected, equal_nan=True) else float("inf")
    scale = max(float(np.abs(expected[finite]).max()), 1e-30)
    return float(np.abs(found[finite] - expected[finite]).max()) / scale
