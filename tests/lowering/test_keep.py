"""Channels that a gate leaves out are not computed, and the answers are the reference's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from eecompile.cost import Work
from eecompile.hardware import Machine, efficient_group, machine
from eecompile.ir import Graph
from eecompile.kept_macs import kept_macs
from eecompile.reference import run_graph
from eecompile.targets.loaded import LoadedLibrary
from eecompile.targets.lowering import compile_functions, schedules
from eecompile.targets.lowering.compile import _laid_out, _simpler
from eecompile.targets.lowering.spec import KernelSpec
from tests.helpers import ROOT, python_on_arm
from tests.lowering.calling import compile_plain, inputs_of
from tests.lowering.gated import bottleneck, convolutions, inverted, line, scores_of, summed, worst
from tests.lowering.test_threads import check

# The package exports the function of the same name.
winograd = importlib.import_module("eecompile.targets.lowering.schedules.winograd")

FEW = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
HOST = machine("host")


def _with_lanes(lanes: int) -> Machine:
    """This machine, its vectors no longer than so many."""
    return replace(HOST, lanes=min(lanes, HOST.lanes))


@contextmanager
def _computed_by(tile: int | None) -> Iterator[None]:
    """3x3 convolutions of stride 1 by F(tile x tile), or directly."""

    def fixed(spec: KernelSpec, target: Machine) -> int | None:
        return None if winograd.problem_of(spec, target) is None else tile

    with patch.object(schedules, "chosen", fixed):
        yield


def _masks(groups: int) -> list[tuple[int, ...]]:
    return list(product((0, 1), repeat=groups))


@pytest.mark.parametrize(
    ("tile", "lanes"), [(None, 16), (None, 8), (None, 4), (2, 8), (4, 16), (4, 4)]
)
def test_every_mask_of_a_few_groups(tile: int | None, lanes: int) -> None:
    with _computed_by(tile):
        for graph in (
            convolutions((5, 32, 8), 2, (5, 7), outputs=("y", "k")),
            convolutions((7, 12, 16), 3, (5, 6)),
        ):
            groups = graph.types["s"].shape[1]
            assert worst(graph, _with_lanes(lanes), _masks(groups)) < 1e-5


@pytest.mark.parametrize(
    ("kernels", "stride"), [((1, 1), 1), ((3, 1), 2), ((1, 3), 2), ((5, 1), 1)]
)
def test_other_windows(kernels: tuple[int, int], stride: int) -> None:
    graph = convolutions((6, 32, 10), 2, (9, 7), kernels, stride=stride)
    assert worst(graph, None, _masks(2)) < 1e-5


@pytest.mark.parametrize("tile", [None, 4])
def test_weights_and_strips_larger_than_the_caches(tile: int | None) -> None:
    small = replace(HOST, l1_bytes=2048, l2_bytes=8192)
    with _computed_by(tile):
        for graph in (
            convolutions((16, 64, 16), 4, (9, 7), outputs=("y", "k")),
            convolutions((16, 64, 16), 2, (3, 3)),
        ):
            assert worst(graph, small, _masks(graph.types["s"].shape[1])) < 1e-5


def test_one_dimension_and_groups_of_inputs() -> None:
    for graph in (
        line((5, 32), 2, 13),
        line((8, 48), 3, 9, group=2),
        summed(8, 32, 2, 6, group=2),
        summed(32, 32, 2, 5, group=32),
        summed(12, 24, 3, 6, group=12),
    ):
        assert worst(graph, None, _masks(graph.types["s"].shape[1])) < 1e-5


@pytest.mark.parametrize("gates", ["a", "b", "ab"])
def test_inverted_residuals(gates: str) -> None:
    for graph in (
        inverted(8, 48, 3, (7, 8), gates),
        inverted(5, 18, 3, (6, 6), gates, stride=2),
    ):
        assert worst(graph, None, _masks(graph.types["s"].shape[1])) < 1e-5


@pytest.mark.parametrize("last", [False, True])
def test_dense_layers(last: bool) -> None:
    for growth, groups in ((16, 2), (12, 3)):
        assert worst(bottleneck(20, growth, groups, (7, 7), last), None, _masks(groups)) < 1e-5


@FEW
@given(st.data())
def test_any_shape_and_mask(data: st.DataObject) -> None:
    groups, each = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 18))
    size = data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    lanes, tile = data.draw(st.sampled_from([16, 8, 4])), data.draw(st.sampled_from([None, 2, 4]))
    ends = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    kernels = data.draw(st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3])))
    graph = convolutions((ends[0], groups * each, ends[1]), groups, size, kernels)
    row = st.lists(st.booleans(), min_size=groups, max_size=groups)
    masks = data.draw(st.lists(row, min_size=1, max_size=4))
    with _computed_by(tile):
        assert worst(graph, _with_lanes(lanes), masks) < 1e-5


@pytest.mark.parametrize("tile", [None, 4])
def test_with_all_groups_kept_it_is_the_network_without_a_gate(tile: int | None) -> None:
    with _computed_by(tile):
        gated = convolutions((16, 32, 16), 2, (8, 8))
        plain = convolutions((16, 32, 16), 2, (8, 8), gated=False)
        found = []
        for graph in (gated, plain):
            values = inputs_of(plain) | {"s": scores_of((1, 1))}
            library = LoadedLibrary(compile_plain(graph))
            (symbol,) = library.functions
            run, (answer,) = library.bind(symbol, [values[name] for name in graph.inputs])
            assert run() == 0
            found.append(answer.copy())
    assert np.abs(found[0] - found[1]).max() <= 2e-6 * np.abs(found[1]).max()


@pytest.mark.parametrize("tile", [None, 2])
def test_threads_share_what_is_kept(tile: int | None) -> None:
    with _computed_by(tile):
        for graph in (
            convolutions((16, 64, 16), 4, (12, 12), outputs=("y", "k")),
            inverted(8, 64, 2, (8, 8), "b"),
        ):
            assert check(graph, HOST) > 1


def test_two_threads_answer_as_one() -> None:
    graph = convolutions((64, 128, 64), 4, (16, 16), outputs=("y", "k"))
    values = inputs_of(graph)
    samples = [scores_of(mask) for mask in ((1, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 0))]
    stacked = [
        np.stack(samples) if name == "s" else np.stack([values[name]] * 4) for name in graph.inputs
    ]
    answers = []
    for threads in (1, 2):
        compiled = compile_plain(graph)
        library = LoadedLibrary(compiled, threads)
        run, found = library.bind(compiled.functions[0].symbol, stacked, 4)
        assert run() == 0
        answers.append([array.copy() for array in found])
    assert compiled.functions[0].threads > 1
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_mask_on_aarch64(arm: Path, tmp_path: Path) -> None:
    masks = _masks(3)
    graphs = [
        replace(graph, name=name)
        for name, graph in (
            ("winograd", convolutions((6, 24, 8), 3, (6, 7))),
            ("direct", convolutions((6, 24, 8), 3, (6, 7), (1, 3), stride=2)),
            ("depthwise", inverted(6, 24, 3, (6, 6), "a")),
        )
    ]
    with _computed_by(4):
        compiled = compile_functions(graphs, machine("arm-cpu"), plain=("x", "q", "s", "y"))
    given: dict[str, np.ndarray] = {
        "weights": compiled.weights,
        "symbols": np.array([function.symbol for function in compiled.functions]),
    }
    expected = {}
    for graph, function in zip(graphs, compiled.functions, strict=True):
        samples = [inputs_of(graph) | {"s": scores_of(mask)} for mask in masks]
        expected[function.symbol] = np.stack([run_graph(graph, x)["y"] for x in samples])
        nbytes = function.workspace_bytes + function.private_bytes
        given[f"{function.symbol}/workspace"] = np.array(nbytes)
        given[f"{function.symbol}/shape"] = np.array(expected[function.symbol].shape)
        for index, name in enumerate(graph.inputs):
            given[f"{function.symbol}/in{index}"] = np.stack([x[name] for x in samples])
    (tmp_path / "kernels.so").write_bytes(compiled.library)
    np.savez(tmp_path / "given.npz", allow_pickle=False, **given)
    paths = [tmp_path / name for name in ("kernels.so", "given.npz", "found.npz")]
    python_on_arm(arm, ROOT / "tests" / "arm" / "call.py", *paths)
    with np.load(tmp_path / "found.npz") as found:
        assert str(found["machine"]) == "aarch64"
        for symbol, answers in expected.items():
            assert np.abs(found[symbol] - answers).max() < 1e-5 * np.abs(answers).max()


# --- What is computed -----------------------------------------------------------------------------


def _kinds(graph: Graph) -> tuple[Graph, list[str]]:
    (laid,) = _laid_out([_simpler(graph)], (*graph.inputs, *graph.outputs))
    return laid.graph, [op.kind for op in laid.graph.ops]


def test_one_list_serves_a_gate_and_its_readers_and_nothing_is_written_that_nobody_reads() -> None:
    graph, kinds = _kinds(convolutions((8, 16, 8), 2, (6, 6)))
    assert kinds.count("KeptGroups") == 1
    (gate,) = (op for op in graph.ops if op.kind == "Keep")
    assert gate.attributes["unread"]
    (reader,) = (op for op in graph.ops if op.kind == "Conv" and gate.outputs[0] in op.inputs)
    assert reader.inputs[3] == gate.inputs[2]


def test_a_gate_that_is_an_output_is_written_whole() -> None:
    graph, _ = _kinds(convolutions((8, 16, 8), 2, (6, 6), outputs=("y", "k")))
    (gate,) = (op for op in graph.ops if op.kind == "Keep")
    assert "unread" not in gate.attributes


@pytest.mark.parametrize("gates", ["a", "b", "ab"])
def test_all_three_convolutions_of_an_inverted_residual_are_gated(gates: str) -> None:
    graph, kinds = _kinds(inverted(8, 32, 2, (6, 6), gates))
    found = [op for op in graph.ops if op.kind == "Keep"]
    assert len(found) == 2
    assert all(op.attributes.get("unread") for op in found)
    assert kinds.count("MatMul") == (gates == "a")


def test_work_is_that_of_everything_kept() -> None:
    def work(graph: Graph) -> Work:
        compiled = compile_functions([graph], HOST, plain=(*graph.inputs, *graph.outputs))
        return sum((use.work for use in compiled.functions[0].kernels), Work())

    gated = work(convolutions((16, 64, 16), 4, (8, 8)))
    plain = work(convolutions((16, 64, 16), 4, (8, 8), gated=False))
    assert gated.macs == plain.macs
    assert 0.9 * plain.operations < gated.operations < 1.1 * plain.operations


def test_runs_of_whole_vectors_are_efficient() -> None:
    sizes = {"avx512": 16, "avx2": 8, "neon": 4}
    found = {
        name: [
            efficient_group(Machine(name, "x86_64-linux-gnu", lanes=lanes, registers=32), channels)
            for channels in (16, 24, 64, 10)
        ]
        for name, lanes in sizes.items()
    }
    assert found == {
        "avx512": [8, 8, 8, 10],
        "avx2": [8, 8, 8, 10],
        "neon": [4, 4, 4, 10],
    }


# --- MACs -----------------------------------------------------------------------------------------


def test_macs_of_a_gate_are_those_before_and_behind_it() -> None:
    first, second = 9 * 8 * 16 * 36, 9 * 16 * 4 * 36
    assert kept_macs(convolutions((8, 16, 4), 2, (6, 6))) == (0, (first + second) // 2)
    assert kept_macs(convolutions((8, 16, 4), 2, (6, 6), gated=False)) == (first + second, 0)


@pytest.mark.parametrize("gates", ["a", "b", "ab"])
def test_macs_of_an_inverted_residual_all_fall_with_the_groups(gates: str) -> None:
    total = 36 * (8 * 32 + 9 * 32 + 32 * 8)
    assert kept_macs(inverted(8, 32, 4, (6, 6), gates)) == (0, total // 4)


def test_macs_of_a_gate_on_new_features_are_those_before_it() -> None:
    narrow, new = 36 * 20 * 32, 9 * 36 * 32 * 16
    assert kept_macs(bottleneck(20, 16, 2, (6, 6), last=True)) == (narrow, new // 2)
    assert kept_macs(bottleneck(20, 16, 2, (6, 6), last=False)) == (0, (narrow + new) // 2)
