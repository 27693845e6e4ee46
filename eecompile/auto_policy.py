"""`exit when auto`: all rules are fitted, and the one that does best within the budget is kept.

Rules are compared by cross-validation within the calibration data: each is fitted on two thirds of
the samples and judged on the rest, three times, so that every sample judges each rule once. What
is kept is then fitted on all of them. Test data take no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eecompile.calibration_checks import check_record
from eecompile.fitted_policy import CONFIDENCE, Calibration, FittedPolicy, InfeasibleBudget
from eecompile.outcomes import ExitCosts, Interval
from eecompile.policies import replay
from eecompile.policies.points import within
from eecompile.policy_fitting import DEFAULT_BUDGET, fit_policy
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget, Rule, RuleTerm

__all__ = ["comparison_lines", "fit_auto", "is_auto", "rules_for"]

Array = np.ndarray[Any, Any]

#: Parts of the calibration data, each judged by what was fitted on the others.
_FOLDS = 3


def is_auto(rule: Rule | None) -> bool:
    """Whether the compiler is to choose the rule."""
    return rule is not None and any(term.kind == "auto" for term in rule.terms)


def rules_for(record: CalibrateRecord) -> list[Rule]:
    """The rules that a network's exits allow, the simplest first."""
    means = RuleTerm("confidence", "class_means")
    rules: list[tuple[RuleTerm, ...]] = []
    if record.logits:
        measures = ("max_softmax", "entropy", "margin")
        rules += [(RuleTerm("confidence", measure),) for measure in measures]
    if record.class_means:
        rules.append((means,))
    if record.logits and record.class_means:
        rules.append((means, RuleTerm("confidence", "max_softmax")))
    if len(record.exits) > 1:
        rules.append((RuleTerm("patience"),))
    if record.logits:
        rules += [(RuleTerm("predicted"),), (RuleTerm("learned_score"),)]
    return [Rule(terms) for terms in rules]


@dataclass(frozen=True)
class _Judged:
    """A rule on samples that it was not fitted on.

    Attributes:
        rule: the rule.
        right: bool (n,), whether each sample's answer is right.
        lost: float64 (n,), what each loses in accuracy against the whole network: -1, 0 or 1.
        cost: float64 (n,), in the quantity that is limited or saved.
        kept: whether the budget holds on the average of them.
    """

    rule: Rule
    right: Array
    lost: Array
    cost: Array
    kept: bool

    def worth(self, by_cost: bool) -> Array:
        """What is compared, larger for better: (n,)."""
        return -self.cost if by_cost else self.right.astype(np.float64)

    def rank(self, by_cost: bool) -> tuple[float, float]:
        """Lower for better; of what is as good, what is better in the other respect."""
        cost, wrong = float(self.cost.mean()), float((~self.right).mean())
        return (cost, wrong) if by_cost else (wrong, cost)


