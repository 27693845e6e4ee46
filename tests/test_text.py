"""The IR's text says everything, and says clearly what it cannot read."""

from __future__ import annotations

import numpy as np
import pytest

from eecompile.ir import Graph, Op, TensorType
from eecompile.text import (
    TextError,
    constant_digest,
    excerpt,
    parse_graph,
    parse_segments,
    print_graph,
    print_segments,
)

EVERYTHING = """graph "net:0"(image: float32[1, 4], "x y": int64[]) -> (logits: float32[1, 2]) {
    const w: float32[4, 2] = [0.1, -0.0, inf, -inf, 1e-08, 3.0, 4.0, 5.0]
    const none: float32[0] = []
    const "const": int64[2] = [-1, 9223372036854775807]
    const flags: bool[1, 2] = [true, false]
    const big: float32[100] = splat(-0.0)
    logits: float32[1, 2] = Add(image, w; a=(1,), b=1.5, c="q\\"x", d=true, e=()) as fc @ layer.1
    "_": float32[1] = Clip(_, logits; f=(0.5, inf), min=-inf) @ "a b"
}
"""


def test_every_form_prints_as_it_was_read() -> None:
    assert print_graph(parse_graph(EVERYTHING)) == EVERYTHING


def test_scopes_and_names_are_read() -> None:
    op = parse_graph(EVERYTHING).ops[0]
    assert (op.name, op.scope, op.outputs) == ("fc", "layer.1", ("logits",))
    assert op.attributes["c"] == 'q"x'
    assert op.attributes["e"] == ()


def test_zero_and_minus_zero_are_different_constants() -> None:
    array = np.array([0.0, -0.0] * 20, "float32")
    graph = Graph("g", (), (), (), {"c": array}, {"c": TensorType.of(array)})
    assert f'sha256("{constant_digest(array)}")' in print_graph(graph)


def test_large_constants_come_from_the_loader() -> None:
    graph = parse_graph("graph g() -> () { const w: float32[10, 10] = random(3) }")
    text = print_graph(graph)
    stored = {constant_digest(graph.constants["w"]): graph.constants["w"]}
    again = parse_graph(text, lambda digest, _: stored[digest])
    np.testing.assert_array_equal(again.constants["w"], graph.constants["w"])
    with pytest.raises(TextError, match="no constant `sha256"):
        parse_graph(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected `graph`, found the end"),
        ("graph g()\n-> (y: float32[1])", "line 2: expected `{`, found the end"),
        ("graph g() -> (y: float32[1]) {}", "output `y: float32[1]` is not computed"),
        ("graph g() -> () {\n  $\n}", "line 2: unexpected `$`"),
        ("graph g() -> () { const a: float32[3] = [1, 2] }", "expected 3 elements"),
        ("graph g() -> () {} graph", "expected the end, found `graph`"),
        ("graph g() -> () { y: float32[x] = Neg(y) }", "expected an extent, found `x`"),
    ],
)
def test_text_that_is_no_graph_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_graph(text)
    assert message in str(caught.value)


def test_segments_without_bodies_do_not_parse() -> None:
    full = """segments net(x: float32[1]) -> y {
    segment segment0 = graph segment0(x: float32[1]) -> (y: float32[1]) {  # 0 MACs
        y: float32[1] = Neg(x)
    }
}
"""
    segments = parse_segments(full)
    assert print_segments(segments, "full") == full
    assert print_segments(segments) == (
        "segments net(x: float32[1]) -> y {\n"
        "    segment segment0 = graph segment0(x: float32[1]) -> (y: float32[1])  # 0 MACs\n"
        "}\n"
    )
    with pytest.raises(TextError, match=r"expected `\{`"):
        parse_segments(print_segments(segments))


def test_an_excerpt_shows_graphs_that_are_broken() -> None:
    ops = tuple(Op(f"n{i}", "Neg", (f"v{i}",), (f"v{i + 1}",)) for i in range(20))
    shown = excerpt(Graph("g", ("v0",), ("v20",), ops), "v10", context=1)
    assert shown.splitlines() == [
        "in graph g:",
        "  v9: ? = Neg(v8)  # n8",
        "> v10: ? = Neg(v9)  # n9",
        "  v11: ? = Neg(v10)  # n10",
    ]
