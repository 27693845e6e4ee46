"""Policies: their rules, and whether the model and the data give what they need."""

from __future__ import annotations

from eecompile.diagnostics import Diagnostic, Diagnostics, Span, did_you_mean_help
from eecompile.dsl.check_options import (
    check_call,
    check_frequency,
    heads_of,
    listed_names,
    missing_data,
)
from eecompile.dsl.check_statements import (
    check_split_point,
    check_statements,
    is_given,
    is_open,
)
from eecompile.dsl.options import MEASURES, RULES, SPLITS
from eecompile.spec import DataSet, HeadSpec, Model, Name, Policy, Rule, RuleTerm, Spec

__all__ = ["check_policy", "needs_calibration"]

#: What may be given instead of a budget, by rule.
_GIVEN = {"confidence": "`>= 0.9`, or ", "patience": "`count: 2`, or "}

#: Rules that stand alone, and why.
_ALONE = {
    "predicted": "runs no head between its forecasts, which the other rule would have to",
    "learned_score": "learns all exits' scores and thresholds together",
    "auto": "chooses among all rules",
}


def needs_calibration(policy: Policy) -> bool:
    """Whether anything of the policy is left to be fitted.

    Without a rule a budget is kept by the gates alone: how much they skip is fitted to it.
    """
    if policy.rule is None:
        return is_given(policy, "budget")
    return any(is_open(term) or _is_measured(term) for term in policy.rule.terms)


def _is_measured(term: RuleTerm) -> bool:
    """Whether it needs calibration data even where nothing is left to choose."""
    return term.kind == "predicted" and (
        term.options.get("forecast", "fitted") == "fitted"
        or term.options.get("scale") == "mean_logit"
    )


def check_policy(policy: Policy, spec: Spec, found: Diagnostics) -> None:
    """Its rules and options, then what it needs of the model, its exits and its data."""
    before = len(found)
    for term in policy.rule.terms if policy.rule else ():
        _check_term(term, found)
    sends = is_given(policy, "offload") or is_given(policy, "split")
    if policy.rule is not None and not sends:  # which need one rule, and say so
        _check_alone(policy.rule, found)
    if policy.split is not None:
        check_call("unknown-rule", "split rule", policy.split, SPLITS, found)
    check_frequency(policy.frequency, policy.at("frequency"), found)
    check_statements(policy, found)
    has_gates = any(model.skips for model in spec.models)
    if policy.rule is None and not sends and not is_given(policy, "halt") and not has_gates:
        found.error(
            "missing-setting",
            f"Policy `{policy.name}` never exits",
            policy.at("name"),
            "needs `exit when ...` or `halt at ...`",
        )
    if len(found) == before and len(spec.models) == 1:
        _check_against_model(policy, spec.models[0], spec, found)


def _check_term(term: RuleTerm, found: Diagnostics) -> None:
    call = HeadSpec(term.kind, term.options, span=term.span, spans=term.spans)
    check_call("unknown-rule", "exit rule", call, RULES, found)
    if term.kind == "confidence":
        if term.measure is None:
            found.error(
                "missing-setting",
                "`confidence` does not say what is measured",
                term.at("kind"),
                f"expected {listed_names(f'confidence({measure})' for measure in MEASURES)}",
            )
        elif term.measure not in MEASURES:
            found.error(
                "unknown-measure",
                f"Unknown measure `{term.measure}`",
                term.at("measure"),
                f"expected {listed_names(MEASURES)}",
                help=did_you_mean_help(term.measure, MEASURES),
            )
    if term.kind in RULES and term.kind != "confidence" and term.threshold is not None:
        message = f"`{term.kind}` has no threshold"
        found.error("bad-option", message, term.at("threshold"), "remove it")


def _check_alone(rule: Rule, found: Diagnostics) -> None:
    """Some rules cannot be one of several."""
    for term in rule.terms:
        if term.kind in _ALONE and len(rule.terms) > 1:
            found.error(
                "cannot-combine",
                f"`{term.kind}` cannot be one of several rules",
                term.span,
                _ALONE[term.kind],
                help="give each rule a policy of its own",
            )
            return


