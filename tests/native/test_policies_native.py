"""Policies in C, against the rules in Python: the same exits, answers and learning."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import inf, nan
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eecompile.native_policies import DEEPEST, policy_bytes
from eecompile.policies import (
    EXIT,
    OFFLOAD,
    ClassMeansPolicy,
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    HaltedPolicy,
    LearnedScorePolicy,
    NeverPolicy,
    PatiencePolicy,
    PredictedPolicy,
    SpendingLimit,
    SplitCosts,
    SplitPolicy,
    ThresholdPolicy,
    UcbOptions,
    from_json,
    to_json,
)
from eecompile.policies.learned_score import MEASURES, probabilities_used
from eecompile.policies.scores import SCORES
from tests.native.conftest import NATIVE, Compile

Array = np.ndarray[Any, Any]
DRIVER = Path(__file__).parent / "policies_driver.c"
SOURCES = ("reader.c", "policies.c", "policy_reading.c")

#: What an exit has.
HEAD, COMPARATOR, BOTH = 1, 2, 3

#: What scores may differ by: those in C are computed with other roundings.
CLOSE = 1e-6

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Native:
    """A policy in C. Arrays are float32 (classes,)."""

    def __init__(self, library: ctypes.CDLL, handle: int, exits: int, classes: int) -> None:
        self.library, self.handle, self.exits, self.classes = library, handle, exits, classes

    def first(self) -> int:
        return int(self.library.driver_first(self.handle))

    def decide(self, index: int, outputs: ExitOutputs) -> int:
        found = self.library.driver_decide(self.handle, index, *_addresses(outputs))
        return int(found)

    def answers_with_means(self, outputs: ExitOutputs) -> bool:
        logits, means = _addresses(outputs)
        found = self.library.driver_answer(self.handle, logits, means)
        assert found in (logits, means)
        return bool(found != logits)

    def learn(self, final: Array | None, here: bool) -> None:
        address = None if final is None else final.ctypes.data
        self.library.driver_learn(self.handle, address, here)

    def learned(self) -> Array:
        """float64; what is written to it is known from now on."""
        count = ctypes.c_size_t()
        address = self.library.driver_learned(self.handle, ctypes.byref(count))
        if not count.value:
            return np.zeros(0)
        return np.ctypeslib.as_array((ctypes.c_double * (count.value // 8)).from_address(address))

    def is_sound(self, learned: Array) -> bool:
        odd = b"?" + learned.tobytes()  # at no alignment in particular
        buffer = ctypes.create_string_buffer(odd, len(odd))
        return bool(self.library.driver_is_sound(self.handle, ctypes.addressof(buffer) + 1))

    def reset(self) -> None:
        self.library.driver_reset(self.handle)

    def about(self) -> tuple[float, bool, bool]:
        """Gates' shift, whether it forecasts, whether it offloads."""
        forecasts, offloads = ctypes.c_int(), ctypes.c_int()
        shift = self.library.driver_about(
            self.handle, ctypes.byref(forecasts), ctypes.byref(offloads)
        )
        return shift, bool(forecasts.value), bool(offloads.value)


def _addresses(outputs: ExitOutputs) -> tuple[int, int | None]:
    means = outputs.class_means
    return outputs.logits.ctypes.data, None if means is None else means.ctypes.data


#: Opens a policy, or bytes of one; a text says why it was refused.
Open = Callable[..., Any]


@pytest.fixture(scope="session")
def library(compiled: Compile) -> ctypes.CDLL:
    found = compiled(SOURCES, DRIVER.read_text())
    found.driver_open.restype = ctypes.c_void_p
    found.driver_answer.restype = ctypes.c_void_p
    found.driver_learned.restype = ctypes.c_void_p
    found.driver_about.restype = ctypes.c_double
    handle, pointer = ctypes.c_void_p, ctypes.c_void_p
    found.driver_open.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint32),
        pointer,
    ]
    for name in ("close", "first", "reset"):
        getattr(found, f"driver_{name}").argtypes = [handle]
    found.driver_decide.argtypes = [handle, ctypes.c_uint32, pointer, pointer]
    found.driver_answer.argtypes = [handle, pointer, pointer]
    found.driver_learn.argtypes = [handle, pointer, ctypes.c_int]
    found.driver_learned.argtypes = [handle, pointer]
    found.driver_is_sound.argtypes = [handle, pointer]
    found.driver_about.argtypes = [handle, pointer, pointer]
    return found


