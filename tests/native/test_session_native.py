"""Sessions in C answer as those in Python, to the bit; and what else eecompile.h promises."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile as ee
from eecompile.artifact import Artifact, PolicyEntry, read_artifact, write_artifact
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledGraph, Function
from eecompile.cost import Work
from eecompile.diagnostics import CompileErrors
from eecompile.halt_rule import HaltRule
from eecompile.ir import TensorType
from eecompile.manifest import Normalization
from eecompile.native_plan import plan_bytes
from eecompile.policies import from_json, to_json
from eecompile.policies.never import NeverPolicy
from eecompile.runtime.answers import Answer
from eecompile.runtime.clock import Clock
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.governor import Governor, NoGovernor, RecordingGovernor
from eecompile.runtime.halting import Halting
from eecompile.runtime.inputs import normalized
from eecompile.runtime.library import Library
from eecompile.runtime.limiting import Limiter
from eecompile.runtime.single import Singles
from eecompile.runtime.stopping import StopWords
from tests.native import capi, networks
from tests.native.capi import Api, Failed
from tests.runtime import gated, learning, tiny

COUNT = 120
INPUTS = {"tiny": tiny.inputs(COUNT), "gated": gated.inputs(COUNT)}
NAMES = {"tiny": tiny.NAMES, "gated": gated.NAMES}
CASES = [
    (name, policy) for name in ("tiny", "gated") for policy in networks.contents(name).policies
]


class Artifacts:
    """Artifacts of the networks, opened once by both sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, Artifact] = {}
        self.apis: dict[str, Api] = {}
        for name in ("tiny", "gated", "odd"):
            write_artifact(folder / name, networks.contents(name))
            self.read[name] = read_artifact(folder / name)
            self.apis[name] = Api(ctypes.CDLL(str(folder / name / "kernels.so")), name)

    def ran(self, name: str) -> dict[str, int]:
        """Calls of the network's functions, as the machine code counted them; from now on anew."""
        counted = (ctypes.c_int64 * len(NAMES[name])).in_dll(self.apis[name].loaded, "calls")
        found = dict(zip(NAMES[name], counted, strict=True))
        ctypes.memset(counted, 0, ctypes.sizeof(counted))
        return found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("sessions"))


class Nets:
    """One network, opened in C."""

    def __init__(self, artifacts: Artifacts, name: str, network: ctypes.c_void_p) -> None:
        self.artifacts, self.name, self.network = artifacts, name, network
        self.api, self.artifact = artifacts.apis[name], artifacts.read[name]
        self.sessions: list[ctypes.c_void_p] = []

    def open(self, policy: str | None = None, **options: Any) -> ctypes.c_void_p:
        """A session; closed at the end."""
        found = self.api.session(self.network, policy, **options)
        self.sessions.append(found)
        return found

    def ran(self) -> dict[str, int]:
        return self.artifacts.ran(self.name)


@pytest.fixture
def net(request: pytest.FixtureRequest, artifacts: Artifacts) -> Iterator[Nets]:
    name = getattr(request, "param", "tiny")
    with artifacts.apis[name].opened(artifacts.folder / name) as network:
        found = Nets(artifacts, name, network)
        found.artifacts.ran(name) if name in NAMES else None
        yield found
        for session in found.sessions:
            found.api.session_close(session)


both = pytest.mark.parametrize("net", ["tiny", "gated"], indirect=True)


class Reference:
    """The rules in Python, on the same machine code, which it loads for itself."""

    def __init__(
        self, artifact: Artifact, policy: str, server: learning.Rest | None = None
    ) -> None:
        name = artifact.manifest.network.name
        self.library = Library(artifact.library, artifact.weights)
        counts = [0] * len(artifact.manifest.network.exit_names)
        self.singles = Singles(self.library, artifact.manifest, None, counts)
        self.limits, self.stops = Limiter(artifact), StopWords()
        entry = networks.contents(name).policies.get(policy)
        self.how: Deciding | None = None
        if entry is not None:
            rule = from_json(entry.rule)
            halt = entry.halt and Halting(
                HaltRule.from_json(entry.halt), self.limits.pieces(gates=True)
            )
            self.how = Deciding(rule, policy, halt=halt or None, server=server)
            if entry.clock is not None:
                self.clocked(artifact, ClockRule.from_json(entry.clock), NoGovernor())

    def clocked(self, artifact: Artifact, rule: ClockRule, governor: Governor) -> None:
        assert self.how is not None and artifact.costs is not None
        clock = Clock(artifact.costs, rule, governor, network=artifact.manifest.network)
        self.how = Deciding(self.how.policy, clock=clock)

    def halt(self, **limits: float) -> None:
        self.how = self.limits.halted(self.how, HaltRule(**limits))

    def answer(self, x: np.ndarray, normalize: bool = False) -> Answer:
        stop = self.stops.begin()
        if self.how is None:
            return self.singles.whole(None, x, normalize, stop)
        return self.singles.run(self.how, x, normalize, stop)


def check(net: Nets, found: capi.Answer, wanted: Answer) -> None:
    """The same answer, to the bit."""
    names = net.artifact.manifest.network.exit_names
    assert names[found.exit] == wanted.exit
    np.testing.assert_array_equal(found.scores(), wanted.logits)
    counted = found.macs, found.segments_run, found.heads_run, found.blocks_run
    assert counted == (
        *(wanted.macs, wanted.segments_run, wanted.heads_run),
        wanted.blocks_run or 0,
    )
    flags = capi.OFFLOADED * wanted.offloaded + capi.HALTED * wanted.halted
    assert found.flags == flags + capi.CANCELLED * wanted.cancelled
    assert found.label == int(np.argmax(wanted.logits))


# -- as Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "policy"), CASES, indirect=["net"], ids=str)
def test_every_policy_answers_as_in_python(net: Nets, policy: str) -> None:
    session, reference = net.open(policy), Reference(net.artifact, policy)
    exits = [0] * len(net.artifact.manifest.network.exit_names)
    macs = 0
    for x in INPUTS[net.name]:
        found = net.api.ask(session, x)
        check(net, found, reference.answer(x[None]))
        exits[found.exit] += 1
        macs += found.macs
    statistics, by_exit = net.api.counted(session, len(exits))
    assert by_exit == exits and statistics.answers == COUNT and statistics.macs == macs


