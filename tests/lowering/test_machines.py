"""Code for every machine there is a board file for is right: here where it runs, else emulated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.reference import run_graph
from eecompile.targets.lowering import CompiledLibrary, compile_functions
from tests.helpers import python_on_arm
from tests.lowering.calling import Loaded, inputs_of
from tests.lowering.cases import ODD, conv, matmul, renamed

TOLERANCE = 1e-4

#: Board -> the processor that is emulated. The emulator of Debian 12 knows no Cortex-A55; the older
#: in-order core has less than it.
EMULATED = {"cortex-a55": "cortex-a53", "neoverse-n1": "neoverse-n1"}

CASES = {
    **ODD,
    "tiles of several rows": conv(32, 64, 14, 3),
    "a picture's first layer": conv(3, 32, 33, 7, stride=2),
    "depthwise, whole vectors": conv(64, 64, 14, 3, group=64),
    "product, whole tiles": matmul(48, 96, 160),
    "classes": matmul(1, 256, 1000),
}


def compiled_for(target: str) -> tuple[list[Graph], CompiledLibrary]:
    """All cases in one library."""
    graphs = [renamed(graph, f"case{index}") for index, graph in enumerate(CASES.values())]
    plain = {name for graph in graphs for name in (*graph.inputs, *graph.outputs)}
    return graphs, compile_functions(graphs, machine(target), plain=plain)


def wrong(graphs: list[Graph], found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Cases whose error is too large, relative to their largest value."""
    errors = {}
    for label, graph in zip(CASES, graphs, strict=True):
        (output,) = graph.outputs
        expected = run_graph(graph, inputs_of(graph))[output]
        error = np.abs(found[output] - expected).max() / max(np.abs(expected).max(), 1e-6)
        if not error <= TOLERANCE:
            errors[label] = float(error)
    return errors


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_kernels_for_other_processors_of_this_kind_are_right(target: str) -> None:
    if not machine(target).is_native:
        pytest.skip(f"this processor lacks what {target} needs")
    graphs, compiled = compiled_for(target)
    loaded = Loaded(compiled)
    found = {}
    for graph, function in zip(graphs, compiled.functions, strict=True):
        (result,) = loaded(function.symbol, list(inputs_of(graph).values()))
        found[graph.outputs[0]] = result[0]
    assert wrong(graphs, found) == {}


ON_ARM = """
import ctypes, json, platform, sys
import numpy as np
assert platform.machine() == "aarch64"
folder = sys.argv[1]
library = ctypes.CDLL(folder + "/kernels.so")
data, found = np.load(folder + "/data.npz"), {}
for symbol, nbytes, inputs, output, shape in json.load(open(folder + "/calls")):
    result, workspace = np.full(shape, 77, np.float32), np.full(nbytes + 64, 255, np.uint8)
    start = -workspace.ctypes.data % 64
    arrays = [data["weights"], workspace[start:], *(data[name] for name in inputs), result]
    frame = np.array([1, *(array.ctypes.data for array in arrays)], np.int64)
    assert library[symbol](ctypes.c_void_p(frame.ctypes.data), 0, 1, None) == 0
    found[output] = result
np.savez(folder + "/found.npz", **found)
"""


@pytest.mark.parametrize("target", EMULATED)
def test_kernels_for_arm_are_right(
    target: str, arm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, compiled = compiled_for(target)
    arrays: dict[str, Any] = {
        name: array for graph in graphs for name, array in inputs_of(graph).items()
    }
    calls = []
    for graph, function in zip(graphs, compiled.functions, strict=True):
        (output,) = graph.outputs
        nbytes = function.workspace_bytes + function.private_bytes
        calls.append([function.symbol, nbytes, graph.inputs, output, graph.types[output].shape])
    (tmp_path / "kernels.so").write_bytes(compiled.library)
    np.savez(tmp_path / "data.npz", weights=compiled.weights, **arrays)
    (tmp_path / "calls").write_text(json.dumps(calls))
    (tmp_path / "run.py").write_text(ON_ARM)
    monkeypatch.setenv("CPU", EMULATED[target])
    python_on_arm(arm, tmp_path / "run.py", tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        assert wrong(graphs, found) == {}