@pytest.fixture
def opened(library: ctypes.CDLL) -> Iterator[Open]:
    handles: list[int] = []

    def open_(
        policy: ExitPolicy | bytes, exits: int, classes: int, has: Sequence[int] | None = None
    ) -> Native | str:
        code = policy if isinstance(policy, bytes) else policy_bytes(policy)
        why = ctypes.c_char_p()
        handle = library.driver_open(
            *(code, len(code), exits, bytes(has or [BOTH] * exits), classes, ctypes.byref(why))
        )
        if not handle:
            return (why.value or b"").decode()
        handles.append(handle)
        return Native(library, handle, exits, classes)

    yield open_
    for handle in handles:
        library.driver_close(handle)


# -- ways ------------------------------------------------------------------------------------------


def nearby(policy: ExitPolicy) -> list[ExitPolicy]:
    """The policy, and with all its thresholds a little lower and higher."""

    def moved(value: Mapping[str, Any], by: float) -> dict[str, Any]:
        scale = 1.0
        if value["kind"] == "learned_score":
            sums = [np.abs(row).sum() for row in value["weights"] if row is not None]
            scale += 24 * max(sums, default=0.0)  # features reach 11.5
        if value["kind"] == "predicted":
            scale += max(t or 0.0 for t in value["thresholds"])
        found = dict(value)
        if "thresholds" in value:
            found["thresholds"] = [
                t if t is None else max(0.0, t + by * scale) for t in value["thresholds"]
            ]
        if value.get("limits"):
            found["limits"] = [
                own and [t if t is None else t + by * scale for t in own] for own in value["limits"]
            ]
        if "rules" in value:
            found["rules"] = [moved(rule, by) for rule in value["rules"]]
        return found

    return [policy, *(from_json(moved(to_json(policy), by)) for by in (-CLOSE, CLOSE))]


def follow(
    native: Native, policy: ExitPolicy, outputs: Sequence[ExitOutputs], every: bool = False
) -> tuple[int, int]:
    """One sample's way through the exits it is sent to, or `every` one; asserts it is the same.

    Returns:
        How many decisions there were, and how many of them were exactly those of `policy`.
    """
    policies = nearby(policy)
    index, made, equal = policies[0].first(), 0, 0
    states = [one.start(1) for one in policies]
    assert native.first() == index
    index = 0 if every else index
    while 0 <= index < native.exits:
        seen = outputs[index]
        wanted = [
            int(one.decide(index, seen, state)[0])
            for one, state in zip(policies, states, strict=True)
        ]
        found = native.decide(index, seen)
        assert found in wanted, (index, seen)
        answer = policies[0].answer(index, seen)
        assert native.answers_with_means(seen) == (answer is seen.class_means)
        made, equal = made + 1, equal + (found == wanted[0])
        index = index + 1 if every else found
    return made, equal


def samples(
    count: int, has: Sequence[int], classes: int, seed: int, odd: float = 0.0
) -> list[list[ExitOutputs]]:
    """Outputs of each exit, by sample; a share of the logits are `odd`: no or infinite numbers."""
    random = np.random.default_rng(seed)
    shape = (count, len(has), 2, classes)
    z = random.normal(size=shape) * random.choice([0.3, 2.0, 6.0], (*shape[:3], 1))
    strange = random.choice([nan, inf, -inf, 3e38, -3e38, 0.0], shape)
    z = np.where(random.random(shape) < odd, strange, z).astype(np.float32)
    return [
        [
            ExitOutputs(own[what == COMPARATOR :][:1].copy(), own[1:2] if what & 2 else None)
            for what, own in zip(has, one, strict=True)
        ]
        for one in z
    ]


def score_row(random: np.random.Generator, exit_: int, exits: int, classes: int) -> list[float]:
    """Weights, some of them 0; no margins of a single class."""
    shares = random.normal(size=probabilities_used(classes)) * (random.random() < 0.7)
    own = random.normal(size=len(MEASURES)) * (random.random(len(MEASURES)) < 0.5)
    before = random.normal(size=exits) * (random.random() < 0.7) * (np.arange(exits) < exit_)
    own[2:] *= classes > 1
    return [float(weight) for weight in np.array([*shares, *own, *before], np.float32)]


SPLIT_COSTS = SplitCosts((0.25, 0.5, 0.75, 1.0), (0.01, 0.02, 0.03), 0.3)


