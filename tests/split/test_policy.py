"""Split policies: which heads run, where samples end, and a stream as the runtime takes it."""

from __future__ import annotations

import json
from math import inf
from typing import Any

import numpy as np
import pytest

from eecompile.policies import (
    EXIT,
    OFFLOAD,
    ExitOutputs,
    SplitCosts,
    SplitPolicy,
    StreamReplay,
    UcbOptions,
    from_json,
    replay,
    replay_stream,
    to_json,
)
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.policies.split_bandit import Rewards, SplitBandit

Array = np.ndarray[Any, Any]

COSTS = SplitCosts((0.25, 0.5, 0.75, 1.0), (0.125, 0.0625, 0.03125), price=0.375)
SURE, UNSURE = np.array([[9, 0, 0]], np.float32), np.array([[0.1, 0, 0]], np.float32)


def policy(learning: UcbOptions | None = None, **given: Any) -> SplitPolicy:
    made: dict[str, Any] = {
        "score": "max_softmax",
        "thresholds": (0.75,) * 3,
        "exits": (0, 1, 2),
        "costs": COSTS,
        "learning": learning,
    }
    return SplitPolicy(**{**made, **given})


def stream(count: int, seed: int, classes: int = 3) -> tuple[list[ExitOutputs], Array]:
    """Exits that grow surer with depth, and the network's own logits."""
    random = np.random.default_rng(seed)
    answer = 4 * np.eye(classes, dtype=np.float32)[random.integers(0, classes, count)]
    exits = []
    for strength in (0.3, 0.5, 0.9):
        noise = random.standard_normal((2, count, classes)).astype(np.float32)
        exits.append(ExitOutputs(strength * answer + noise[0], strength * answer + noise[1]))
    noise = random.standard_normal((count, classes)).astype(np.float32)
    return exits, answer + noise


def at_end(side: str) -> SplitPolicy:
    """One that knows that the end is best."""
    made = policy(UcbOptions(side, exploration=0.0))  # type: ignore[arg-type]
    learner = SplitBandit(made.rewards, made.learning)  # type: ignore[arg-type]
    learner.rounds, learner.counts, learner.sums = 4.0, [1.0] * 4, [-1.0, -1.0, -1.0, 0.0]
    made.remember({**made.memory(), **learner.memory()})
    return made


def test_own_observations_run_one_head_at_the_split() -> None:
    made = policy(at=1)
    assert made.first() == 1
    for logits, wanted in ((SURE, EXIT), (UNSURE, OFFLOAD)):
        assert made.decide(1, ExitOutputs(logits), made.start(1)).tolist() == [wanted]


def test_side_observations_run_all_heads_up_to_the_split_and_leave_only_there() -> None:
    made = policy(UcbOptions("side"))
    made.remember(_memory(made, played=2))
    assert made.first() == 0
    state = made.start(1)
    assert [made.decide(k, ExitOutputs(SURE), state).tolist() for k in range(3)] == [
        [1],
        [2],
        [EXIT],
    ]
    state = made.start(1)
    assert [made.decide(k, ExitOutputs(UNSURE), state).tolist() for k in (0, 1)] == [[1], [2]]
    assert made.decide(2, ExitOutputs(UNSURE), state).tolist() == [OFFLOAD]


def _memory(made: SplitPolicy, played: int) -> dict[str, Any]:
    """As if the first `played` arms had been tried, so that the next one is due."""
    counts = [1.0] * played + [0.0] * (4 - played)
    return {**made.memory(), "rounds": float(played), "counts": counts}


def test_the_end_runs_no_head_or_all_of_them() -> None:
    own, side = at_end("own"), at_end("side")
    assert (own.first(), side.first()) == (3, 0)
    state = side.start(1)
    assert [side.decide(k, ExitOutputs(SURE), state).tolist() for k in range(3)] == [[1], [2], [3]]


def test_exits_without_the_measure_are_no_splits() -> None:
    made = policy(UcbOptions("side"), exits=(0, 2))
    exits, final = stream(50, 0)
    replayed = replay_stream(made, exits, final)
    assert set(replayed.split.tolist()) == {0, 2, 3}
    assert not replayed.evaluated[:, 1].any()
    assert made.counts.keys() == {0, 2, 3}


def test_a_threshold_out_of_reach_offloads_all() -> None:
    exits, final = stream(20, 0)
    replayed = replay_stream(policy(at=0, thresholds=(inf, 0.75, 0.75)), exits, final)
    assert replayed.offloaded.all()


def test_costs_count_the_heads_that_ran_and_the_price_of_sending() -> None:
    exits, final = stream(200, 1)
    own = replay_stream(policy(at=1), exits, final)
    assert set(own.cost[~own.offloaded]) == {0.5 + 0.0625}
    assert set(own.cost[own.offloaded]) == {0.5 + 0.0625 + 0.375}
    assert own.offloaded.any() and not own.offloaded.all()
    side = replay_stream(policy(UcbOptions("side")), exits, final)
    heads = np.cumsum(COSTS.heads)
    for split in range(3):
        left = (side.split == split) & ~side.offloaded
        assert set(side.cost[left]) <= {COSTS.backbone[split] + heads[split]}
    assert set(side.cost[side.split == 3]) == {1.0 + heads[-1]}


