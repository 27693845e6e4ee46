"""An exit rule of the language as policies that differ in thresholds only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from eecompile.policies import (
    ClassMeansPolicy,
    EitherPolicy,
    ExitOutputs,
    ExitPolicy,
    NeverPolicy,
    PatiencePolicy,
    ThresholdPolicy,
)
from eecompile.policies.scores import SCORES, max_softmax
from eecompile.record import CalibrateRecord
from eecompile.spec import Rule, RuleTerm

__all__ = ["RuleFamily", "families", "given_policy"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RuleFamily:
    """A rule in which all is decided but some thresholds.

    Attributes:
        tests: (term, exit, score (n,), threshold or None) in the order of exits.
        terms: the rule's terms; patience has its count.
        exits: number of exits.
    """

    tests: tuple[tuple[int, int, Array, float | None], ...]
    terms: tuple[RuleTerm, ...]
    exits: int

    @property
    def given(self) -> tuple[float, ...] | None:
        """The thresholds, where all of them are given."""
        values = tuple(threshold for *_, threshold in self.tests if threshold is not None)
        return values if len(values) == len(self.tests) else None

    def policy(self, thresholds: Sequence[float]) -> ExitPolicy:
        """The policy with one threshold per test."""
        per_term = [[inf] * self.exits for _ in self.terms]
        for (term, exit_, _, _), threshold in zip(self.tests, thresholds, strict=True):
            per_term[term][exit_] = threshold
        rules = [
            _policy(term, own, self.exits) for term, own in zip(self.terms, per_term, strict=True)
        ]
        return rules[0] if len(rules) == 1 else EitherPolicy(rules)


def given_policy(
    rule: Rule | None, heads: Sequence[bool], class_means: Sequence[bool]
) -> ExitPolicy:
    """The policy of a rule whose thresholds are all given: nothing is fitted, no data are needed.

    Args:
        rule: when to leave; None never leaves.
        heads: whether each exit has a trained head.
        class_means: whether each exit has class means.
    """
    if rule is None or not heads:
        return NeverPolicy(len(heads))
    rules = []
    for term in rule.terms:
        there = class_means if term.measure == "class_means" else heads
        limit = inf if term.threshold is None else term.threshold
        assert term.kind == "patience" or limit < inf, "checked with the file"
        rules.append(_policy(term, [limit if has else inf for has in there], len(heads)))
    return rules[0] if len(rules) == 1 else EitherPolicy(rules)


def _policy(term: RuleTerm, thresholds: Sequence[float], exits: int) -> ExitPolicy:
    if term.kind == "patience":
        return PatiencePolicy(_count(term), exits)
    if term.measure == "class_means":
        return ClassMeansPolicy(thresholds)
    return ThresholdPolicy(str(term.measure), thresholds)


def _count(patience: RuleTerm) -> int:
    count = patience.options["count"]
    assert isinstance(count, int), "checked with the file"
    return count


def families(rule: Rule, record: CalibrateRecord) -> list[RuleFamily]:
    """The rule with every possible count where patience has none."""
    counts = [
        [term] if term.kind != "patience" or "count" in term.options else _counted(term, record)
        for term in rule.terms
    ]
    choices: list[tuple[RuleTerm, ...]] = [()]
    for options in counts:
        choices = [(*chosen, option) for chosen in choices for option in options]
    return [_family(terms, record) for terms in choices]


def _counted(term: RuleTerm, record: CalibrateRecord) -> list[RuleTerm]:
    most = max(1, len(record.exits) - 1)
    return [
        RuleTerm(term.kind, term.measure, {**term.options, "count": count}, term.threshold)
        for count in range(1, most + 1)
    ]


def _family(terms: tuple[RuleTerm, ...], record: CalibrateRecord) -> RuleFamily:
    outputs = record.outputs()
    tests: list[tuple[int, int, Array, float | None]] = []
    for number, term in enumerate(terms):
        for index, score in _scores(term, record, outputs):
            threshold = 0.5 if term.kind == "patience" else term.threshold
            tests.append((number, index, score, threshold))
    tests.sort(key=lambda test: (test[1], test[0]))
    return RuleFamily(tuple(tests), terms, len(record.exits))


def _scores(
    term: RuleTerm, record: CalibrateRecord, outputs: Sequence[ExitOutputs]
) -> list[tuple[int, Array]]:
    """The term's score at each exit that has what it looks at."""
    if term.kind == "patience":
        # Whether it fires: a score of 0 or 1 with a given threshold.
        policy = PatiencePolicy(_count(term), len(outputs))
        state = policy.start(len(record))
        fired = [policy.decide(index, seen, state) < 0 for index, seen in enumerate(outputs)]
        return list(enumerate(hit.astype(np.float32) for hit in fired))
    found = []
    for index, (name, seen) in enumerate(zip(record.exits, outputs, strict=True)):
        if term.measure == "class_means":
            if seen.class_means is not None:
                found.append((index, max_softmax(seen.class_means)))
        elif name in record.logits:
            found.append((index, SCORES[str(term.measure)](seen.logits)))
    return found