def policies_for(classes: int) -> dict[str, ExitPolicy]:
    """Every kind in every form, for three exits."""
    random = np.random.default_rng(classes)
    level = 1 / classes  # nothing is less sure
    t = [level + (1 - level) * share for share in (0.7, 0.5, 0.3)]
    scores = [score for score in SCORES if classes > 1 or score != "margin"]
    found: dict[str, ExitPolicy] = {s: ThresholdPolicy(s, t) for s in scores}
    found["far_apart"] = ThresholdPolicy("max_softmax", [inf, t[1], inf])
    found["never_there"] = ThresholdPolicy("max_softmax", [inf] * 3)
    found["class_means"] = ClassMeansPolicy(t)
    found["patience"], found["more_patience"] = PatiencePolicy(1, 3), PatiencePolicy(2, 3)
    found["never"] = NeverPolicy(3, gate_shift=-0.5)
    for activation, high in (("logits", 6.0), ("probability", 2.0)):
        for forecast in ("class_order", "sorted", "fitted"):
            limits = [[high / 2, high / 3], None, [inf, 0.1]] if forecast == "fitted" else None
            found[f"predicted_{activation}_{forecast}"] = PredictedPolicy(
                *([high, high / 2, high / 3], 0, 3),
                activation=activation,
                forecast=forecast,
                limits=limits,
            )
    found["predicted_gap"] = PredictedPolicy([inf, 3.0, inf], 1, 2)
    for seed in range(3):
        rows = [score_row(random, k, 3, classes) for k in range(3)]
        found[f"learned_{seed}"] = LearnedScorePolicy(rows, random.normal(size=3).tolist())
    found["learned_gap"] = LearnedScorePolicy([rows[0], None, rows[2]], [0.1, inf, 0.2])
    for score in (*scores, "class_means"):
        found[f"split_{score}"] = SplitPolicy(score, t, [0, 2], SPLIT_COSTS, at=2)
    for observations in ("own", "side"):
        options = UcbOptions(observations=observations)
        found[f"bandit_{observations}"] = SplitPolicy(
            *(scores[0], t, [0, 1, 2]), SPLIT_COSTS, options
        )
    found["bandit_end"] = SplitPolicy(scores[0], t, [], SPLIT_COSTS, UcbOptions())
    few = [found["class_means"], ThresholdPolicy("entropy", [inf, inf, 0.2]), found["patience"]]
    found["either"] = EitherPolicy(few)
    found["either_all"] = EitherPolicy(
        [found["learned_gap"], found["predicted_gap"], found["never"]]
    )
    found["either_nested"] = EitherPolicy(
        [EitherPolicy([found["more_patience"], found["predicted_logits_sorted"]]), *few]
    )
    found["either_split"] = EitherPolicy([found["split_class_means"], found["bandit_own"]])
    return found


CASES = [(classes, name) for classes in (1, 2, 10, 200) for name in policies_for(classes)]


@pytest.mark.parametrize(("classes", "name"), CASES, ids=str)
def test_decides_as_the_rule_in_python(opened: Open, classes: int, name: str) -> None:
    policy = policies_for(classes)[name]
    native = opened(policy, 3, classes)
    with np.errstate(all="ignore"):
        for number, outputs in enumerate(samples(24, [BOTH] * 3, classes, seed=classes)):
            made, equal = follow(native, policy, outputs, every=number % 2 == 1)
            assert equal == made  # no score of these is within a rounding of its threshold


@pytest.mark.parametrize(("classes", "name"), CASES, ids=str)
def test_logits_that_are_no_numbers_change_nothing(opened: Open, classes: int, name: str) -> None:
    policy = policies_for(classes)[name]
    native = opened(policy, 3, classes)
    with np.errstate(all="ignore"):
        for share in (0.01, 0.2, 1.0):
            for number, outputs in enumerate(samples(8, [BOTH] * 3, classes, 1, odd=share)):
                made, equal = follow(native, policy, outputs, every=number % 2 == 1)
                assert equal == made