@pytest.mark.parametrize("score", ["max_softmax", "entropy", "margin", "class_means"])
@pytest.mark.parametrize("side", ["own", "side"])
def test_a_replay_is_the_bandit_on_confidences(score: str, side: str) -> None:
    """Against a loop over the bandit alone, with confidences of whole columns."""
    exits, final = stream(300, 2)
    options = UcbOptions(side, "impute", 0.99, 0.5)  # type: ignore[arg-type]
    made = policy(options, score=score, thresholds=(0.5, 0.5, 0.5))
    replayed = replay_stream(made, exits, final)
    means = score == "class_means"
    measure = max_softmax if means else SCORES[score]
    columns = []
    for outputs in exits:
        looked_at = outputs.class_means if means else outputs.logits
        assert looked_at is not None
        columns.append(measure(looked_at))
    last = measure(final)
    learner = SplitBandit(made.rewards, options)
    for n in range(len(final)):
        arm = learner.choose()
        assert replayed.split[n] == arm
        seen = [float(c[n]) for c in columns]
        left = arm < 3 and seen[arm] >= 0.5
        ran = [c if k == arm or (side == "side" and k <= arm) else None for k, c in enumerate(seen)]
        assert replayed.evaluated[n].tolist() == [c is not None for c in ran]
        assert replayed.exit[n] == (arm if left else 3)
        assert replayed.offloaded[n] == (arm < 3 and not left)
        own = exits[min(arm, 2)]
        answer = (own.class_means if means else own.logits) if left else final
        assert np.array_equal(replayed.logits[n], answer[n])  # type: ignore[index]
        assert replayed.reward[n] == learner.rewards.of(arm, [*seen, None][arm], float(last[n]))
        learner.learn(arm, ran, None if left else float(last[n]))
    assert made.memory() == {**made.memory(), **learner.memory()}


def test_unanswered_samples_get_the_networks_own_answer_at_its_cost() -> None:
    exits, final = stream(400, 3)
    made = policy(at=0)
    answered = replay_stream(made, exits, final)
    some = replay_stream(made, exits, final, answered=0.5, seed=1)
    none = replay_stream(made, exits, final, answered=0.0)
    assert np.array_equal(none.sent, answered.offloaded)
    assert not none.offloaded.any()
    assert np.array_equal(none.logits, answered.logits)
    assert set(none.cost[none.unanswered]) == {1.0 + 0.125 + 0.375}
    assert np.array_equal(some.sent, answered.offloaded)
    assert 0.4 < some.offloaded.sum() / some.sent.sum() < 0.6


def test_a_dead_server_moves_the_split_to_where_none_is_asked() -> None:
    exits, final = stream(1000, 4)
    costs = SplitCosts(COSTS.backbone, COSTS.heads, price=0.05)
    options = UcbOptions("side", exploration=0.3)
    alive, dead = (policy(options, costs=costs, thresholds=(0.9,) * 3) for _ in range(2))
    replay_stream(alive, exits, final)
    replay_stream(dead, exits, final, answered=0.0)
    assert alive.best == 0
    assert dead.best > 0


def drifting(seed: int, half: int) -> tuple[list[ExitOutputs], Array]:
    """The first exit is sure of the first half, and of nothing in the second."""
    exits, final = stream(2 * half, seed)
    sharp = exits[0].logits.copy()
    sharp[:half] *= 8
    sharp[half:] *= 0.02
    return [ExitOutputs(sharp), *exits[1:]], final


def test_a_discount_lets_a_changed_input_move_the_split() -> None:
    half = 2500
    costs = SplitCosts(COSTS.backbone, COSTS.heads, price=1.0)
    exits, final = drifting(5, half)
    late: dict[float, Array] = {}
    for discount in (1.0, 0.995):
        made = policy(UcbOptions("side", discount=discount, exploration=0.3), costs=costs)
        replayed = replay_stream(made, exits, final)
        early = np.bincount(replayed.split[half - 1000 : half], minlength=4)
        assert early.argmax() == 0
        late[discount] = np.bincount(replayed.split[half + 500 : half + 1500], minlength=4)
    assert late[0.995][0] < 300 and late[1.0][0] > 700


def test_a_policy_survives_as_json_and_goes_on_as_the_same() -> None:
    exits, final = stream(400, 6)
    first, second = _halves(exits, final)
    for options in (UcbOptions("own"), UcbOptions("side", "impute", 0.99, 0.7, 0.8)):
        made = policy(options, thresholds=(0.8, inf, 0.6))
        replay_stream(made, *first)
        text = json.dumps([to_json(made), made.memory()], allow_nan=False)
        stored, memory = json.loads(text)
        again = from_json(stored)
        assert isinstance(again, SplitPolicy)
        again.remember(memory)
        _assert_same(replay_stream(made, *second), replay_stream(again, *second))
        assert again.memory() == made.memory()


