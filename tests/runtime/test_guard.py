"""A guard keeps what answers may differ from the network's own, and says what it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.artifact import PolicyEntry, read_artifact, write_artifact
from eecompile.checked_json import JsonError
from eecompile.diagnostics import CompileErrors
from eecompile.guard_rule import GuardRule, GuardSetting
from eecompile.policies import NeverPolicy, ThresholdPolicy, to_json
from eecompile.policies.base import ExitOutputs
from eecompile.runtime.guard import Guard
from eecompile.runtime.guard_watch import GuardOptions, Watch
from eecompile.runtime.session import Session, load
from eecompile.runtime.vectors import verify_artifact
from tests.runtime import gated, tiny

OPTIONS = GuardOptions()
NAMES = ("early", "final")
#: The logits of the network itself for every sample: class 0.
FINAL = np.array([[9.0, 0.0]], np.float32)


def ladder(*thresholds: float, drop: float = 0.01, share: float = 0.05) -> GuardRule:
    """Settings of one exit, each with a higher threshold than the one before."""
    found = [
        GuardSetting(
            to_json(ThresholdPolicy("max_softmax", [threshold])), 0.0, (1 - k / 10, k / 10)
        )
        for k, threshold in enumerate(thresholds)
    ]
    return GuardRule(drop, share, tuple(found))


def outputs(confidence: float, *, agrees: bool) -> list[ExitOutputs]:
    """Of the early exit: class 0 is the network's."""
    odds = np.log(confidence / (1 - confidence))
    return [ExitOutputs(np.array([[odds, 0.0] if agrees else [0.0, odds]], np.float32))]


Sample = tuple[float, bool]


def stream(count: int, wrong: Sequence[float], seed: int) -> Iterator[Sample]:
    """Samples of three kinds; kind k passes thresholds up to 0.6 + k / 10, and differs as told."""
    rng = np.random.default_rng(seed)
    kinds, chances = rng.integers(0, 3, count), rng.random(count)
    for kind, chance in zip(kinds.tolist(), chances.tolist(), strict=True):
        yield 0.65 + 0.1 * kind, chance >= wrong[kind]


def served(guard: Guard, samples: Iterator[Sample]) -> tuple[float, float]:
    """Share of the answers that differ, and of the samples that were audited."""
    differing = audits = count = 0
    for confidence, agrees in samples:
        policy, audit = guard.begin()
        count += 1
        seen = outputs(confidence, agrees=agrees)
        if audit:
            audits += 1
            guard.audited(seen, FINAL)
        elif policy.first() == 0 and policy.decide(0, seen[0], None).item() == -1:
            differing += not agrees
            guard.answered(0, seen[0].logits)
        else:
            guard.answered(1, FINAL)
    return differing / count, audits / count


RULE = ladder(0.6, 0.7, 0.8)
CLEAN, SHIFTED = (0.006, 0.003, 0.001), (0.2, 0.1, 0.02)


def test_answers_stay_within_what_is_allowed_when_inputs_change() -> None:
    clean, shifted = [], []
    for seed in range(6):
        guard = Guard(RULE, NAMES, Random(seed))
        clean.append(served(guard, stream(5000, CLEAN, seed))[0])
        assert guard.level <= 1, "no alarm without need"
        # All of these differ in 10 % of the answers at the first setting, ten times the allowed.
        shifted.append(served(guard, stream(5000, SHIFTED, seed + 100))[0])
        assert guard.level >= 2
    assert max(clean) <= RULE.drop
    # The delay included: on the average, and nearly so in each.
    assert np.mean(shifted) <= RULE.drop and max(shifted) <= 1.25 * RULE.drop


def test_a_strong_change_is_found_within_tens_of_audits() -> None:
    delays = []
    for seed in range(20):
        guard = Guard(ladder(0.6), NAMES, Random(seed))
        served(guard, stream(3000, (0, 0, 0), seed))
        before = guard.report().audits
        for sample in stream(5000, (0.3, 0.3, 0.3), seed):
            served(guard, iter([sample]))
            if guard.level:
                break
        delays.append(guard.report().audits - before)
    assert guard.level == 1 and sorted(delays)[10] <= 15 and max(delays) <= 40


def kinds(count: int, share: float, seed: int) -> Iterator[Sample]:
    """Samples that all answer alike; of a share the early exit is too unsure for any setting."""
    for chance in np.random.default_rng(seed).random(count).tolist():
        yield 0.55 if chance < share else 0.95, True


