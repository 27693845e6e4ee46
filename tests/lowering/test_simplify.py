"""Each rule of simplification, by the operators that are left and by what they compute."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")
from eecompile.ir import Graph
from eecompile.reference import run_graph
from eecompile.targets.lowering.layout import lay_out
from eecompile.targets.lowering.simplify import simplify
from eecompile.text import parse_graph
from tests.lowering.calling import compile_plain, inputs_of, worst_error

#: What a rule does -> a graph, and the operators after the rule.
RULES: dict[str, tuple[str, list[str]]] = {
    "a transpose of ones is a reshape": (
        """graph net(x: float32[1, 6, 1, 4]) -> (y: float32[6, 4]) {
            t: float32[6, 1, 1, 4] = Transpose(x; perm=(1, 0, 2, 3))
            r: float32[6, 4] = Reshape(t; shape=(6, 4))
            y: float32[6, 4] = Relu(r)
        }""",
        ["Reshape", "Relu"],
    ),
    "factors of both sides scale the product": (
        """graph net(a: float32[4, 6], b: float32[6, 5]) -> (y: float32[4, 5]) {
            const s: float32[] = random(0)
            const t: float32[1] = random(1)
            p: float32[4, 6] = Mul(s, a)
            q: float32[6, 5] = Div(b, t)
            y: float32[4, 5] = MatMul(p, q)
        }""",
        ["MatMul", "Mul"],
    ),
    "a factor that is read elsewhere stays": (
        """graph net(a: float32[4, 6], b: float32[6, 5]) -> (p: float32[4, 6], y: float32[4, 5]) {
            const s: float32[] = random(0)
            p: float32[4, 6] = Mul(a, s)
            y: float32[4, 5] = MatMul(p, b)
        }""",
        ["Mul", "MatMul"],
    ),
    "a factor that adds dimensions stays": (
        """graph net(a: float32[4, 6], b: float32[6, 5]) -> (y: float32[1, 4, 5]) {
            const s: float32[1, 1, 1] = random(0)
            p: float32[1, 4, 6] = Mul(a, s)
            y: float32[1, 4, 5] = MatMul(p, b)
        }""",
        ["Mul", "MatMul"],
    ),
    "a number divided by a matrix is no factor": (
        """graph net(a: float32[4, 6], b: float32[6, 5]) -> (y: float32[4, 5]) {
            const s: float32[1] = random(0)
            p: float32[4, 6] = Div(s, a)
            y: float32[4, 5] = MatMul(p, b)
        }""",
        ["Div", "MatMul"],
    ),
    "a matrix times itself keeps its factor": (
        """graph net(a: float32[4, 4]) -> (y: float32[4, 4]) {
            const s: float32[1] = random(0)
            p: float32[4, 4] = Mul(a, s)
            y: float32[4, 4] = MatMul(p, p)
        }""",
        ["Mul", "MatMul"],
    ),
    "a reshape behind a product moves ahead of it": (
        """graph net(x: float32[2, 3, 8], r: float32[1, 6, 5]) -> (y: float32[1, 6, 5]) {
            const w: float32[8, 5] = random(0)
            const b: float32[5] = random(1)
            m: float32[2, 3, 5] = MatMul(x, w)
            c: float32[2, 3, 5] = Add(m, b)
            d: float32[2, 3, 5] = Relu(c)
            e: float32[1, 6, 5] = Reshape(d; shape=(1, 6, 5))
            y: float32[1, 6, 5] = Add(e, r)
        }""",
        ["Reshape", "MatMul", "Add", "Relu", "Add"],
    ),
    "a reshape that parts rows stays": (
        """graph net(x: float32[6, 8]) -> (y: float32[6, 2, 2]) {
            const w: float32[8, 4] = random(0)
            m: float32[6, 4] = MatMul(x, w)
            e: float32[6, 2, 2] = Reshape(m; shape=(6, 2, 2))
            y: float32[6, 2, 2] = Softmax(e; axis=2)
        }""",
        ["MatMul", "Reshape", "Softmax"],
    ),
    "a reshape behind constants of many rows stays": (
        """graph net(x: float32[6, 8]) -> (y: float32[2, 3, 4]) {
            const w: float32[8, 4] = random(0)
            const b: float32[6, 4] = random(1)
            m: float32[6, 4] = MatMul(x, w)
            c: float32[6, 4] = Add(m, b)
            y: float32[2, 3, 4] = Reshape(c; shape=(2, 3, 4))
        }""",
        ["MatMul", "Add", "Reshape"],
    ),
}


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


def agree(one: Graph, other: Graph) -> None:
    inputs = inputs_of(one)
    expected, found = run_graph(one, inputs), run_graph(other, inputs)
    for name in one.outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text, expected", RULES.values(), ids=[*RULES])
def test_rule(text: str, expected: list[str]) -> None:
    graph = parse_graph(text)
    simpler = simplify(graph)
    assert kinds(simpler) == expected
    agree(graph, simpler)
    assert kinds(simplify(simpler)) == expected


CONV = "strides=(1,1), pads=(1,1,1,1), dilations=(1,1), group=1"


def laid_out(text: str) -> list[str]:
    graph = parse_graph(text)
    return kinds(lay_out(simplify(graph), (*graph.inputs, *graph.outputs), {}).graph)


def test_a_flattened_picture_is_multiplied_channels_last() -> None:
    text = f"""graph net(x: float32[1, 3, 4, 5]) -> (y: float32[1, 7], z: float32[1, 2]) {{
        const w: float32[6, 3, 3, 3] = random(0)
        const v: float32[120, 7] = random(1)
        const u: float32[120, 2] = random(2)
        c: float32[1, 6, 4, 5] = Conv(x, w; {CONV})
        f: float32[1, 120] = Reshape(c; shape=(1, 120))
        y: float32[1, 7] = MatMul(f, v)
        z: float32[1, 2] = MatMul(f, u)
    }}"""
    # The network's input is the only thing that is transposed.
    assert laid_out(text) == ["Transpose", "Conv", "Reshape", "MatMul", "MatMul"]
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5


def test_a_flattened_picture_that_is_read_otherwise_is_transposed() -> None:
    text = f"""graph net(x: float32[1, 3, 4, 5]) -> (y: float32[1, 7], z: float32[1, 120]) {{
        const w: float32[6, 3, 3, 3] = random(0)
        const v: float32[120, 7] = random(1)
        c: float32[1, 6, 4, 5] = Conv(x, w; {CONV})
        f: float32[1, 120] = Reshape(c; shape=(1, 120))
        y: float32[1, 7] = MatMul(f, v)
        z: float32[1, 120] = Softmax(f; axis=1)
    }}"""
    assert laid_out(text).count("Transpose") == 2
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5


def test_patches_become_tokens_without_a_transpose() -> None:
    text = f"""graph net(x: float32[1, 3, 4, 4]) -> (y: float32[1, 16, 8]) {{
        const w: float32[8, 3, 3, 3] = random(0)
        const v: float32[8, 8] = random(1)
        c: float32[1, 8, 4, 4] = Conv(x, w; {CONV})
        f: float32[1, 8, 16] = Reshape(c; shape=(1, 8, 16))
        t: float32[1, 16, 8] = Transpose(f; perm=(0, 2, 1))
        y: float32[1, 16, 8] = MatMul(t, v)
    }}"""
    assert laid_out(text).count("Transpose") == 1
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5


def test_a_network_whose_pictures_are_channels_last_transposes_nothing() -> None:
    text = f"""graph net(x: float32[1, 4, 5, 3]) -> (y: float32[1, 4, 5, 6]) {{
        const w: float32[6, 3, 3, 3] = random(0)
        const m: float32[1, 3, 1, 1] = random(1)
        t: float32[1, 3, 4, 5] = Transpose(x; perm=(0, 3, 1, 2))
        n: float32[1, 3, 4, 5] = Sub(t, m)
        c: float32[1, 6, 4, 5] = Conv(n, w; {CONV})
        r: float32[1, 6, 4, 5] = Relu(c)
        y: float32[1, 4, 5, 6] = Transpose(r; perm=(0, 2, 3, 1))
    }}"""
    # The reshape says that the output has the convolution's memory.
    assert laid_out(text) == ["Sub", "Conv", "Relu", "Reshape"]
    (function,) = compile_plain(parse_graph(text)).functions
    assert [use.operators for use in function.kernels] == [("Sub",), ("Conv", "Relu")]
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5


SHUFFLE = """r: float32[1, 2, 6, 4, 5] = Reshape(c; shape=(1, 2, 6, 4, 5))
        t: float32[1, 6, 2, 4, 5] = Transpose(r; perm=(0, 2, 1, 3, 4))"""


def test_a_channel_shuffle_stays_channels_last() -> None:
    text = f"""graph net(x: float32[1, 3, 4, 5]) -> (y: float32[1, 8, 4, 5]) {{
        const w: float32[12, 3, 3, 3] = random(0)
        const v: float32[8, 12, 3, 3] = random(1)
        c: float32[1, 12, 4, 5] = Conv(x, w; {CONV})
        {SHUFFLE}
        s: float32[1, 12, 4, 5] = Reshape(t; shape=(1, 12, 4, 5))
        y: float32[1, 8, 4, 5] = Conv(s, v; {CONV})
    }}"""
    # The input, the shuffle, the output.
    assert [kind for kind in laid_out(text) if kind != "Reshape"] == [
        "Transpose",
        "Conv",
        "Transpose",
        "Conv",
        "Transpose",
    ]
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5


def test_groups_of_channels_that_are_read_otherwise_are_transposed() -> None:
    text = f"""graph net(x: float32[1, 3, 4, 5]) -> (
        r: float32[1, 2, 6, 4, 5], y: float32[1, 6, 2, 20]) {{
        const w: float32[12, 3, 3, 3] = random(0)
        c: float32[1, 12, 4, 5] = Conv(x, w; {CONV})
        {SHUFFLE}
        s: float32[1, 6, 2, 20] = Reshape(t; shape=(1, 6, 2, 20))
        y: float32[1, 6, 2, 20] = Softmax(s; axis=3)
    }}"""
    assert worst_error(parse_graph(text), compile_plain(parse_graph(text))) < 2e-5
