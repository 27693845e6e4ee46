"""A GELU however it was written out, and chains that are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.ir import Graph
from eecompile.reference import run_graph
from eecompile.targets.lowering.fuse_gelu import fuse_gelu
from eecompile.text import parse_graph
from tests.lowering.calling import inputs_of

NUMBERS = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5, "third": 1 / 3}


def graph_of(lines: list[str], outputs: str = "y: float32[4, 6]") -> Graph:
    constants = [f"const {name}: float32[] = random(0)" for name in NUMBERS]
    body = "\n".join([*constants, *(line.replace(":", ": float32[4, 6]") for line in lines)])
    graph = parse_graph(f"graph net(x: float32[4, 6]) -> ({outputs}) {{\n{body}\n}}")
    known = {name: np.asarray(value, np.float32) for name, value in NUMBERS.items()}
    return replace(graph, constants={k: known[k] for k in graph.constants})


ERF = ["d: = Div(x, root)", "e: = Erf(d)", "a: = Add(e, one)"]

GELUS = {
    "product, then half": [*ERF, "m: = Mul(x, a)", "y: = Mul(m, half)"],
    "half first": [*ERF, "m: = Mul(half, x)", "y: = Mul(m, a)"],
    "half of the sum": [*ERF, "m: = Mul(a, half)", "y: = Mul(x, m)"],
    "a product instead of a quotient": [
        "d: = Mul(inverse, x)",
        "e: = Erf(d)",
        "a: = Add(one, e)",
        "m: = Mul(x, a)",
        "y: = Mul(half, m)",
    ],
}

OTHERS = {
    "another factor": [*ERF, "m: = Mul(x, a)", "y: = Mul(m, third)"],
    "another scale": ["d: = Div(x, third)", *ERF[1:], "m: = Mul(x, a)", "y: = Mul(m, half)"],
    "another input": [*ERF, "z: = Relu(x)", "m: = Mul(z, a)", "y: = Mul(m, half)"],
    "a divisor": ["d: = Div(root, x)", *ERF[1:], "m: = Mul(x, a)", "y: = Mul(m, half)"],
    "another sum": [*ERF[:2], "a: = Add(e, half)", "m: = Mul(x, a)", "y: = Mul(m, half)"],
    "read elsewhere": [*ERF, "m: = Mul(x, a)", "h: = Mul(m, half)", "y: = Add(h, e)"],
}


@pytest.mark.parametrize("lines", GELUS.values(), ids=[*GELUS])
def test_a_gelu_is_one_operator(lines: list[str]) -> None:
    graph = graph_of(lines)
    fused = fuse_gelu(graph)
    assert [op.kind for op in fused.ops] == ["Gelu"]
    inputs = inputs_of(graph)
    expected, found = run_graph(graph, inputs)["y"], run_graph(fused, inputs)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lines", OTHERS.values(), ids=[*OTHERS])
def test_what_is_no_gelu_stays(lines: list[str]) -> None:
    graph = graph_of(lines)
    assert fuse_gelu(graph) is graph


def test_a_value_inside_that_is_an_output_stays() -> None:
    graph = graph_of(GELUS["product, then half"], "y: float32[4, 6], a: float32[4, 6]")
    assert fuse_gelu(graph) is graph