@st.composite
def any_policy(draw: st.DrawFn, exits: int, classes: int, deep: int = 2) -> ExitPolicy:
    kinds = ["threshold", "class_means", "patience", "never", "predicted", "learned", "split"]
    kind = draw(st.sampled_from(kinds + ["either"] * (deep > 0)))

    def limits(most: float) -> list[float]:
        one = st.floats(0, most) | st.just(inf)
        return draw(st.lists(one, min_size=exits, max_size=exits))

    scores = [score for score in SCORES if classes > 1 or score != "margin"]
    if kind == "either":
        rules = st.lists(any_policy(exits, classes, deep - 1), min_size=1, max_size=3)
        return EitherPolicy(draw(rules))
    if kind == "threshold":
        return ThresholdPolicy(draw(st.sampled_from(scores)), limits(1.0))
    if kind == "class_means":
        return ClassMeansPolicy(limits(1.0))
    if kind == "patience":
        return PatiencePolicy(draw(st.integers(1, exits + 1)), exits)
    if kind == "never":
        return NeverPolicy(exits)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "learned":
        thresholds = limits(3.0)
        rows = [
            None if t == inf and random.random() < 0.5 else score_row(random, k, exits, classes)
            for k, t in enumerate(thresholds)
        ]
        return LearnedScorePolicy(rows, thresholds)
    if kind == "split":
        at = draw(st.sets(st.integers(0, exits - 1), min_size=1))
        costs = SplitCosts((0.5,) * (exits + 1), (0.1,) * exits, 0.2)
        return SplitPolicy(
            *(draw(st.sampled_from([*scores, "class_means"])), limits(1.0), sorted(at), costs),
            at=draw(st.sampled_from(sorted(at))),
        )
    thresholds, start = limits(7.0), draw(st.integers(0, exits - 1))
    thresholds[start] = draw(st.floats(0, 7.0))
    window = draw(st.integers(1, exits + 1))
    forecast = draw(st.sampled_from(["class_order", "sorted", "fitted"]))
    falling = -np.sort(-random.random((exits, min(window, exits) - 1)) * 7)
    return PredictedPolicy(
        *(thresholds, start, window),
        activation=draw(st.sampled_from(["logits", "probability"])),
        forecast=forecast,
        limits=falling.tolist() if forecast == "fitted" else None,
    )


@settings(QUICK, max_examples=250)
@given(data=st.data())
def test_any_policy_sends_samples_the_same_way(opened: Open, data: st.DataObject) -> None:
    exits, classes = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 2, 10, 200]))
    policy = data.draw(any_policy(exits, classes))
    native = opened(policy, exits, classes)
    assert isinstance(native, Native), native
    odd = data.draw(st.sampled_from([0.0, 0.05]))
    ways = samples(4, [BOTH] * exits, classes, data.draw(st.integers(0, 2**32)), odd)
    with np.errstate(all="ignore"):
        for number, outputs in enumerate(ways):
            follow(native, policy, outputs, every=number % 2 == 1)


def test_a_score_that_equals_its_threshold_reaches_it(opened: Open) -> None:
    half = ExitOutputs(np.zeros((1, 2), np.float32))
    for policy in (ThresholdPolicy("max_softmax", [0.5]), PredictedPolicy([0.0], 0, 1)):
        assert opened(policy, 1, 2).decide(0, half) == EXIT
    above = ThresholdPolicy("max_softmax", [float(np.nextafter(np.float32(0.5), np.float32(1)))])
    assert opened(above, 1, 2).decide(0, half) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_logits_that_are_no_numbers(opened: Open, measure: str) -> None:
    values = [nan, inf, -inf, 0.0, 1.0, 3e38, -3e38]
    z = np.array(list(product(values, repeat=3)), np.float32)
    row = [0.0] * 3 + [float(measure == other) for other in MEASURES] + [0.0]
    for threshold in (-1.0, 0.2, 0.9, 5.0, 11.4):
        policy = LearnedScorePolicy([row], [threshold])
        native = opened(policy, 1, 3)
        with np.errstate(all="ignore"):
            wanted = policy.decide(0, ExitOutputs(z), None).tolist()
        assert [native.decide(0, ExitOutputs(z[k : k + 1])) for k in range(len(z))] == wanted


@pytest.mark.parametrize("classes", [3, 70])
@pytest.mark.parametrize("forecast", ["class_order", "sorted"])
@pytest.mark.parametrize("last", [inf, 300.0], ids=str)
def test_forecasts_that_reach_far(opened: Open, classes: int, forecast: str, last: float) -> None:
    thresholds = [6.0, 12.0, inf, 30.0, 55.0, 90.0, 160.0, last]
    policy = PredictedPolicy(thresholds, 0, 8, forecast=forecast)
    native, ways = opened(policy, 8, classes), set()
    for outputs in samples(60, [HEAD] * 8, classes, seed=5):
        made, equal = follow(native, policy, outputs, every=True)
        assert (made, equal) == (8, 8)
        ways.add(native.decide(0, outputs[0]))
    assert len(ways) > 2


