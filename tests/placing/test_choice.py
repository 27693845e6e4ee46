"""The set chosen is the best there is, by what thresholds do to samples they were not fitted on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from eecompile.exit_choice import ExitScores, choose
from eecompile.operating_points import Trial
from eecompile.spec import Budget
from tests.placing.records import exits_of, judge_of

ACCURACIES = (0.4, 0.55, 0.7, 0.85, 0.9, 0.95)
BUDGETS = (Budget("macs", 0.5), Budget("macs", 0.8), Budget("accuracy_drop", 0.05), None)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_the_set_chosen_is_that_of_brute_force(seed: int, budget: Budget | None) -> None:
    exits = exits_of(seed, ACCURACIES)
    count = len(exits)
    judge = judge_of(exits, budget)
    sets = [s for size in (1, 2, 3) for s in combinations(range(count), size)]
    best = max(round(judge.score(s), 9) for s in sets)
    wanted = min((s for s in sets if round(judge.score(s), 9) == best), key=len)
    for limit, exhaustive in ((len(sets), True), (0, False)):
        found = choose(judge, [True] * count, [False] * count, 1, 3, limit)
        assert found.exhaustive == exhaustive
        assert judge.score(found.chosen) == pytest.approx(judge.score(wanted), abs=1e-9)
        assert len(found.chosen) == len(wanted)
        assert {len(s) for s in found.sizes.values()} == {1, 2, 3}


def test_search_judges_a_part_of_all_sets() -> None:
    exits = exits_of(0, np.linspace(0.3, 0.95, 16).tolist())
    judge = judge_of(exits, Budget("macs", 0.5))
    found = choose(judge, [True] * 16, [False] * 16, 4, 5)
    assert not found.exhaustive
    assert judge.tried < 16 * 15 * 14 * 13 / 24
    spread = [judge.score(s) for s in ((1, 5, 9, 13), (0, 4, 8, 12), (2, 6, 10, 14))]
    assert judge.score(found.sizes[4]) >= max(spread)


def test_an_exit_with_a_dear_head_is_not_chosen() -> None:
    exits = exits_of(1, (0.5, 0.7, 0.8, 0.9))
    cheap = judge_of(exits, Budget("macs", 0.5))
    favourite = choose(cheap, [True] * 4, [False] * 4, 1, 1).chosen[0]
    heads = [0.001] * 4
    heads[favourite] = 0.4
    dear = judge_of(exits, Budget("macs", 0.5), heads)
    found = choose(dear, [True] * 4, [False] * 4, 1, 1).chosen[0]
    assert found != favourite
    assert dear.value((favourite,)) < cheap.value((favourite,))


def test_written_exits_stay_and_do_not_count() -> None:
    exits = exits_of(2, ACCURACIES)
    counted = [k not in (0, 5) for k in range(6)]
    needed = [k in (0, 3, 5) for k in range(6)]  # 0 and 5 are written, 3 is named by a policy
    for exhaustive in (0, 1000):
        found = choose(judge_of(exits), counted, needed, 2, 3, exhaustive)
        assert {0, 3, 5} <= set(found.chosen)
        assert {size: len(s) for size, s in found.sizes.items()} == {2: 4, 3: 5}


def test_of_equal_sets_the_smaller_is_chosen() -> None:
    """Exits that are never right are never used, so that more of them add nothing."""
    (good,) = exits_of(3, (0.9,))
    useless = ExitScores(good.score, np.zeros(len(good.right), bool))
    judge = judge_of([good, useless, useless], Budget("macs", 0.5))
    found = choose(judge, [True] * 3, [False] * 3, 1, 3)
    assert found.chosen == (0,)
    assert judge.value((0, 1)) == judge.value((0,))


def test_curves_are_read_off_samples_that_thresholds_were_not_fitted_on() -> None:
    """By hand for one exit: each half gets the threshold that is best for the other."""
    (exit_,) = exits_of(4, (0.8,))
    judge = judge_of([exit_], Budget("macs", 0.7))
    halves = np.array_split(np.random.default_rng(0).permutation(400), 2)
    price, points = 0.2, []
    final = judge.final.right
    for rows, held in (halves, halves[::-1]):
        gains = {}
        fold = next(f for f in judge._folds if set(f.scores[0]) == set(exit_.score[rows]))
        for limit in (*fold.scores[0], np.inf):
            out = fold.scores[0] >= limit
            toll = 0.001 * (limit < np.inf)
            right = np.where(out, fold.chances[0], fold.chances[1]).mean()
            gains[limit] = right - price * (np.where(out, 0.5, 1.0).mean() + toll)
        limit = max(gains, key=lambda value: gains[value])
        out = exit_.score[held] >= limit
        right = np.where(out, exit_.right[held], final[held]).mean()
        points.append(Trial((), np.where(out, 0.5, 1.0).mean() + 0.001, right))
    (found,) = judge._points((0,), [price])
    assert found.cost == pytest.approx(sum(p.cost for p in points) / 2, abs=1e-9)
    assert found.value == pytest.approx(sum(p.value for p in points) / 2, abs=1e-9)


def test_no_exit_at_all_is_the_network_alone() -> None:
    judge = judge_of(exits_of(5, (0.8,)), Budget("macs", 0.5))
    assert [(t.cost, t.value) for t in judge.curve(())] == [
        (0.0, 0.1),
        (1.0, judge.final.right.mean()),
    ]
    assert judge.value(()) == pytest.approx((0.1 + judge.final.right.mean()) / 2)
