"""Written-out layer norms become one operator; what only looks like one stays."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.reference import run_graph
from eecompile.targets.lowering.fuse_norms import fuse_norms
from eecompile.text import parse_graph

CHAIN = """graph norm(x: float32[1, 6, 24]) -> (y: float32[1, 6, 24]) {{
    const weight: float32[24] = random(0)
    const bias: float32[24] = random(1)
    const two: float32[] = [{power}]
    const small: float32[] = [0.001]
    m: float32[1, 6, 1] = ReduceMean(x; axes=(2,), keepdims=1)
    d: float32[1, 6, 24] = Sub(x, m)
    q: float32[1, 6, 24] = {square}
    v: float32[1, 6, 1] = ReduceMean(q; axes=(2,), keepdims=1)
    e: float32[1, 6, 1] = Add({sum})
    s: float32[1, 6, 1] = Sqrt(e)
    n: float32[1, 6, 24] = Div(d, s)
    t: float32[1, 6, 24] = Mul({scaled})
    y: float32[1, 6, 24] = Add(t, bias)
}}"""


def _chain(**changed: str) -> str:
    parts = {
        "power": "2.0",
        "square": "Pow(d, two)",
        "sum": "v, small",
        "scaled": "n, weight",
    }
    return CHAIN.format(**{**parts, **changed})


@pytest.mark.parametrize(
    "changed", [{}, {"square": "Mul(d, d)"}, {"sum": "small, v", "scaled": "weight, n"}]
)
def test_a_written_out_norm_is_one_operator(changed: dict[str, str]) -> None:
    graph = parse_graph(_chain(**changed))
    fused = fuse_norms(graph)
    assert [op.kind for op in fused.ops] == ["LayerNormalization"]
    x = np.random.default_rng(0).standard_normal((1, 6, 24)).astype("float32")
    expected, found = run_graph(graph, {"x": x})["y"], run_graph(fused, {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [{"power": "3.0"}, {"square": "Mul(d, x)"}, {"sum": "v, v"}, {"scaled": "n, n"}],
)
def test_what_is_no_norm_stays(changed: dict[str, str]) -> None:
    graph = parse_graph(_chain(**changed))
    assert fuse_norms(graph) is graph


def test_a_norm_whose_middle_is_read_stays() -> None:
    text = _chain().replace("Add(t, bias)", "Add(t, n)")
    graph = parse_graph(text)
    assert fuse_norms(graph) is graph