@both
def test_decisions_off_no_head_and_no_gate_runs(net: Nets) -> None:
    reference = Reference(net.artifact, "")
    session, other = net.open(""), net.open()
    for x in INPUTS[net.name][:20]:
        wanted = reference.answer(x[None])
        check(net, net.api.ask(session, x), wanted)
        check(net, net.api.ask(other, x, how="run_whole"), wanted)
        found = net.api.ask(other, x)  # Whatever was before: gates decide again.
        check(net, found, Reference(net.artifact, "fast").answer(x[None]))
    net.ran()
    net.api.ask(other, INPUTS[net.name][0], how="run_whole")
    idle = {name for name, calls in net.ran().items() if not calls}
    assert idle == ({"head_0", "head_1", "comparator_1"} if net.name == "tiny"
                    else {"gate_0", "gate_1", "head"})  # fmt: skip


def test_no_segment_runs_that_the_exit_does_not_need(net: Nets) -> None:
    session = net.open("fast")
    seen = set()
    for x in INPUTS["tiny"]:
        net.ran()
        found, ran = net.api.ask(session, x), net.ran()
        seen.add(found.exit)
        assert [ran[f"segment_{k}"] for k in range(3)] == [
            int(k < found.segments_run) for k in range(3)
        ]
        assert found.segments_run == found.exit + 1
        assert found.macs == sum(10 ** tiny.NAMES.index(name) * n for name, n in ran.items())
        assert ran["head_0"] + ran["head_1"] + ran["comparator_1"] == found.heads_run
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(("net", "policy"), CASES, indirect=["net"], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_are_answered_as_samples(net: Nets, policy: str, threads: int) -> None:
    x = INPUTS[net.name]
    alone, session = net.open(policy), net.open(policy, threads=threads)
    wanted = [(one, one.scores()) for one in (net.api.ask(alone, row) for row in x)]
    answers, logits = net.api.batch(session, COUNT, 3, x)
    for (one, scores), found, row in zip(wanted, answers, logits, strict=True):
        np.testing.assert_array_equal(row, scores)
        for name in ("exit", "label", "macs", "segments_run", "heads_run", "blocks_run", "flags"):
            assert getattr(found, name) == getattr(one, name), name
        assert ctypes.cast(found.logits, ctypes.c_void_p).value == row.ctypes.data
    left, right = (net.api.counted(s, len(net.artifact.manifest.network.exit_names))
                   for s in (alone, session))  # fmt: skip
    assert left[1] == right[1] and left[0].macs == right[0].macs
    assert net.api.batch(session, 0, 3, x[:0])[0] == []


@both
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(net: Nets, threads: int) -> None:
    alone, session = net.open(), net.open(threads=threads)
    for x in INPUTS[net.name]:
        one, found = net.api.ask(alone, x), net.api.ask(session, x)
        assert (found.exit, found.macs) == (one.exit, one.macs)
        np.testing.assert_array_equal(found.scores(), one.scores())


# -- budgets -------------------------------------------------------------------------------------

BUDGETS: list[dict[str, float]] = [
    *({"macs": share} for share in (1.1, 0.9, 0.5, 0.2, 0.02)),
    *({"energy_j": joules} for joules in (10.0, 5.0, 3.1, 2.0)),
    *({"macs": 0.5, "energy_j": 4.0}, {"latency_s": 1e3}, {"latency_s": 1e3, "macs": 0.3}),
]


@both
@pytest.mark.parametrize("policy", ["fast", "never", ""])
def test_budgets_are_kept_as_in_python(net: Nets, policy: str) -> None:
    session, feasible = net.open(policy), 0
    for limits in BUDGETS:
        reference = Reference(net.artifact, policy)
        given = [limits.get(name, nan) for name in ("macs", "latency_s", "energy_j")]
        try:
            reference.halt(**limits)
        except CompileErrors:
            before = net.api.ask(session, INPUTS[net.name][0])
            with pytest.raises(Failed, match="cheapest") as error:
                net.api.set_halt(session, *given)
            assert error.value.status == "INFEASIBLE"
            after = net.api.ask(session, INPUTS[net.name][0])
            assert (before.exit, before.macs) == (after.exit, after.macs), "nothing has changed"
            continue
        feasible += 1
        net.api.set_halt(session, *given)
        for x in INPUTS[net.name][:40]:
            found = net.api.ask(session, x)
            check(net, found, reference.answer(x[None]))
            if "macs" in limits:
                assert found.macs <= limits["macs"] * net.artifact.manifest.network.macs + 1
    assert 4 <= feasible < len(BUDGETS)
    net.api.set_halt(session, nan, nan, nan)
    x = INPUTS[net.name][0]
    check(net, net.api.ask(session, x), Reference(net.artifact, policy).answer(x[None]))


def test_no_budget_goes_with_clocks_servers_and_learning(net: Nets) -> None:
    for policy in ("clocked", "split", "bandit"):
        with pytest.raises(Failed, match="no budget for each sample goes with") as error:
            net.api.set_halt(net.open(policy), 0.5, nan, nan)
        assert error.value.status == "BAD_ARGUMENT"
    for limit in (0.0, -1.0, inf):
        with pytest.raises(Failed, match="above 0 and finite"):
            net.api.set_halt(net.open(), limit, nan, nan)


def test_a_policys_own_budget_comes_back_with_it(net: Nets) -> None:
    session, x = net.open("halted"), INPUTS["tiny"]
    before = [net.api.ask(session, row).exit for row in x]
    net.api.set_halt(session, 2.0, nan, nan)
    assert [net.api.ask(session, row).exit for row in x] != before
    net.api.set_policy(session, b"halted")
    assert [net.api.ask(session, row).exit for row in x] == before


# -- what apps give ------------------------------------------------------------------------------


@both
def test_a_policy_of_the_apps_own(net: Nets) -> None:
    asked = []

    def decide(context: int, index: int, logits: Any, means: Any, classes: int) -> int:
        asked.append(
            (index, bool(means), classes, np.ctypeslib.as_array(logits, (classes,)).copy())
        )
        return capi.LEAVE if logits[0] > 0 else index + 1

    own = capi.Policy(None, 0, capi.DECIDE(decide))
    session = net.open()
    net.api.set_own_policy(session, ctypes.byref(own))
    for x in INPUTS[net.name][:30]:
        asked.clear()
        found = net.api.ask(session, x)
        first = [scores[0] > 0 for _, _, _, scores in asked]
        last = found.exit == len(net.artifact.manifest.network.exits)
        assert first == [False] * (len(asked) - 1) + [not last]
        if not last:
            np.testing.assert_array_equal(found.scores(), asked[-1][3])
    assert {index for index, *_ in asked} and all(
        means == (index == 1) for index, means, *_ in asked
    )
    for wrong in (0, 99, -2, -3):
        bad = capi.Policy(None, 0, capi.DECIDE(lambda *_: wrong))  # noqa: B023
        net.api.set_own_policy(session, ctypes.byref(bad))
        with pytest.raises(Failed, match=f"exit {wrong} after exit 0: EE_LEAVE, or 1 to "):
            net.api.ask(session, INPUTS[net.name][0])
    net.api.set_own_policy(session, None)
    assert net.api.ask(session, INPUTS[net.name][0]).heads_run == 0
    for policy in (capi.Policy(None, 99, own.decide), capi.Policy(None, 0, capi.DECIDE())):
        with pytest.raises(Failed, match=r"no `decide`, or begins at no exit: 0 to \d"):
            net.api.set_own_policy(session, ctypes.byref(policy))


@pytest.mark.parametrize("policy", ["split", "bandit", "bandit_side"])
@pytest.mark.parametrize("down", [False, True])
def test_a_server_answers_what_is_sent(net: Nets, policy: str, down: bool) -> None:
    names = [["a", "b"], ["b", "c"]]
    asked = []

    def answer(context: int, index: int, values: Any, count: int, logits: Any) -> int:
        asked.append(index)
        assert count == len(names[index])
        types = {"a": np.float32, "b": np.int64, "c": np.float32}
        found = {}
        for name, address in zip(names[index], values[:count], strict=True):
            kind = np.dtype(types[name])
            size = 4 if kind == np.float32 else 1
            found[name] = np.frombuffer(ctypes.string_at(address, size * kind.itemsize), kind)
        c = found["a"] + np.float32(1) if index == 0 else found["c"]
        result = c[:3] + found["b"].astype(np.float32)
        for i in range(3):
            logits[i] = -1.0 if down else result[i]
        return int(down)

    given = capi.Server(None, capi.ANSWER(answer))
    session = net.open(policy, server=ctypes.addressof(given))
    server = learning.Rest(down=down)
    reference = Reference(net.artifact, policy, server)
    sent = 0
    for x in INPUTS["tiny"]:
        net.ran()
        found, ran = net.api.ask(session, x), net.ran()
        check(net, found, reference.answer(x[None]))
        sent += bool(found.flags & capi.OFFLOADED)
        assert sum(ran[f"segment_{k}"] for k in range(3)) == found.segments_run
    assert len(asked) == server.counts["failed" if down else "answered"] > 0
    assert (sent == 0) == down
    assert net.api.counted(session, 3)[0].offloaded == sent
    x = INPUTS["tiny"]
    one, other = net.open(policy, server=ctypes.addressof(given), threads=2), net.open(policy)
    answers, _ = net.api.batch(one, len(x), 3, x)
    assert sum(bool(a.flags & capi.OFFLOADED) for a in answers) == sent, "in order, as they learn"
    answers, _ = net.api.batch(other, len(x), 3, x)
    assert not any(a.flags & capi.OFFLOADED for a in answers)


def test_an_answer_names_its_energy_where_there_is_a_meter(net: Nets) -> None:
    readings = iter([1.0, 3.5, 10.0, 10.25])
    meter = capi.Meter(None, capi.ENERGY(lambda _: next(readings)))
    session = net.open(meter=ctypes.addressof(meter))
    assert [net.api.ask(session, INPUTS["tiny"][0]).energy_j for _ in range(2)] == [2.5, 0.25]
    assert net.api.counted(session, 3)[0].energy_j == 2.75
    assert np.isnan(net.api.ask(net.open(), INPUTS["tiny"][0]).energy_j)


@both
def test_clocks_are_set_as_in_python_and_put_back(net: Nets) -> None:
    for policy in ("clocked", "raced", "hard", "fixed"):
        told: list[float | None] = []
        assert net.artifact.costs is not None
        own, recording = capi.governor(told), RecordingGovernor(net.artifact.costs.states)
        rule = ClockRule.from_json(net.artifact.policies[policy].clock)
        reference = Reference(net.artifact, policy)
        reference.clocked(net.artifact, rule, recording)
        session = net.api.session(net.network, policy, governor=ctypes.addressof(own), clocks=1)
        for x in INPUTS[net.name][:30]:
            found, wanted = net.api.ask(session, x), reference.answer(x[None])
            assert net.artifact.manifest.network.exit_names[found.exit] == wanted.exit
            if policy == "raced":  # Whether it rests depends on how long an answer took.
                continue
            for one, other in (
                (found.energy_j, wanted.energy_j), (found.frequency_hz, wanted.frequency_hz),
            ):  # fmt: skip
                assert np.isnan(one) if other is None else one == pytest.approx(other, rel=1e-12)
        if policy != "raced":
            assert told == [state.frequency_hz for state in recording.asked] and told
        else:  # The governor stays from one policy to the next.
            assert set(told) <= {state.frequency_hz for state in recording.states} and told
            net.api.set_policy(session, b"fixed")
            assert told[-1] is None
            assert net.api.ask(session, INPUTS[net.name][0]).frequency_hz == 1e9
        net.api.session_close(session)
        assert told[-1] is None


def test_why_clocks_are_left_alone_is_told(net: Nets) -> None:
    told: list[float | None] = []
    able, some, unable = (capi.governor(told) for _ in range(3))
    some.offers = capi.OFFERS(lambda context, cluster, hertz: hertz < 1.5e9)
    unable.offers = capi.OFFERS(lambda *_: 0)

    def reason(policy: str, given: capi.Governor | None, clocks: int = 1) -> str:
        address = None if given is None else ctypes.addressof(given)
        session = net.api.session(net.network, policy, governor=address, clocks=clocks)
        net.api.ask(session, INPUTS["tiny"][0])
        found = str(net.api.clocks_reason(session).decode())
        net.api.session_close(session)
        return found

    assert reason("clocked", able) == reason("clocked", some) == reason("fixed", some) == ""
    assert reason("clocked", unable) == "the governor offers none of the clocks"
    assert reason("clocked", unable, clocks=0) == reason("fast", unable) == ""
    some.offers = capi.OFFERS(lambda context, cluster, hertz: hertz > 1.5e9)
    assert reason("fixed", some).endswith("the cost table has no clock of the fixed frequency")
    able.set = capi.OFFERS(lambda *_: -1)
    assert reason("clocked", able) == "its clock cannot be set any more: cluster cpu"
    # Linux's own: the table's clocks are of no machine, so that there is something to say.
    assert "cluster cpu: " in reason("clocked", None)
    assert net.api.clocks_reason(None) == b""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to choose from")
def test_all_threads_of_a_session_go_where_the_clock_is(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    made, everywhere = networks.contents("tiny"), os.sched_getaffinity(0)
    assert made.costs is not None
    one = min(everywhere)
    costs = replace(made.costs, cpus={"cpu": (one,)})
    (tmp_path / "plan.bin").write_bytes(plan_bytes(replace(made, costs=costs)))
    (tmp_path / "weights.bin").write_bytes(networks.blob(made))
    api, own = artifacts.apis["tiny"], capi.governor([])
    before = set(os.listdir("/proc/self/task"))
    with api.opened(tmp_path) as network:
        options = {"threads": 3, "clocks": 1, "governor": ctypes.addressof(own)}
        session = api.session(network, "fixed", **options)
        threads = [0, *map(int, {*os.listdir("/proc/self/task")} - before)]
        assert len(threads) == 3
        assert [os.sched_getaffinity(thread) for thread in threads] == [everywhere] * 3
        api.ask(session, INPUTS["tiny"][0])
        assert [os.sched_getaffinity(thread) for thread in threads] == [{one}] * 3
        api.set_policy(session, b"fast")
        assert [os.sched_getaffinity(thread) for thread in threads] == [everywhere] * 3
        api.session_close(session)


def test_changes_of_clocks_are_counted_over_policies(net: Nets) -> None:
    told: list[float | None] = []
    own = capi.governor(told)
    given = {"governor": ctypes.addressof(own), "clocks": 1}
    session = net.api.session(net.network, "clocked", **given)
    for x in INPUTS["tiny"][:5]:
        net.api.ask(session, x, how="run_whole")
        net.api.ask(session, x)
    count = net.api.counted(session, 3)[0].transitions
    assert count > 0
    net.api.set_policy(session, b"fast")
    assert net.api.counted(session, 3)[0].transitions == count
    net.api.statistics_reset(session)
    assert net.api.counted(session, 3)[0].transitions == 0
    net.api.session_close(session)


def test_what_apps_give_must_be_complete(net: Nets) -> None:
    for name, given, lacking in (
        ("governor", capi.Governor(), "offers"),
        ("meter", capi.Meter(), "energy_j"),
        ("server", capi.Server(), "answer"),
    ):
        with pytest.raises(Failed, match=f"the {name} lacks a function: `{lacking}`") as error:
            net.open(None, **{name: ctypes.addressof(given)})
        assert error.value.status == "BAD_ARGUMENT"


# -- what is known beside an answer --------------------------------------------------------------


def test_what_was_learned_goes_from_one_session_to_another(net: Nets) -> None:
    for policy in ("bandit", "bandit_side"):
        whole, first, second = (net.open(policy) for _ in range(3))
        x = INPUTS["tiny"]
        wanted = [net.api.ask(whole, row).exit for row in x]
        for row in x[:50]:
            net.api.ask(first, row)
        size = ctypes.c_size_t(0)
        net.api.state_get(first, None, ctypes.byref(size))
        room = ctypes.create_string_buffer(size.value + 1)
        net.api.state_get(first, room, ctypes.byref(size))
        # At any alignment.
        ctypes.memmove(ctypes.addressof(room) + 1, room.raw[: size.value], size.value)
        net.api.state_set(second, ctypes.addressof(room) + 1, size.value)
        assert [net.api.ask(second, row).exit for row in x[50:]] == wanted[50:]
        for bad in (size.value - 1, size.value + 1, 0):
            with pytest.raises(Failed, match="not learned by the policy"):
                net.api.state_set(second, room, bad)
        few = ctypes.c_size_t(size.value - 8)
        with pytest.raises(Failed, match=f"takes {size.value} bytes"):
            net.api.state_get(first, room, ctypes.byref(few))
        with pytest.raises(Failed, match="not learned by the policy"):
            net.api.state_set(second, b"\xff" * size.value, size.value)
        net.api.set_policy(second, policy.encode())  # It has forgotten.
        assert [net.api.ask(second, row).exit for row in x] == wanted
    size = ctypes.c_size_t(7)
    net.api.state_get(net.open("fast"), None, ctypes.byref(size))
    assert size.value == 0


def test_outputs_are_there_after_the_networks_own_answer_alone(net: Nets) -> None:
    session = net.open("fast")
    for x in INPUTS["tiny"]:
        found = net.api.ask(session, x)
        address = net.api.output(session, b"logits")
        assert (address is not None) == (found.exit == 2)
        if address:
            logits = np.ctypeslib.as_array((ctypes.c_float * 3).from_address(address))
            np.testing.assert_array_equal(logits, found.scores())
    net.api.ask(session, INPUTS["tiny"][0], how="run_whole")
    assert net.api.output(session, b"logits") and not net.api.output(session, b"a")
    net.api.batch(session, 2, 3, INPUTS["tiny"][:2])
    assert net.api.output(session, b"logits") is None


def test_statistics_are_counted_until_they_are_reset(net: Nets) -> None:
    session = net.open("halted")
    answers = [net.api.ask(session, x) for x in INPUTS["tiny"]]
    found, by_exit = net.api.counted(session, 3)
    assert found.halted == sum(bool(a.flags & capi.HALTED) for a in answers) > 0
    assert found.latency_s == pytest.approx(sum(a.latency_s for a in answers))
    assert np.isnan(found.energy_j) and sum(by_exit) == COUNT
    net.api.statistics_reset(session)
    found, by_exit = net.api.counted(session, 3)
    assert (found.answers, found.macs, found.latency_s, by_exit) == (0, 0, 0, [0, 0, 0])


@pytest.mark.parametrize("net", ["tiny", "gated", "odd"], indirect=True)
def test_what_networks_say_of_themselves(net: Nets) -> None:
    network, info = net.artifact.manifest.network, capi.NetworkInfo()
    net.api.network_about(net.network, ctypes.byref(info))
    policies = net.artifact.manifest.policies
    assert (info.name.decode(), info.classes) == (net.name, network.classes or 0)
    assert (info.inputs, info.exits) == (len(network.inputs), len(network.exits) + 1)
    assert (info.policies, info.segments) == (len(policies), len(network.segments))
    assert (info.macs, info.blocks) == (network.macs, network.blocks)
    names = [net.api.exit_name(net.network, i).decode() for i in range(info.exits)]
    assert tuple(names) == network.exit_names and net.api.exit_name(net.network, 99) is None
    found = tuple(net.api.policy_name(net.network, i).decode() for i in range(info.policies))
    assert found == policies and net.api.policy_name(net.network, info.policies) is None
    labels = net.artifact.manifest.labels or ()
    assert [net.api.label(net.network, i) for i in range(len(labels) + 1)] == [
        *(label.encode() for label in labels), None,
    ]  # fmt: skip
    for index, (name, type_) in enumerate(network.inputs):
        one = capi.InputInfo()
        net.api.input_about(net.network, index, ctypes.byref(one))
        assert (one.name.decode(), tuple(one.shape[: one.rank])) == (name, type_.shape)
        assert (one.bytes, capi_dtype(one.dtype)) == (type_.nbytes, type_.dtype)
        assert bool(one.normalizes) == (name in net.artifact.manifest.normalizations)
    with pytest.raises(Failed, match="there is no input 9"):
        net.api.input_about(net.network, 9, ctypes.byref(capi.InputInfo()))


def capi_dtype(number: int) -> str:
    names = ("float32", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool")
    return names[number]


# -- odd networks --------------------------------------------------------------------------------


def odd_inputs(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        random.integers(-9, 9, (3, 2, 2)).astype(np.float32),
        random.integers(-9, 9, 2),
        random.random(1) < 0.5,
        np.array(random.integers(5, 9), np.float32),
    ]


def odd_outputs(net: Nets, session: ctypes.c_void_p) -> tuple[list[float], list[int]]:
    y, z = (net.api.output(session, name) for name in (b"y", b"z"))
    return list((ctypes.c_float * 2).from_address(y)), list((ctypes.c_int64 * 2).from_address(z))


@pytest.mark.parametrize("net", ["odd"], indirect=True)
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_network_without_classes_and_with_inputs_of_all_kinds(net: Nets, threads: int) -> None:
    session = net.open(threads=threads)
    for seed in range(10):
        image, ids, flag, scalar = odd_inputs(seed)
        wanted = [image.sum() + ids.sum(), scalar if flag[0] else -scalar], [ids[1], ids[0]]
        found = net.api.ask(session, image, ids, flag, scalar)
        assert (found.exit, found.classes, found.segments_run, found.macs) == (0, 0, 1, 5)
        assert not found.logits and odd_outputs(net, session) == wanted
        raw = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
        net.api.ask(session, raw, ids, flag, scalar, how="run_raw")
        mean, std = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.5, 0.25, 2], np.float32)
        normal = (raw.astype(np.float32) / np.float32(255) - mean) / std
        total = np.float32(ids.sum())
        for one in normal.transpose(2, 0, 1).ravel():
            total += one
        assert odd_outputs(net, session)[0][0] == total
    many = [np.stack(each) for each in zip(*map(odd_inputs, range(7)), strict=True)]
    answers, _ = net.api.batch(session, 7, 0, *many)
    assert all(not a.logits and a.macs == 5 for a in answers)
    with pytest.raises(Failed, match="compiled code returned 3") as error:
        net.api.ask(session, *odd_inputs(0)[:3], np.array(-1, np.float32))
    assert error.value.status == "INTERNAL"
    many[3][4] = -1
    with pytest.raises(Failed, match="compiled code returned 3"):
        net.api.batch(session, 7, 0, *many)
    with pytest.raises(Failed, match="has no policy `fast`; it has: none"):
        net.api.set_policy(session, b"fast")
    with pytest.raises(Failed, match="the input `flag` is NULL"):
        pointers = capi.addresses(odd_inputs(0))
        pointers[2] = None
        net.api.run(session, pointers, ctypes.byref(capi.Answer()))


def test_a_network_without_classes_may_have_a_policy_for_its_gates(tmp_path: Path) -> None:
    made = networks.contents("odd")
    never = {"gates": PolicyEntry(to_json(NeverPolicy(0, gate_shift=0.5)))}
    made = replace(made, policies=never, default_policy="gates")
    write_artifact(tmp_path / "odd", replace(made, plan=plan_bytes(made)))
    api = Api(ctypes.CDLL(str(tmp_path / "odd" / "kernels.so")), "odd")
    inputs = odd_inputs(3)
    with api.opened(tmp_path / "odd") as network:
        session = api.session(network)
        assert api.ask(session, *inputs).exit == 0
        expected = list((ctypes.c_float * 2).from_address(api.output(session, b"y")))
        api.session_close(session)
    names = [name for name, _ in networks.ODD_INPUTS]
    sample = dict(zip(names, inputs, strict=True))
    with ee.load(tmp_path / "odd") as net:
        for policy in ("gates", None, "gates"):
            net.set_policy(policy)
            np.testing.assert_array_equal(net.run(sample).logits, np.array(expected, np.float32))


#: Shape of an input whose channels are normalised alike -> its raw data, channels last.
RAW_SHAPES = {
    (1, 2, 2, 3): (2, 3, 2),
    (1, 1, 4, 3): (4, 3, 1),
    (1, 4, 3, 1): (4, 3, 1),  # One channel, last, of an image of few rows.
    (1, 6, 2, 1): (6, 2, 1),
    (12,): (12,),
}


@pytest.mark.parametrize("shape", RAW_SHAPES, ids=str)
def test_raw_images_have_their_channels_last_whatever_the_networks_have(
    artifacts: Artifacts, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """What the network reads of them is compared, in the session's own memory."""
    made = networks.contents("odd")
    inputs = (("image", TensorType("float32", shape)), *networks.ODD_INPUTS[1:])
    (mix,) = made.network.functions()
    graph = replace(made.network, inputs=inputs, segments=(replace(mix, inputs=inputs),))
    how = {"image": Normalization((0.25,), (0.5,))}
    made = replace(made, network=graph, normalizations=how)
    (tmp_path / "plan.bin").write_bytes(plan_bytes(made))
    (tmp_path / "weights.bin").write_bytes(b"")
    raw = np.random.default_rng(1).integers(0, 256, RAW_SHAPES[shape], np.uint8)
    api = artifacts.apis["odd"]
    memory = api.loaded.eecompile_input
    memory.restype, memory.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_uint32)
    with api.opened(tmp_path) as network:
        session = api.session(network)
        api.ask(session, raw, *odd_inputs(0)[1:], how="run_raw")
        found = list((ctypes.c_float * raw.size).from_address(memory(session, 0)))
        api.session_close(session)
    np.testing.assert_array_equal(
        found, normalized(raw, inputs[0][1], how["image"]).astype(np.float32).ravel()
    )


@pytest.mark.parametrize("net", ["tiny"], indirect=True)
def test_raw_data_are_normalised_as_in_python(net: Nets) -> None:
    session, reference = net.open("fast"), Reference(net.artifact, "fast")
    for raw in np.random.default_rng(3).integers(0, 256, (50, 4), np.uint8):
        check(net, net.api.ask(session, raw, how="run_raw"), reference.answer(raw[None], True))


# -- cancelling ----------------------------------------------------------------------------------


def cancelling(net: Nets, session: ctypes.c_void_p, cancel: object, at: int) -> capi.Policy:
    """A policy that goes on, and has its call cancelled on the way."""

    def decide(context: int, index: int, *_: object) -> int:
        if index == at:
            cancel()  # type: ignore[operator]
        return index + 1

    return capi.Policy(None, 0, capi.DECIDE(decide))


@both
def test_a_call_is_cancelled_from_another_thread(net: Nets) -> None:
    session, told = net.open(), []

    def cancel() -> None:
        thread = threading.Thread(target=lambda: told.append(net.api.cancel(session)))
        thread.start()
        thread.join()

    own = cancelling(net, session, cancel, 0)
    net.api.set_own_policy(session, ctypes.byref(own))
    net.ran()
    found = net.api.ask(session, INPUTS[net.name][0])
    ran = net.ran()
    assert told == [1] and found.flags == capi.CANCELLED
    if net.name == "tiny":  # One step is a segment: it begins, and then the exit answers.
        assert (found.exit, found.heads_run) == (0, 1) and ran["head_1"] == 0
    else:  # No step begins after that.
        assert ran["plus"] == ran["times"] == ran["end"] == ran["gate_1"] == 0
    # The next call is not.
    net.api.set_policy(session, b"fast")
    x = INPUTS[net.name][0]
    check(net, net.api.ask(session, x), Reference(net.artifact, "fast").answer(x[None]))
    assert net.api.cancel(session) == 0 and net.api.counted(session, 3)[0].cancelled == 1


def test_a_call_is_cancelled_in_a_signal_handler(net: Nets) -> None:
    session, told = net.open(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: told.append(net.api.cancel(session)))
    try:
        # Python runs handlers between its own instructions: here within the callback.
        own = cancelling(net, session, lambda: signal.raise_signal(signal.SIGUSR1), 1)
        net.api.set_own_policy(session, ctypes.byref(own))
        found = net.api.ask(session, INPUTS["tiny"][0])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == [1] and (found.exit, found.flags) == (1, capi.CANCELLED)


def test_whole_answers_and_batches_are_not_cancelled(net: Nets) -> None:
    session, told = net.open(), []
    own = cancelling(net, session, lambda: told.append(net.api.cancel(session)), 0)
    net.api.set_own_policy(session, ctypes.byref(own))
    answers, _ = net.api.batch(session, 5, 3, INPUTS["tiny"][:5])
    assert told == [0] * 5 and all(a.exit == 2 and not a.flags for a in answers)


# -- one thread at a time, and processes ---------------------------------------------------------


def test_a_second_thread_is_told_that_the_session_is_busy(net: Nets) -> None:
    session, told = net.open(), []
    x, answer = INPUTS["tiny"][0], capi.Answer()
    size = ctypes.c_size_t(0)

    def decide(context: int, index: int, *_: object) -> int:
        inputs = capi.addresses([x])
        calls = (
            lambda: net.api.run(session, inputs, ctypes.byref(answer)),
            lambda: net.api.run_whole(session, inputs, ctypes.byref(answer)),
            lambda: net.api.batch(session, 1, 3, x),
            lambda: net.api.set_policy(session, b"fast"),
            lambda: net.api.set_own_policy(session, None),
            lambda: net.api.set_halt(session, nan, nan, nan),
            lambda: net.api.state_set(session, b"", size),
            lambda: net.api.state_get(session, None, ctypes.byref(size)),
            lambda: net.api.counted(session, 3),
        )
        for call in calls:
            with pytest.raises(Failed, match="another thread") as error:
                call()
            told.append(error.value.status)
        return capi.LEAVE

    own = capi.Policy(None, 0, capi.DECIDE(decide))
    net.api.set_own_policy(session, ctypes.byref(own))
    assert net.api.ask(session, x).exit == 0
    assert told == ["BUSY"] * 9
    net.api.set_policy(session, b"fast")


FORKS = """
import ctypes, os, sys
import numpy as np
from tests.native import capi
from tests.runtime import tiny

api = capi.Api(ctypes.CDLL(sys.argv[1] + "/kernels.so"), "tiny")
with api.opened(sys.argv[1]) as network:
    told = []
    own = capi.governor(told)
    x = tiny.inputs(60)
    given = {"governor": ctypes.addressof(own), "clocks": 1}
    plain, clocked, unused = (
        api.session(network, policy, threads=3, **options)
        for policy, options in (("fast", {}), ("clocked", given), ("fast", {}))
    )
    def answers():
        found = []
        for session in (plain, clocked):
            for row in x:
                one = api.ask(session, row)
                found.append((one.exit, one.macs, one.scores().tobytes()))
        batch, logits = api.batch(plain, len(x), 3, x)
        return found, [one.exit for one in batch], logits.tobytes()
    wanted = answers()
    told.clear()
    child = os.fork()
    if not child:
        good = answers() == wanted and not told
        api.set_policy(clocked, b"raced")
        good &= api.ask(clocked, x[0]).exit == wanted[0][0][0] and not told
        for session in (plain, clocked, unused):  # One of them was not used here.
            api.session_close(session)
        good &= not told
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert answers() == wanted
    for session in (plain, clocked, unused):
        api.session_close(session)
    assert told[-1] is None
"""


def test_a_forked_process_answers_alike_and_ends_no_threads(artifacts: Artifacts) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(artifacts.folder / "tiny")],
        timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# -- arguments -----------------------------------------------------------------------------------


