"""Budgets in C, against the rule in Python: what is refused, what fits, how whole ways end."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eecompile.board import DvfsState
from eecompile.compiled import (
    CompiledExit,
    CompiledGraph,
    CompiledSegment,
    CompiledStep,
    Function,
)
from eecompile.cost import Work
from eecompile.cost_table import Cost, CostRow, CostTable
from eecompile.diagnostics import CompileErrors
from eecompile.halt_rule import HaltRule
from eecompile.ir import TensorType
from eecompile.manifest import Manifest, TargetInfo
from eecompile.policies import (
    EXIT,
    ExitOutputs,
    ExitPolicy,
    HaltedPolicy,
    NeverPolicy,
    PatiencePolicy,
    ThresholdPolicy,
    replay,
)
from eecompile.runtime import halting as python_halting
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.halting import Account, Halting
from eecompile.runtime.library import Library
from eecompile.runtime.piece_costs import PieceCosts
from eecompile.runtime.single import Singles
from eecompile.runtime.stopping import StopWords
from tests.native.conftest import Compile
from tests.runtime import gated, tiny

OK, BAD_ARGUMENT, INFEASIBLE = 0, 1, 8
DRIVER = Path(__file__).with_name("halting_driver.c")
TICK_NS = 1_953_125  # 1/512 s: a whole number of nanoseconds, and exact in binary.
GUARD = -12345.0


class Rule(ctypes.Structure):
    """halt_rule_t."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("macs", "latency_s", "energy_j"))

    @classmethod
    def of(cls, rule: HaltRule) -> Rule:
        values = (rule.macs, rule.latency_s, rule.energy_j)
        return cls(*(nan if value is None else value for value in values))


@pytest.fixture(scope="module")
def native(compiled: Compile) -> ctypes.CDLL:
    found = compiled(["errors.c"], DRIVER.read_text())
    found.said.restype = ctypes.c_char_p
    found.plan_make.restype = ctypes.c_void_p
    found.halting_bytes.restype = ctypes.c_size_t
    found.pace.restype = ctypes.c_double
    for name in ("affords", "goes_on", "tries"):
        getattr(found, f"halting_{name}").restype = ctypes.c_bool
    return found


class Native:
    """A `halting_t`, of a plan as `CompiledGraph` and `CostTable` tell it; asked as an `Account`.

    What lies behind its memory is looked at: nobody may have written there.
    """

    def __init__(self, code: ctypes.CDLL, network: CompiledGraph, table: CostTable | None) -> None:
        self.code = code
        self._kept: list[Any] = []
        self._plan = ctypes.c_void_p(_plan(code, network, table, self._kept))
        words = code.halting_bytes(self._plan) // 8
        self._memory = np.zeros(words + 4)
        self._memory[words:] = GUARD
        self._place = ctypes.c_void_p(self._memory.ctypes.data)

    def set(self, rule: HaltRule, *, gates: bool = True) -> int:
        status: int = self.code.halting_set(
            self._place, self._plan, ctypes.byref(Rule.of(rule)), ctypes.c_bool(gates)
        )
        assert self._memory[-4:].tolist() == [GUARD] * 4
        return status

    @property
    def said(self) -> str:
        found: bytes = self.code.said()
        return found.decode()

    @property
    def pace(self) -> float:
        found: float = self.code.pace(self._place)
        return found

    def close(self) -> None:
        self.code.plan_drop(self._plan)

    def begin(self, start_ns: int) -> None:
        self.code.halting_begin(self._place, ctypes.c_int64(start_ns))

    def account(self, start: float) -> Native:
        """As `Halting.account`, which the runtime asks for."""
        self.begin(round(start * 1e9))
        return self

    def segment(self, index: int, macs: int) -> None:
        self.code.halting_segment(self._place, index, ctypes.c_int64(macs))

    def head(self, index: int) -> None:
        self.code.halting_head(self._place, index)

    def affords(self, index: int) -> bool:
        return bool(self.code.halting_affords(self._place, index))

    def goes_on(self, index: int) -> bool:
        return bool(self.code.halting_goes_on(self._place, index))

    def tries(self, index: int, program: Any) -> bool:
        address = None if program is None else ctypes.c_void_p(program.address)
        return bool(self.code.halting_tries(self._place, index, address))