def test_a_forecast_that_equals_a_threshold_does_not_exceed_it(opened: Open) -> None:
    native = opened(PredictedPolicy([5.0, 2.0, 1.0], 0, 3), 3, 3)
    assert native.decide(0, ExitOutputs(np.array([[1, 1, 0]], np.float32))) == 2


def test_no_surprise_is_infinite(opened: Open) -> None:
    sure = ExitOutputs(np.array([[1000, 0]], np.float32))
    for threshold, due in ((44.3, EXIT), (50.0, 1)):
        policy = PredictedPolicy([threshold], 0, 1, activation="probability")
        assert policy.decide(0, sure, None).item() == due
        assert opened(policy, 1, 2).decide(0, sure) == due


def test_exits_without_a_comparator_or_a_head(opened: Open) -> None:
    has = [HEAD, COMPARATOR, BOTH]
    rules = [ClassMeansPolicy([0.0, 0.3, 0.3]), ThresholdPolicy("margin", [0.9, 0.4, 0.9])]
    split = SplitPolicy("class_means", [inf, 0.3, 0.3], [1, 2], SPLIT_COSTS, at=2)
    for policy in (*rules, EitherPolicy(rules), split):
        native = opened(policy, 3, 4, has)
        for number, outputs in enumerate(samples(24, has, 4, seed=3)):
            made, equal = follow(native, policy, outputs, every=number % 2 == 1)
            assert made == equal


def test_what_a_policy_is(opened: Open) -> None:
    found = {name: opened(policy, 3, 10) for name, policy in policies_for(10).items()}
    about = {name: native.about() for name, native in found.items()}
    assert {name for name, (shift, _, _) in about.items() if shift} == {"never"}
    assert about["never"][0] == -0.5
    forecasts = {name for name, (_, yes, _) in about.items() if yes}
    assert forecasts == {name for name in found if name.startswith("predicted")}
    offloads = {name for name, (_, _, yes) in about.items() if yes}
    assert offloads == {name for name in found if "split" in name or "bandit" in name}
    learns = {name for name, native in found.items() if len(native.learned())}
    assert learns == {"bandit_own", "bandit_side", "bandit_end"}


# -- learning --------------------------------------------------------------------------------------


def flat(memory: Mapping[str, Any]) -> Array:
    """What a bandit remembers, as it lies there in C."""
    single = [memory[key] for key in ("rounds", "asked", "vain")]
    lists = [memory[key] for key in ("counts", "sums", "known_counts", "known_sums")]
    return np.array([*single, *(number for own in lists for number in own)])


def remembered(learned: Array, arms: int) -> dict[str, Any]:
    """The inverse of `flat`; `arms` with the network's end."""
    numbers = learned.tolist()
    ends = np.cumsum([3, arms, arms, arms - 1, arms - 1]).tolist()
    keys = ("counts", "sums", "known_counts", "known_sums")
    found = {key: numbers[a:b] for key, a, b in zip(keys, ends, ends[1:], strict=False)}
    return {**found, **dict(zip(("rounds", "asked", "vain"), numbers, strict=False))}


OPTIONS = st.builds(
    UcbOptions,
    observations=st.sampled_from(["own", "side"]),
    unknown=st.sampled_from(["skip", "impute"]),
    discount=st.sampled_from([1.0, 0.99, 0.5]),
    exploration=st.floats(0, 2),
    weight=st.floats(0, 2),
)


def even(likely: int, classes: int) -> Array:
    """Logits that so many classes share: confidences are the same to the bit, however computed."""
    return np.array([[0.0] * likely + [-1e4] * (classes - likely)], np.float32)


def stream(
    native: Native, policy: SplitPolicy, exits: int, draw_logits: Callable[[], Array], seed: int
) -> Iterator[SimpleNamespace]:
    """Samples one by one through both, which learn; after each the split it was sent to."""
    random = np.random.default_rng(seed)
    for _ in range(60):
        outputs = [ExitOutputs(draw_logits()) for _ in range(exits)]
        index, state = policy.first(), policy.start(1)
        assert native.first() == index
        here, final = False, draw_logits()
        lost = random.random() < 0.1  # before it got to an exit
        while 0 <= index < exits and not lost:
            due = int(policy.decide(index, outputs[index], state)[0])
            assert native.decide(index, outputs[index]) == due
            index = due
        if index == OFFLOAD:
            here = bool(random.random() < 0.3)
        known = None if lost or index == EXIT or random.random() < 0.1 else final
        policy.learn(state, known, here)
        native.learn(known, here)
        yield SimpleNamespace(split=state.arm)