def test_what_is_null_is_told(net: Nets) -> None:
    api, x = net.api, INPUTS["tiny"][0]
    session, inputs, answer = net.open(), capi.addresses([x]), ctypes.byref(capi.Answer())
    found = ctypes.byref(ctypes.c_void_p())
    size = ctypes.byref(ctypes.c_size_t(8))
    calls: Mapping[str, tuple[str, tuple[object, ...]]] = {
        "open": ("library|path|network", (api.library, b".", found)),
        "open_memory": ("library|bytes|network", (api.library, answer, 0, found)),
        "network_about": ("network|info", (net.network, answer)),
        "input_about": ("network|info", (net.network, 0, answer)),
        "session_open": ("network|session", (net.network, None, found)),
        "set_policy": ("session", (session, None)),
        "set_own_policy": ("session", (session, None)),
        "set_halt": ("session", (session, 1.0, 1.0, 1.0)),
        "run": ("session|inputs|answer", (session, inputs, answer)),
        "run_raw": ("session|inputs|answer", (session, inputs, answer)),
        "run_whole": ("session|inputs|answer", (session, inputs, answer)),
        "run_batch": ("session|inputs|answers", (session, inputs, 1, None, answer)),
        "statistics_get": ("session|statistics", (session, answer, None)),
        "state_get": ("session|count", (session, None, size)),
        "state_set": ("session|bytes", (session, b"", 0)),
    }
    optional = {"session_open": (1,), "set_policy": (1,), "set_own_policy": (1,),
                "run_batch": (3,), "statistics_get": (2,), "state_get": (1,)}  # fmt: skip
    for name, (words, arguments) in calls.items():
        for place, value in enumerate(arguments):
            if isinstance(value, int | float) and not (name.startswith("open") and place == 0):
                continue
            if place in optional.get(name, ()):
                continue
            given = [None if i == place else one for i, one in enumerate(arguments)]
            with pytest.raises(Failed, match=f"^({words}) is NULL$") as error:
                getattr(api, name)(*given)
            assert error.value.status == "BAD_ARGUMENT", name
    api.close(None)
    api.session_close(None)
    api.statistics_reset(None)
    assert api.exit_name(None, 0) is api.policy_name(None, 0) is api.label(None, 0) is None
    assert api.output(None, b"logits") is api.output(session, None) is None
    assert api.cancel(None) == 0
    assert [api.loaded.ee_status_name(i) for i in (0, 7, 11, -1)] == [
        b"EE_OK", b"EE_BUSY", b"unknown status", b"unknown status",
    ]  # fmt: skip