def _plan(
    code: ctypes.CDLL, network: CompiledGraph, table: CostTable | None, kept: list[Any]
) -> int:
    """The address of a plan_t; what it refers to is added to `kept`."""

    def numbers(values: Any, dtype: type) -> ctypes.c_void_p:
        kept.append(np.array(values, dtype))
        return ctypes.c_void_p(kept[-1].ctypes.data)

    first, segments, steps = 0, [], []
    for part in network.segments:
        end = first + len(part.steps)
        segments.append([first, end, part.macs, part.gates_macs, part.gated])
        first = end
        for step in part.steps:
            macs = step.function.macs
            steps.append([macs, step.gate, bool(step.keep), step.groups, step.group_macs])
    names = (ctypes.c_char_p * (len(network.exits) + 1))(*(e.name.encode() for e in network.exits))
    kept.append(names)
    counts, hertz = [len(segments), len(network.exits), len(steps), 0, 0], nan
    tables: list[ctypes.c_void_p | None] = [None, None]
    if table is not None:
        rows = [*table.segments, *table.exits, *table.steps]
        counts[3:] = [len(table.states), len(table.steps)]
        costs = [[cost or Cost(nan) for cost in row.costs] for row in rows]
        tables = [
            numbers([[cost.latency_s for cost in row] for row in costs], np.float64),
            numbers(
                [[nan if c.energy_j is None else c.energy_j for c in row] for row in costs],
                np.float64,
            ),
        ]
        hertz = table.states[0].frequency_hz or nan
    found: int = code.plan_make(
        numbers(counts, np.uint32),
        numbers(segments, np.int64),
        numbers([exit_.macs for exit_ in network.exits] or [0], np.int64),
        numbers(steps, np.int64),
        names,
        *tables,
        ctypes.c_double(hertz),
    )
    return found


# -- random networks: costs are whole numbers of 1/1024, so that sums are exact -----------------


@dataclass(frozen=True)
class Case:
    network: CompiledGraph
    table: CostTable | None


def function(macs: int, groups: int = 0) -> Function:
    value = ("groups", TensorType("float32", (1, groups)))
    return Function("f", (value,) * bool(groups), (), 0, 0, 1, Work(macs=macs))


