"""The forecast as published, figure by figure, and what the policy makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.dsl.options import RULES
from eecompile.forecast_report import ForecastHits, forecast_hits
from eecompile.policies import (
    EXIT,
    ExitOutputs,
    PredictedPolicy,
    from_json,
    replay,
    to_json,
)
from eecompile.policies import forecasts as engine
from eecompile.policies.activations import ACTIVATIONS
from eecompile.policies.forecasts import ConvolutionForecast, TableForecast, convolved_peaks
from eecompile.policies.predicted import FORECASTS

INNER = [0.1, -0.2, 3, 0.4, 0, 0.3, -0.5, 0.2, 0.1, 0]
EDGE = [3, -0.5, 0.1, 0.4, 0, 0.3, -0.2, 0.2, 0.1, 0]


def outputs(*rows: Sequence[float]) -> ExitOutputs:
    return ExitOutputs(np.array(rows, np.float32))


def uniform(threshold: float, exits: int = 20, start: int = 0, window: int = 8) -> PredictedPolicy:
    return PredictedPolicy([threshold] * exits, start, window)


def one(policy: PredictedPolicy, index: int, row: Sequence[float]) -> int:
    return int(policy.decide(index, outputs(row), None)[0])


@pytest.mark.parametrize(
    ("logits", "expected"),
    [(INNER, [3.4, 9.5, 22.8, 61.8, 166.9, 459.1, 1269.6, 3531.4]), (EDGE, [2.6, 5.1, 13.3])],
)
def test_convolved_activations_are_the_published_ones(
    logits: list[float], expected: list[float]
) -> None:
    found = convolved_peaks(np.array([logits]), len(expected))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("threshold", "jump"), [(3.3, 1), (3.4001, 2), (9.4, 2), (22.7, 3), (61, 4), (3000, 8)]
)
def test_the_forecast_is_the_first_step_above_the_threshold_ahead(
    threshold: float, jump: int
) -> None:
    assert one(uniform(threshold), 3, INNER) == 3 + jump


def test_nothing_in_the_window_means_its_end() -> None:
    assert one(uniform(1e6), 3, INNER) == 11
    assert one(uniform(1e6, window=5), 3, INNER) == 8


def test_each_step_is_compared_with_its_own_exit_ahead() -> None:
    # 3.4 and 9.5 stay below the next two thresholds; 22.8 passes the third.
    policy = PredictedPolicy([5.0, 5.0, 10.0, 20.0, 100.0], 0, 8)
    assert one(policy, 0, INNER) == 3


def test_the_last_exit_stands_for_all_behind_it() -> None:
    policy = PredictedPolicy([5.0, 5.0, 100.0, 20.0], 0, 8)
    # At exit 2, 3.4 and 9.5 are below exit 3's threshold, and 22.8 is forecast for exit 5.
    assert policy.forecast(2, outputs(INNER)).tolist() == [3]
    assert one(policy, 2, INNER) == 3
    assert one(policy, 3, INNER) == 4, "after the last exit comes the network's own answer"


def test_a_sample_leaves_at_its_threshold_and_by_the_absolute_value() -> None:
    assert one(uniform(3.0), 4, [3, 0, 0]) == EXIT
    assert one(uniform(3.0), 4, [-3, 0, 0]) == EXIT
    assert one(uniform(np.nextafter(3.0, 4)), 4, [3, 0, 0]) != EXIT


def test_class_order_matters_as_published_and_not_when_sorted() -> None:
    logits = np.array([INNER, EDGE, [2, 0, 2, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    mixed = logits[:, np.random.default_rng(0).permutation(10)]
    by_order, by_value = (
        PredictedPolicy([4.0, 4.0, 6.0, 8.0, 11.0, 30.0], 0, 8, forecast=forecast)
        for forecast in ("class_order", "sorted")
    )

    def jumps(policy: PredictedPolicy, logits: np.ndarray) -> list[int]:
        return [int(jump) for jump in policy.forecast(0, ExitOutputs(logits))]

    assert jumps(by_order, logits) != jumps(by_order, mixed)
    assert jumps(by_value, logits) == jumps(by_value, mixed)


def test_probabilities_are_the_same_for_shifted_logits_and_a_common_scale() -> None:
    p = np.array([[0.9, 0.07, 0.03], [0.5, 0.25, 0.25]])
    z = np.log(p).astype(np.float32)
    activation = ACTIVATIONS["probability"]
    np.testing.assert_allclose(activation.per_class(z), -np.log(1 - p), rtol=1e-5)
    np.testing.assert_allclose(activation.peak(z + 100), [-log(0.1), -log(0.5)], rtol=1e-4)
    assert activation.peak(np.array([[1e4, 0, 0]], np.float32)).tolist() == [64 * log(2)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_peak_is_the_largest_activation(name: str) -> None:
    z = np.random.default_rng(0).normal(size=(300, 10)).astype(np.float32) * 5
    activation = ACTIVATIONS[name]
    largest = np.abs(activation.per_class(z)).max(axis=1)
    assert activation.peak(z).tobytes() == largest.tobytes()


def test_exits_without_a_trained_head_are_not_evaluated() -> None:
    policy = PredictedPolicy([5.0, inf, 5.0, inf], 0, 8)
    assert one(policy, 0, [4, 0, 0]) == 2
    assert one(policy, 2, [4, 0, 0]) == 4, "nothing can leave at the last exit"
    with pytest.raises(ValueError, match="start"):
        PredictedPolicy([5.0, inf], 1, 8)


def test_a_window_of_one_runs_every_head_in_order() -> None:
    policy = uniform(5.0, exits=4, start=1, window=1)
    assert policy.first() == 1
    assert [one(policy, k, [1, 0, 0]) for k in (1, 2, 3)] == [2, 3, 4]
    wide = uniform(5.0, exits=4, start=1)
    assert to_json(wide.in_order()) == to_json(policy)


def test_fitted_limits_forecast_less_for_larger_peaks_and_may_forecast_no_exit() -> None:
    limits = [[3.0, 2.0], [3.0, 2.0], [inf, 0.0], [inf, inf]]
    policy = PredictedPolicy([4.0] * 4, 0, 3, forecast="fitted", limits=limits)
    assert [one(policy, 0, [peak, 0]) for peak in (4, 3, 2.5, 2, 1)] == [EXIT, 1, 2, 2, 3]
    assert one(policy, 2, [1, 0]) == 4, "the network's own answer; the last head does not run"
    assert one(policy, 1, [1, 0]) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1},
        {"start": 3},
        {"window": 0},
        {"activation": "magic"},
        {"forecast": "magic"},
        {"thresholds": [1.0, float("nan"), 2.0]},
        {"thresholds": [1.0, -1.0, 2.0]},
        {"forecast": "fitted"},
        {"forecast": "fitted", "limits": [[1.0]]},
        {"forecast": "fitted", "limits": [[1.0, 2.0], None, None]},
        {"forecast": "fitted", "limits": [[2.0], None, None]},
        {"limits": [[2.0, 1.0], None, None]},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(change: dict[str, object]) -> None:
    value = {
        "kind": "predicted", "thresholds": [1.0, 1.0, 2.0], "start": 0, "window": 3,
        "activation": "logits", "forecast": "class_order",
    }  # fmt: skip
    from_json(value)
    with pytest.raises(ValueError, match=r"exit|window|activation|limits"):
        from_json(value | change)


def test_json_keeps_every_kind() -> None:
    for activation in ACTIVATIONS:
        for forecast in FORECASTS:
            limits = [[inf], None] if forecast == "fitted" else None
            policy = PredictedPolicy(
                [2.0, inf], 0, 9, activation=activation, forecast=forecast, limits=limits
            )
            again = from_json(json.loads(json.dumps(to_json(policy), allow_nan=False)))
            assert to_json(again) == to_json(policy)


def test_the_language_knows_the_forecasts() -> None:
    forecast = RULES["predicted"]["forecast"]
    assert forecast.expected == " or ".join(f"`{name}`" for name in FORECASTS)


def test_many_classes_are_convolved_one_step_at_a_time_alike() -> None:
    x = np.random.default_rng(1).normal(size=(50, engine._FEW_CLASSES))
    wide = np.pad(x, ((0, 0), (0, 1)))
    # One more class of 0 at the end takes and gives mass: convolve where both agree by hand.
    expected = np.empty((50, 6))
    for width, array in ((x.shape[1], x), (wide.shape[1], wide)):
        t = array
        for step in range(6):
            t = np.array([np.convolve(row, [1, 1, 1], mode="same") for row in t])
            expected[:, step] = np.abs(t).max(axis=1)
        assert array.shape[1] == width
        np.testing.assert_allclose(convolved_peaks(array, 6), expected, rtol=1e-12)


KINDS = [(a, f) for a in ACTIVATIONS for f in FORECASTS]


def made(generator: np.random.Generator, kind: tuple[str, str], exits: int) -> PredictedPolicy:
    thresholds = generator.uniform(0.5, 4, exits)
    thresholds[generator.random(exits) < 0.2] = inf
    start = int(generator.integers(exits))
    thresholds[start] = 1.5
    window = int(generator.integers(1, 6))
    limits = None
    if kind[1] == "fitted":
        size = min(window, exits) - 1
        limits = [sorted(generator.uniform(0, 2, size), reverse=True) for _ in range(exits)]
    return PredictedPolicy(
        thresholds.tolist(), start, window, activation=kind[0], forecast=kind[1], limits=limits
    )


def recorded(generator: np.random.Generator, exits: int, count: int) -> list[ExitOutputs]:
    depth = np.linspace(0.5, 3, exits)
    return [
        ExitOutputs((generator.normal(size=(count, 5)) * own).astype(np.float32)) for own in depth
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 7))
def test_one_sample_decides_as_it_does_among_others(
    seed: int, kind: tuple[str, str], exits: int
) -> None:
    """A loop over samples, as the runtime goes, against the replay of all at once."""
    generator = np.random.default_rng(seed)
    policy, seen = made(generator, kind, exits), recorded(generator, exits, 30)
    final = np.zeros((30, 5), np.float32)
    replayed = replay(policy, seen, final)
    for sample in range(30):
        due, ran = policy.first(), []
        while due < exits:
            ran.append(due)
            decision = policy.decide(due, ExitOutputs(seen[due].logits[[sample]]), None).item()
            if decision == EXIT:
                break
            assert due < decision <= exits
            due = decision
        assert replayed.exit[sample] == due
        assert np.flatnonzero(replayed.evaluated[sample]).tolist() == ran


def hits_by_hand(policy: PredictedPolicy, seen: list[ExitOutputs]) -> list[ForecastHits]:
    """The published metric, sample by sample: every head after the start is run."""
    exits, found = len(seen), []
    for start in range(exits):
        if policy.thresholds[start] == inf:
            continue
        staying = hits = beyond = 0
        for sample in range(len(seen[0].logits)):
            rows = [ExitOutputs(own.logits[[sample]]) for own in seen]
            if policy.confident(start, rows[start])[0]:
                continue
            p, a = int(policy.forecast(start, rows[start])[0]), 1
            while start + a < exits and not policy.confident(start + a, rows[start + a])[0]:
                a += 1
            staying += 1
            hits += p == a or (p == policy.window and a > policy.window)
            beyond += a >= policy.window
        if staying:
            found.append(ForecastHits(start, staying, hits, beyond))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 6))
def test_hits_are_counted_as_published(seed: int, kind: tuple[str, str], exits: int) -> None:
    generator = np.random.default_rng(seed)
    policy, seen = made(generator, kind, exits), recorded(generator, exits, 25)
    assert forecast_hits(policy, seen) == hits_by_hand(policy, seen)


def test_no_number_is_no_confidence_and_the_farthest_forecast() -> None:
    nan = [float("nan"), 0, 0]
    for activation, forecast in KINDS:
        limits = [[1.0] * 2] * 6 if forecast == "fitted" else None
        policy = PredictedPolicy(
            [1.0] * 6, 0, 3, activation=activation, forecast=forecast, limits=limits
        )
        assert one(policy, 0, nan) == 3


def test_engines_say_what_they_look_at() -> None:
    assert ConvolutionForecast([1.0, 1.0], 2).per_class
    assert not TableForecast([[1.0], None], 2).per_class