@QUICK
@given(options=OPTIONS, seed=st.integers(0, 2**32), arms=st.sets(st.integers(0, 2)))
def test_learns_what_the_bandit_in_python_learns(
    opened: Open, options: UcbOptions, seed: int, arms: set[int]
) -> None:
    random = np.random.default_rng(seed)
    policy = SplitPolicy("max_softmax", [0.5, 0.5, 0.3], sorted(arms), SPLIT_COSTS, options)
    native = opened(policy, 3, 5)

    def draw() -> Array:
        broken = random.random() < 0.05
        return np.full((1, 5), nan, np.float32) if broken else even(int(random.integers(1, 6)), 5)

    with np.errstate(all="ignore"):
        for _ in stream(native, policy, 3, draw, seed):
            assert native.learned().tolist() == flat(policy.memory()).tolist()
            assert native.is_sound(native.learned())


@pytest.mark.parametrize("score", ["max_softmax", "entropy", "margin"])
def test_learns_from_every_measure(opened: Open, score: str) -> None:
    random = np.random.default_rng(0)
    policy = SplitPolicy(
        *(score, [0.5, 0.4, 0.3], [0, 1, 2], SPLIT_COSTS, UcbOptions(observations="side"))
    )
    native = opened(policy, 3, 10)

    def draw() -> Array:
        return (random.normal(size=(1, 10)) * 3).astype(np.float32)

    splits = [one.split for one in stream(native, policy, 3, draw, 1)]
    assert set(splits) == {0, 1, 2, 3}  # it has tried all of them
    np.testing.assert_allclose(native.learned(), flat(policy.memory()), rtol=1e-5, atol=1e-6)


def test_class_means_are_learned_from_by_their_softmax(opened: Open) -> None:
    policy = SplitPolicy("class_means", [0.9, 0.9, 0.9], [0, 1], SPLIT_COSTS, UcbOptions())
    native = opened(policy, 3, 4)
    for likely in (1, 2, 3, 4):
        outputs = ExitOutputs(even(1, 4), even(likely, 4))
        index, state = policy.first(), policy.start(1)
        assert native.first() == index
        if index < 3:
            policy.decide(index, outputs, state)
            native.decide(index, outputs)
        policy.learn(state, even(2, 4))
        native.learn(even(2, 4), False)
        assert native.learned().tolist() == flat(policy.memory()).tolist()


def test_goes_on_from_what_was_learned_and_forgets_it(opened: Open) -> None:
    options = UcbOptions(exploration=0.1)
    policy = SplitPolicy("max_softmax", [0.5] * 3, [0, 1, 2], SPLIT_COSTS, options)
    native, again = opened(policy, 3, 5), opened(policy, 3, 5)
    random = np.random.default_rng(2)
    for _ in stream(native, policy, 3, lambda: even(int(random.integers(1, 6)), 5), 2):
        pass
    assert again.first() == 0
    again.learned()[:] = native.learned()
    assert again.first() == native.first() == policy.first()
    again.reset()
    assert not again.learned().any() and again.first() == 0


@pytest.mark.parametrize("observations", ["own", "side"])
def test_what_cannot_have_been_learned_is_told_as_in_python(
    opened: Open, observations: Literal["own", "side"]
) -> None:
    options = UcbOptions(observations=observations, weight=0.5)
    policy = SplitPolicy("max_softmax", [0.5] * 3, [0, 2], SPLIT_COSTS, options)
    native = opened(policy, 3, 5)
    random = np.random.default_rng(0)
    for _ in stream(native, policy, 3, lambda: even(int(random.integers(1, 6)), 5), 1):
        pass
    learned, bound = native.learned().copy(), policy.rewards.bound
    counts = [number for number in learned.tolist() if number > 0]
    changed = [nan, inf, -inf, -1e-9, 0.0, 1e308]
    for by in (1.0, bound, 1 + 1e-5):
        changed += [n * by * more for n in counts for more in (1, -1, 1 + 5e-10, 1 + 5e-9)]
    verdicts = []
    for place, value in product(range(len(learned)), changed):
        found = learned.copy()
        found[place] = value
        fresh = from_json(to_json(policy))
        try:
            fresh.remember({"of": policy.memory()["of"], **remembered(found, arms=3)})
            sound = True
        except ValueError:
            sound = False
        assert native.is_sound(found) == sound, (place, value)
        verdicts.append(sound)
    assert 100 < sum(verdicts) < len(verdicts) - 100