@st.composite
def steps(draw: Any) -> CompiledStep:
    macs, gate = draw(st.integers(0, 1000)), draw(st.booleans())
    groups = 0 if gate else draw(st.integers(0, 3))
    group = draw(st.integers(0, macs // groups)) if groups else 0
    keep = "keep" if draw(st.booleans()) else ""
    return CompiledStep(function(macs, groups), gate, keep, "", "groups" if groups else "", group)


def segments(gates: bool) -> st.SearchStrategy[Function | CompiledSegment]:
    plain = st.integers(0, 1000).map(function)
    if not gates:
        return plain
    stepwise = st.lists(steps(), min_size=1, max_size=4)
    return st.one_of(plain, stepwise.map(lambda found: CompiledSegment((), (), tuple(found))))


@st.composite
def cases(draw: Any, gates: bool = True) -> Case:
    exits = draw(st.integers(0, 4))
    parts = draw(st.lists(segments(gates), min_size=exits + 1, max_size=exits + 1))
    parts.append(parts.pop(0))  # The first thing that gets simpler is then not the first segment.
    heads = [function(draw(st.integers(1, 1000))) for _ in range(exits)]
    network = CompiledGraph(
        *("random", (), "logits", 3, tuple(parts)),
        tuple(CompiledExit(f"exit{i}", "", i, head) for i, head in enumerate(heads)),
    )
    assume(network.macs > 0)
    if draw(st.integers(0, 9)) == 0:
        return Case(network, None)
    states = draw(st.integers(1, 3))
    holes = draw(st.sampled_from([0, 0, 0, 8]))  # Of how many figures one is not known.

    def row(name: str) -> CostRow:
        costs: list[Cost | None] = []
        for _ in range(states):
            latency, energy = (draw(st.integers(1, 64)) / 1024 for _ in range(2))
            what = draw(st.integers(0, holes)) if holes else 0
            cost = Cost(latency, None if what == 1 else energy)
            costs.append(None if what == 2 else cost)
        return CostRow(name, Work(), tuple(costs))

    count = sum(len(part.steps) for part in parts if part.gated)
    table = CostTable(
        *("host", "board", None, 1),
        tuple(DvfsState("cpu", 1e9 + i) for i in range(states)),
        tuple(row(f"segment{i}") for i in range(exits + 1)),
        tuple(row(f"exit{i}") for i in range(exits)),
        steps=tuple(row(f"step{i}") for i in range(count)),
    )
    return Case(network, table)


@st.composite
def rules(draw: Any) -> HaltRule:
    """Limits from what few answers keep to what all do."""
    macs = st.integers(1, 2048).map(lambda k: k / 512)
    costs = st.integers(1, 512).map(lambda k: k / 1024)
    names = draw(st.sets(st.sampled_from(["macs", "latency_s", "energy_j"]), min_size=1))
    return HaltRule(**{name: draw(macs if name == "macs" else costs) for name in sorted(names)})


@pytest.fixture()
def opened(native: ctypes.CDLL) -> Iterator[Callable[[Case], Native]]:
    made: list[Native] = []

    def open_(case: Case) -> Native:
        made.append(Native(native, case.network, case.table))
        return made[-1]

    yield open_
    for one in made:
        one.close()


many = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@many
@given(case=cases(), rule=rules(), gates=st.booleans())
def test_the_same_rules_are_refused_in_the_same_words(
    opened: Callable[[Case], Native], case: Case, rule: HaltRule, gates: bool
) -> None:
    pieces = PieceCosts(case.network, case.table, gates=gates)
    asked = opened(case)
    status = asked.set(rule, gates=gates)
    try:
        pieces.limits(rule)
    except CompileErrors as refused:
        (found,) = refused.diagnostics
        assert status == {"infeasible-budget": INFEASIBLE, "unknown-costs": BAD_ARGUMENT}[found.id]
        if status == INFEASIBLE:
            assert found.message.lower() in named_alike(asked.said)
            for note in found.notes:
                cheapest = note.removeprefix("the cheapest is ").partition(" on ")[0]
                assert cheapest in asked.said
        else:
            (what,) = {"energy", "latency"} & set(found.message.split())
            assert f"takes of {what} is not known" in asked.said
    else:
        assert status == OK


def named_alike(message: str) -> str:
    """Limits in the order in which Python tells them: multiply-accumulates, time, energy."""
    what, _, rest = message.partition("`")
    limits, _, rest = rest.partition("`")
    ordered = sorted(limits.split(", "), key=lambda one: "mle".index(one[0]))
    return f"{what}`{', '.join(ordered)}`{rest}".lower()


# -- accounts -----------------------------------------------------------------------------------


class Spent(ctypes.Structure):
    """tally_t."""

    _fields_ = (
        ("macs", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("spent", ctypes.c_double),
        ("stopped", ctypes.c_int64),
    )


class Limited:
    """What an account reads and sets of a program, without code for its steps."""

    def __init__(self, count: int) -> None:
        words = 17  # step_t: `need` is the last.
        self._steps, self._tally = np.zeros((count, words)), Spent()
        self.table = {"need": self._steps[:, -1]}
        header = [self._steps.ctypes.data, count, ctypes.addressof(self._tally), 0, 1, 0, 0]
        self._header = np.array([*header, 0, 0, 0], np.int64)
        self.address = self._header.ctypes.data

    @property
    def macs(self) -> int:
        return int(self._tally.macs)

    @macs.setter
    def macs(self, macs: int) -> None:
        self._tally.macs = macs

    def limit(self, budget: float, start_ns: int | None = None) -> None:
        self._header[6], self._header[8] = 1 if start_ns is None else 2, start_ns or 0
        self._header[7:8].view(np.float64)[:] = budget

    @property
    def limits(self) -> tuple[int, float, int]:
        """How it is limited, the budget, the start."""
        budget = self._header[7:8].view(np.float64)[0]
        return int(self._header[6]), float(budget), int(self._header[8])


@many
@given(case=cases(), data=st.data())
def test_accounts_agree_whatever_is_spent(
    opened: Callable[[Case], Native], case: Case, data: st.DataObject
) -> None:
    """Rule after rule, sample after sample: the pace goes on."""
    paces = {gates: PieceCosts(case.network, case.table, gates=gates) for gates in (False, True)}
    both = case.network.gated
    asked, accounted = opened(case), False
    for _ in range(3):
        rule = data.draw(rules())
        gates = data.draw(st.booleans()) if both else True
        if asked.set(rule, gates=gates) != OK:
            continue
        halting = Halting(rule, paces[gates])
        accounted = True
        for _ in range(4):
            one_sample(case.network, halting, asked, data)
            assert asked.pace == pytest.approx(paces[gates].pace.factor, rel=1e-12)
    assume(accounted)


def one_sample(network: CompiledGraph, halting: Halting, asked: Native, data: Any) -> None:
    now = 0
    steps_ns = st.integers(0, 40).map(lambda k: k * TICK_NS)
    programs = [Limited(sum(len(part.steps) for part in network.segments)) for _ in range(2)]

    def pass_time() -> None:
        nonlocal now
        now += data.draw(steps_ns)
        asked.code.clock_set(ctypes.c_int64(now))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_halting, "perf_counter", lambda: now / 1e9)
        pass_time()
        account, last = Account(halting, halting._costs, 0.0), len(network.exits)
        asked.begin(0)
        for index in range(last):
            pass_time()
            macs = data.draw(st.integers(0, 1000))
            for program in programs:
                program.macs += macs
            account.segment(index, macs)
            asked.segment(index, macs)
            if data.draw(st.booleans()):
                pass_time()
                account.head(index)
                asked.head(index)
            for other in range(last):
                assert asked.affords(other) == account.affords(other)
            for other in range(-1, last):
                assert asked.goes_on(ctypes.c_uint32(other).value) == account.goes_on(other)
            assert asked.tries(index, None) is False
            tried = account.tries(index, programs[0])  # type: ignore[arg-type]
            assert asked.tries(index, programs[1]) == tried
            needs = [program.table["need"] for program in programs]
            np.testing.assert_allclose(needs[1], needs[0], rtol=1e-12)
            assert programs[1].limits == pytest.approx(programs[0].limits, rel=1e-12)


def test_a_call_that_began_at_any_time_has_all_of_its_budget(native: ctypes.CDLL) -> None:
    asked = Native(native, tiny.network(), tiny.costs(tiny.network(), 0.1))
    assert asked.set(HaltRule(latency_s=0.3)) == OK
    for start in (0, 10**15 + 1, 2**62):
        # Head and session's work need 0.1 s with the margin for a piece.
        for late_ns, affords in ((189_000_000, True), (191_000_000, False)):
            native.clock_set(ctypes.c_int64(start))
            asked.begin(start)
            native.clock_set(ctypes.c_int64(start + late_ns))
            asked.head(0)
            assert asked.affords(0) is affords
    asked.close()


def test_what_is_slow_now_is_reserved_for_more_and_another_rule_remembers(
    native: ctypes.CDLL,
) -> None:
    asked = Native(native, tiny.network(), tiny.costs(tiny.network(), 0.1))
    assert asked.set(HaltRule(latency_s=10.0)) == OK
    assert asked.pace == 1.1
    for times in (2.0, 0.1, 1000.0):
        for _ in range(6000):
            native.clock_set(ctypes.c_int64(0))
            asked.begin(0)
            native.clock_set(ctypes.c_int64(round(times * 1e8)))
            asked.segment(0, 1)
        assert asked.pace == pytest.approx(min(max(times, 0.5), 100.0), rel=0.03)
    assert asked.set(HaltRule(macs=0.5)) == OK
    assert asked.set(HaltRule(latency_s=1.0)) == OK
    assert asked.pace == pytest.approx(100.0)
    asked.close()


@pytest.mark.parametrize(
    ("rule", "status", "words"),
    [
        (Rule(nan, nan, nan), BAD_ARGUMENT, "there must be a limit"),
        (Rule(-0.5, nan, nan), BAD_ARGUMENT, "macs must be a finite number above 0"),
        (Rule(nan, inf, nan), BAD_ARGUMENT, "latency must be a finite number above 0"),
        (Rule(nan, nan, 1.0), BAD_ARGUMENT, "takes of energy is not known; halt by macs or lat"),
        (Rule(nan, 1e-3, nan), INFEASIBLE, "`latency <= 1 ms`: the cheapest is exit `early`"),
        (Rule(10 / 100101, nan, nan), INFEASIBLE, "exit `early` with 0.0109889 %"),
    ],
    ids=["none", "negative", "infinite", "unknown", "time", "macs"],
)
def test_what_is_refused_changes_nothing(
    native: ctypes.CDLL, rule: Rule, status: int, words: str
) -> None:
    asked = Native(native, tiny.network(), tiny.costs(tiny.network()))
    assert asked.set(HaltRule(macs=12 / 100101)) == OK
    found = native.halting_set(asked._place, asked._plan, ctypes.byref(rule), ctypes.c_bool(True))
    assert (found, words in asked.said) == (status, True), asked.said
    asked.begin(0)
    asked.segment(0, 1)
    assert asked.affords(0)
    assert not asked.goes_on(0)
    asked.close()


def test_without_costs_only_macs_are_known(native: ctypes.CDLL) -> None:
    asked = Native(native, tiny.network(), None)
    assert asked.set(HaltRule(latency_s=1.0)) == BAD_ARGUMENT
    assert asked.said.endswith("not known: the artifact has no costs; halt by macs")
    assert asked.set(HaltRule(macs=1.0)) == OK
    asked.close()


@pytest.mark.parametrize("point", [b".", b",", "\N{ARABIC DECIMAL SEPARATOR}".encode()])
def test_names_of_any_length_and_points_of_any_locale_fit(
    native: ctypes.CDLL, point: bytes
) -> None:
    network = tiny.network()
    exits = tuple(replace(exit_, name="n" * 5000) for exit_ in network.exits)
    asked = Native(native, replace(network, exits=exits), None)
    native.point_set(point)
    assert asked.set(HaltRule(macs=1e-5)) == INFEASIBLE
    native.point_set(b".")
    assert "`macs <= 0.001 %`: the cheapest is exit `nnn" in asked.said
    assert len(asked.said) < 1000
    asked.close()


# -- whole ways ---------------------------------------------------------------------------------


def policies(exits: int) -> list[ExitPolicy]:
    return [
        NeverPolicy(exits),
        ThresholdPolicy("max_softmax", [0.8] * exits),
        ThresholdPolicy("max_softmax", [inf if k % 2 else 0.7 for k in range(exits)]),
        *([PatiencePolicy(1, exits)] if exits else []),
    ]


def way(
    asked: Native, policy: ExitPolicy, outputs: list[ExitOutputs], row: int, macs: list[int]
) -> tuple[int, list[bool], bool]:
    """Where a sample leaves, whose heads ran, whether it was halted: as `Singles` goes."""
    last, due, state = len(outputs), policy.first(), policy.start(1)
    asked.begin(0)
    ran = [False] * last
    for index in range(last):
        asked.segment(index, macs[index])
        asks, wanted = index == due and asked.affords(index), last
        ends = not asks and not asked.goes_on(index)
        if asks or (ends and (not any(ran) or asked.affords(index))):
            ran[index] = True
            asked.head(index)
            if asks:
                rows = slice(row, row + 1)
                wanted = int(policy.decide(index, outputs[index].rows(rows), state)[0])
            ends = ends or wanted == EXIT or not asked.goes_on(index)
        if ends:
            return index, ran, wanted != EXIT
        if index >= due:
            due = wanted
    return last, ran, False


@many
@given(case=cases(gates=False), rule=rules(), seed=st.integers(0, 1000))
def test_ways_end_where_those_of_the_policy_do(
    opened: Callable[[Case], Native], case: Case, rule: HaltRule, seed: int
) -> None:
    untimed = {name: limit for name, limit in rule.given.items() if name != "latency_s"}
    assume(untimed)
    rule, asked = HaltRule(**untimed), opened(case)
    assume(asked.set(rule) == OK)
    limits, count = PieceCosts(case.network, case.table).limits(rule), len(case.network.exits)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count + 1, 6, 3)).astype(np.float32)
    outputs = [ExitOutputs(one) for one in logits[:count]]
    macs = [segment.macs for segment in case.network.segments]
    for policy in policies(count):
        found = replay(HaltedPolicy(policy, limits), outputs, logits[count])
        for row in range(6):
            told = found.exit[row], found.evaluated[row].tolist(), found.halted[row]
            assert way(asked, policy, outputs, row, macs) == told


