"""One block for a whole network: what is needed at the same time never overlaps in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.artifact import read_artifact, write_artifact
from eecompile.compiled import Function, Value
from eecompile.cost import Work
from eecompile.ir import TensorType
from eecompile.memory import NetworkPlan, Peak, plan_network, workspace_bytes
from eecompile.runtime.lane import Lane
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from tests.runtime import tiny


@st.composite
def networks(draw: st.DrawFn) -> tuple[tuple[Value, ...], tuple[Function, ...]]:
    """Functions that read some of what is there and compute one to three values each."""

    def value(name: str) -> Value:
        dtype = draw(st.sampled_from(["float32", "int64", "bool"]))
        return name, TensorType(dtype, (1, draw(st.integers(1, 300))))

    inputs = tuple(value(f"in{i}") for i in range(draw(st.integers(1, 2))))
    known, functions = list(inputs), []
    for step in range(draw(st.integers(1, 8))):
        read = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        made = tuple(value(f"v{step}.{i}") for i in range(draw(st.integers(1, 3))))
        shared, own = (draw(st.sampled_from([0, 64, 100, 4096])) for _ in range(2))
        threads = draw(st.integers(1, 5))
        functions.append(Function(f"f{step}", tuple(read), made, shared, own, threads, Work()))
        known += made
    return inputs, tuple(functions)


@settings(max_examples=200, deadline=None)
@given(networks(), st.integers(1, 5), st.integers(1, 4), st.data())
def test_running_the_functions_destroys_nothing_that_is_needed(
    network: tuple[tuple[Value, ...], tuple[Function, ...]],
    capacity: int,
    threads: int,
    data: st.DataObject,
) -> None:
    """Played through: each function scribbles over its workspace and writes its outputs."""
    inputs, functions = network
    names = [name for f in functions for name, _ in f.outputs]
    kept = data.draw(st.lists(st.sampled_from(names), unique=True))
    plan = plan_network(inputs, functions, capacity, threads, kept)
    memory = np.zeros(plan.nbytes, np.int64)  # Which value each byte belongs to.
    types = dict(inputs) | {name: type_ for f in functions for name, type_ in f.outputs}
    marks = {name: mark for mark, name in enumerate(types, 1)}

    def place(name: str) -> np.ndarray:
        start = plan.values[name]
        assert start % 64 == 0
        found = memory[start : start + types[name].nbytes * capacity]
        assert found.size == types[name].nbytes * capacity
        return found

    for name, _ in inputs:
        place(name)[:] = marks[name]
    read: set[str] = set()
    for function in functions:
        start = plan.workspaces[function.symbol]
        assert start % 64 == 0
        needed = workspace_bytes(function, capacity, threads)
        assert start + needed <= plan.nbytes
        for name, _ in function.outputs:
            place(name)[:] = marks[name]
        memory[start : start + needed] = -1
        for name, _ in (*function.inputs, *function.outputs):
            assert (place(name) == marks[name]).all(), f"{name} is overwritten in {function.symbol}"
        read.update(name for name, _ in function.inputs)
    for name in names:
        if name in kept or name not in read:
            assert (place(name) == marks[name]).all(), f"{name} is not there in the end"


@given(networks(), st.integers(1, 6), st.integers(1, 6))
def test_workspaces_hold_what_every_way_of_sharing_takes(
    network: tuple[tuple[Value, ...], tuple[Function, ...]], capacity: int, threads: int
) -> None:
    for function in network[1]:
        needed = workspace_bytes(function, capacity, threads)
        alone = function.workspace_bytes + function.private_bytes
        phases = function.workspace_bytes + min(threads, function.threads) * function.private_bytes
        stride = -(-alone // 64) * 64
        last = (min(capacity, threads) - 1) * stride + alone
        assert needed >= max(alone, phases, last)


def test_a_chain_takes_two_neighbours_and_a_workspace() -> None:
    values = [(f"v{i}", TensorType("float32", (1, 256))) for i in range(6)]
    functions = [
        Function(f"f{i}", (values[i],), (values[i + 1],), 512, 0, 1, Work()) for i in range(5)
    ]
    plan = plan_network(values[:1], functions, 1, 1)
    assert plan.nbytes == 2 * 1024 + 512
    assert plan_network(values[:1], functions, 10, 1).nbytes == 2 * 10240 + 512
    every = plan_network(values[:1], functions, 1, 1, [name for name, _ in values])
    assert every.nbytes == 6 * 1024 + 512


def test_hostile_numbers_of_values_are_planned_in_no_time() -> None:
    value = TensorType("float32", (1, 16))
    inputs = [(f"v{i}", value) for i in range(50_000)]
    plan = plan_network(inputs, (), 1, 1)
    assert plan.nbytes == 64 * len(inputs)
    assert isinstance(plan, NetworkPlan)


def test_a_sessions_answers_are_the_runners(tmp_path: Path) -> None:
    """The runner keeps every value asked for; the session gives memory away as it goes."""
    write_artifact(tmp_path / "out", tiny.contents())
    x = tiny.inputs(40)
    for threads in (1, 2, 3):
        net = Session(read_artifact(tmp_path / "out"), None, threads)
        runner = Runner.of(net.library, tiny.network())
        values = runner.run_all(x, list(tiny.reference(x)), threads)
        for name, expected in tiny.reference(x).items():
            np.testing.assert_array_equal(values[name], expected)
        answers = net.full_depth_batch(x)
        np.testing.assert_array_equal(answers.logits, values["logits"])
        for row, sample in enumerate(x):
            np.testing.assert_array_equal(net.full_depth(sample).logits, values["logits"][row])


def test_the_peak_is_what_a_lane_allocates() -> None:
    library, graph = Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network()
    for threads in (1, 3):
        peak = Peak.of(graph, 16, threads)
        team = library.team(threads) if threads > 1 else None
        lane = Lane(library, graph.inputs, graph.functions(), 1, team)
        assert (peak.weights, peak.threads) == (16, threads)
        assert lane._block.nbytes == peak.activations
        assert Peak.from_json(peak.to_json()) == peak


@pytest.mark.parametrize("threads", [1, 2])
def test_a_runner_keeps_no_more_than_it_is_asked_for(threads: int) -> None:
    library, graph = Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network()
    runner = Runner.of(library, graph)
    x = tiny.inputs(3)
    few = runner.run_all(x, ["logits"], threads)
    assert runner._lane is not None
    small = runner._lane[1]._block.nbytes
    every = runner.run_all(x, list(tiny.reference(x)), threads)
    assert runner._lane[1]._block.nbytes > small
    np.testing.assert_array_equal(few["logits"], every["logits"])
