# ruff: noqa: E402 - everything below the first import needs torch
# mypy: disable-error-code="arg-type,index,misc,name-defined,no-any-return,operator,union-attr"
"""Every translation rule of the PyTorch host, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch host needs torch")

from eecompile.ir import TensorType
from eecompile.passes.fx_export import export
from eecompile.passes.fx_host import FxHost
from eecompile.passes.fx_translate import RULES
from eecompile.reference import run_graph
from eecompile.shapes import check_types
from tests.hosts.fx_cases import CASES, Case


class Call(torch.nn.Module):
    """A network that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def host_of(function: Callable[..., Any], *inputs: np.ndarray[Any, Any]) -> FxHost:
    types = {f"x{i}": TensorType.of(x) for i, x in enumerate(inputs)}
    return FxHost(export(Call(function).eval(), types, (), "case"))


def _targets(host: FxHost) -> set[str]:
    found = set()
    for node in host.module.graph.nodes:
        found |= {str(node.target), f"{node.target}#"}
    return found


def _check(case: Case, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    host = host_of(function, *inputs)
    assert case.key in _targets(host), host.module.graph
    graph = host.graph()
    assert check_types(graph) == []
    feed = {f"x{i}": x for i, x in enumerate(inputs)}
    (expected,) = host.run(feed).values()
    (found,) = run_graph(graph, feed).values()
    if expected.dtype == np.float64:
        expected = expected.astype(np.float32)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_rule_computes_what_torch_computes(case: Case) -> None:
    _check(case, case.call, case.inputs)


def test_every_rule_has_a_case() -> None:
    assert RULES.keys() - {case.key for case in CASES} == set()


@pytest.mark.parametrize("key", ["aten.linear.default", "aten.conv2d.default", "aten.cat.default"])
def test_rule_folds_constant_operands(key: str) -> None:
    case = next(case for case in CASES if case.key == key)
    constants = [torch.from_numpy(x) for x in case.inputs[1:]]
    host = host_of(lambda x: case.call(x, *constants), case.inputs[0])
    graph = host.graph()
    assert {name for op in graph.ops for name in op.inputs if name} <= {
        "x0",
        *graph.constants,
        *(op.outputs[0] for op in graph.ops),
    }
    assert all(op.kind != "Transpose" for op in graph.ops)
    (expected,), (found,) = (
        host.run({"x0": case.inputs[0]}).values(),
        run_graph(graph, {"x0": case.inputs[0]}).values(),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


IN_PLACE = {
    "relu_": lambda x: (x * 2).relu_(),
    "add_": lambda x: (x * 2).add_(1).mul_(x),
    "hardtanh_ and an older reader": lambda x: _after_change(x),
    "clamp_ of a view": lambda x: _change_of_view(x),
    "a slice that is written": lambda x: _written_slice(x),
    "an input that is changed": lambda x: x.sub_(1).div_(2) * x,
}


def _after_change(x: Any) -> Any:
    y = x * 2
    z = y + 1
    y.clamp_(-1, 1)
    return y + z  # y is the clamped one


def _change_of_view(x: Any) -> Any:
    y = x * 2
    y[:, :2].clamp_(-1, 1)
    return y


def _written_slice(x: Any) -> Any:
    y = x * 2
    y[:, 0] = y[:, 1]
    return y


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_change_what_is_read_later(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    expected = IN_PLACE[name](torch.from_numpy(x.copy())).numpy()
    try:
        host = host_of(IN_PLACE[name], x)
        graph = host.graph()
    except Exception as error:
        assert "select_scatter" in str(error) or "slice_scatter" in str(error)
        pytest.fail(f"refused: {error}")
    kept = x.copy()
    (found,) = host.run({"x0": kept}).values()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(kept, x)
    (neutral,) = run_graph(graph, {"x0": x}).values()
    np.testing.assert_allclose(neutral, expected, rtol=1e-6)