def singles(library: Library, network: CompiledGraph) -> Singles:
    """What answers single samples by the rules in Python."""
    nothing: dict[str, Any] = {}
    target = TargetInfo("host", "host")
    manifest = Manifest("0", target, network, {}, None, (), None, nothing, {}, {})
    return Singles(library, manifest, None, [0] * len(network.exit_names))


def answers_of(asked: Singles, halting: Any, x: np.ndarray) -> list[tuple[Any, ...]]:
    how = Deciding(NeverPolicy(len(asked.stops)), halt=halting)
    answers = [asked.run(how, sample, False, StopWords().begin()) for sample in x]
    return [(a.exit, a.macs, a.halted, a.segments_run, a.logits.tolist()) for a in answers]


GATED_LIMITS = (1111, 5000, 10_011_011, 10_011_111, 10_500_000, 11_111_110, 11_112_000)


@pytest.mark.parametrize(
    ("module", "limits"),
    [(tiny, (11, 11101, 100100, 100101)), (gated, GATED_LIMITS)],
    ids=["tiny", "gated"],
)
def test_samples_of_real_networks_end_alike_with_either(
    native: ctypes.CDLL, module: Any, limits: tuple[int, ...]
) -> None:
    """With steps that gates leave out, the program of which is the one that C limits."""
    network = module.network()
    code, asked = Library(module.machine_code(), tiny.WEIGHTS), Native(native, network, None)
    net, pieces = singles(code, network), PieceCosts(network, None)
    x, seen = module.inputs(60), set()
    for macs in limits:
        rule = HaltRule(macs=macs / network.macs)
        expected = answers_of(net, Halting(rule, pieces), x)
        assert asked.set(rule) == OK
        assert answers_of(net, SimpleNamespace(account=asked.account), x) == expected
        seen |= {(exit_, halted) for exit_, _, halted, *_ in expected}
    assert ("final", False) in seen
    assert len(seen) > 1
    asked.close()
