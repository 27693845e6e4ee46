"""Every kernel of networks, measured on this machine with several instruction sets in turn.

What `benchmarks.cost_model` fits the shipped cost model on.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layers import call_s
from eecompile.checked_json import ObjectReader
from eecompile.cost import Work
from eecompile.diagnostics import ToolError
from eecompile.hardware import machine
from eecompile.passes.onnx_host import load_onnx
from eecompile.targets.linkers import find_linkers, remedy
from eecompile.targets.loaded import LoadedLibrary
from eecompile.targets.lowering import compile_functions

__all__ = ["Measured", "clock_hz", "measure", "read", "write"]

_ROUNDS = 15

#: A chain of rotations, each waiting for the last: one cycle each on every core known.
_CHAIN = """
#if defined(__x86_64__)
#define STEP "ror $1, %0\\n"
#else
#define STEP "ror %0, %0, #1\\n"
#endif
unsigned long chain(long count, unsigned long x) {
    for (; count; count--)
        __asm__ volatile(STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP
                         STEP STEP STEP STEP STEP STEP STEP STEP STEP STEP : "+r"(x));
    return x;
}
"""
_CHAIN_STEPS, _CHAIN_COUNT = 20, 100_000


@dataclass(frozen=True)
class Measured:
    """One network's kernels on one instruction set, on one core.

    Attributes:
        network: its name.
        target: the instruction set, as a target's name.
        lanes: float32 elements of a vector register there.
        clock_hz: meanwhile.
        works: of each kernel, in order.
        seconds: of each, the thread's own time, median of rounds, without the call from Python.
        whole_s: of a call of the whole network, with the call from Python, likewise.
    """

    network: str
    target: str
    lanes: int
    clock_hz: float
    works: tuple[Work, ...]
    seconds: tuple[float, ...]
    whole_s: float


def measure(path: Path, targets: Sequence[str]) -> list[Measured]:
    """A network's kernels on each instruction set, the sets in turn, round by round."""
    graph = load_onnx(path).graph()
    plain = (*graph.inputs, *graph.outputs)
    shape = graph.types[graph.inputs[0]].shape
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    calls = {}
    for target in targets:
        compiled = compile_functions(
            [graph], replace(machine(target), cores=1), plain=plain, export_kernels=True
        )
        loaded = LoadedLibrary(compiled)
        symbol = compiled.functions[0].symbol
        calls[target] = (loaded.bind(symbol, [x])[0], loaded.bind_kernels(symbol, [x]), loaded)
    rows: dict[str, list[list[float]]] = {target: [] for target in targets}
    clocks: dict[str, list[float]] = {target: [] for target in targets}
    for _ in range(_ROUNDS):
        for target, (whole, kernels, _) in calls.items():
            for _, call in kernels[:1]:
                call()
            each = [_timed(call) - call_s(use) for use, call in kernels]
            clocks[target].append(clock_hz())
            rows[target].append([_in_turn(whole), *each])
    found = []
    for target, (_, kernels, _) in calls.items():
        whole_s, *seconds = np.median(rows[target], axis=0)
        works = tuple(use.work for use, _ in kernels)
        times = tuple(max(float(s), 1e-9) for s in seconds)
        clock = float(np.median(clocks[target]))
        lanes = machine(target).lanes
        found.append(Measured(path.stem, target, lanes, clock, works, times, float(whole_s)))
    return found


def _in_turn(whole: Callable[[], int]) -> float:
    """Seconds of a call among others of the same, as many as take a millisecond."""
    calls = max(1, min(1000, round(1e-3 / max(_timed(whole), 1e-6))))

    def several() -> int:
        for _ in range(calls):
            whole()
        return 0

    return _timed(several) / calls


def _timed(call: Callable[[], int]) -> float:
    begun = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - begun) / 1e9


def clock_hz() -> float:
    """What this core runs at now, from a chain of instructions of one cycle each."""
    code = _chain()
    best = min(_timed(lambda: code(_CHAIN_COUNT, 1)) for _ in range(3))
    return _CHAIN_STEPS * _CHAIN_COUNT / best


@cache
def _chain() -> Any:
    here = machine("host")
    linkers = find_linkers(here)
    if not linkers:
        raise ToolError("No C compiler", remedy(here))
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        source, library = Path(folder) / "chain.c", Path(folder) / "chain.so"
        source.write_text(_CHAIN, encoding="ascii")
        command = [*linkers[0].command, "-O1", "-fPIC", "-shared", str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        code = ctypes.CDLL(str(library)).chain
    code.argtypes, code.restype = [ctypes.c_long, ctypes.c_ulong], ctypes.c_ulong
    return code


def write(path: Path, found: Sequence[Measured]) -> None:
    """Keeps measurements, to be fitted again."""
    value = [
        {**vars(one), "works": [work.to_json() for work in one.works], "seconds": one.seconds}
        for one in found
    ]
    path.write_text(json.dumps(value), encoding="utf-8")


def read(path: Path) -> list[Measured]:
    """What `write` kept."""
    found = []
    for value in json.loads(path.read_text(encoding="utf-8")):
        works = tuple(Work.from_json(ObjectReader(work, "work")) for work in value["works"])
        found.append(Measured(**{**value, "works": works, "seconds": tuple(value["seconds"])}))
    return found
