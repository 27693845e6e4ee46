"""Policies as the native runtime reads them: bytes, see the top of native/policy_reading.c."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite, isnan
from struct import error, pack
from typing import Any

import numpy as np

from eecompile.policies import (
    ClassMeansPolicy,
    EitherPolicy,
    ExitPolicy,
    LearnedScorePolicy,
    NeverPolicy,
    PatiencePolicy,
    PredictedPolicy,
    SplitPolicy,
    ThresholdPolicy,
)
from eecompile.policies.activations import ACTIVATIONS
from eecompile.policies.learned_score import MEASURES
from eecompile.policies.predicted import FORECASTS
from eecompile.policies.scores import SCORES

__all__ = ["DEEPEST", "has_native_form", "policy_bytes"]

#: How deep rules may lie within rules.
DEEPEST = 8

#: Of a split that asks the comparators, beside `SCORES`.
_MEANS = len(MEASURES)

_MOST = 2**32 - 1


def has_native_form(policy: ExitPolicy) -> bool:
    """Whether the native runtime has such a policy: of a kind of ours, not one derived from it.

    >>> has_native_form(EitherPolicy([NeverPolicy(2), NeverPolicy(2)]))
    True
    """
    if type(policy) is EitherPolicy:
        return all(map(has_native_form, policy.rules))
    return type(policy) in _WRITERS


def policy_bytes(policy: ExitPolicy) -> bytes:
    """What the native runtime's `policy_read` makes an equal policy of.

    It has learned nothing, whatever `policy` has learned.

    Raises:
        ValueError: the native runtime has no such policy: it is of a class of somebody's own, or
            limited by budgets, which are none of a policy's there; or it has a number for which
            there is no room, or which is none.
    """
    try:
        return _rule(policy, 0)
    except error as problem:
        raise ValueError(f"a policy with a number out of its range: {problem}") from problem


def _rule(policy: ExitPolicy, depth: int) -> bytes:
    if type(policy) is EitherPolicy:
        return _head(3, policy) + _either(policy, depth)
    # A class derived from one of ours may decide in its own way.
    if type(policy) not in _WRITERS:
        raise ValueError(f"the native runtime has no policy {type(policy).__name__!r}")
    number, write = _WRITERS[type(policy)]
    return _head(number, policy) + write(policy)


def _head(number: int, policy: ExitPolicy) -> bytes:
    if not isfinite(policy.gate_shift):
        raise ValueError(f"gates cannot be shifted by {policy.gate_shift}")
    return pack("<Bd", number, policy.gate_shift)


def _either(policy: EitherPolicy, depth: int) -> bytes:
    if not policy.rules or depth >= DEEPEST:
        raise ValueError(f"a choice of no rules, or rules in rules more than {DEEPEST} deep")
    rules = b"".join(_rule(rule, depth + 1) for rule in policy.rules)
    return pack("<I", len(policy.rules)) + rules


def _numbers(values: Iterable[float]) -> bytes:
    found = [float(value) for value in values]
    if any(map(isnan, found)):
        raise ValueError("a policy with a number that is none")
    return pack(f"<{len(found)}d", *found)


def _limits(values: Sequence[float]) -> bytes:
    return pack("<I", len(values)) + _numbers(values)


def _threshold(policy: ThresholdPolicy) -> bytes:
    return pack("<B", list(SCORES).index(policy.score)) + _limits(policy.thresholds)


def _class_means(policy: ClassMeansPolicy) -> bytes:
    return _limits(policy.thresholds)


def _patience(policy: PatiencePolicy) -> bytes:
    if not 1 <= policy.count <= _MOST:
        raise ValueError(f"{policy.count} confirmations cannot be wanted")
    return pack("<2I", policy.exits, policy.count)


def _never(policy: NeverPolicy) -> bytes:
    return pack("<I", policy.exits)


def _predicted(policy: PredictedPolicy) -> bytes:
    surprise = list(ACTIVATIONS).index(policy.activation)
    forecast = FORECASTS.index(policy.kind_of_forecast)
    found = _limits(policy.thresholds)
    found += pack("<2I2B", policy.start_exit, policy.window, surprise, forecast)
    nothing = [-inf] * (policy.window - 1)
    return found + b"".join(_numbers(nothing if o is None else o) for o in policy.limits or ())


def _learned_score(policy: LearnedScorePolicy) -> bytes:
    exits = len(policy.thresholds)
    found = _limits(policy.thresholds)
    for exit_, weights in enumerate(policy.weights):
        found += pack("<B", weights is not None)
        if weights is not None:
            shares, own, before = np.split(weights, [-exits - len(MEASURES), -exits])
            # What nothing looks at is not computed.
            found += _limits(shares.tolist() if shares.any() else []) + _numbers(own.tolist())
            found += _limits(before[:exit_].tolist() if before.any() else [])
    return found


def _split(policy: SplitPolicy) -> bytes:
    measure = _MEANS if policy.score == "class_means" else list(SCORES).index(policy.score)
    arms, rewards, learning = policy.exits, policy.rewards, policy.learning
    found = pack("<B2I", measure, len(policy.thresholds), len(arms))
    found += pack(f"<{len(arms)}I", *arms) + _numbers(policy.thresholds[e] for e in arms)
    if learning is None:
        assert policy.at is not None, "a split is learned or fixed"
        return found + pack("<BI", False, arms.index(policy.at))
    options = (learning.discount, learning.exploration, learning.weight, rewards.price)
    found += pack("<3B", True, learning.observations == "side", learning.unknown == "impute")
    return found + _numbers((*options, *rewards.spent, *rewards.alone))


#: Class -> number of the kind, and what writes the rest.
_WRITERS: dict[type[ExitPolicy], tuple[int, Callable[[Any], bytes]]] = {
    ThresholdPolicy: (0, _threshold),
    ClassMeansPolicy: (1, _class_means),
    PatiencePolicy: (2, _patience),
    NeverPolicy: (4, _never),
    PredictedPolicy: (5, _predicted),
    LearnedScorePolicy: (6, _learned_score),
    SplitPolicy: (7, _split),
}
