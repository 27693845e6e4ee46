"""What holds for any network cut at any points."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.base import PassManager, Program
from eecompile.passes.pipelines import segments_pipeline
from eecompile.passes.structure import static_values
from eecompile.reference import run_graph
from eecompile.segments import SegmentGraph
from eecompile.text import (
    constant_digest,
    parse_graph,
    parse_segments,
    print_graph,
    print_segments,
)
from tests.helpers import program_of, random_inputs, run_segments

TYPE = TensorType("float32", (1, 4))
HEAD = parse_graph(
    """graph head(feature: float32[1, 4]) -> (logits: float32[1, 2]) {
        const w: float32[4, 2] = random(7)
        logits: float32[1, 2] = MatMul(feature, w)
    }"""
)
COMPARATOR = parse_graph(
    """graph comparator(feature: float32[1, 4]) -> (class_means: float32[1, 2]) {
        const w: float32[4, 2] = random(8)
        hidden: float32[1, 4] = Neg(feature)
        class_means: float32[1, 2] = MatMul(hidden, w)
    }"""
)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Graph, list[str]]:
    """A graph of up to 14 operators and some of its values that lead to its first output."""
    inputs = [f"x{i}" for i in range(draw(st.integers(1, 2)))]
    values = [*inputs, "w", "b"]
    ops: list[Op] = []
    for index in range(draw(st.integers(2, 14))):
        kind = draw(st.sampled_from(["Relu", "Neg", "Sigmoid", "Add", "Sub", "Max", "MatMul"]))
        count = 1 if kind in ("Relu", "Neg", "Sigmoid", "MatMul") else 2
        read = [draw(st.sampled_from(values)) for _ in range(count)]
        read += ["square"] if kind == "MatMul" else []
        ops.append(Op(f"n{index}", kind, tuple(read), (f"v{index}",)))
        values.append(f"v{index}")
    constants = {
        name: np.random.default_rng(seed).standard_normal(shape).astype("float32")
        for seed, (name, shape) in enumerate({"w": (1, 4), "b": (1, 4), "square": (4, 4)}.items())
    }
    types = dict.fromkeys(values, TYPE) | {"square": TensorType("float32", (4, 4))}
    more = draw(st.lists(st.sampled_from([op.outputs[0] for op in ops[:-1]]), max_size=2))
    outputs = tuple(dict.fromkeys([values[-1], *more]))
    graph = Graph("net", tuple(inputs), outputs, tuple(ops), constants, types)
    above = {v for op in graph.pruned(outputs[:1]).ops for v in op.inputs} - static_values(graph)
    taps = draw(st.lists(st.sampled_from(sorted(above)), max_size=4, unique=True)) if above else []
    return graph, taps


def cut(graph: Graph, taps: list[str], **renamed: str) -> Program:
    points = {f"exit_{tap}": renamed.get(tap, tap) for tap in taps}
    heads = dict.fromkeys(points, HEAD)
    comparators = dict.fromkeys(list(points)[:1], COMPARATOR)
    output = renamed.get(graph.outputs[0], graph.outputs[0])
    program = program_of(graph, points, output)
    return PassManager(segments_pipeline(heads, comparators)).run(program).graph


def cut_of(program: Program) -> SegmentGraph:
    assert program.segments is not None
    return program.segments


@settings(max_examples=150, deadline=None)
@given(networks())
def test_segments_in_order_compute_what_the_network_computes(case: tuple[Graph, list[str]]) -> None:
    graph, taps = case
    program = cut(graph, taps)
    segments = cut_of(program)
    inputs = random_inputs(graph)
    whole = program.host.run(inputs)
    parts = run_segments(segments.graphs(), inputs)
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)
    for exit_ in segments.exits:
        tap = next(e.value for e in program.exits if e.name == exit_.name)
        value = inputs.get(tap)
        if value is None:
            value = run_graph(graph.pruned((tap,)), inputs)[tap]
        np.testing.assert_array_equal(parts[exit_.feature], value)


@settings(max_examples=100, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_borders_do_not_depend_on_order_or_names(
    case: tuple[Graph, list[str]], shuffle: random.Random
) -> None:
    graph, taps = case
    here = cut_of(cut(graph, taps))
    new = {value: f"other.{value[::-1]}" for op in graph.ops for value in op.outputs}
    there = cut_of(cut(shuffled(graph, shuffle, new), taps, **new))
    for exit_, name in new.items():  # only points and outputs are called as the host calls them
        there = replace(
            there,
            exits=tuple(replace(e, point=exit_) if e.point == name else e for e in there.exits),
        )
    text = print_segments(there)
    for value, name in new.items():
        text = text.replace(name, value)
    assert text == print_segments(here)


def shuffled(graph: Graph, shuffle: random.Random, new: dict[str, str]) -> Graph:
    """The graph with its operators in another topological order, and its values renamed."""
    waiting, ready, ops = list(graph.ops), {*graph.inputs, *graph.constants}, []
    while waiting:
        op = shuffle.choice([op for op in waiting if ready.issuperset(op.inputs)])
        waiting.remove(op)
        ready.update(op.outputs)
        ops.append(op)

    def rename(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new.get(name, name) for name in names)

    return Graph(
        graph.name,
        graph.inputs,
        rename(graph.outputs),
        tuple(replace(op, inputs=rename(op.inputs), outputs=rename(op.outputs)) for op in ops),
        graph.constants,
        {new.get(value, value): type_ for value, type_ in graph.types.items()},
    )


@settings(max_examples=60, deadline=None)
@given(networks())
def test_text_parses_back(case: tuple[Graph, list[str]]) -> None:
    graph, taps = case
    segments = cut_of(cut(graph, taps))
    stored = {
        constant_digest(a): a for g in (graph, *segments.graphs()) for a in g.constants.values()
    }
    again = parse_graph(print_graph(graph), lambda digest, _: stored[digest])
    assert again == graph
    assert print_graph(again) == print_graph(graph)
    read = parse_segments(print_segments(segments, "full"), lambda digest, _: stored[digest])
    assert read == segments
    for ours, theirs in zip(segments.graphs(), read.graphs(), strict=True):
        assert ours.constants.keys() == theirs.constants.keys()
        for name, array in ours.constants.items():
            np.testing.assert_array_equal(theirs.constants[name], array)


@settings(max_examples=30, deadline=None)
@given(networks())
def test_passes_change_nothing_the_second_time(case: tuple[Graph, list[str]]) -> None:
    graph, taps = case
    program = cut(graph, taps)
    for step in segments_pipeline(dict.fromkeys((e.name for e in program.exits), HEAD)):
        assert not step.run(program).modified, step.name
