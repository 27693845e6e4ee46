"""Steps that gates leave out: what runs, what stands in its place, what it costs, when it stops."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import PolicyEntry, write_artifact
from eecompile.compiled import CompiledStep
from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.guard_rule import GuardRule, GuardSetting
from eecompile.memory import Peak
from eecompile.policies import NeverPolicy, ThresholdPolicy, to_json
from eecompile.policies.scores import max_softmax
from eecompile.runtime.lane import Lane
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner
from eecompile.runtime.steps import Program
from eecompile.runtime.stopping import StopWords
from eecompile.segments import SHIFT
from tests.helpers import ROOT
from tests.runtime import gated, tiny

NATIVE = ROOT / "eecompile" / "native"
STRESS = Path(__file__).with_name("steps_stress.c")
COUNT = 37
VALUES = ("b", "early.logits", "logits")


def program(capacity: int = 1, threads: int = 1, heads: bool = True) -> Program:
    library, network = gated.library(), gated.network()
    team = library.team(threads) if threads > 1 else None
    lane = Lane(library, network.inputs, network.steps(), capacity, team, VALUES)
    steps = [step for step in network.steps() if heads or step.function.symbol != "head"]
    return Program(lane, steps, VALUES)


def ran(calls: dict[str, int]) -> str:
    return " ".join(name for name, count in calls.items() if count)


# -- one sample ----------------------------------------------------------------------------------

#: x -> what runs of the network with its exit, the blocks among it, and what it costs.
ONE = {
    "all": ((1, 1, 1, 1), "stem gate_0 double_ head gate_1 plus times end", 2, 11_111_111),
    "a copy": ((-1.5, 9, 1, 1), "stem gate_0 head gate_1 plus times end", 1, 11_111_011),
    "zeros": ((1, -9, 1, 1), "stem gate_0 double_ head gate_1 end", 1, 10_011_111),
    "neither": ((-1.5, -9, 1, 1), "stem gate_0 head gate_1 end", 0, 10_011_011),
    "a group": ((1, 1, 1, -2), "stem gate_0 double_ head gate_1 plus times end", 2, 10_811_111),
    "at 0": ((-1, 9, 1, 1), "stem gate_0 head gate_1 plus times end", 1, 11_111_011),
    "nan": ((np.nan, 9, 1, 1), "stem gate_0 head gate_1 end", 0, 10_011_011),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ONE)
def test_what_is_left_out_does_not_run(case: str, threads: int) -> None:
    values, expected, blocks, macs = ONE[case]
    x = np.array([values], np.float32)
    made = program(threads=threads)
    made.lane.values["x"][:] = x
    gated.calls(made.lane.library)
    made.begin(gates=True)
    made.part(0, 8).one()
    assert ran(gated.calls(made.lane.library)) == expected
    assert (made.blocks_run, made.blocks, made.macs) == (blocks, 2, macs)
    for name, found in gated.reference(x).items():
        if name in VALUES:
            np.testing.assert_array_equal(made.lane.values[name], found, name)


def test_zeros_and_copies_are_those_bytes() -> None:
    made = program()
    made.lane.values["x"][:] = [[-1.5, -9, np.nan, -0.0]]
    made.lane.values["e"][:] = 7
    made.begin(gates=True)
    made.part(0, 8).one()
    lane = made.lane.values
    assert lane["b"].tobytes() == np.array([[-0.5, -8, np.nan, 1]], np.float32).tobytes()
    assert lane["logits"][0, 0] == -0.5


def test_without_gates_everything_runs_whatever_they_said_before() -> None:
    made = program()
    x = np.array([[-3, -3, -3, -3]], np.float32)
    whole = made.part(0, 8)
    for gates in (True, False, True, False):
        made.lane.values["x"][:] = x
        gated.calls(made.lane.library)
        made.begin(gates=gates)
        whole.one()
        expected = gated.reference(x, 0.0 if gates else None)
        np.testing.assert_array_equal(made.lane.values["logits"], expected["logits"])
        assert made.blocks_run == (0 if gates else 2)
        called = gated.calls(made.lane.library)
        assert (called["gate_0"], called["double_"]) == ((1, 0) if gates else (0, 1))


def test_a_shift_leaves_more_out() -> None:
    made = program()
    kept = []
    for shift in (0.0, 1.5, 2.5, 0.0):
        made.lane.values["x"][:] = [[1, -0.5, 1, 1]]
        made.begin(gates=True, shift=shift)
        made.part(0, 8).one()
        kept.append(made.blocks_run)
    assert kept == [2, 2, 0, 2]


def test_parts_go_on_where_the_one_before_ended() -> None:
    made = program(heads=False)
    first, second = made.part(0, 3), made.part(3, 7)
    made.lane.values["x"][:] = [[1, 1, 1, 1]]
    made.begin(gates=True)
    first.one()
    assert made.macs == 111
    second.one()
    assert made.macs == 11_110_111


def test_what_ran_is_recorded() -> None:
    made = program(2)
    made.record()
    made.lane.values["x"][:] = [[1, 1, 1, -2], [-1.5, -9, 1, 1]]
    made.begin(2, gates=True)
    made.part(0, 8).many(2)
    assert made.kept is not None
    assert made.kept.tolist() == [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, -1, 0, 0, -1, -1, 0]]


def test_a_step_that_gives_several_values_cannot_be_left_out() -> None:
    network, library = gated.network(), gated.library()
    steps = list(network.steps())
    steps[0] = CompiledStep(replace(steps[0].function, outputs=(gated.A, gated.D)), keep="keep_1")
    steps = [*steps[:5], *steps[6:]]
    lane = Lane(library, network.inputs, steps, 1)
    with pytest.raises(InternalError, match="stem may be left out, but gives a, d"):
        Program(lane, steps, ["d"])


def test_only_what_is_as_large_can_stand_for_an_output() -> None:
    network = gated.network()
    steps = [
        replace(s, otherwise="state") if s.function.symbol == "times" else s
        for s in network.steps()
    ]
    lane = Lane(gated.library(), network.inputs, steps, 1)
    with pytest.raises(InternalError, match="state cannot stand for e: other sizes"):
        Program(lane, steps)


def test_a_status_is_our_bug() -> None:
    network = tiny.network()
    broken = CompiledStep(replace(network.functions()[1], symbol="broken"))
    library = Library(tiny.machine_code(), tiny.WEIGHTS)
    lane = Lane(library, [tiny.A], [broken], 1)
    made = Program(lane, [broken])
    made.begin(gates=False)
    with pytest.raises(InternalError, match="compiled function broken returned 7"):
        made.part(0, 1).one()
    with pytest.raises(InternalError, match="compiled function broken returned 7"):
        made.part(0, 1).many(1)


def test_a_library_from_before_gates_is_told() -> None:
    code = tiny.machine_code().replace(b"eecompile_steps", b"eecompile_stepz")
    with pytest.raises(CompileErrors, match="has no code for gates"):
        Library(code, tiny.WEIGHTS).steps()


# -- steps.c by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_random_programs_do_what_a_plain_loop_does(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    options = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    options += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{NATIVE}"]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    probe = subprocess.run(
        [compiler, *options, "-o", "empty", "empty.c"], cwd=tmp_path, capture_output=True
    )
    if probe.returncode or subprocess.run([tmp_path / "empty"], check=False).returncode:
        pytest.skip("the compiler has no such sanitizer that runs here")
    program = tmp_path / "stress"
    sources = [str(STRESS), str(NATIVE / "team.c")]
    subprocess.run([compiler, *options, "-o", str(program), *sources], check=True)
    for threads in (1, 2, 3):
        command = [str(program), str(threads), "100", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_a_budget_of_costs_ends_before_the_step_that_would_not_fit(threads: int) -> None:
    made = program(threads=threads)
    made.table["cost"] = [step.function.macs for step in made.steps]
    made.table["group_cost"] = [step.group_macs for step in made.steps]
    made.table["need"] = made.table["cost"]
    whole = made.part(0, 8)
    x = np.array([[1, 1, 1, -2]], np.float32)
    for budget, stopped in ((1.1e7, None), (10_811_111, None), (10_811_110, 7), (1110, 3), (0, 0)):
        made.lane.values["x"][:] = x
        gated.calls(made.lane.library)
        made.limit(budget)
        made.begin(gates=True)
        whole.one()
        assert made.stopped == stopped
        assert made.tallies["spent"][0] == made.macs <= budget
        assert sum(gated.calls(made.lane.library).values()) == (8 if stopped is None else stopped)
    made.limit(None)
    made.begin(gates=True)
    whole.one()
    assert made.stopped is None


def test_a_reserve_is_kept_and_what_is_left_out_needs_nothing() -> None:
    made = program()
    made.table["cost"] = 1
    made.table["need"] = [-np.inf, -np.inf, 100, 1, 1, 1, 1, 1]
    whole = made.part(0, 8)
    for x, stopped in (((1, 1, 1, 1), 2), ((-1.5, 9, 1, 1), None)):
        made.lane.values["x"][:] = [x]
        made.limit(50)
        made.begin(gates=True)
        whole.one()
        assert made.stopped == stopped


def test_of_many_samples_each_has_its_own_budget() -> None:
    made = program(COUNT, 2)
    made.table["cost"] = made.table["need"] = [step.function.macs for step in made.steps]
    made.table["group_cost"] = [step.group_macs for step in made.steps]
    x = gated.inputs(COUNT)
    made.lane.values["x"][:] = x
    made.limit(10_900_000)
    made.begin(COUNT, gates=True)
    made.part(0, 8).many(COUNT)
    macs = gated.reference(x)["macs"][:, 1] + 1000
    late = made.tallies["stopped"] > 0
    np.testing.assert_array_equal(late, macs > 10_900_000)
    assert set(made.tallies["stopped"][late].tolist()) == {8}
    assert late.any() and not late.all()
    logits = gated.reference(x)["logits"]
    np.testing.assert_array_equal(made.lane.values["logits"][~late], logits[~late])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_clock_ends_it(threads: int) -> None:
    made = program(threads=threads)
    made.lane.values["x"][:] = 1
    made.table["need"] = 0
    for budget, start_ns, stopped in (
        (1e6, time.monotonic_ns(), None),
        (1.0, time.monotonic_ns() - 2_000_000_000, 0),
        (0.0, time.monotonic_ns() + 3_600_000_000_000, None),
    ):
        made.limit(budget, start_ns)
        made.begin(gates=True)
        made.part(0, 8).one()
        assert made.stopped == stopped
    made.table["need"][5] = 3
    made.limit(2.0, time.monotonic_ns())
    made.begin(gates=True)
    made.part(0, 8).one()
    assert made.stopped == 5


@pytest.mark.parametrize("threads", [1, 2])
def test_another_thread_stops_it_between_two_steps(threads: int) -> None:
    """The word is set while a step waits, so that the one behind it must not begin."""
    word = StopWords().begin()
    inside, gone = threading.Event(), threading.Event()

    class Waiting(Library):
        def function(self, function):  # type: ignore[no-untyped-def]
            code = super().function(function)

            def waiting(frame: int, thread: int, *arguments: int | None) -> int:
                if thread == 0:
                    inside.set()
                    assert gone.wait(30)
                return code(frame, thread, *arguments)

            return tiny.CODE(waiting) if function.symbol == "head" else code

    library, network = Waiting(gated.machine_code(), tiny.WEIGHTS), gated.network()
    team = library.team(threads) if threads > 1 else None
    lane = Lane(library, network.inputs, network.steps(), 1, team, VALUES)
    made = Program(lane, network.steps(), VALUES)
    lane.values["x"][:] = 1
    made.stop_by(word)
    made.begin(gates=True)

    def cancel() -> None:
        assert inside.wait(30)
        word.set()
        gone.set()

    other = threading.Thread(target=cancel)
    other.start()
    made.part(0, 8).one()
    other.join()
    assert made.stopped == 4
    assert lane.values["early.logits"].tolist() == [[4, 4, 4]]
    made.part(4, 8).one()  # Nothing more for this sample.
    assert made.macs == 1111
    made.stop_by(None)
    made.begin(gates=True)
    made.part(0, 8).one()
    assert made.stopped is None


# -- many samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5, None])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_each_of_many_samples_has_its_own_decisions(threads: int, shift: float | None) -> None:
    x = gated.inputs(COUNT)
    expected = gated.reference(x, shift)
    made = program(COUNT, threads, heads=False)
    for count in (*range(1, 10), COUNT):
        made.lane.values["x"][:count] = x[:count]
        made.begin(count, gates=shift is not None, shift=shift or 0.0)
        made.part(0, 7).many(count)
        for name in ("b", "logits"):
            np.testing.assert_array_equal(made.lane.values[name][:count], expected[name][:count])
        assert made.tallies["macs"][:count].tolist() == expected["macs"][:count, 1].tolist()
        assert made.tallies["blocks"][:count].tolist() == expected["blocks_run"][:count].tolist()


def test_values_share_memory_but_scores_stay() -> None:
    network = gated.network()
    peak = Peak.of(network, 16, 1)
    functions = sum(t.nbytes for f in network.functions() for _, t in f.outputs)
    lane = Lane(gated.library(), network.inputs, network.steps(), 64)
    for name in ("keep_0", "keep_1", "groups", SHIFT[0]):
        for other, array in lane.values.items():
            assert other == name or not np.shares_memory(lane.values[name], array)
    assert peak.activations < functions + 64 * (len(network.functions()) + 6) + 256


# -- runners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_runner_tells_what_gates_kept(threads: int, shift: float) -> None:
    x = gated.inputs(COUNT)
    expected = gated.reference(x, shift)
    runner = Runner.of(gated.library(), gated.network())
    found = runner.run_gated(x, VALUES, threads, shift=shift)
    for name in VALUES:
        np.testing.assert_array_equal(found.values[name], expected[name])
    assert {*found.shares} == {"keep_0", "keep_1", "groups"}
    for name, share in found.shares.items():
        np.testing.assert_array_equal(share, (expected[name] > 0).mean(axis=1))
    np.testing.assert_array_equal(found.macs, expected["macs"])
    np.testing.assert_array_equal(found.blocks_run, expected["blocks_run"])
    assert 0 < found.shares["keep_0"].mean() < 1


def test_a_runner_without_decisions_runs_the_source_network() -> None:
    x = gated.inputs(COUNT)
    runner = Runner.of(gated.library(), gated.network())
    gated.calls(runner.library)
    found = runner.run_all(x, VALUES)
    assert gated.calls(runner.library)["gate_0"] == 0
    for name in VALUES:
        np.testing.assert_array_equal(found[name], gated.reference(x, None)[name])
    np.testing.assert_array_equal(runner.run_all(x, ["b"])["b"], found["b"])
    again = runner.run_gated(x, VALUES)
    np.testing.assert_array_equal(again.values["b"], gated.reference(x)["b"])


def test_decisions_can_be_given_in_the_place_of_the_gates() -> None:
    x = gated.inputs(COUNT)
    runner = Runner.of(gated.library(), gated.network())
    each = np.random.default_rng(1).standard_normal((COUNT, 2)).astype(np.float32)
    for keeps in (
        {},
        {"keep_0": np.array([[-1]], np.float32)},
        {"keep_1": each[:, :1], "groups": each},
    ):
        gated.calls(runner.library)
        found = runner.run_gated(x, VALUES, keeps=keeps)
        called = gated.calls(runner.library)
        assert called["gate_0"] == called["gate_1"] == 0
        full = {name: np.broadcast_to(s, (COUNT, s.shape[1])) for name, s in keeps.items()}
        expected = gated.reference(x, None, **full)
        np.testing.assert_array_equal(found.values["logits"], expected["logits"])
        np.testing.assert_array_equal(found.macs, expected["macs"])
        np.testing.assert_array_equal(found.blocks_run, expected["blocks_run"])
    whole = runner.run_all(x, ["logits"])["logits"]
    np.testing.assert_array_equal(whole, gated.reference(x, None)["logits"])


def test_what_is_asked_wrongly_is_our_bug() -> None:
    runner = Runner.of(gated.library(), gated.network())
    with pytest.raises(InternalError, match="no step asks the score state"):
        runner.run_gated(gated.inputs(1), VALUES, keeps={"state": np.ones((1, 1), np.float32)})
    plain = Runner.of(Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network())
    with pytest.raises(InternalError, match="a network without gates decides nothing"):
        plain.run_gated(tiny.inputs(1), ["logits"])


# -- sessions ------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> ee.Session:
    write_artifact(tmp_path / "out", gated.contents())
    return ee.load(tmp_path / "out", threads=request.param)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_sessions_answer_with_what_was_kept(net: ee.Session, shift: float) -> None:
    x = gated.inputs(COUNT)
    expected = gated.reference(x, shift)
    threshold = float(np.median(max_softmax(expected["early.logits"])))
    policy = ThresholdPolicy("max_softmax", [threshold])
    policy.gate_shift = shift
    net.set_policy(policy)
    early = max_softmax(expected["early.logits"]) >= threshold
    logits = np.where(early[:, None], expected["early.logits"], expected["logits"])
    macs = np.where(early, expected["macs"][:, 0], expected["macs"][:, 1]) + 1000
    first = (expected["keep_0"][:, 0] > 0).astype(int)
    blocks = np.where(early, first, expected["blocks_run"])
    batch = net.clone().run_batch(x)
    np.testing.assert_array_equal(batch.exits, np.where(early, 0, 1))
    np.testing.assert_array_equal(batch.logits, logits)
    np.testing.assert_array_equal(batch.macs, macs)
    np.testing.assert_array_equal(batch.blocks_run, blocks)
    assert batch.blocks == 2
    for row in range(COUNT):
        answer = net.run(x[row])
        np.testing.assert_array_equal(answer.logits, logits[row])
        assert (answer.macs, answer.blocks_run, answer.blocks) == (macs[row], blocks[row], 2)
    assert early.any() and not early.all()


def test_full_depth_is_the_source_network(net: ee.Session) -> None:
    x = gated.inputs(COUNT)
    net.set_policy(NeverPolicy(1))
    decided = net.run_batch(x)
    np.testing.assert_array_equal(decided.logits, gated.reference(x)["logits"])
    expected = gated.reference(x, None)
    for batch in (net.full_depth_batch(x), _off(net).run_batch(x)):
        np.testing.assert_array_equal(batch.logits, expected["logits"])
        assert set(batch.macs.tolist()) == {net.manifest.network.macs}
        assert batch.blocks_run is not None
        assert set(batch.blocks_run.tolist()) == {2}
    for answer in (net.full_depth(x[0]), _off(net).run(x[0])):
        np.testing.assert_array_equal(answer.logits, expected["logits"][0])
        assert (answer.macs, answer.blocks_run) == (net.manifest.network.macs, 2)


def _off(net: ee.Session) -> ee.Session:
    net.set_policy(None)
    return net


def test_audits_see_the_network_as_gates_leave_it(tmp_path: Path) -> None:
    rule = to_json(ThresholdPolicy("max_softmax", [0.0]))
    guard = GuardRule(0.98, 1.0, (GuardSetting(rule, 0.0, (1.0, 0.0)),))
    write_artifact(tmp_path / "out", gated.contents(PolicyEntry(rule, guard=guard.to_json())))
    net, x = ee.load(tmp_path / "out", threads=1), gated.inputs(COUNT)
    expected = gated.reference(x)
    for row in range(COUNT):
        answer = net.run(x[row])
        assert answer.audited and answer.macs == expected["macs"][row, 1] + 1000
        np.testing.assert_array_equal(answer.logits, expected["logits"][row])
    early, final = (expected[name].argmax(axis=1) for name in ("early.logits", "logits"))
    assert net.guard is not None and net.guard.differing == (early != final).sum() > 0


def test_networks_without_gates_have_no_blocks(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out", tiny.contents())
    net = ee.load(tmp_path / "out")
    answer, batch = net.run(tiny.inputs(1)), net.run_batch(tiny.inputs(3))
    assert (answer.blocks_run, answer.blocks) == (None, 0)
    assert (batch.blocks_run, batch.blocks) == (None, 0)