def fit_auto(
    budget: Budget | None,
    record: CalibrateRecord,
    costs: Mapping[str, ExitCosts],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> FittedPolicy:
    """The best of all rules within the budget; `FittedPolicy.comparison` says by how much.

    Of a cost budget the most accurate rule is taken, of an accuracy budget the one that costs
    least, in the first of `costs`.

    Args:
        budget: the limit; None means `DEFAULT_BUDGET`.
        record: with every exit's outputs.
        costs: quantity -> costs, the budget's among them.
        seed: of folds and of everything random in the fits.
        confidence: as for `fit_policy`.

    Raises:
        CompileErrors: no rule keeps the budget (the range within reach is named), or the data are
            too few, or of one class.
    """
    check_record(record, budget, confidence, folds=_FOLDS)
    judge = Calibration(record, costs, budget or DEFAULT_BUDGET, confidence)
    refused: dict[Rule, float] = {}
    judged: list[_Judged] = []
    unjudged: list[Rule] = []
    for rule in rules_for(record):
        found = _cross_validated(rule, judge, seed)
        if found is not None:
            judged.append(found)
        elif (strictest := _strictest(rule, judge, seed)) is not None:
            refused[rule] = strictest
        else:
            unjudged.append(rule)
    by_cost = judge.budget.quantity == "accuracy_drop"
    judged.sort(key=lambda one: (not one.kept, *one.rank(by_cost)))
    for rule in [*(one.rule for one in judged), *unjudged]:
        try:
            fitted = _fit(rule, judge, seed, levels=True)
        except InfeasibleBudget as error:
            refused[rule] = error.strictest
            continue
        left = [one for one in judged if one.rule not in refused]
        table = _comparison(rule, left, [*unjudged, *refused], judge, refused)
        return replace(fitted, comparison=table)
    raise judge.infeasible(min(refused.values()))


def _fit(rule: Rule, judge: Calibration, seed: int, *, levels: bool = False) -> FittedPolicy:
    return fit_policy(
        rule,
        judge.budget,
        judge.record,
        judge.costs,
        seed=seed,
        confidence=judge.confidence,
        levels=levels,
    )


def _strictest(rule: Rule, judge: Calibration, seed: int) -> float | None:
    """The strictest limit a rule can keep on all samples; None where it keeps the one asked for."""
    try:
        _fit(rule, judge, seed)
    except InfeasibleBudget as error:
        return error.strictest
    return None


def _quick(rule: Rule) -> Rule:
    """The rule with a fit that takes less time where it can: its best of one start, not of some."""
    terms = [
        replace(term, options={**term.options, "restarts": 1})
        if term.kind == "learned_score"
        else term
        for term in rule.terms
    ]
    return replace(rule, terms=tuple(terms))


def _folds(count: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Rows to fit on and rows to judge by, both sorted."""
    order = np.random.default_rng(seed).permutation(count)
    for fold in range(_FOLDS):
        judging = np.zeros(count, bool)
        judging[order[fold::_FOLDS]] = True
        yield np.flatnonzero(~judging), np.flatnonzero(judging)


def _cross_validated(rule: Rule, judge: Calibration, seed: int) -> _Judged | None:
    """The rule on every sample, fitted without it; None where a part has no setting in budget."""
    record, count = judge.record, len(judge.record)
    right, cost = np.zeros(count, bool), np.zeros(count)
    for fitting, judging in _folds(count, seed):
        own = replace(judge, record=record.rows(fitting))
        try:
            fitted = _fit(_quick(rule), own, seed)
        except InfeasibleBudget:
            return None
        part = record.rows(judging)
        replayed = replay(fitted.policy, part.outputs(), part.final)
        right[judging] = replayed.correct(part.labels)
        cost[judging] = judge.costs[judge.quantity].of(replayed)
    lost = record.right_as_built.astype(np.float64) - right
    limited = lost if judge.budget.quantity == "accuracy_drop" else cost
    kept = within(float(limited.mean()), judge.budget.limit)
    return _Judged(rule, right, lost, cost, kept)


def _comparison(
    chosen: Rule,
    compared: Sequence[_Judged],
    others: Sequence[Rule],
    judge: Calibration,
    refused: Mapping[Rule, float],
) -> dict[str, Any]:
    """All rules as JSON, the best first; those that could not be compared last."""
    by_cost = judge.budget.quantity == "accuracy_drop"
    rows = []
    for one in compared:
        behind = None
        if one.rule is not chosen:
            less = compared[0].worth(by_cost) - one.worth(by_cost)
            interval = Interval.of_mean(less)
            behind = {"value": interval.value, "low": interval.low, "high": interval.high}
        row = _row(one.rule, float(one.right.mean()), float(one.lost.mean()))
        rows.append(row | {"cost": float(one.cost.mean()), "kept": one.kept, "behind": behind})
    for rule in others:
        why = "needs more samples to keep the budget on a part of them"
        if rule in refused:
            why = "cannot keep the budget"
        rows.append(_row(rule, None, None) | {"why": why, "strictest": refused.get(rule)})
    return {
        "chosen": str(chosen),
        "compared": "cost" if by_cost else "accuracy",
        "quantity": judge.quantity,
        "n": len(judge.record),
        "folds": _FOLDS,
        "candidates": rows,
    }


def _row(rule: Rule, accuracy: float | None, drop: float | None) -> dict[str, Any]:
    return {
        "rule": str(rule),
        "accuracy": accuracy,
        "accuracy_drop": drop,
        "cost": None,
        "kept": False,
        "behind": None,
        "why": None,
        "strictest": None,
    }


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What a person reads of it: a line for each rule, the best first."""
    quantity = comparison["quantity"]
    unit, scale = {"macs": ("% MACs", 1e2), "latency": ("ms", 1e3), "energy": ("mJ", 1e3)}[quantity]
    by_cost = comparison["compared"] == "cost"
    lines = [
        f"  chosen on held-out parts of {comparison['n']} calibration samples: "
        f"{comparison['chosen']}"
    ]
    width = max(len(row["rule"]) for row in comparison["candidates"])
    for row in comparison["candidates"]:
        name = f"    {row['rule']:<{width}}  "
        if row["why"] is not None:
            lines.append(f"{name}left out: {row['why']}")
            continue
        line = f"{name}{100 * row['accuracy']:.2f} % right, {scale * row['cost']:.4g} {unit}"
        if row["behind"] is not None:
            factor, of = (scale, unit) if by_cost else (1e2, "points")
            value, low, high = (factor * row["behind"][key] for key in ("value", "low", "high"))
            line += f"; behind by {value:.2f} [{low:.2f}, {high:.2f}] {of}"
        lines.append(line + ("" if row["kept"] else "; over the budget there"))
    return lines
