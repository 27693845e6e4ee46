"""The rule by itself: what a limit is, and where it ends, against brute force on small tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eecompile.checked_json import JsonError
from eecompile.halt_rule import HaltRule
from eecompile.policies import (
    EXIT,
    ExitOutputs,
    ExitPolicy,
    HaltedPolicy,
    NeverPolicy,
    PatiencePolicy,
    SpendingLimit,
    ThresholdPolicy,
    replay,
)
from eecompile.policies.halted import cheapest_answer

INF = float("inf")


@pytest.mark.parametrize(
    "limits",
    [
        *({}, {"macs": 0.0}, {"macs": -1.0}, {"latency_s": INF}, {"energy_j": float("nan")}),
        *({"macs": 10**400}, {"latency_s": -(10**400)}),
    ],
    ids=lambda limits: str(limits)[:30],
)
def test_what_is_no_limit_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"limit|number above 0"):
        HaltRule(**limits)


@pytest.mark.parametrize("rule", [HaltRule(macs=0.5), HaltRule(0.5, 1e-3, 2e-3)], ids=str)
def test_rules_survive_json(rule: HaltRule) -> None:
    assert HaltRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize(
    "value",
    [None, {}, {**HaltRule(macs=0.5).to_json(), "macs": -1}, {**HaltRule(0.5).to_json(), "w": 1}],
    ids=str,
)
def test_json_of_no_rule_is_refused(value: Any) -> None:
    with pytest.raises(JsonError, match="halt"):
        HaltRule.from_json(value)


# Small whole numbers: sums are exact, and ties happen.
_COST = st.integers(0, 6)


@st.composite
def limits(draw: Any, exits: int) -> SpendingLimit:
    segments = draw(st.lists(_COST, min_size=exits + 1, max_size=exits + 1))
    heads = draw(st.lists(_COST, min_size=exits, max_size=exits))
    found = SpendingLimit(draw(st.integers(0, 6 * (exits + 1))), segments, heads)
    assume(cheapest_answer(found)[1] <= found.limit)
    return found


@st.composite
def cases(draw: Any) -> tuple[SpendingLimit, list[ExitOutputs], np.ndarray]:
    """A limit that allows an answer, and what exits say of some samples."""
    exits, count = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    outputs = [ExitOutputs(rng.normal(0, 3, (count, 3)).astype(np.float32)) for _ in range(exits)]
    return draw(limits(exits)), outputs, rng.normal(0, 3, (count, 3)).astype(np.float32)


def policies(exits: int) -> list[ExitPolicy]:
    return [
        NeverPolicy(exits),
        ThresholdPolicy("max_softmax", [0.9] * exits),
        ThresholdPolicy("max_softmax", [INF if k % 2 else 0.7 for k in range(exits)]),
        PatiencePolicy(1, exits),
        Jumping(exits),
    ]


class Jumping(ExitPolicy):
    """Where it goes is told by the class that is answered; where that was seen before, it leaves.

    Its state has to follow each sample.
    """

    def __init__(self, exits: int) -> None:
        self.exits = exits

    def start(self, count: int) -> Any:
        return np.full(count, -1)

    def select(self, state: Any, kept: np.ndarray) -> Any:
        return state[kept]

    def decide(self, index: int, outputs: ExitOutputs, state: Any) -> np.ndarray:
        answers = outputs.logits.argmax(axis=1)
        seen = answers == state
        state[:] = answers
        return np.where(seen, EXIT, np.minimum(index + 1 + answers, self.exits))

    def parameters(self) -> dict[str, Any]:
        return {"exits": self.exits}

    @classmethod
    def from_parameters(cls, parameters: Any) -> Jumping:
        return cls(int(parameters["exits"]))


def paid(one: SpendingLimit, exit_: int, evaluated: np.ndarray) -> float:
    return sum(one.segments[: exit_ + 1]) + float(np.asarray(one.heads)[evaluated].sum())


def brute_force(
    policy: ExitPolicy, one: SpendingLimit, outputs: list[ExitOutputs], row: int
) -> tuple[int, list[bool], bool]:
    """Where one sample leaves, whose heads ran, whether it was halted: from every way there is."""
    last, rows = len(outputs), slice(row, row + 1)
    due, state, head = policy.first(), policy.start(1), [False] * last
    spent = 0.0
    for at in range(last + 1):
        spent += one.segments[at]
        if at == last:
            return last, head, False
        if at == due:
            if spent + one.heads[at] <= one.limit:
                head[at], spent = True, spent + one.heads[at]
                due = int(policy.decide(at, outputs[at].rows(rows), state)[0])
                if due == EXIT:
                    return at, head, False
            else:
                due = last
        ways = [
            spent + sum(one.segments[at + 1 : to + 1]) + (0 if to == last else one.heads[to])
            for to in range(at + 1, last + 1)
        ]
        if min(ways) > one.limit:
            head[at] = True
            return at, head, True
    raise AssertionError


@given(cases())
def test_every_policy_ends_where_brute_force_does(
    case: tuple[SpendingLimit, list[ExitOutputs], np.ndarray],
) -> None:
    one, outputs, final = case
    for policy in policies(len(outputs)):
        found = replay(HaltedPolicy(policy, [one]), outputs, final)
        for row in range(len(final)):
            exit_, heads, halted = brute_force(policy, one, outputs, row)
            assert (found.exit[row], found.evaluated[row].tolist()) == (exit_, heads)
            assert found.halted[row] == halted
            assert paid(one, exit_, found.evaluated[row]) <= one.limit
            logits = final if exit_ == len(outputs) else outputs[exit_].logits
            np.testing.assert_array_equal(found.logits[row], logits[row])


@given(cases())
def test_with_no_other_policy_it_is_the_deepest_exit_that_can_be_afforded(
    case: tuple[SpendingLimit, list[ExitOutputs], np.ndarray],
) -> None:
    one, outputs, final = case
    heads = [*one.heads, 0]
    ways = [sum(one.segments[: to + 1]) + heads[to] for to in range(len(heads))]
    deepest = max(to for to, way in enumerate(ways) if way <= one.limit)
    found = replay(HaltedPolicy(NeverPolicy(len(outputs)), [one]), outputs, final)
    assert (found.exit == deepest).all()
    assert found.evaluated.sum() == len(final) * (deepest < len(outputs))


@given(cases(), st.data())
def test_of_several_limits_all_are_kept(
    case: tuple[SpendingLimit, list[ExitOutputs], np.ndarray], data: st.DataObject
) -> None:
    one, outputs, final = case
    other = data.draw(limits(len(outputs)))
    for policy in policies(len(outputs)):
        try:
            found = replay(HaltedPolicy(policy, [one, other]), outputs, final)
        except ValueError:  # Each allows an answer, but not the same.
            heads = [(*limit.heads, 0) for limit in (one, other)]
            for to in range(len(outputs) + 1):
                assert any(
                    sum(limit.segments[: to + 1]) + head[to] > limit.limit
                    for limit, head in zip((one, other), heads, strict=True)
                )
            continue
        for limit in (one, other):
            costs = [paid(limit, e, h) for e, h in zip(found.exit, found.evaluated, strict=True)]
            assert max(costs) <= limit.limit


@given(cases())
def test_a_budget_for_everything_changes_nothing(
    case: tuple[SpendingLimit, list[ExitOutputs], np.ndarray],
) -> None:
    one, outputs, final = case
    enough = SpendingLimit(sum(one.segments) + sum(one.heads), one.segments, one.heads)
    for policy in policies(len(outputs)):
        found, own = (replay(p, outputs, final) for p in (HaltedPolicy(policy, [enough]), policy))
        np.testing.assert_array_equal(found.exit, own.exit)
        np.testing.assert_array_equal(found.evaluated, own.evaluated)
        np.testing.assert_array_equal(found.logits, own.logits)
        assert not found.halted.any()


def test_limits_that_allow_no_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="no answer"):
        HaltedPolicy(NeverPolicy(1), [SpendingLimit(2, [2, 9], [1])])
