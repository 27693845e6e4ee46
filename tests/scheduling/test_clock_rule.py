"""Clock rules: what they may say, and as JSON."""

from __future__ import annotations

from typing import Any

import pytest

from eecompile.checked_json import JsonError
from eecompile.clock_rule import ClockRule

RULES = [
    ClockRule(),
    ClockRule("lowest_energy", 0.04, safe=True, start=3),
    ClockRule("lowest_energy", 0.04, hard=True),
    ClockRule("lowest_latency"),
    ClockRule("race_to_idle", 1.0),
    ClockRule("fixed", frequency_hz=6e8),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_json_gives_the_rule_back(rule: ClockRule) -> None:
    assert ClockRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"objective": "slowest"}, "objective must be one of"),
        ({"deadline_s": 0.0}, "deadline_s must be finite"),
        ({"deadline_s": float("inf")}, "deadline_s must be finite"),
        ({"deadline_s": float("nan")}, "deadline_s must be finite"),
        ({"safe": True}, "need a deadline_s"),
        ({"deadline_s": 1.0, "safe": True, "hard": True}, "either safe or hard"),
        ({"objective": "fixed"}, "which needs it"),
        ({"frequency_hz": 1e9}, "belongs to the objective"),
        ({"objective": "lowest_latency", "start": 0}, "start belongs to"),
        ({"start": -1}, "index of a state"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ClockRule(**fields)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"objective": 1}, "clock.objective"),
        ({"objective": "slowest"}, "contradicts itself: objective"),
        ({"safe": 1}, "true or false"),
        ({"deadline_s": -1}, "contradicts itself: deadline_s"),
        ({"deadline_s": "40 ms"}, "clock.deadline_s"),
        ({"start": 1.5}, "clock.start"),
        ({"start": 10**9}, "clock.start"),
        ({"more": 1}, "clock.more"),
    ],
)
def test_json_of_anything_else_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(JsonError, match=why):
        ClockRule.from_json({**ClockRule().to_json(), **changes})


def test_a_missing_field_is_named() -> None:
    value = ClockRule().to_json()
    del value["hard"]
    with pytest.raises(JsonError, match=r"clock\.hard"):
        ClockRule.from_json(value)