def test_inputs_that_take_other_exits_are_taken_for_new_ones() -> None:
    first = GuardSetting(RULE.settings[0].policy, 0.005, (0.9, 0.1))
    safe = GuardSetting(RULE.settings[2].policy, 0.001, (0.9, 0.1))
    guard = Guard(GuardRule(0.01, 0.05, (first, safe)), NAMES, Random(2))
    served(guard, kinds(20_000, 0.1, 2))
    assert (guard.level, guard.report().changes) == (0, 0), "no false alarm"
    assert guard.report().share_now == pytest.approx(0.05, rel=0.01)
    for sample in kinds(1000, 0.5, 3):
        served(guard, iter([sample]))
        if guard.level:
            break
    assert (guard.level, guard.report().changes) == (1, 1), "the one with a margin stays"
    assert guard.report().samples < 20_100 and guard.report().share_now > 0.4
    assert guard.report().debt == OPTIONS.alarm * OPTIONS.doubt
    served(guard, kinds(20_000, 0.5, 4))
    assert guard.level == 0, "they are usual now, and audits have shown that they do no harm"


def test_settings_come_back_when_inputs_do() -> None:
    guard = Guard(RULE, NAMES, Random(1))
    served(guard, stream(4000, (0.5, 0.5, 0.5), 1))
    assert guard.level == 3 and not guard.report().leaves_early
    audits = guard.report().audits
    served(guard, stream(20, (0.5, 0.5, 0.5), 2))
    assert guard.report().audits > audits, "audits go on, so that it is found out"
    served(guard, stream(4000, (0, 0, 0), 3))
    assert guard.level == 0
    found = guard.report()
    assert found.loosened > 0 and found.tightened > 0


def test_debts_are_those_of_the_definition() -> None:
    first, second = ladder(0.6, 0.8).settings
    rule = GuardRule(0.1, 1.0, (replace(first, differing=0.06), second))
    watch, allowed, alarm = Watch(rule, OPTIONS), 0.1 * OPTIONS.reserve, OPTIONS.alarm
    debts, given_up, level = [0.0, 0.0], [False, False], 0
    rng, levels = np.random.default_rng(5), set()
    for _ in range(2000):
        differing = [bool(rng.random() < 0.06), bool(rng.random() < 0.03)]
        watch.audited(differing)
        for k, differs in enumerate(differing):
            debts[k] = min(max(debts[k] + differs - allowed, 0), alarm)
            given_up[k] = debts[k] >= alarm - allowed or (given_up[k] and debts[k] > 0)
        if level < 2 and given_up[level]:
            # The first has no margin, the second owes most of what makes it given up.
            debts, given_up[0] = [alarm, max(debts[1], OPTIONS.doubt * alarm)], True
        level = next((k for k, gone in enumerate(given_up) if not gone), 2)
        levels.add(level)
        assert (watch.level, watch.debts, watch.given_up) == (level, debts, given_up)
    assert levels == {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_what_differs_beyond_the_allowed_is_bounded_by_the_tightenings(
    audits: list[tuple[bool, bool]], drop: float
) -> None:
    guard = Guard(ladder(0.6, 0.8, drop=drop, share=1.0), NAMES, Random(0))
    for confident, agrees in audits:
        guard.audited(outputs(0.9 if confident else 0.7, agrees=agrees), FINAL)
    found = guard.report()
    stretches = 1 + found.tightened + found.loosened
    assert found.differing <= drop * len(audits) + stretches * (OPTIONS.alarm + 1)


def test_audits_are_the_generator_s_and_hasten_after_one_that_differs() -> None:
    rule = ladder(0.6, share=0.02)
    guard, random = Guard(rule, NAMES, Random(7)), Random(7)
    haste = 1.0
    for confidence, agrees in stream(3000, (0.02, 0.02, 0.02), 7):
        share = (
            min(1.0, 0.02 * (1 + (OPTIONS.faster - 1) * haste))
            if guard.level == 0
            else 0.02 * OPTIONS.faster
        )
        assert guard.report().share_now == pytest.approx(share)
        at_first = guard.level == 0
        _, audit = guard.begin()
        assert audit == (random.random() < share)
        if audit:
            guard.audited(outputs(confidence, agrees=agrees), FINAL)
            haste = 1.0 if at_first and not agrees else haste * OPTIONS.cooling


def test_settings_that_differ_too_much_at_calibration_are_not_begun_with() -> None:
    known = [
        replace(s, differing=d) for s, d in zip(RULE.settings, (0.03, 0.02, 0.005), strict=True)
    ]
    guard = Guard(replace(RULE, settings=tuple(known)), NAMES, Random(0))
    assert (guard.level, guard.report().tightened) == (2, 0)
    served(guard, stream(20000, (0, 0, 0), 0))
    assert guard.level == 0, "audits may show that they are good enough here"


def test_the_report_counts_exits_and_drift() -> None:
    guard = Guard(ladder(0.6, drop=0.5, share=1.0), NAMES, Random(0))
    for k in range(300):
        guard.begin()
        guard.audited(
            outputs(0.7, agrees=k % 10 > 0) if k % 3 else outputs(0.55, agrees=True), FINAL
        )
    (early,) = guard.report().exits
    assert (early.name, early.taken, early.audited, early.agreed) == ("early", 200, 200, 180)
    assert early.confidence == pytest.approx(0.7)
    assert 0.84 < early.agreement_at_least < 0.9
    found = guard.report()
    assert (found.samples, found.audits, found.differing) == (300, 300, 20)
    assert found.drift == pytest.approx(1 / 3, abs=0.05), "all left early at calibration"
    assert json.loads(json.dumps(found.to_json()))["exits"][0]["taken"] == 200


def test_memory_is_all_there_is_to_know() -> None:
    guard, twin = (Guard(RULE, NAMES, Random(3)) for _ in range(2))
    served(guard, stream(2000, SHIFTED, 3))
    twin.remember(json.loads(json.dumps(guard.memory())))
    assert twin.report() == guard.report() and twin.level == guard.level > 0
    assert twin.memory() == guard.memory()
    twin.reset()
    assert twin.report() == Guard(RULE, NAMES).report()


@pytest.mark.parametrize(
    "changes",
    [
        {"debts": [0.0]},
        {"debts": [0.0, 0.0, 99.0]},
        {"given_up": [1, 0, 0]},
        {"haste": 2.0},
        {"recent": [0.5]},
        {"stretch": [1]},
        {"usual": [[0.9, 0.1]]},
        {"usual": [[0.9, 0.1], [0.9, 0.1], 5]},
        {"lately": [0.9]},
        {"blocks": [64, 64, 6.5]},
        {"block": [0, 16]},
        {"changes": -1},
        {"counts": [1, 2, 3, 4, -5]},
        {"exits": [[1, 2, 3]]},
        {"exits": [[1, 2, 3, "x"]]},
        {"more": 1},
    ],
)
def test_damaged_memory_changes_nothing(changes: dict[str, Any]) -> None:
    guard = Guard(RULE, NAMES, Random(3))
    served(guard, stream(500, SHIFTED, 3))
    before = guard.memory()
    with pytest.raises(JsonError, match="guard"):
        guard.remember(before | changes)
    assert guard.memory() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": 0}, "drop must be above 0"),
        ({"share": 1.5}, "share must be above 0"),
        ({"settings": []}, "there must be a setting"),
        ({"settings": [{"policy": {}, "differing": 2, "exits": [1]}]}, "from 0 to 1"),
        ({"extra": 1}, "`guard.extra` is no field"),
    ],
)
def test_damaged_rules_are_refused(changes: dict[str, Any], words: str) -> None:
    value = RULE.to_json()
    assert GuardRule.from_json(value) == RULE
    with pytest.raises(JsonError, match=words):
        GuardRule.from_json(value | changes)