def test_callers_of_other_versions(net: Nets) -> None:
    """Structures of older ones are shorter, those of newer ones longer."""
    session, x = net.open(), INPUTS["tiny"][0]
    wanted, inputs = net.api.ask(session, x), capi.addresses([x])
    whole = ctypes.sizeof(capi.Answer)
    for size in (8, 16, 24, 40, whole, whole + 8, whole + 64):
        room = ctypes.create_string_buffer(b"\xaa" * (whole + 128), whole + 128)
        ctypes.c_size_t.from_buffer(room).value = size
        net.api.run(session, inputs, room)
        found = capi.Answer.from_buffer(room)
        assert found.size == size, "the caller's stays"
        assert room.raw[min(size, whole) :] == b"\xaa" * (whole + 128 - min(size, whole))
        if size >= 40:
            assert (found.label, found.exit) == (wanted.label, wanted.exit)
    for size in (0, 7):
        counted = net.api.counted(session, 3)[1]
        with pytest.raises(Failed, match="has no size"):
            net.api.run(session, inputs, ctypes.byref(capi.Answer(size=size)))
        assert net.api.counted(session, 3)[1] == counted, "nothing has run"
        for name, structure in (
            ("statistics_get", capi.Statistics),
            ("network_about", capi.NetworkInfo),
        ):
            handle = session if name == "statistics_get" else net.network
            more = (None,) if name == "statistics_get" else ()
            with pytest.raises(Failed, match="has no size"):
                getattr(net.api, name)(handle, ctypes.byref(structure(size=size)), *more)
        with pytest.raises(Failed, match="have no size"):
            net.open(size=size)


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_of_a_batch_are_as_far_apart_as_the_caller_says(net: Nets, threads: int) -> None:
    session, x = net.open(threads=threads), INPUTS["tiny"]
    exits = [net.api.ask(session, row).exit for row in x]
    counted = net.api.counted(session, 3)[1]
    for size in (32, ctypes.sizeof(capi.Answer) + 16):
        room = ctypes.create_string_buffer(COUNT * size + 8)
        ctypes.c_size_t.from_buffer(room).value = size
        net.api.statistics_reset(session)
        net.api.run_batch(session, capi.addresses([x]), COUNT, None, room)
        found = [ctypes.c_uint32.from_buffer(room, i * size + 24).value for i in range(COUNT)]
        assert found == exits and net.api.counted(session, 3)[1] == counted
        assert room.raw[-8:] == bytes(8)
    for size in (0, 7, 9, 97, 1 << 40):
        answers = capi.Answer(size=size)
        with pytest.raises(Failed, match="have no size"):
            net.api.run_batch(session, capi.addresses([x]), 2, None, ctypes.byref(answers))


