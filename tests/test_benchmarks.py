"""The arithmetic of the benchmarks: ratios of turns, limits, reasons."""

from __future__ import annotations

import doctest
import importlib

import pytest

pytest.importorskip("tvm")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from benchmarks.layers import Layer, reason
from benchmarks.peak import Limits

MODULES = [
    "depth",
    "halting",
    "kernels",
    "layers",
    "models",
    "native",
    "networks",
    "overheads",
    "peak",
    "peers",
    "train_text",
    "turns",
]

#: 100 GFLOP/s, 100 GB/s for small tensors and 10 for large ones.
LIMITS = Limits(1e11, ((2**20, 1e11), (2**30, 1e10)))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_benchmarks_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert tried and not failed


@pytest.mark.parametrize(
    ("operators", "shape", "time_s", "macs", "nbytes", "why"),
    [
        (("Conv", "Relu"), (1, 56, 56, 64), 1.1e-3, 50_000_000, 2**20, "91 % of the measured"),
        (("Conv",), (1, 56, 56, 64), 1e-3, 5_000_000, 2**23, "memory-bound"),
        (("Add",), (1, 8), 1e-6, 0, 64, "too small"),
        (("Slice",), (1, 100, 100), 1e-5, 0, 2**16, "not in whole vectors"),
        (("Conv",), (1, 56, 56, 24), 1e-4, 4_000_000, 2**16, "24 channels fill 75 %"),
        (("Conv", "Sigmoid"), (1, 56, 56, 64), 1e-4, 4_000_000, 2**16, "Sigmoid of every output"),
        (("Conv",), (1, 56, 56, 64), 1e-4, 9 * 56 * 56 * 64, 2**16, "9 products an output"),
        (("Conv",), (1, 7, 7, 64), 7e-6, 7 * 7 * 64 * 90, 2**12, "too short"),
        (("Conv",), (1, 56, 56, 64), 1e-3, 100_000_000, 2**20, "Winograd saves"),
        (("MatMul",), (1, 1024), 1e-3, 2**20, 2**22, "every weight is used once"),
        (("Conv", "Clip", "Conv"), (1, 7, 7, 64), 1e-4, 3_000_000, 2**16, "a depthwise"),
    ],
)
def test_a_layer_is_explained_by_its_work_bytes_and_shape(
    operators: tuple[str, ...],
    shape: tuple[int, ...],
    time_s: float,
    macs: int,
    nbytes: int,
    why: str,
) -> None:
    layer = Layer("y", operators, shape, 1, time_s, 1.0, macs, nbytes, True)
    assert why in reason(layer, LIMITS, 16, 1e10)
