"""Data that nothing can be fitted on are refused in words, never with a silly fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eecompile.auto_policy import fit_auto
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord
from eecompile.spec import Budget, Rule, RuleTerm
from tests.budgets.records import COSTS, EXITS, RULES, made, rule

FEW, ENOUGH = made(CalibrateRecord, 5, 49), made(CalibrateRecord, 5, 60)


def refused(own: Rule, record: CalibrateRecord, budget: Budget | None) -> list[Diagnostic]:
    with pytest.raises(CompileErrors) as raised:
        if own == rule("auto"):
            fit_auto(budget, record, COSTS)
        else:
            fit_policy(own, budget, record, COSTS)
    return list(raised.value.diagnostics)


@pytest.mark.parametrize(
    ("own", "least"), [*((own, 50) for own in RULES.values()), (rule("auto"), 75)], ids=str
)
def test_too_few_samples_are_refused(own: Rule, least: int) -> None:
    (found,) = refused(own, made(CalibrateRecord, 5, least - 1), Budget("macs", 0.7))
    assert found.id == "too-few-samples"
    assert f"at least {least}" in found.message
    assert f"found {least - 1}" in found.message


def test_the_least_that_is_named_for_a_choice_is_enough_for_it() -> None:
    assert fit_auto(Budget("macs", 0.9), made(CalibrateRecord, 5, 75), COSTS).points


def test_a_few_more_will_do() -> None:
    point = fit_policy(RULES["softmax"], Budget("macs", 0.9), ENOUGH, COSTS).point
    assert 0 < point.costs["macs"] < point.at_most["macs"] <= 0.9


@pytest.mark.parametrize(
    ("limit", "confidence", "needed"), [(0.01, 0.95, 299), (0.005, 0.95, 598), (0.005, 0.9, 460)]
)
def test_a_drop_of_less_than_one_sample_says_how_many_are_needed(
    limit: float, confidence: float, needed: int
) -> None:
    with pytest.raises(CompileErrors) as raised:
        fit_policy(
            RULES["margin"], Budget("accuracy_drop", limit), ENOUGH, COSTS, confidence=confidence
        )
    (found,) = raised.value.diagnostics
    assert found.id == "too-few-samples"
    assert found.label == "a single one of them is 1.7 %"
    assert f"at least {needed} samples" in str(found.help)
    assert fit_policy(RULES["margin"], Budget("accuracy_drop", 0.02), ENOUGH, COSTS).points


def test_one_class_is_refused() -> None:
    record = replace(made(CalibrateRecord, 5, 200), labels=np.full(200, 3))
    for own in (RULES["softmax"], RULES["predicted"], rule("auto")):
        (found,) = refused(own, record, Budget("macs", 0.7))
        assert found.id == "one-class"
        assert "All 200 calibration samples are of class 3" in found.message


@pytest.mark.parametrize("where", ["final", "middle", "means"])
def test_scores_that_are_no_numbers_are_refused(where: str) -> None:
    record = made(CalibrateRecord, 5, 200)
    arrays = {
        "final": record.final,
        "middle": record.logits["middle"],
        "means": record.class_means["late"],
    }
    arrays[where][17, 2] = np.nan
    (found,) = refused(RULES["either"], record, Budget("macs", 0.7))
    assert found.id == "bad-data"
    assert "not finite in 1 calibration samples" in found.message
    assert "sample 17" in found.notes[0]


def test_all_that_is_wrong_is_told_at_once() -> None:
    record = replace(made(CalibrateRecord, 5, 20), labels=np.zeros(20, np.int64))
    record.final[3] = np.inf
    ids = [found.id for found in refused(RULES["softmax"], record, None)]
    assert ids == ["too-few-samples", "one-class", "bad-data"]


def test_nothing_is_asked_of_data_that_nothing_is_fitted_on() -> None:
    given = Rule((RuleTerm("confidence", "margin", threshold=0.5),))
    assert fit_policy(given, None, FEW, COSTS).points == ()
    assert fit_policy(None, None, FEW, COSTS).point.accuracy_drop == 0


@pytest.mark.parametrize("name", [name for name in RULES if name != "patience"])
def test_an_infeasible_budget_names_both_ends_of_the_range(name: str) -> None:
    record = made(CalibrateRecord, 1, 600)
    (found,) = refused(RULES[name], record, Budget("latency", 1e-4))
    assert found.id == "infeasible-budget"
    assert "is 1.6 ms" in found.notes[0], "the first exit and its head"
    assert "the whole network costs 10 ms" in found.notes[1]
    # What is named can be kept.
    kept = fit_policy(RULES[name], Budget("latency", 1.6e-3), record, COSTS).point
    assert kept.at_most["latency"] == pytest.approx(1.6e-3)
    assert EXITS[0] == "early"