def _halves(exits: list[ExitOutputs], final: Array) -> list[tuple[list[ExitOutputs], Array]]:
    half = len(final) // 2
    return [
        ([ExitOutputs(e.logits[rows], e.class_means[rows]) for e in exits], final[rows])  # type: ignore[index]
        for rows in (slice(half), slice(half, None))
    ]


def _assert_same(one: StreamReplay, other: StreamReplay) -> None:
    assert np.array_equal(one.split, other.split)
    assert np.array_equal(one.logits, other.logits)
    assert np.array_equal(one.reward, other.reward)


@pytest.mark.parametrize(
    "other",
    [
        {"thresholds": (0.75, 0.75, 0.8)},
        {"costs": SplitCosts(COSTS.backbone, COSTS.heads, price=0.4)},
        {"exits": (0, 1)},
        {"score": "margin"},
        {"learning": UcbOptions("own")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_memory_of_another_policy_is_refused(other: dict[str, Any]) -> None:
    made = policy(UcbOptions("side"))
    replay_stream(made, *stream(20, 7))
    stranger = policy(**{"learning": UcbOptions("side"), **other})
    with pytest.raises(ValueError, match="another policy"):
        stranger.remember(made.memory())
    assert stranger.first() == 0


def test_a_fixed_split_learns_nothing_and_remembers_nothing() -> None:
    made = policy(at=2)
    replay_stream(made, *stream(20, 8))
    assert made.memory() == {}
    made.remember({})
    with pytest.raises(ValueError, match="fixed"):
        made.remember({"rounds": 1.0})
    assert (made.best, made.first()) == (2, 2)


def test_the_split_is_the_same_until_something_is_learned() -> None:
    made = policy(UcbOptions("own"))
    for wanted in range(3):
        state = made.start(1)
        assert made.first() == made.start(1).arm == state.arm == wanted
        made.decide(wanted, ExitOutputs(SURE), state)
        made.learn(state, None)


def test_several_samples_are_split_alike_and_told_apart() -> None:
    made = policy(UcbOptions("side"))
    made.remember(_memory(made, played=1))
    exits, _ = stream(6, 9)
    state = made.start(6)
    assert made.decide(0, exits[0], state).tolist() == [1] * 6
    kept = np.array([1, 4])
    state = made.select(state, kept)
    seen = ExitOutputs(exits[1].logits[kept])
    decisions = made.decide(1, seen, state)
    sure = max_softmax(seen.logits) >= np.float32(0.75)
    assert decisions.tolist() == [EXIT if one else OFFLOAD for one in sure]
    one = made.select(state, np.array([1]))
    made.learn(one, np.array([[0, 5, 0]], np.float32))
    assert made.counts == {0: 2, 1: 1, 2: 0, 3: 0}


def test_a_plain_replay_gives_offloaded_samples_the_networks_own_answer() -> None:
    exits, final = stream(100, 10)
    made = policy(at=0)
    plain, one_by_one = replay(made, exits, final), replay_stream(made, exits, final)
    assert np.array_equal(plain.exit, one_by_one.exit)
    assert np.array_equal(plain.logits, one_by_one.logits)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": "luck"}, "luck"),
        ({"thresholds": (0.5,)}, "thresholds"),
        ({"exits": (1, 0, 2)}, "order"),
        ({"exits": (0, 3)}, "order"),
        ({"at": None}, "learned, or fixed"),
        ({"learning": UcbOptions()}, "learned, or fixed"),
        ({"exits": (0, 2), "at": 1}, "learned, or fixed"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        policy(**{"at": 0, **wrong})


@pytest.mark.parametrize("backbone", [(0.5,), (0.5, float("nan")), (-0.5, 1.0)], ids=str)
def test_costs_that_are_none_are_refused(backbone: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cost"):
        SplitCosts(backbone, (0.1,), 0.5)


@pytest.mark.parametrize("wrong", [{"backbone": None}, {"learning": {"speed": 1}}, {"price": []}])
def test_damaged_parameters_are_refused(wrong: dict[str, Any]) -> None:
    value = to_json(policy(UcbOptions("side")))
    with pytest.raises(ValueError, match="split"):
        from_json({**value, **wrong})


def test_rewards_of_a_policy_are_those_of_its_costs() -> None:
    own, side = policy(UcbOptions("own")).rewards, policy(UcbOptions("side", weight=0.5)).rewards
    assert own == Rewards(
        (0.375, 0.5625, 0.78125, 1.0), (1.125, 1.0625, 1.03125, 1.0), (0.75,) * 3, 0.375
    )
    passed = (0.125, 0.1875, 0.21875)
    assert side.spent == (0.375, 0.6875, 0.96875, 1.21875)
    assert side.alone == (*(1 + heads for heads in passed), 1.21875)
    assert side.weight == 0.5
