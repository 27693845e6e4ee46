# ruff: noqa: E402 - everything below the first import needs torch
# mypy: disable-error-code="dict-item,misc,name-defined"
"""Neutral operators written into a PyTorch network compute what they say."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch host needs torch")

from eecompile.ir import Graph, Op, TensorType
from eecompile.operators import OPERATORS
from eecompile.passes.fx_emit import EMITTED
from eecompile.passes.fx_export import export
from eecompile.passes.fx_host import FxHost
from eecompile.passes.host import HostError
from eecompile.reference import evaluate, run_graph
from eecompile.shapes import infer_types
from tests.lowering.operator_cases import CASES, Case


class Identity(torch.nn.Module):
    def forward(self, feature: Any) -> Any:
        return feature


@cache
def _backbone(type_: TensorType) -> FxHost:
    return FxHost(export(Identity(), {"feature": type_}, ("out",), "backbone"))


def _head(case: Case) -> Graph:
    """The case's first input as feature, the others as constants."""
    names = ["feature", *(f"c{i}" for i in range(1, len(case.inputs)))]
    arrays = dict(zip(names, case.inputs, strict=True))
    inputs = tuple("" if x is None else name for name, x in arrays.items())
    op = Op("y", case.kind, inputs, ("y",), case.attributes)
    types = {name: TensorType.of(x) for name, x in arrays.items() if x is not None}
    (types["y"],) = infer_types(op, [None if x is None else TensorType.of(x) for x in case.inputs])
    constants = {n: x for n, x in arrays.items() if x is not None and n != "feature"}
    return Graph("head", ("feature",), ("y",), (op,), constants, types)


_EMITTABLE = [case for case in CASES if case.kind in EMITTED]


@pytest.mark.parametrize("case", _EMITTABLE, ids=lambda case: case.label)
def test_spliced_operator_computes_what_the_reference_says(case: Case) -> None:
    head = _head(case)
    host = _backbone(head.types["feature"]).copy()
    try:
        (value,) = host.splice(head, "feature", "exits.early")
    except HostError as error:
        (problem,) = error.problems
        assert problem.operator == case.kind
        assert ":" in problem.message, problem
        return
    host.add_output("y", value)
    (expected,) = evaluate(case.op, case.inputs)
    found = host.run({"feature": case.inputs[0]})["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    again = run_graph(host.graph(), {"feature": case.inputs[0]})[value]
    np.testing.assert_allclose(again, expected, rtol=2e-4, atol=1e-5)


def test_only_what_torch_lacks_is_refused() -> None:
    refused = set()
    for case in _EMITTABLE:
        head = _head(case)
        host = _backbone(head.types["feature"]).copy()
        before = host.fingerprint()
        try:
            host.splice(head, "feature", "exits.early")
        except HostError:
            refused.add(case.kind)
            assert host.fingerprint() == before
    windows = {"AveragePool", "ConvTranspose", "MaxPool", "Pad"}
    assert refused == windows | {"ArgMax", "ArgMin", "CumSum", "DepthToSpace"}


def test_operators_of_heads_can_be_written() -> None:
    wanted = """
        Add AveragePool BatchNormalization Clip Concat Conv Div Exp LogSoftmax MatMul Max MaxPool
        Min Mul Neg Pow ReduceMax ReduceMean ReduceSum Relu Reshape Sigmoid Slice Softmax Sqrt Sub
        Tanh Transpose
    """
    assert set(wanted.split()) <= EMITTED.keys() <= OPERATORS.keys()