# -- bytes -----------------------------------------------------------------------------------------


class Own(ThresholdPolicy):
    """Somebody's; it may decide in its own way."""


def nested(depth: int) -> ExitPolicy:
    policy: ExitPolicy = NeverPolicy(1)
    for _ in range(depth):
        policy = EitherPolicy([policy])
    return policy


@pytest.mark.parametrize(
    "policy",
    [
        Own("margin", [0.5]),
        EitherPolicy([Own("margin", [0.5])]),
        HaltedPolicy(PatiencePolicy(1, 1), [SpendingLimit(1.0, [0.1, 0.2], [0.1])]),
        ThresholdPolicy("margin", [nan]),
        PatiencePolicy(0, 3),
        NeverPolicy(-1),
        EitherPolicy([]),
        nested(DEEPEST + 1),
    ],
    ids=lambda policy: policy.kind,
)
def test_policies_that_are_not_native_have_no_bytes(policy: ExitPolicy) -> None:
    with pytest.raises(ValueError):
        policy_bytes(policy)


def test_rules_lie_in_rules_as_deep_as_python_says(opened: Open) -> None:
    code = policy_bytes(nested(DEEPEST))
    assert isinstance(opened(code, 1, 2), Native)
    assert "deeply" in opened(pack("<BdI", 3, 0.0, 1) + code, 1, 2)
    beside = EitherPolicy([nested(1)] * (2 * DEEPEST))
    assert isinstance(opened(beside, 1, 2), Native)


LEARNED = LearnedScorePolicy([[0.5, 0, 0, 0, 0, 1, 0, 0]], [0.5])


@pytest.mark.parametrize(
    ("policy", "exits", "classes", "reason"),
    [
        (ThresholdPolicy("entropy", [0.5, 0.5]), 3, 10, "number of exits"),
        (ThresholdPolicy("entropy", [0.5] * 4), 3, 10, "number of exits"),
        (NeverPolicy(3), 2, 10, "number of exits"),
        (PatiencePolicy(1, 3), 2, 10, "number of exits"),
        (ThresholdPolicy("margin", [0.5]), 1, 1, "two classes"),
        (LEARNED, 1, 3, "number of classes"),
        *(
            (LearnedScorePolicy([[0.0] * k + [1.0] + [0.0] * (6 - k)], [0.5]), 1, 1, "two classes")
            for k in (3, 4, 5)
        ),
        (SplitPolicy("class_means", [0.5] * 3, [0], SPLIT_COSTS, at=0), 3, 2, "no class means"),
        (ThresholdPolicy("max_softmax", [0.5]), 1, 0, "there are none"),
        (b"\x08" + bytes(12), 1, 2, "no such kind"),
        (pack("<BdI", 4, nan, 1), 1, 2, "shifted"),
        (pack("<BdBId", 0, 0.0, 3, 1, 0.5), 1, 2, "no such measure"),
        (pack("<BdBId", 0, 0.0, 0, 1, nan), 1, 2, "no number"),
        (pack("<BdII", 2, 0.0, 1, 0), 1, 2, "no confirmation"),
        (pack("<BdI", 3, 0.0, 0), 1, 2, "has none"),
        (pack("<BdIdIIBB", 5, 0.0, 1, -1.0, 0, 1, 0, 0), 1, 2, "below 0"),
        (pack("<BdIdIIBB", 5, 0.0, 1, inf, 0, 1, 0, 0), 1, 2, "at the start"),
        (pack("<BdIdIIBB", 5, 0.0, 1, 1.0, 0, 2, 0, 0), 1, 2, "past the last exit"),
        (pack("<BdIdIIBB", 5, 0.0, 1, 1.0, 0, 0, 0, 0), 1, 2, "past the last exit"),
        (pack("<BdIdIIBB", 5, 0.0, 1, 1.0, 1, 1, 0, 0), 1, 2, "not there"),
        (pack("<BdIdIIBB", 5, 0.0, 1, 1.0, 0, 1, 0, 3), 1, 2, "no such forecast"),
        (pack("<BdI3dIIBB6d", *(5, 0.0, 3, 1, 1, 1, 0, 3, 0, 2), *range(6)), 3, 2, "rise"),
        (pack("<BdIdB", 6, 0.0, 1, 0.5, 0), 1, 2, "no weights"),
        (pack("<BdIdBI5dId", 6, 0.0, 1, 0.5, 1, 0, 1, 0, 0, 0, 0, 1, 1.0), 1, 2, "not there yet"),
        (pack("<BdIdBI5dI", 6, 0.0, 1, 0.5, 1, 0, 1e39, 0, 0, 0, 0, 0), 1, 2, "not finite"),
        (pack("<BdBII2Idd", 7, 0.0, 0, 2, 2, 1, 0, 0.5, 0.5), 2, 2, "not in order"),
        (pack("<BdBII2Idd", 7, 0.0, 0, 1, 2, 0, 0, 0.5, 0.5), 1, 2, "more splits"),
        (pack("<BdBIIIdBI", 7, 0.0, 0, 1, 1, 0, 0.5, 0, 1), 1, 2, "not there"),
        (pack("<BdBIIIdBI", 7, 0.0, 3, 1, 1, 0, 0.5, 0, 0), 1, 2, "no such measure"),
        (pack("<BdBIIId3B8d", *(7, 0, 0, 1, 1, 0, 1, 1, 0, 0, 2), *[0] * 7), 1, 2, "discount"),
        (pack("<BdBIIId3B8d", *(7, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, -1), *[0] * 6), 1, 2, "below 0"),
        (pack("<BdBIIId3B8d", *(7, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1), *[0] * 6, -1), 1, 2, "a cost"),
        (pack("<BdBIIId3B8d", *(7, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1), *[0] * 6, nan), 1, 2, "finite"),
        (pack("<BdBIIId3B", 7, 0.0, 0, 1, 1, 0, 0.5, 1, 2, 0), 1, 2, "neither"),
    ],
)
def test_what_makes_no_sense_is_refused(
    opened: Open, policy: ExitPolicy | bytes, exits: int, classes: int, reason: str
) -> None:
    found = opened(policy, exits, classes, has=[HEAD] * exits)
    assert isinstance(found, str) and reason in found