def test_options_of_older_callers_leave_the_rest_as_it_is(net: Nets) -> None:
    found = ctypes.c_void_p()
    old = capi.Options(size=16, policy=b"careful", threads=-5, server=1)
    net.api.session_open(net.network, ctypes.byref(old), ctypes.byref(found))
    net.api.session_close(found)
    for threads in (-1, 1025):
        with pytest.raises(Failed, match=f"no sessions of {threads} threads: give 1 to 1024"):
            net.open(threads=threads)
    with pytest.raises(Failed, match="has no policy `slow`; it has: fast, "):
        net.open("slow")


def test_many_threads_on_few_cores(net: Nets) -> None:
    session, alone = net.open(threads=200), net.open()
    x = INPUTS["tiny"][:20]
    wanted = [net.api.ask(alone, row).exit for row in x]
    assert [net.api.ask(session, row).exit for row in x] == wanted
    answers, _ = net.api.batch(session, 20, 3, x)
    assert [a.exit for a in answers] == wanted


@pytest.mark.parametrize("net", ["odd"], indirect=True)
def test_outputs_are_no_inputs_before_they_are_copied(net: Nets) -> None:
    """Inputs are copied to where outputs may lie."""
    session, other = net.open(threads=2), net.open()
    inputs = odd_inputs(0)
    net.api.ask(session, *inputs)
    given = (ctypes.c_void_p * 4)(*(x.ctypes.data for x in inputs))
    given[1] = net.api.output(session, b"z")
    answers = (capi.Answer * 1)(capi.Answer())
    for call in ("run", "run_raw", "run_whole"):
        with pytest.raises(Failed, match="`ids` lies in the session's own memory: give a copy"):
            getattr(net.api, call)(session, given, answers)
    with pytest.raises(Failed, match="`ids` lies in the session's own memory"):
        net.api.run_batch(session, given, 1, None, answers)
    net.api.run(other, given, answers)  # it is another one's
    assert odd_outputs(net, other)[1] == list(inputs[1])


