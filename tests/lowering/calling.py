"""Calls compiled libraries with ctypes alone, as the runtime will, and compares with numpy."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eecompile.hardware import Machine, machine
from eecompile.ir import Graph, TensorType
from eecompile.reference import run_graph
from eecompile.targets.lowering import CompiledFunction, CompiledLibrary, compile_functions

__all__ = ["Loaded", "aligned", "compile_plain", "inputs_of", "worst_error"]


def aligned(nbytes: int) -> np.ndarray:
    """Bytes at a 64-byte boundary, filled with what no correct code reads."""
    memory = np.full(nbytes + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


class Loaded:
    """A compiled library in this process."""

    def __init__(self, compiled: CompiledLibrary) -> None:
        self.functions = {f.symbol: f for f in compiled.functions}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(compiled.library)
            self._library = ctypes.CDLL(str(path))
        self._weights = aligned(compiled.weights.nbytes)
        self._weights[:] = compiled.weights

    def __call__(self, symbol: str, inputs: Sequence[np.ndarray], n: int = 1) -> list[np.ndarray]:
        """Results of n samples, whose arrays have a leading dimension n; in memory's layout."""
        function = self.functions[symbol]
        workspace = aligned(function.workspace_bytes + function.private_bytes)
        outputs = [
            np.full((n, *_in_memory(function, name, type_)), 77, type_.dtype)
            for name, type_ in function.outputs
        ]
        dense = [np.ascontiguousarray(x) for x in inputs]
        arrays = (self._weights, workspace, *dense, *outputs)
        frame = np.array([n, *(array.ctypes.data for array in arrays)], np.int64)
        assert self._library[symbol](ctypes.c_void_p(frame.ctypes.data), 0, 1, None) == 0
        return outputs


def _in_memory(function: CompiledFunction, name: str, type_: TensorType) -> tuple[int, ...]:
    shape = type_.shape
    return shape if function.layouts[name] == "source" else (shape[0], *shape[2:], shape[1])


def inputs_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Reproducible inputs of a graph."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(graph.types[name].shape).astype(graph.types[name].dtype)
        for name in graph.inputs
    }


def compile_plain(graph: Graph, target: Machine | None = None) -> CompiledLibrary:
    """One graph alone, everything at its border in the source's layout."""
    plain = (*graph.inputs, *graph.outputs)
    return compile_functions([graph], target or machine("host"), plain=plain)


def worst_error(graph: Graph, compiled: CompiledLibrary, seed: int = 0) -> float:
    """Largest difference from the reference, relative to the largest value of each output."""
    inputs: Mapping[str, np.ndarray] = inputs_of(graph, seed)
    expected = run_graph(graph, inputs)
    (function,) = compiled.functions
    found = Loaded(compiled)(function.symbol, list(inputs.values()))
    worst = 0.0
    for name, result in zip(graph.outputs, found, strict=True):
        scale = max(float(np.abs(expected[name]).max()), 1e-6)
        assert np.isfinite(result).all()
        worst = max(worst, float(np.abs(result[0] - expected[name]).max()) / scale)
    return worst
