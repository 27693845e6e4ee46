"""Statements of a policy that need each other, and those that cannot stand together."""

from __future__ import annotations

from eecompile.diagnostics import Diagnostics, did_you_mean_help
from eecompile.dsl.options import RULES
from eecompile.spec import Exit, Model, Name, Policy, RuleTerm

__all__ = ["check_split_point", "check_statements", "is_given", "is_open"]

_OFFLOAD = 'offload "http://edge:8000" cost 0.5'


def is_open(term: RuleTerm) -> bool:
    """Whether there is something left to choose, so that a budget is kept."""
    if term.kind == "patience":
        return "count" not in term.options
    if term.kind == "predicted":
        return not {"beta", "start"} <= term.options.keys()
    return term.threshold is None


def is_given(policy: Policy, part: str) -> bool:
    """Whether it is written, even where its value cannot be meant."""
    return getattr(policy, part) is not None or part in policy.spans


def check_statements(policy: Policy, found: Diagnostics) -> None:
    """Offloading, splits and guards have what they need, and nothing they cannot work with."""
    if is_given(policy, "offload") or is_given(policy, "split"):
        _check_both(policy, found)
        _check_unsure(policy, found)
        _check_observations(policy, found)
    if is_given(policy, "guard"):
        _check_guard(policy, found)


def _check_both(policy: Policy, found: Diagnostics) -> None:
    """Who answers and where to split are of no use without each other."""
    if policy.split is None:
        found.error(
            "missing-setting",
            f"Nothing says where `{policy.name}` splits the network",
            policy.at("offload"),
            "what is sent is the network's state at a split",
            help="add `split online_ucb`, which learns it, or `split fixed(at: ...)` with an exit",
        )
    if policy.offload is None:
        found.error(
            "missing-setting",
            f"Nothing says where `{policy.name}` sends what it splits off",
            policy.at("split"),
            "has no server",
            help=f"add `{_OFFLOAD}`, or remove the split",
        )


def _check_unsure(policy: Policy, found: Diagnostics) -> None:
    """One confidence at the split tells who leaves and who is sent."""
    statement = "offload" if is_given(policy, "offload") else "split"
    if policy.rule is None:
        found.error(
            "missing-setting",
            f"Nothing says when `{policy.name}` is unsure",
            policy.at(statement),
            "concerns unsure samples",
            help="add `exit when confidence(max_softmax) >= 0.8`",
        )
        return
    terms = policy.rule.terms
    if any(term.kind not in RULES for term in terms):
        return
    kinds = list(dict.fromkeys(term.kind for term in terms))
    if len(terms) > 1 or kinds != ["confidence"]:
        several = f"`{statement}` needs one rule, found {len(terms)}"
        other = f"`{statement}` cannot stand beside `{kinds[0]}`"
        found.error(
            "cannot-combine",
            several if len(terms) > 1 else other,
            policy.rule.span,
            "one `confidence(...)` tells who leaves and who is sent",
            help="write `exit when confidence(max_softmax) >= 0.8`",
        )
    elif is_open(terms[0]) and policy.budget and policy.budget.quantity != "accuracy_drop":
        found.error(
            "cannot-combine",
            f"The threshold of `{policy.name}` cannot be fitted to `{policy.budget}`",
            policy.at("budget"),
            f"what is spent follows from the split and the price of `{statement}`",
            help="write `budget accuracy drop <= 2 %`, or give the threshold",
        )


def _check_observations(policy: Policy, found: Diagnostics) -> None:
    """What the split itself is worth is known whenever it was tried: its own sample was sent."""
    split = policy.split
    if split is None or "unknown" not in split.options or split.kind != "online_ucb":
        return
    if split.option("observations", Name("own")) == "own":
        found.error(
            "bad-option",
            "Option `unknown` of `online_ucb` has no effect without side observations",
            split.at("unknown"),
            "of its own split all is known",
            help="add `observations: side`, or remove it",
        )


def _check_guard(policy: Policy, found: Diagnostics) -> None:
    """A guard tightens what was fitted; thresholds that are given are the user's own."""
    if policy.rule is None or any(map(is_open, policy.rule.terms)):
        return
    place = policy.rule.span
    found.error(
        "nothing-to-fit",
        f"Policy `{policy.name}` has a guard, and no threshold it may tighten",
        policy.at("guard"),
        "takes the next of the settings that were fitted",
        secondary=((place, "all given"),) if place else (),
        help="leave a threshold out and add `budget accuracy drop <= 0.5 %`, or remove the guard",
    )


def check_split_point(policy: Policy, model: Model, found: Diagnostics) -> None:
    """The exit of a fixed split exists, and measures what the rule looks at."""
    if policy.split is None or policy.rule is None or model.auto_exits is not None:
        return
    at, place = policy.split.option("at"), policy.split.at("at")
    if policy.split.kind != "fixed" or not isinstance(at, Name):
        return
    exits = {exit.name: exit for exit in model.exits}
    if at not in exits:
        final = at == "final"
        found.error(
            "unknown-exit",
            f"Unknown exit `{at}`",
            place,
            "nothing is left to send after it" if final else f"no such exit in `{model.name}`",
            help=did_you_mean_help(at, exits) or f"exits: {', '.join(f'`{e}`' for e in exits)}",
        )
        return
    measure = policy.rule.terms[0].measure
    if measure is not None and not _measures(exits[at], measure):
        needed = "class means" if measure == "class_means" else "trained head"
        found.error(
            "bad-option",
            f"Nothing can leave at `{at}`",
            place,
            f"has no {needed}, which `{measure}` looks at",
            help=f"split elsewhere, or let the rule look at what `{at}` has",
        )


def _measures(exit: Exit, measure: str) -> bool:
    heads = [head.kind == "class_means" for head in (exit.head, exit.comparator) if head]
    return any(heads) if measure == "class_means" else not all(heads)