def test_no_more_threads_than_cpus_unless_they_are_asked_for(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    api, network, made = artifacts.apis["tiny"], ctypes.c_void_p(), networks.contents("tiny")
    made = replace(made, target=replace(made.target, cores=500))
    write_artifact(tmp_path / "many", replace(made, plan=plan_bytes(made)))
    api.open(api.library, str(tmp_path / "many").encode(), ctypes.byref(network))
    before = len(os.listdir("/proc/self/task"))
    for threads, others in ((0, len(os.sched_getaffinity(0)) - 1), (7, 6)):
        session = api.session(network, threads=threads)
        assert len(os.listdir("/proc/self/task")) == before + others
        api.session_close(session)
    api.close(network)


def test_networks_may_be_closed_before_their_sessions(artifacts: Artifacts) -> None:
    api, network = artifacts.apis["tiny"], ctypes.c_void_p()
    api.open(api.library, str(artifacts.folder / "tiny").encode(), ctypes.byref(network))
    sessions = [api.session(network) for _ in range(3)]
    api.close(network)
    wanted = [api.ask(sessions[0], x).exit for x in INPUTS["tiny"]]
    for session in (sessions[0], sessions[2]):
        api.session_close(session)
    assert [api.ask(sessions[1], x).exit for x in INPUTS["tiny"]] == wanted
    api.session_close(sessions[1])


# -- files, and several libraries ----------------------------------------------------------------


def test_one_program_uses_networks_of_several_libraries(artifacts: Artifacts) -> None:
    """Functions of one library, called for another's network."""
    ours, other = artifacts.apis["tiny"], artifacts.apis["gated"]
    network, x = ctypes.c_void_p(), INPUTS["gated"][0]
    ours.open(other.library, str(artifacts.folder / "gated").encode(), ctypes.byref(network))
    session = ours.session(network, "fast")
    artifacts.ran("gated")
    found = ours.ask(session, x)
    assert artifacts.ran("gated")["stem"] == 1 and found.classes == 3
    with pytest.raises(Failed, match="`gated` has no policy `slow`"):
        ours.set_policy(session, b"slow")
    with pytest.raises(Failed, match="asked for exit 0 after exit 0"):
        own = capi.Policy(None, 0, capi.DECIDE(lambda *_: 0))
        ours.set_own_policy(session, ctypes.byref(own))
        ours.ask(session, x)
    ours.session_close(session)
    ours.close(network)
    for name, wrong in (("tiny", other), ("gated", ours)):
        with pytest.raises(Failed, match="belongs to another library") as error:
            ours.open(wrong.library, str(artifacts.folder / name).encode(), ctypes.byref(network))
        assert error.value.status == "BAD_ARTIFACT" and not network


def test_an_older_library_is_told_what_it_lacks(net: Nets) -> None:
    """The first field of every handle is its library's table of functions, with their number."""
    session = net.open()
    count = 3
    table = ctypes.c_void_p.from_address(net.network.value or 0).value
    whole = (ctypes.c_char * 208).from_address(table or 0)
    old = ctypes.create_string_buffer(whole.raw, 208)
    ctypes.c_uint32.from_buffer(old).value = count
    handle = ctypes.create_string_buffer(64)
    ctypes.c_void_p.from_buffer(handle).value = ctypes.addressof(old)
    for name, arguments in (
        ("run", (capi.addresses([INPUTS["tiny"][0]]), ctypes.byref(capi.Answer()))),
        ("set_policy", (b"fast",)),
    ):
        with pytest.raises(Failed, match="too old") as error:
            getattr(net.api, name)(handle, *arguments)
        assert error.value.status == "UNSUPPORTED"
    net.api.ask(session, INPUTS["tiny"][0])


def test_from_a_folder_a_packed_file_and_memory_alike(artifacts: Artifacts, tmp_path: Path) -> None:
    api, folder = artifacts.apis["tiny"], artifacts.folder / "tiny"
    packed = tmp_path / "tiny.eec"
    write_artifact(packed, networks.contents("tiny"))
    data = packed.read_bytes()
    room = ctypes.create_string_buffer(len(data) + 64)
    at = -ctypes.addressof(room) % 64
    ctypes.memmove(ctypes.addressof(room) + at, data, len(data))
    found = []
    for path in (folder, packed, None):
        network = ctypes.c_void_p()
        if path:
            api.open(api.library, str(path).encode(), ctypes.byref(network))
        else:
            place = ctypes.addressof(room) + at
            api.open_memory(api.library, place, len(data), ctypes.byref(network))
        session = api.session(network)
        found.append([api.ask(session, x).scores().tobytes() for x in INPUTS["tiny"]])
        api.session_close(session)
        api.close(network)
    assert found[0] == found[1] == found[2]
    with pytest.raises(Failed, match="multiple of 64"):
        api.open_memory(api.library, place + 4, len(data), ctypes.byref(network))
    with pytest.raises(Failed, match="cannot be opened: No such file") as error:
        api.open(api.library, b"nowhere", ctypes.byref(network))
    assert error.value.status == "NO_FILE"


def test_messages_are_the_threads_own(net: Nets) -> None:
    told = []

    def other() -> None:
        told.append(net.api.message())
        with pytest.raises(Failed):
            net.open("b")
        told.append(net.api.message())

    with pytest.raises(Failed):
        net.open("a")
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert told[0] == b"" and b"`b`" in told[1] and b"`a`" in net.api.message()


def test_policies_that_need_python_are_told(artifacts: Artifacts, tmp_path: Path) -> None:
    made = tiny.contents(
        policies={"own": PolicyEntry(to_json(learning.Sending(0)))},
        default_policy=None, fitted={},
    )  # fmt: skip
    (tmp_path / "plan.bin").write_bytes(made.plan)
    (tmp_path / "weights.bin").write_bytes(networks.blob(made))
    api = artifacts.apis["tiny"]
    if networks.contents("tiny").library != made.library:
        pytest.skip("the library was compiled anew")
    with api.opened(tmp_path) as network:
        with pytest.raises(Failed, match="needs eecompile's Python runtime") as error:
            api.session(network, "own")
        assert error.value.status == "UNSUPPORTED"
        session = api.session(network)  # Without a default, decisions are off.
        assert api.ask(session, INPUTS["tiny"][0]).heads_run == 0
        api.session_close(session)


def test_rules_are_stored_as_they_are_written() -> None:
    """What the tests above compare with is what the plan was written from."""
    entry = networks.contents("tiny").policies["halted"]
    assert HaltRule.from_json(entry.halt) == HaltRule(macs=0.02)
    assert asdict(HaltRule(macs=0.02)) == entry.halt
    assert isinstance(from_json(networks.contents("tiny").policies["never"].rule), NeverPolicy)
    assert os.path.exists(networks.ODD)


def test_plans_of_absurd_sizes_are_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    """Whole and unchanged as they are: what they ask for is compared with what the code says."""
    made, api = networks.contents("tiny"), artifacts.apis["tiny"]
    network = made.network
    first = network.segments[0]
    assert isinstance(first, Function)

    def with_first(function: Function) -> CompiledGraph:
        return replace(network, segments=(function, *network.segments[1:]))

    many = replace(first, work=Work(macs=2**52))
    forged = {
        "inputs that nothing reads are large": replace(
            network, inputs=(*network.inputs, ("more", TensorType("int64", (1, 64, 2**30))))
        ),
        "multiply-accumulates is too large": with_first(many),
        "values have other sizes": with_first(
            replace(first, outputs=(("a", TensorType("float32", (1, 5))), tiny.B))
        ),
        "other inputs": with_first(replace(first, inputs=(tiny.X, tiny.X))),
        "a function reads what is not there yet": replace(
            network, segments=(network.segments[1], network.segments[0], network.segments[2])
        ),
        "the library has not": with_first(replace(first, symbol="system")),
    }
    for words, graph in forged.items():
        contents = replace(made, network=graph, costs=None, policies={}, default_policy=None)
        (tmp_path / "plan.bin").write_bytes(plan_bytes(contents))
        (tmp_path / "weights.bin").write_bytes(networks.blob(made))
        with pytest.raises(Failed, match=words) as error, api.opened(tmp_path):
            pass
        assert error.value.status == "BAD_ARTIFACT"