def test_rules_for_other_exits_are_refused() -> None:
    with pytest.raises(ValueError, match="not of 2 exits"):
        Guard(RULE, ("early", "late", "final"))


# A session with a guard, on the network of `tiny.c`.

X = tiny.inputs(200)


def guarded(folder: Path, share: float, thresholds: Sequence[float] = (float("inf"), 0.0)) -> Path:
    policy = ThresholdPolicy("max_softmax", thresholds)
    setting = GuardSetting(to_json(policy), 0.0, (0.0, 1.0, 0.0))
    entry = PolicyEntry(to_json(policy), guard=GuardRule(0.98, share, (setting,)).to_json())
    contents = tiny.contents(policies={"watched": entry}, default_policy="watched")
    write_artifact(folder / "out", contents)
    return folder / "out"


def test_an_artifact_with_a_guard_verifies_whatever_is_audited(tmp_path: Path) -> None:
    policy = ThresholdPolicy("max_softmax", (float("inf"), 0.0))
    setting = GuardSetting(to_json(policy), 0.0, (0.0, 1.0, 0.0))
    entry = PolicyEntry(to_json(policy), guard=GuardRule(0.98, 1.0, (setting,)).to_json())
    made = tiny.contents(policies={"watched": entry}, default_policy="watched")
    expected = np.ones(16, np.int64)  # all leave late, as the rule itself has it
    vectors = {**made.vectors, "exits.watched": expected}
    write_artifact(tmp_path / "out", replace(made, vectors=vectors))
    assert verify_artifact(tmp_path / "out").exits_agree


