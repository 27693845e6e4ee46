"""The units of a phase are independent: threads may share them in any way, with the same bits.

Every range of a phase is run from the memory that the phase begins with, so that none sees what
another one writes; what they write must be disjoint and together be what one thread writes.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
import itertools

from eecompile.hardware import Machine, machine
from eecompile.ir import Graph
from eecompile.targets.lowering import CompiledLibrary, compile_functions
from tests.lowering.calling import aligned, inputs_of
from tests.lowering.cases import conv, matmul, pool, rows

FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

#: Different contents of memory before the call.
_FILL = 0xFF


@dataclass
class Memory:
    """The places that a function's kernels are called with, in one array."""

    bytes: np.ndarray
    at: dict[str, int]
    private: range


def memory_of(compiled: CompiledLibrary, inputs: Sequence[np.ndarray]) -> Memory:
    """Weights and inputs as given; workspace and outputs full of what no kernel should read."""
    (function,) = compiled.functions
    given = {"weights": compiled.weights, **{f"in{i}": x for i, x in enumerate(inputs)}}
    sizes = {name: array.nbytes for name, array in given.items()}
    sizes["workspace"] = function.workspace_bytes
    sizes["private"] = function.private_bytes
    sizes |= {f"out{i}": type_.nbytes for i, (_, type_) in enumerate(function.outputs)}
    at, end = {}, 0
    for name, nbytes in sizes.items():
        at[name] = end
        end += -(-nbytes // 64) * 64
    memory = aligned(end)
    memory[:] = _FILL
    for name, array in given.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        memory[at[name] : at[name] + raw.size] = raw
    return Memory(memory, at, range(at["private"], at["private"] + sizes["private"]))


def check(graph: Graph, target: Machine, cuts: st.DataObject | None = None) -> int:
    """Runs every phase in ranges; the largest number of units that was found.

    Args:
        graph: the kernels.
        target: what they are compiled for.
        cuts: draws where phases are cut; else each unit is a range.
    """
    compiled = compile_functions(
        [graph], target, plain=(*graph.inputs, *graph.outputs), export_kernels=True
    )
    (function,) = compiled.functions
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        path.write_bytes(compiled.library)
        library = ctypes.CDLL(str(path))
    memory = memory_of(compiled, list(inputs_of(graph).values()))
    most = 1
    for use in function.kernels:
        base = memory.bytes.ctypes.data
        places = [
            ctypes.c_void_p(base + memory.at[argument.base] + argument.offset)
            for argument in use.call.arguments
        ]
        for phase in use.call.phases:
            code = library[phase.symbol]
            most = max(most, phase.units)
            before = memory.bytes.copy()
            written = before.copy()
            for begin, end in _ranges(phase.units, cuts):
                memory.bytes[:] = before
                assert code(begin, end, *places) == 0
                changed = memory.bytes != before
                changed[memory.private.start : memory.private.stop] = False
                assert not (changed & (written != before)).any(), "two ranges write one byte"
                written[changed] = memory.bytes[changed]
            memory.bytes[:] = before
            assert code(0, phase.units, *places) == 0
            written[memory.private.start : memory.private.stop] = memory.bytes[
                memory.private.start : memory.private.stop
            ]
            np.testing.assert_array_equal(written, memory.bytes, err_msg=phase.symbol)
    return most


def _ranges(units: int, cuts: st.DataObject | None) -> list[tuple[int, int]]:
    inner = list(range(1, units))
    if cuts is not None and units > 1:
        inner = sorted(cuts.draw(st.sets(st.integers(1, units - 1), max_size=6)))
    edges = [0, *inner, units]
    return list(itertools.pairwise(edges))


@st.composite
def kernels(draw: st.DrawFn) -> Graph:
    """A kernel of any family, of a few hundred to a few thousand elements."""
    family = draw(st.sampled_from(["conv", "conv", "depthwise", "matmul", "pool", "rows"]))
    channels = st.sampled_from([1, 3, 8, 16, 20, 32, 48])
    size = st.tuples(st.integers(3, 20), st.integers(3, 20))
    kernel, stride = draw(st.sampled_from([1, 3, 3, 5])), draw(st.integers(1, 2))
    residual = draw(st.booleans())
    if family == "conv":
        group = draw(st.sampled_from([1, 1, 1, 2, 4]))
        inputs, outputs = group * draw(channels), group * draw(channels)
        dilation = draw(st.sampled_from([1, 1, 2]))
        shape = draw(size)
        return conv(
            *(inputs, outputs, shape, kernel),
            stride=stride,
            dilation=dilation,
            group=group,
            residual=residual,
        )
    if family == "depthwise":
        count = draw(channels)
        shape = draw(size)
        return conv(count, count, shape, kernel, stride=stride, group=count, residual=residual)
    if family == "matmul":
        extents = [draw(st.integers(1, 70)) for _ in range(3)]
        batch, constant = draw(st.sampled_from([1, 3])), draw(st.booleans())
        return matmul(*extents, batch=1 if constant else batch, constant=constant)
    if family == "pool":
        kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
        return pool(kind, draw(channels), draw(st.integers(5, 20)), 3, stride)
    kind = draw(st.sampled_from(["softmax", "norm", "sigmoid", "transpose", "mean", "first mean"]))
    return rows(kind, draw(st.integers(1, 60)), draw(st.integers(1, 90)))


@FEW
@given(kernels(), st.data())
def test_any_cut_of_any_phase_gives_the_same_bits(graph: Graph, cuts: st.DataObject) -> None:
    check(graph, machine("host", cores=4), cuts)


#: Kernels that are work for several threads.
LARGE = {
    "convolution": conv(32, 32, 24, 3),
    "convolution, small picture": conv(64, 128, 7, 3),
    "1x1 convolution": conv(64, 96, 14, 1, residual=True),
    "convolution with strides": conv(16, 64, 28, 3, stride=2),
    "convolution of groups": conv(64, 64, 14, 3, group=2),
    "depthwise convolution": conv(64, 64, 20, 3, group=64),
    "dense": matmul(64, 96, 256),
    "dense, one row": matmul(1, 512, 1000),
    "product": matmul(48, 32, 64, batch=3, constant=False),
    "pool": pool("MaxPool", 64, 24, 3, 2),
    "softmax": rows("softmax", 64, 128),
    "norm": rows("norm", 64, 128),
    "elements": rows("sigmoid", 64, 512),
}


@pytest.mark.parametrize("graph", LARGE.values(), ids=[name.replace(" ", "-") for name in LARGE])
def test_large_kernels_have_units_for_several_threads(graph: Graph) -> None:
    assert check(graph, machine("host", cores=4)) >= 4