def _check_against_model(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    """What a well-formed policy needs of the model, its exits and its data."""
    if not model.exits and model.auto_exits is None:
        _check_without_exits(policy, model, spec, found)
        return
    terms = policy.rule.terms if policy.rule else ()
    for term in terms:
        if term.measure == "class_means":
            _check_class_means(term, model, found)
        elif term.measure in MEASURES:
            _check_trained(term, model, found)
        if term.kind in ("predicted", "learned_score"):
            _check_trained(term, model, found)
        if term.kind == "predicted":
            _check_start(term, model, found)
    check_split_point(policy, model, found)
    _check_border(policy, model, spec, found)
    _check_fit(policy, model, spec, found)


def _check_without_exits(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    """Without exits there are only gates to decide; halting needs something to answer with."""
    lacking = f"model `{model.name}` has no exits"
    add = "add `exit ... after ... head ...`"
    if policy.halt is not None:
        found.error(
            "no-exits",
            f"Policy `{policy.name}` has nothing to answer with where it halts",
            policy.at("halt"),
            lacking,
            help=f"{add}: the deepest one in reach answers",
        )
    elif not model.skips:
        found.error(
            "no-exits",
            f"Policy `{policy.name}` has nothing to decide",
            policy.at("name"),
            lacking,
            help=f"remove the policy, or {add}",
        )
    elif policy.rule is not None:
        found.error(
            "no-exits",
            f"Policy `{policy.name}` has nowhere to leave",
            policy.rule.span,
            lacking,
            help=f"remove `exit when`, so that the gates decide alone, or {add}",
        )
    else:
        _check_fit(policy, model, spec, found)


def _check_class_means(term: RuleTerm, model: Model, found: Diagnostics) -> None:
    if any(head.kind == "class_means" for head in heads_of(model)):
        return
    found.error(
        "no-class-means",
        "No exit has class means",
        term.at("measure"),
        f"no exit of `{model.name}` has them",
        help="add `comparator class_means(pool: 4)` to an exit",
    )


def _check_trained(term: RuleTerm, model: Model, found: Diagnostics) -> None:
    if any(head.kind != "class_means" for head in heads_of(model)):
        return
    found.error(
        "no-exits",
        f"`{term.measure or term.kind}` looks at trained heads, and no exit has one",
        term.at("measure" if term.measure else "kind"),
        f"every head of `{model.name}` is `class_means`",
        help="use `confidence(class_means)`",
    )


def _check_start(term: RuleTerm, model: Model, found: Diagnostics) -> None:
    start = term.options.get("start")
    names = [exit.name for exit in model.exits]
    if not isinstance(start, Name) or model.auto_exits is not None:
        return
    heads = {exit.name: exit.head.kind for exit in model.exits}
    if heads.get(start) == "class_means" and set(heads.values()) != {"class_means"}:
        found.error(
            "bad-option",
            f"Nothing can leave at `{start}`",
            term.at("start"),
            "has no trained head, which `predicted` looks at",
        )
    if start in names:
        return
    found.error(
        "unknown-exit",
        f"Unknown exit `{start}`",
        term.at("start"),
        f"no such exit in `{model.name}`",
        help=did_you_mean_help(start, names),
    )


def _check_border(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    """The steps of int8 borders are fitted; who needs data for more than that is told elsewhere."""
    offload, data = policy.offload, spec.data_for(model)
    if offload is None or offload.border != "int8" or needs_calibration(policy):
        return
    if data is None or data.calibrate is None:
        who = f"The `int8` border of `{policy.name}`"
        missing_data("calibrate", who, offload.at("border"), data, found)


def _check_fit(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    if policy.rule is None:
        _check_fit_of_gates(policy, model, spec, found)
        return
    if not any(map(is_open, policy.rule.terms)) and is_given(policy, "budget"):
        found.error(
            "nothing-to-fit",
            f"Policy `{policy.name}` has a budget, and no threshold left to choose",
            policy.at("budget"),
            "cannot be met by choosing",
            secondary=((policy.rule.span, "all given"),) if policy.rule.span else (),
            help="remove the budget, or a threshold",
        )
    if not needs_calibration(policy):
        _check_scale(policy.rule, spec.data_for(model), found)
        return
    fitted = [term for term in policy.rule.terms if is_open(term) and term.kind != "predicted"]
    if fitted and not is_given(policy, "budget"):
        found.error(
            "missing-setting",
            f"Nothing says how sure `{policy.name}` has to be",
            fitted[0].span,
            "has no threshold, and the policy no budget",
            help=f"add {_GIVEN.get(fitted[0].kind, '')}`budget accuracy drop <= 0.5 %`",
        )
        return
    _check_calibrated(policy, policy.rule.span, model, spec, found)


def _check_fit_of_gates(policy: Policy, model: Model, spec: Spec, found: Diagnostics) -> None:
    """A policy without `exit when` has gates to keep its budget with, and nothing to guard."""
    if is_given(policy, "guard"):
        found.error(
            "nothing-to-fit",
            f"Policy `{policy.name}` has a guard, and no threshold it may tighten",
            policy.at("guard"),
            "takes the next of the settings that were fitted",
            help="add `exit when confidence(max_softmax)`, or remove the guard",
        )
    if not is_given(policy, "budget"):
        return
    if not model.skips:
        found.error(
            "nothing-to-fit",
            f"Policy `{policy.name}` has a budget, and no threshold left to choose",
            policy.at("budget"),
            "cannot be met by choosing",
            help="remove the budget, or add `exit when confidence(max_softmax)`",
        )
        return
    _check_calibrated(policy, policy.at("budget"), model, spec, found)


def _check_calibrated(
    policy: Policy, place: Span | None, model: Model, spec: Spec, found: Diagnostics
) -> None:
    """There are data to fit the policy on."""
    data = spec.data_for(model)
    if model.data is None and len({data.name for data in spec.data}) > 1:
        return  # which data are meant has been asked for already
    if data is None or data.calibrate is None:
        missing_data("calibrate", f"Policy `{policy.name}`", place, data, found)


def _check_scale(rule: Rule, data: DataSet | None, found: Diagnostics) -> None:
    """A given threshold of class means is meant for their temperature, which is fitted."""
    terms = [term for term in rule.terms if term.measure == "class_means"]
    if not terms or data is None or data.calibrate is not None:
        return
    found.add(
        Diagnostic(
            "missing-data",
            "The confidence of class means has no scale, and there is no `calibrate` data",
            terms[0].at("threshold"),
            "is nearly flat until its temperature is fitted",
            help=f'add `calibrate "....npz"` in `data {data.name} {{ }}`',
            severity="warning",
        )
    )
