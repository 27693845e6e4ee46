"""The network of `tiny.c`: machine code, its description, a numpy reference, an artifact."""

from __future__ import annotations

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Contents, PolicyEntry
from eecompile.board import DvfsState
from eecompile.compiled import CompiledExit, CompiledGraph, Function, Value
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.ir import TensorType
from eecompile.manifest import Normalization, TargetInfo
from eecompile.native_plan import plan_bytes
from eecompile.policies import ExitPolicy, PatiencePolicy, ThresholdPolicy, to_json
from eecompile.runtime.library import Code, Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.vectors import make_vectors, shown_values
from eecompile.targets.native import (
    COMPILED,
    OPTIONS,
    identity_of,
    native_folder,
    table_source,
)

_SOURCE = Path(__file__).with_name("tiny.c")
WEIGHTS = np.array([1, 2, 3, 4], np.float32)
NAMES = ("segment_0", "head_0", "segment_1", "head_1", "comparator_1", "segment_2")


@functools.cache
def machine_code() -> bytes:
    """`tiny.c` and the native runtime compiled for this machine."""
    return compiled_library("tiny", _SOURCE, network().functions(), WEIGHTS.nbytes)


def compiled_library(
    name: str, source: Path, functions: Sequence[Function], weights_bytes: int
) -> bytes:
    """Functions in C with the native runtime, as linking a network makes it."""
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    identity = identity_of([source.read_bytes()], functions, weights_bytes)
    with tempfile.TemporaryDirectory() as folder:
        table, output = Path(folder) / "table.c", Path(folder) / "library.so"
        table.write_text(table_source(name, functions, identity, weights_bytes))
        files = [str(source), str(table), *(str(native_folder() / name) for name in COMPILED)]
        # Its counters are looked at, too: nothing is hidden.
        options = [option for option in OPTIONS if "visibility" not in option]
        options += ["-O1", "-shared", "-Wl,-Bsymbolic", "-o", str(output), f"-I{native_folder()}"]
        subprocess.run([*compiler, *options, *files, "-lm"], check=True)
        return output.read_bytes()


def _value(name: str, *shape: int, dtype: str = "float32") -> Value:
    return name, TensorType(dtype, shape)


X, A, C = _value("x", 1, 4), _value("a", 1, 4), _value("c", 1, 4)
B = _value("b", 1, dtype="int64")


def _function(symbol: str, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> Function:
    return Function(symbol, inputs, outputs, 256, 0, 2, Work(macs=10 ** NAMES.index(symbol)))


def network() -> CompiledGraph:
    """Its description; the MACs are powers of ten, so that a sum tells what ran."""
    logits = [_value(f"{name}.logits", 1, 3) for name in ("early", "late")]
    return CompiledGraph(
        "tiny",
        (X,),
        "logits",
        3,
        (
            _function("segment_0", (X,), (A, B)),
            _function("segment_1", (A,), (C,)),
            _function("segment_2", (C, B), (_value("logits", 1, 3),)),
        ),
        (
            CompiledExit("early", "layer1", 0, _function("head_0", (A,), (logits[0],))),
            CompiledExit(
                "late",
                "layer2",
                1,
                _function("head_1", (C,), (logits[1],)),
                _function("comparator_1", (C,), (_value("late.class_means", 1, 3),)),
            ),
        ),
    )


def reference(x: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of the network in numpy, (n, ...)."""
    a = x * WEIGHTS
    b = np.rint(x.sum(axis=1, dtype=np.float32)).astype(np.int64)
    c = a + np.float32(1)
    return {
        "a": a,
        "b": b,
        "c": c,
        "early.logits": a[:, :3],
        "late.logits": c[:, 1:],
        "late.class_means": -np.abs(c[:, :3]),
        "logits": c[:, :3] + b[:, None].astype(np.float32),
    }


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


#: A Python function that machine code can call.
CODE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p
)


class CountingLibrary(Library):
    """Counts calls and samples on the caller's side of every function."""

    def __init__(self) -> None:
        super().__init__(machine_code(), WEIGHTS)
        self.calls: list[tuple[str, int]] = []

    def function(self, function: Function) -> Code:
        code = super().function(function)

        def counted(frame: int, *arguments: Any) -> int:
            self.calls.append((function.symbol, ctypes.c_int64.from_address(frame).value))
            return code(frame, *arguments)

        return CODE(counted)


def counters(library: Library) -> dict[str, tuple[int, int]]:
    """Calls and samples by function, as the machine code itself has counted them."""
    loaded = library._loaded
    calls = (ctypes.c_int64 * len(NAMES)).in_dll(loaded, "calls")
    samples = (ctypes.c_int64 * len(NAMES)).in_dll(loaded, "samples")
    return {name: (calls[i], samples[i]) for i, name in enumerate(NAMES)}


POLICIES: Mapping[str, ExitPolicy] = {
    "fast": ThresholdPolicy("max_softmax", [0.6, 0.5]),
    "careful": ThresholdPolicy("entropy", [float("inf"), 0.9]),
    "patient": PatiencePolicy(1, 2),
}


def costs(graph: CompiledGraph, latency_s: float = 1e-3) -> CostTable:
    """Every piece takes as long, at the one clock of a machine that does not tell it."""
    found = (Cost(latency_s, provenance="measured"),)
    segments = (CostRow(f"segment{i}", f.work, found) for i, f in enumerate(graph.segments))
    exits = (CostRow(e.name, e.work, found) for e in graph.exits)
    states = (DvfsState("cpu", None),)
    return CostTable("host", "host", "a machine", 1, states, tuple(segments), tuple(exits))


def contents(**changes: Any) -> Contents:
    """What an artifact of the network is written from."""
    graph, x = network(), inputs(16)
    runner = Runner.of(Library(machine_code(), WEIGHTS), graph)
    values = runner.run_all(x, shown_values(graph))
    source = {"logits": reference(x)["logits"]}
    made = Contents(
        version="0.1.0",
        target=TargetInfo("host", f"{platform.machine()}-linux-gnu"),
        network=graph,
        library=machine_code(),
        weights=WEIGHTS,
        vectors=make_vectors(graph, {"x": x}, values, source, POLICIES),
        segments_text="segments\n",
        source_text="eecompile 1\n",
        policies={name: PolicyEntry(to_json(policy)) for name, policy in POLICIES.items()},
        default_policy="fast",
        costs=costs(graph),
        normalizations={"x": Normalization((0.5,), (0.25,))},
        labels=("cat", "dog", "eel"),
        fitted={"fast": {"accuracy": 0.5}},
        data={"fit": "0" * 64},
    )
    made = replace(made, **changes)
    return replace(made, plan=changes.get("plan") or plan_bytes(made))
