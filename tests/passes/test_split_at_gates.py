"""Segments cut at gates: the steps give what masks in the whole network give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest

from eecompile.ir import Graph, Op
from eecompile.passes.base import PassManager, Program
from eecompile.passes.cut_segments import CutSegments
from eecompile.passes.resolve_points import ResolvePoints
from eecompile.passes.split_at_gates import PlacedGate, SplitAtGates, split_at_gates
from eecompile.reference import evaluate, run_graph
from eecompile.segments import SHIFT, SegmentGraph
from eecompile.text import parse_graph, parse_segments, print_segments
from tests.helpers import program_of

NET = """
graph net(image: float32[1, 4]) -> (y: float32[1, 4]) {
    const w: float32[4, 4] = random(1)
    const u: float32[4, 4] = random(2)
    const two: float32[1] = splat(2.0)
    a: float32[1, 4] = MatMul(image, w) @ stem
    b: float32[1, 4] = Relu(a) @ stem
    f: float32[1, 4] = MatMul(b, u) @ block1.first
    fr: float32[1, 4] = Relu(f) @ block1.first
    g: float32[1, 4] = MatMul(fr, w) @ block1.second
    s: float32[1, 4] = Add(b, g) @ block1
    r: float32[1, 4] = Relu(s) @ block1
    f2: float32[1, 4] = MatMul(r, u) @ block2.first
    fr2: float32[1, 4] = Relu(f2) @ block2.first
    g2: float32[1, 4] = MatMul(fr2, w) @ block2.second
    doubled: float32[1] = Neg(two) @ block2
    h2: float32[1, 4] = Mul(g2, doubled) @ block2
    s2: float32[1, 4] = Add(r, h2) @ block2
    r2: float32[1, 4] = Relu(s2) @ block2
    y: float32[1, 4] = MatMul(r2, w) @ fc
}
"""


def scored(outputs: Mapping[str, int], *, reads: bool = False, keeps: bool = False) -> Graph:
    """A gate whose scores are products of the feature, with a state where asked for."""
    made, lines = [], []
    for name, width in outputs.items():
        made.append(f"{name}: float32[1, {width}]")
        lines += [f"const k{name}: float32[4, {width}] = random({len(name) + width})"]
    for name, width in outputs.items():
        lines += [
            f"p{name}: float32[1, {width}] = MatMul({'m' if reads else 'x'}, k{name})",
            f"{name}: float32[1, {width}] = Sub(p{name}, gates.shift)",
        ]
    state = ""
    if reads:
        state = ", before.h: float32[1, 4], before.c: float32[1, 4]"
        lines.insert(len(outputs), "n: float32[1, 4] = Mul(before.h, before.c)")
        lines.insert(len(outputs) + 1, "m: float32[1, 4] = Add(x, n)")
    return parse_graph(
        "graph gate(x: float32[1, 4], gates.shift: float32[1, 1]"
        + f"{state}) -> ({', '.join(made)}) {{\n"
        + "\n".join(lines)
        + "\n}"
    )


GATES = (
    PlacedGate(
        "block1", "b", scored({"keep": 1, "channels": 2, "h": 4, "c": 4}), "b", "r", masked="fr"
    ),
    PlacedGate("block2", "r", scored({"keep": 1}, reads=True), "r", "r2"),
    PlacedGate("block2.first", "r", scored({"channels": 4}), masked="fr2"),
)


def cut(*exits: str, gates: tuple[PlacedGate, ...] = GATES) -> tuple[Program, SegmentGraph]:
    program = program_of(parse_graph(NET), {e: e for e in exits}, "y", 4)
    result = PassManager((ResolvePoints(), CutSegments(), SplitAtGates(gates))).run(program)
    assert result.graph.segments is not None
    again = SplitAtGates(gates).run(result.graph)
    assert not again.modified
    return result.graph, result.graph.segments


def run_steps(
    segments: SegmentGraph, x: np.ndarray, decide: bool = True, shift: float = 0.0
) -> tuple[dict[str, np.ndarray], list[str]]:
    """All values, and the names of the graphs that ran."""
    values = {segments.inputs[0][0]: x, SHIFT[0]: np.full((1, 1), shift, np.float32)}
    ran = []
    for segment in segments.segments:
        for step in segment.steps:
            graph = step.graph
            if step.gate and not decide:
                ones = {v: np.ones(graph.types[v].shape, np.float32) for v in graph.outputs}
                values |= ones
                continue
            if step.keep and not values[step.keep] > 0:
                if not step.gate:
                    other = values.get(step.otherwise)
                    (result,) = graph.outputs
                    values[result] = np.zeros((1, 4), np.float32) if other is None else other
                continue
            ran.append(graph.name)
            values |= run_graph(graph, {v: values[v] for v in graph.inputs})
        if not segment.steps:
            graph = segment.graph
            values |= run_graph(graph, {v: values[v] for v in graph.inputs})
    return values, ran


def masked(x: np.ndarray, shift: float) -> tuple[np.ndarray, tuple[bool, bool]]:
    """What the network gives with masks, worked out by hand from its operators."""
    graph = parse_graph(NET)
    values: dict[str, np.ndarray] = {**graph.constants, "image": x}
    shift_ = np.full((1, 1), shift, np.float32)
    first: dict[str, np.ndarray] = {}
    kept = []
    for op in graph.ops:
        if op.name == "f":
            first = run_graph(GATES[0].graph, {"x": values["b"], SHIFT[0]: shift_})
            kept.append(bool(first["keep"] > 0))
        if op.name == "f2":
            state = {f"before.{name}": first[name] for name in ("h", "c")}
            second = run_graph(GATES[1].graph, {"x": values["r"], SHIFT[0]: shift_, **state})
            third = run_graph(GATES[2].graph, {"x": values["r"], SHIFT[0]: shift_})
            kept.append(bool(second["keep"] > 0))
        (values[op.outputs[0]],) = evaluate(op, [values[v] for v in op.inputs])
        if op.name == "fr":
            values["fr"] = keep(values["fr"], first["channels"])
        if op.name == "fr2":
            values["fr2"] = keep(values["fr2"], third["channels"])
        if op.name in ("g", "h2") and not kept[-1]:
            values[op.name] = np.zeros_like(values[op.name])
    return values["y"], (kept[0], kept[1])


def keep(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return evaluate(Op("k", "Keep", ("x", "s"), ("y",)), [x, scores])[0]


@pytest.mark.parametrize("exits", [(), ("stem",), ("block1",), ("stem", "block1"), ("block2",)])
def test_steps_give_what_masks_give(exits: tuple[str, ...]) -> None:
    _, segments = cut(*exits)
    seen = set()
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)
        for shift in (-1.0, 0.0, 0.5):
            values, ran = run_steps(segments, x, shift=shift)
            expected, kept = masked(x, shift)
            np.testing.assert_allclose(values["y"], expected, atol=1e-6)
            blocks = [
                step.graph.name
                for segment in segments.segments
                for step in segment.steps
                if step.keep and not step.gate
            ]
            assert tuple(name in ran for name in blocks) == kept
            seen.add(kept)
    assert len(seen) >= 3


def test_decisions_off_is_the_source_network() -> None:
    _, segments = cut("block1")
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    values, ran = run_steps(segments, x, decide=False)
    np.testing.assert_array_equal(values["y"], run_graph(parse_graph(NET), {"image": x})["y"])
    assert not any("gate" in name for name in ran)


def test_text_parses_back() -> None:
    _, segments = cut("block1")
    text = print_segments(segments, "full")
    assert "step keep block1.keep otherwise segment0/b channels block1.channels = graph" in text
    constants = {}
    for graph in (*segments.graphs(), *(s.graph for s in segments.segments)):
        for array in graph.constants.values():
            constants[hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()] = array
    assert print_segments(parse_segments(text, lambda digest, _: constants[digest]), "full") == text


def test_a_channel_gate_in_a_block_runs_only_where_the_block_does() -> None:
    _, segments = cut()
    (gate,) = [
        step
        for step in segments.segments[0].steps
        if step.gate and "block2.first.channels" in step.graph.outputs
    ]
    assert gate.keep == "block2.keep"
    # That of a recurrent gate hands its state on, whatever becomes of the block.
    assert [s.keep for s in segments.segments[0].steps if s.gate] == ["", "", "block2.keep"]


def test_gates_that_leave_nothing_stay_away() -> None:
    program, _ = cut(gates=())
    assert program.segments is not None
    assert not program.segments.gated
    cut_again = split_at_gates(program.segments, program.host.graph(), ())
    assert cut_again == program.segments


BESIDE = """
graph net(image: float32[1, 4]) -> (y: float32[1, 4]) {
    const w: float32[4, 4] = random(1)
    const u: float32[4, 4] = random(2)
    b: float32[1, 4] = MatMul(image, w) @ stem
    r: float32[1, 4] = Relu(b) @ block
    f: float32[1, 4] = MatMul(r, u) @ block.left
    fr: float32[1, 4] = Relu(f) @ block.left
    h: float32[1, 4] = MatMul(r, w) @ block.right
    hr: float32[1, 4] = Relu(h) @ block.right
    g: float32[1, 4] = Mul(fr, hr) @ block
    s: float32[1, 4] = Add(b, g) @ block
    y: float32[1, 4] = MatMul(s, w) @ fc
}
"""


@pytest.mark.parametrize("layers", [True, False])
def test_what_several_gates_mask_side_by_side_is_several_steps(layers: bool) -> None:
    left = PlacedGate("left", "b", scored({"channels": 2}), masked="fr")
    right = PlacedGate("right", "b", scored({"channels": 4}), masked="hr")
    block = PlacedGate("block", "b", scored({"keep": 1}), "b", "s")
    graph, gates = parse_graph(BESIDE), (*([block] if layers else []), left, right)
    passes = (ResolvePoints(), CutSegments(), SplitAtGates(gates))
    segments = PassManager(passes).run(program_of(graph, {}, "y", 4)).graph.segments
    assert segments is not None
    steps = [step for step in segments.segments[0].steps if not step.gate]
    assert [step.channels for step in steps if step.channels] == ["left.channels", "right.channels"]
    assert all(len(step.graph.outputs) == 1 for step in steps if step.keep)
    seen = set()
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)
        values, _ = run_steps(segments, x)
        b = run_graph(graph.pruned(("b",)), {"image": x})["b"]
        read = {"x": b, SHIFT[0]: np.zeros((1, 1), np.float32)}
        scores = {gate.name: run_graph(gate.graph, read) for gate in gates}
        kept = not layers or bool(scores["block"]["keep"] > 0)
        r, w, u = np.maximum(b, 0), graph.constants["w"], graph.constants["u"]
        product = keep(np.maximum(r @ u, 0), scores["left"]["channels"]) * keep(
            np.maximum(r @ w, 0), scores["right"]["channels"]
        )
        np.testing.assert_allclose(values["y"], (b + kept * product) @ w, rtol=1e-4, atol=1e-5)
        seen.add(kept)
    assert len(seen) == 1 + layers
