"""Proposals stand between blocks, where one tensor crosses, and cover the work evenly."""

from __future__ import annotations

from eecompile.passes.propose_points import Candidate, propose_points
from tests.helpers import TextHost


def propose(text: str, count: int = 6) -> tuple[Candidate, ...]:
    host = TextHost(text)
    return propose_points(host.graph(), host.points(), host.graph().outputs[0], count)


def residual(blocks: int) -> str:
    """Blocks of two layers around a shortcut, each a module with modules in it."""
    lines = [
        "graph net(x: float32[1, 8]) -> (y: float32[1, 8]) {",
        "const w: float32[8, 8] = random(0)",
    ]
    last = "x"
    for i in range(blocks):
        lines += [
            f"a{i}: float32[1, 8] = MatMul({last}, w) @ layer.{i}.fc1",
            f"b{i}: float32[1, 8] = Relu(a{i}) @ layer.{i}.relu",
            f"c{i}: float32[1, 8] = MatMul(b{i}, w) @ layer.{i}.fc2",
            f"d{i}: float32[1, 8] = Add(c{i}, {last}) @ layer.{i}",
        ]
        last = f"d{i}"
    return "\n".join([*lines, f"y: float32[1, 8] = MatMul({last}, w) @ head", "}"])


def test_blocks_are_proposed_and_not_what_is_inside_them() -> None:
    found = propose(residual(4))
    assert [c.name for c in found] == ["layer.0", "layer.1", "layer.2", "layer.3"]
    assert [c.value for c in found] == ["d0", "d1", "d2", "d3"]
    assert [round(9 * c.macs_fraction, 6) for c in found] == [2, 4, 6, 8]


def test_a_few_of_many_blocks_are_spread_over_the_work() -> None:
    found = propose(residual(20), 3)
    assert [c.name for c in found] == ["layer.4", "layer.9", "layer.14"]


def test_without_modules_the_value_behind_an_activation_is_named() -> None:
    found = propose(
        """graph net(x: float32[1, 8]) -> (y: float32[1, 8]) {
            const w: float32[8, 8] = random(0)
            a: float32[1, 8] = MatMul(x, w)
            b: float32[1, 8] = Relu(a)
            c: float32[1, 8] = MatMul(b, w)
            d: float32[1, 8] = Relu(c)
            y: float32[1, 8] = MatMul(d, w)
        }"""
    )
    assert [c.name for c in found] == ["b", "d"]


def test_where_every_layer_reads_a_mask_the_fewest_tensors_cross() -> None:
    found = propose(
        """graph net(x: float32[1, 8], m: float32[1, 8]) -> (y: float32[1, 8]) {
            const w: float32[8, 8] = random(0)
            mask: float32[1, 8] = Neg(m)
            a: float32[1, 8] = MatMul(x, w)
            b: float32[1, 8] = Mul(a, mask)
            c: float32[1, 8] = MatMul(b, w)
            d: float32[1, 8] = Mul(c, mask)
            e: float32[1, 8] = MatMul(d, w)
            y: float32[1, 8] = Mul(e, mask)
        }"""
    )
    assert [c.value for c in found] == ["b", "d"]


def test_a_network_without_layers_to_save_gets_no_proposal() -> None:
    assert (
        propose("graph net(x: float32[1, 8]) -> (y: float32[1, 8]) { y: float32[1, 8] = Neg(x) }")
        == ()
    )