@pytest.mark.parametrize("name", policies_for(10))
def test_a_policy_cut_off_or_gone_on_with_is_refused(opened: Open, name: str) -> None:
    code = policy_bytes(policies_for(10)[name])
    for end in range(len(code)):
        assert isinstance(opened(code[:end], 3, 10), str), end
    assert opened(code + b"\0", 3, 10) == "bytes are left over"


@pytest.mark.parametrize("name", policies_for(10))
def test_the_same_bytes_are_written_after_json(name: str) -> None:
    policy = policies_for(10)[name]
    assert policy_bytes(from_json(json.loads(json.dumps(to_json(policy))))) == policy_bytes(policy)


def damaged(code: bytes, random: np.random.Generator) -> bytes:
    """A few bytes, or one number, changed; sometimes cut off."""
    found = bytearray(code)
    for _ in range(random.integers(1, 4)):
        found[random.integers(len(found))] = random.choice([0, 1, 2, 3, 127, 255, 5])
    if random.random() < 0.3:
        at = random.integers(len(found))
        extreme = random.choice([0.0, -1.0, nan, inf, -inf, 1e308, -1e308, 1e-308])
        found[at : at + 8] = pack("<d", extreme)
    if random.random() < 0.1:
        del found[random.integers(len(found)) :]
    return bytes(found)


def test_damaged_policies_do_no_harm(sanitized: Callable[..., str], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cases, count = [], 0
    for classes in (1, 10, 200):
        for policy in policies_for(classes).values():
            code = policy_bytes(policy)
            for number in range(60):
                own = damaged(code, random) if number else code
                has = random.integers(1, 4, 3).astype(np.uint8).tobytes() if number else b"\3" * 3
                cases.append(pack("<3I", 3, classes, len(own)) + has + own)
                count += 1
    (tmp_path / "cases").write_bytes(b"".join(cases))
    program = sanitized([*(NATIVE / name for name in SOURCES), DRIVER])
    done = subprocess.run([program, tmp_path / "cases"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, taken = map(int, done.stdout.split())
    assert refused + taken == count
    assert refused > count / 5 and taken > count / 5  # both were tried
