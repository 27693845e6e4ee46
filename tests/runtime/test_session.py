"""The session stops where the policy says, and runs nothing after that."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.policies import (
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    ThresholdPolicy,
    replay,
)
from eecompile.policies.base import EXIT
from eecompile.runtime.session import Session
from tests.runtime import tiny

INF = float("inf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", tiny.contents())
    return tmp_path / "out"


@pytest.fixture
def counted(folder: Path) -> tuple[Session, tiny.CountingLibrary]:
    library = tiny.CountingLibrary()
    return Session(read_artifact(folder), library=library), library


def always(index: int) -> ExitPolicy:
    """Leaves at exit `index`, looking at no other."""
    thresholds = [INF, INF]
    if index < 2:
        thresholds[index] = 0.0
    return ThresholdPolicy("max_softmax", thresholds)


class Jumping(ExitPolicy):
    """Sends samples with a positive first score straight to the end, the others to exit 1."""

    kind = "jumping"

    def start(self, count: int) -> Any:
        return np.zeros(count, np.int64)

    def select(self, state: Any, kept: np.ndarray) -> Any:
        return state[kept]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        state += 1
        if index == 1:
            assert (state == 2).all(), "the state of each sample must follow it"
            return np.where(outputs.logits[:, 0] > 1, EXIT, 2)
        return np.where(outputs.logits[:, 0] > 0, 2, 1)

    def parameters(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_parameters(cls, parameters: Any) -> Jumping:
        return cls()


def test_answer_says_what_was_computed(folder: Path) -> None:
    net = ee.load(folder)
    x = tiny.inputs(1)
    expected = tiny.reference(x)
    net.set_policy(always(0))
    answer = net.run(x)
    assert answer.exit == "early"
    np.testing.assert_array_equal(answer.logits, expected["early.logits"][0])
    assert (answer.segments_run, answer.heads_run, answer.macs) == (1, 1, 11)
    assert answer.label == int(answer.logits.argmax())
    assert answer.label_name == ("cat", "dog", "eel")[answer.label]
    assert answer.confidence == pytest.approx(
        np.exp(answer.logits).max() / np.exp(answer.logits).sum()
    )
    assert answer.latency_s > 0
    assert answer.energy_j is None and answer.frequency_hz is None
    assert answer.outputs == {}


@pytest.mark.parametrize(
    ("stop", "ran", "macs"),
    [
        (0, ["segment_0", "head_0"], 11),
        (1, ["segment_0", "segment_1", "head_1", "comparator_1"], 11101),
        (2, ["segment_0", "segment_1", "segment_2"], 100101),
    ],
)
def test_segments_after_the_exit_do_not_run(
    counted: tuple[Session, tiny.CountingLibrary], stop: int, ran: list[str], macs: int
) -> None:
    net, library = counted
    net.set_policy(always(stop))
    answer = net.run(tiny.inputs(1))
    assert library.calls == [(name, 1) for name in ran]
    assert answer.exit == ("early", "late", "final")[stop]
    assert answer.segments_run == sum(name.startswith("segment") for name in ran)
    assert answer.heads_run == len(ran) - answer.segments_run
    assert answer.macs == macs
    # The machine code has counted too.
    called = {name for name, (calls, _) in tiny.counters(library).items() if calls}
    assert called == set(ran)


def test_a_rule_without_a_native_form_decides_in_python_inside_another(folder: Path) -> None:
    net = ee.load(folder)
    samples = [tiny.inputs(1, seed) for seed in range(20)]
    net.set_policy(Jumping())
    expected = [net.run(x).exit for x in samples]
    net.set_policy(EitherPolicy([Jumping(), Jumping()]))
    assert [net.run(x).exit for x in samples] == expected
    assert len(set(expected)) > 1


def test_full_depth_runs_every_segment_and_no_head(
    counted: tuple[Session, tiny.CountingLibrary],
) -> None:
    net, library = counted
    x = tiny.inputs(1)
    answer = net.full_depth(x)
    assert library.calls == [("segment_0", 1), ("segment_1", 1), ("segment_2", 1)]
    np.testing.assert_array_equal(answer.logits, tiny.reference(x)["logits"][0])
    np.testing.assert_array_equal(answer.outputs["logits"], tiny.reference(x)["logits"])
    assert (answer.exit, answer.segments_run, answer.heads_run) == ("final", 3, 0)


def test_batch_survivors_go_on_together(counted: tuple[Session, tiny.CountingLibrary]) -> None:
    net, library = counted
    x = tiny.inputs(40)
    batch = net.run_batch(x)
    exits = batch.exits
    left = [(exits >= index).sum() for index in range(3)]
    assert 0 < left[2] < left[1] < left[0] == 40, "the inputs must leave at different exits"
    assert library.calls == [
        ("segment_0", 40),
        ("head_0", 40),
        ("segment_1", left[1]),
        ("head_1", left[1]),
        ("comparator_1", left[1]),
        ("segment_2", left[2]),
    ]
    np.testing.assert_array_equal(batch.segments_run, exits + 1)
    np.testing.assert_array_equal(batch.heads_run, np.array([1, 3, 3])[exits])
    np.testing.assert_array_equal(batch.macs, np.array([11, 11111, 111111])[exits])
    assert batch.exit_counts == dict(
        zip(("early", "late", "final"), np.bincount(exits), strict=True)
    )


@pytest.mark.parametrize("name", ["fast", "careful", "patient", "jumping"])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_single_and_replay_agree(folder: Path, name: str, threads: int) -> None:
    policy = Jumping() if name == "jumping" else tiny.POLICIES[name]
    net = Session(read_artifact(folder), policy, threads)
    x = tiny.inputs(150)  # more than fit into one chunk
    values = tiny.reference(x)
    early = ExitOutputs(values["early.logits"])
    late = ExitOutputs(values["late.logits"], values["late.class_means"])
    expected = replay(policy, [early, late], values["logits"])
    batch = net.run_batch(x)
    np.testing.assert_array_equal(batch.exits, expected.exit)
    np.testing.assert_array_equal(batch.logits, expected.logits)
    np.testing.assert_array_equal(batch.labels, expected.labels)
    functions = np.array([1, 2])
    np.testing.assert_array_equal(batch.heads_run, (expected.evaluated * functions).sum(axis=1))
    for row, one in enumerate(net.run(sample) for sample in x):
        np.testing.assert_array_equal(one.logits, batch.logits[row])
        assert one.exit == net.exit_names[batch.exits[row]]
        assert one.segments_run == batch.segments_run[row]
        assert one.heads_run == batch.heads_run[row]
        assert one.macs == batch.macs[row]
        assert batch.confidence is not None
        assert one.confidence == pytest.approx(batch.confidence[row])


def test_samples_that_jump_apart_are_evaluated_apart(
    counted: tuple[Session, tiny.CountingLibrary],
) -> None:
    net, library = counted
    net.set_policy(Jumping())
    x = tiny.inputs(32)
    waiting = int((tiny.reference(x)["early.logits"][:, 0] <= 0).sum())
    assert 0 < waiting < 32
    net.run_batch(x)
    # Every sample goes through segment 1, only those that wait for exit 1 through its heads.
    assert ("segment_1", 32) in library.calls
    assert ("head_1", waiting) in library.calls
    assert ("comparator_1", waiting) in library.calls


def test_answers_survive_the_next_call(folder: Path) -> None:
    net = ee.load(folder)
    first, second = tiny.inputs(2)
    for stop in range(3):
        net.set_policy(always(stop))
        one = net.run(first)
        kept = one.logits.copy(), {name: array.copy() for name, array in one.outputs.items()}
        net.run(second)
        np.testing.assert_array_equal(one.logits, kept[0])
        for name, array in one.outputs.items():
            np.testing.assert_array_equal(array, kept[1][name])


def test_single_calls_use_one_set_of_buffers(folder: Path) -> None:
    net = ee.load(folder)
    before = {name: array.ctypes.data for name, array in net._singles.lane.values.items()}
    for x in tiny.inputs(5):
        net.run(x)
    assert {name: array.ctypes.data for name, array in net._singles.lane.values.items()} == before


def test_full_depth_batch_and_empty_batch(folder: Path) -> None:
    net = ee.load(folder)
    x = tiny.inputs(70)
    full = net.full_depth_batch(x)
    np.testing.assert_array_equal(full.logits, tiny.reference(x)["logits"])
    np.testing.assert_array_equal(full.outputs["logits"], tiny.reference(x)["logits"])
    assert (full.heads_run == 0).all() and (full.segments_run == 3).all()
    empty = net.run_batch(x[:0])
    assert len(empty) == 0 and empty.logits.shape == (0, 3)


def test_policies_are_chosen_by_name(folder: Path) -> None:
    net = ee.load(folder)
    assert net.policies == ("fast", "careful", "patient")
    assert net.policy == "fast"
    assert ee.load(folder, "careful").policy == "careful"
    net.set_policy("patient")
    assert net.policy == "patient"
    net.set_policy(None)
    assert net.policy is None and net.run(tiny.inputs(1)).exit == "final"
    with pytest.raises(CompileErrors) as failure:
        net.set_policy("fats")
    assert failure.value.diagnostics[0].id == "bad-argument"
    assert failure.value.diagnostics[0].help == "did you mean `fast`?"


def test_exits_are_counted_until_reset(folder: Path) -> None:
    net = ee.load(folder)
    net.set_policy(always(1))
    net.run(tiny.inputs(1))
    net.run_batch(tiny.inputs(3))
    net.full_depth(tiny.inputs(1))
    assert net.exit_counts == {"early": 0, "late": 4, "final": 1}
    net.reset_counts()
    assert sum(net.exit_counts.values()) == 0


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_sessions_are_neither_copied_nor_pickled(
    folder: Path, duplicate: Callable[[Session], object]
) -> None:
    net = ee.load(folder)
    with pytest.raises(TypeError, match=r"`clone\(\)` it for a thread, and load the artifact"):
        duplicate(net)
    assert net.run(tiny.inputs(1)).exit == ee.load(folder).run(tiny.inputs(1)).exit


def test_clone_shares_code_and_weights_but_no_memory(folder: Path) -> None:
    net = ee.load(folder, "careful")
    other = net.clone()
    assert other.library is net.library and other.policy == "careful"
    mine = {array.ctypes.data for array in net._singles.lane.values.values()}
    assert mine.isdisjoint(array.ctypes.data for array in other._singles.lane.values.values())
    net.set_policy(None)
    assert net.clone().policy is None and net.clone().run(tiny.inputs(1)).exit == "final"


def test_clones_answer_in_several_threads(folder: Path) -> None:
    x = tiny.inputs(300)
    nets = [ee.load(folder)]
    expected = nets[0].run_batch(x)
    nets += [nets[0].clone() for _ in range(3)]
    with ThreadPoolExecutor(len(nets)) as pool:
        found = list(pool.map(lambda net: [net.run(sample).logits for sample in x], nets))
    for logits in found:
        np.testing.assert_array_equal(logits, expected.logits)


class Waiting(Jumping):
    """Decides when it is told to, so that a call lasts as long as a test needs."""

    def __init__(self) -> None:
        self.asked, self.told = threading.Event(), threading.Event()

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        self.asked.set()
        assert self.told.wait(30)
        return np.full(len(outputs.logits), EXIT)


@pytest.mark.parametrize("held", ["run", "run_batch"])
def test_a_session_in_use_refuses_other_threads(folder: Path, held: str) -> None:
    x, policy = tiny.inputs(1), Waiting()
    net = ee.load(folder, policy)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(getattr(net, held), x)
        try:
            assert policy.asked.wait(30)
            for call in (net.run, net.run_batch, net.full_depth, net.full_depth_batch):
                with pytest.raises(CompileErrors) as failure:
                    call(x)
                (found,) = failure.value.diagnostics
                assert found.id == "bad-argument"
                assert found.message == "This session is in use by another thread"
                assert found.help == "give each thread a `clone()`"
            assert net.clone().full_depth(x).exit == "final"
        finally:
            policy.told.set()
        expected = tiny.reference(x)["early.logits"]
        np.testing.assert_array_equal(first.result().logits.reshape(1, -1), expected)
    assert net.exit_counts == {"early": 1, "late": 0, "final": 0}
    assert net.run(x).exit == "early"  # It is free again.


def test_a_call_that_fails_leaves_the_session_free(folder: Path) -> None:
    net = ee.load(folder)
    for call in (net.run, net.run_batch, net.full_depth, net.full_depth_batch):
        for _ in range(2):
            with pytest.raises(CompileErrors, match="Expected float32"):
                call(np.zeros((1, 5), np.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 4)), "Expected float32[1, 4] for the input `x`, found float64[1, 4]"),
        (
            np.zeros((1, 5), np.float32),
            "Expected float32[1, 4] for the input `x`, found float32[1, 5]",
        ),
        (
            np.zeros((2, 4), np.float32),
            "Expected float32[1, 4] for the input `x`, found float32[2, 4]",
        ),
        ([1.0, 2.0, 3.0, 4.0], "Expected float32[1, 4] for the input `x`, found a list"),
        ({"y": np.zeros((1, 4), np.float32)}, "The network has no input `y`"),
        ({}, "The input `x` is missing"),
    ],
)
def test_wrong_input_is_refused_by_name(folder: Path, x: Any, message: str) -> None:
    net = ee.load(folder)
    with pytest.raises(CompileErrors) as failure:
        net.run(x)
    assert failure.value.diagnostics[0].message == message


def test_wrong_batch_is_refused(folder: Path) -> None:
    with pytest.raises(CompileErrors, match=r"Expected float32\[n, 4\] .* found float32\[4\]"):
        ee.load(folder).run_batch(np.zeros(4, np.float32))


def test_any_layout_of_a_right_input_serves(folder: Path) -> None:
    net = ee.load(folder)
    x = tiny.inputs(1)
    expected = net.run(x).logits
    wide = np.zeros((1, 9), np.float32)
    wide[:, 1::2] = x
    for same in (x[0], {"x": x}, np.asfortranarray(x), wide[:, 1::2]):
        np.testing.assert_array_equal(net.run(same).logits, expected)


def test_raw_data_are_normalised_as_the_artifact_says(folder: Path) -> None:
    net = ee.load(folder)
    raw = np.array([[0, 51, 102, 255]], np.uint8)
    x = ((raw / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).astype(np.float32)
    np.testing.assert_allclose(net.run(raw, normalize=True).logits, net.run(x).logits, rtol=1e-6)
    batch = net.full_depth_batch(np.repeat(raw, 3, axis=0), normalize=True)
    np.testing.assert_allclose(batch.logits[2], net.full_depth(x).logits, rtol=1e-6)


def test_without_a_rule_raw_data_are_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents(normalizations={}))
    with pytest.raises(CompileErrors, match="does not say how to normalise"):
        ee.load(tmp_path / "out").run(np.zeros((1, 4), np.uint8), normalize=True)


def test_policy_that_cannot_run_is_refused_when_chosen(tmp_path: Path) -> None:
    rules: list[tuple[dict[str, Any], str]] = [
        ({"kind": "threshold", "score": "max_softmax", "thresholds": [0.5]}, "fast"),
        ({"kind": "no such", "thresholds": []}, "no policy of kind 'no such'"),
        ({"kind": "threshold", "score": "max_softmax"}, "thresholds"),
        ({"kind": "threshold", "score": "nothing", "thresholds": [1, 1]}, "nothing"),
        ({"kind": "never", "exits": 7}, "it starts at exit 7 of 2"),
    ]
    for rule, message in rules:
        policies = {"fast": PolicyEntry(rule)}
        changed = replace(tiny.contents(), policies=policies, default_policy="fast")
        write_artifact(tmp_path / "out", changed)
        with pytest.raises(CompileErrors, match=message) as failure:
            ee.load(tmp_path / "out")
        assert failure.value.diagnostics[0].id == "bad-artifact"


def test_failing_code_is_our_bug_not_an_answer(folder: Path) -> None:
    artifact = read_artifact(folder)
    network = artifact.manifest.network
    (first,) = network.segments[0].functions
    broken = replace(first, symbol="broken", outputs=network.segments[2].outputs)
    manifest = replace(
        artifact.manifest,
        network=replace(network, segments=(broken,), exits=()),
        default_policy=None,
    )
    texts = {**artifact.texts, "plan.bin": b""}  # The plan is the whole network's.
    net = Session(replace(artifact, manifest=manifest, texts=texts))
    with pytest.raises(InternalError, match="compiled function broken returned 7"):
        net.run(tiny.inputs(1))
    with pytest.raises(InternalError, match="compiled function broken returned 7"):
        net.run_batch(tiny.inputs(1))


def test_replacing_an_artifact_leaves_open_sessions_alone(folder: Path) -> None:
    net = ee.load(folder)
    x = tiny.inputs(1)
    before = net.full_depth(x).logits
    write_artifact(folder, tiny.contents(weights=np.zeros(4, np.float32)))
    np.testing.assert_array_equal(net.full_depth(x).logits, before)
    assert not np.array_equal(ee.load(folder).full_depth(x).logits, before)


def test_loading_and_running_imports_no_compiler(folder: Path) -> None:
    program = f"""
import sys
import eecompile
assert "numpy" not in sys.modules, "import eecompile must stay light"
import numpy as np
net = eecompile.load({str(folder)!r})
net.run(np.zeros((1, 4), np.float32))
heavy = "torch onnx onnx_graphsurgeon tvm lark scipy sklearn networkx rich tritonclient".split()
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