def test_audits_run_to_the_end_and_get_the_network_s_own_answer(tmp_path: Path) -> None:
    library = tiny.CountingLibrary()
    net = Session(read_artifact(guarded(tmp_path, 1.0)), library=library)
    values = tiny.reference(X)
    entry = read_artifact(tmp_path / "out").policies["watched"]
    twin = Guard(GuardRule.from_json(entry.guard), ("early", "late", "final"))
    for row, x in enumerate(X):
        library.calls.clear()
        answer = net.run(x)
        assert (answer.exit, answer.audited, answer.segments_run) == ("final", True, 3)
        assert [name for name, _ in library.calls] == list(tiny.NAMES), "each once, heads too"
        assert (answer.heads_run, answer.macs) == (3, 111111)
        np.testing.assert_array_equal(answer.logits, values["logits"][row])
        twin.begin()
        seen = [ExitOutputs(values[f"{name}.logits"][[row]]) for name in ("early", "late")]
        twin.audited(seen, values["logits"][[row]])
    found = net.guard
    assert found == twin.report()
    assert (found.audits, found.samples) == (len(X), len(X)) and found.differing > 0


def test_the_share_that_is_audited_is_the_generator_s(tmp_path: Path) -> None:
    net = load(guarded(tmp_path, 0.05), audit_seed=11)
    random = Random(11)
    expected = []
    for x in X:
        guard = net.guard
        assert guard is not None
        share = guard.share_now
        expected.append(random.random() < share)
        answer = net.run(x)
        assert answer.audited == expected[-1]
        assert answer.exit == ("final" if answer.audited or guard.setting else "late")
    assert 0 < sum(expected) < len(X)


def test_another_seed_of_audits_is_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match="Expected a whole number as `audit_seed`, found 'x'"):
        load(guarded(tmp_path, 0.05), audit_seed="x")  # type: ignore[arg-type]


def test_batches_are_watched_one_by_one_and_full_depth_is_not(tmp_path: Path) -> None:
    net = load(guarded(tmp_path, 0.3))
    batch = net.run_batch(X)
    assert net.guard is not None
    assert net.guard.samples == len(X)
    assert (batch.exits == 2).sum() >= net.guard.audits > 0
    assert batch.exit_counts == net.exit_counts
    net.full_depth(X[0])
    assert net.guard.samples == len(X)


def test_clones_are_watched_together_and_the_state_is_kept(tmp_path: Path) -> None:
    net = load(guarded(tmp_path, 0.2))
    nets = [net, net.clone(), net.clone()]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: [one.run(x) for x in X], nets))
    assert net.guard is not None and nets[1].guard == net.guard
    assert net.guard.samples == 3 * len(X)
    net.save_state(tmp_path / "state.json")
    again = load(tmp_path / "out", state=tmp_path / "state.json")
    assert again.guard == net.guard
    again.reset_state()
    assert again.guard is not None and again.guard.samples == 0


def test_where_nothing_is_watched_there_is_no_report(tmp_path: Path) -> None:
    net = load(guarded(tmp_path, 0.2))
    net.set_policy(NeverPolicy(2))
    assert net.guard is None
    net.set_policy(None)
    assert net.guard is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": 7}, "drop must be above 0 and below 1"),
        ({"settings": [{"policy": {"kind": "x"}, "differing": 0, "exits": [1, 0, 0]}]}, "kind 'x'"),
        ({"settings": RULE.to_json()["settings"]}, "not of 2 exits"),
    ],
)
def test_guards_that_cannot_watch_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    entry = read_artifact(guarded(tmp_path, 0.2)).policies["watched"]
    assert entry.guard is not None
    changed = replace(entry, guard={**entry.guard, **changes})
    write_artifact(
        tmp_path / "out", tiny.contents(policies={"watched": changed}, default_policy="watched")
    )
    with pytest.raises(CompileErrors, match=words) as failure:
        load(tmp_path / "out")
    assert failure.value.diagnostics[0].id == "bad-artifact"


def test_another_budget_is_not_for_a_guard_s_policy(tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match="chooses among settings for the budget of its build"):
        load(guarded(tmp_path, 0.2), budget={"macs": 0.5})


def shifted_rule(*shifts: float) -> GuardRule:
    policies = [to_json(NeverPolicy(1, shift)) for shift in shifts]
    found = (
        GuardSetting(p, 0.1 / (1 + k), (0.5 - k / 9, 0.5 + k / 9)) for k, p in enumerate(policies)
    )
    return GuardRule(0.5, 0.3, tuple(found))


def test_settings_of_gates_shifted_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="shift gates by"):
        Guard(shifted_rule(0.5, 0.25), NAMES)


def test_gates_are_shifted_as_the_guards_settings_say(tmp_path: Path) -> None:
    # Also where the stored policy beside the guard says something else.
    entry = PolicyEntry(to_json(NeverPolicy(1)), guard=shifted_rule(0.5, 0.5).to_json())
    write_artifact(tmp_path / "out", gated.contents(entry))
    net, x = load(tmp_path / "out"), gated.inputs(600)
    answers = [net.run(sample) for sample in x]
    expected = gated.reference(x, 0.5)["logits"]
    np.testing.assert_array_equal([answer.logits for answer in answers], expected)
    assert {answer.audited for answer in answers} == {False, True}
