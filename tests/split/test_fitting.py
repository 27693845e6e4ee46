"""Thresholds of splits: the lowest ones that keep an accuracy budget on other data, too."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.outcomes import ExitCosts
from eecompile.policies import UcbOptions, replay_stream
from eecompile.policies.scores import max_softmax
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget, HeadSpec, Name, Offload, Policy, Rule, RuleTerm
from eecompile.split_fitting import fit_split, lowest_threshold

COSTS = ExitCosts((1.0, 1.0, 2.0), (0.25, 0.25), 4.0)
EXITS = ("early", "late")


def record(count: int, seed: int) -> CalibrateRecord:
    """Exits that are wrong more often than the network, the less sure the more often."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    hot = np.eye(3, dtype=np.float32)[labels]

    def logits(strength: float) -> np.ndarray:
        noise = random.standard_normal((count, 3)).astype(np.float32)
        return strength * hot + noise

    return CalibrateRecord(
        EXITS, labels, logits(4.0), {}, dict(zip(EXITS, (logits(1.5), logits(2.5)), strict=True))
    )


def written(threshold: float | None = None, budget: float | None = None, **split: Any) -> Policy:
    call = HeadSpec("fixed", split) if "at" in split else HeadSpec("online_ucb", split)
    return Policy(
        "share",
        Rule((RuleTerm("confidence", "max_softmax", threshold=threshold),)),
        None if budget is None else Budget("accuracy_drop", budget),
        offload=Offload(("http://edge:8000",), 0.5),
        split=call,
    )


def fitted(policy: Policy, own: CalibrateRecord | None, usable: tuple[bool, bool] = (True, True)):  # type: ignore[no-untyped-def]
    return fit_split(policy, EXITS, usable, COSTS, own)


def test_a_given_threshold_is_that_of_all_exits_and_needs_no_data() -> None:
    made = fitted(written(0.8), None)
    assert made.thresholds == (0.8, 0.8)
    assert made.costs.backbone == (0.25, 0.5, 1.0)
    assert made.costs.heads == (0.0625, 0.0625)
    assert made.costs.price == 0.5
    assert (made.learning, made.at) == (UcbOptions(), None)


def test_options_of_the_file_arrive() -> None:
    options: dict[str, Any] = {
        "observations": Name("side"),
        "unknown": Name("impute"),
        "discount": 0.99,
    }
    made = fitted(written(0.8, **options, exploration=2, weight=0.5), None)
    assert made.learning == UcbOptions("side", "impute", 0.99, 2, 0.5)
    assert fitted(written(0.8, at=Name("late")), None).at == 1


@pytest.mark.parametrize(("at", "said"), [("lat", "did you mean `late`"), ("early", "exits: late")])
def test_a_split_at_no_usable_exit_is_refused(at: str, said: str) -> None:
    with pytest.raises(CompileErrors) as refused:
        fitted(written(0.8, at=Name(at)), None, (False, True))
    (problem,) = refused.value.diagnostics
    assert problem.id == "unknown-exit"
    assert said in str(problem.help)


def test_an_exit_without_the_measure_is_no_split() -> None:
    made = fitted(written(None, 0.02), record(500, 0), (False, True))
    assert made.exits == (1,)
    assert made.thresholds[0] == inf
    assert 0 < made.thresholds[1] < 1


@pytest.mark.parametrize("limit", [0.005, 0.02, 0.05])
def test_each_split_keeps_the_budget_on_data_it_was_not_fitted_on(limit: float) -> None:
    """As often as was promised: of 20 records one or two may miss it."""
    held_out = record(100_000, 1000)
    full = (held_out.final.argmax(axis=1) == held_out.labels).astype(int)
    judged = {
        name: (max_softmax(own), full - (own.argmax(axis=1) == held_out.labels))
        for name, own in held_out.logits.items()
    }
    missed, shares = np.zeros(2), np.zeros(2)
    for seed in range(20):
        made = fitted(written(None, limit), record(2000, seed))
        for index, name in enumerate(EXITS):
            confidence, lost = judged[name]
            leaves = confidence >= np.float32(made.thresholds[index])
            missed[index] += (lost * leaves).mean() > limit
            shares[index] += leaves.mean() / 20
    assert (missed <= 3).all()
    assert (shares > 0.01).all(), "the budget is used"


def test_a_fixed_split_keeps_the_budget_as_a_stream() -> None:
    made = fitted(written(None, 0.02, at=Name("late")), record(4000, 1))
    held_out = record(20_000, 2)
    replayed = replay_stream(made, held_out.outputs(), held_out.final)
    full = (held_out.final.argmax(axis=1) == held_out.labels).mean()
    assert full - (replayed.labels == held_out.labels).mean() <= 0.02
    assert 0.05 < replayed.offloaded.mean() < 0.9


def test_a_larger_budget_sends_fewer() -> None:
    own = record(2000, 3)
    limits = [fitted(written(None, b), own).thresholds[0] for b in (0.002, 0.01, 0.05, 0.3)]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == 0.0, "everything may leave"


def naive(confidence: np.ndarray, lost: np.ndarray, limit: float) -> float:
    """From the highest threshold down, until one may lose too much."""
    found, n = inf, len(lost)
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        loss = np.where(confidence >= threshold, lost, 0).astype(float)
        z = 1.6448536269514722  # 95 % of a normal distribution lie below
        error = np.sqrt(loss.var() / n + z * z / (4 * n * n))
        if loss.mean() + z * z / (2 * n) + z * error > limit:
            return found
        found = threshold
    return 0.0


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_are_tried_from_the_highest_down(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.choice(np.array([0.4, 0.5, 0.7, 0.9, 0.95], np.float32), 300)
    lost = random.choice([-1, 0, 0, 0, 0, 1, 1], 300)
    for limit in (0.005, 0.03, 0.05, 0.1, 0.2):
        assert lowest_threshold(confidence, lost, limit) == naive(confidence, lost, limit)


def test_nothing_leaves_where_the_surest_answers_are_wrong() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6], np.float32).repeat(100)
    assert lowest_threshold(confidence, np.array([1, 0, 0, 0]).repeat(100), 0.1) == inf


def test_few_samples_show_too_little() -> None:
    """Twenty right answers: up to three of twenty might still be wrong ones elsewhere."""
    confidence = np.linspace(0.5, 1, 20, dtype=np.float32)
    assert lowest_threshold(confidence, np.zeros(20, np.int64), 0.1) == inf
    assert lowest_threshold(confidence, np.zeros(20, np.int64), 0.14) == 0.0
