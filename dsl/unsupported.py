"""What the language has and this version cannot build: told plainly, each with its place."""

from __future__ import annotations

from collections.abc import Callable

from eecompile.diagnostics import Diagnostic, Diagnostics, Span
from eecompile.spec import Policy, Spec

__all__ = ["unsupported"]


def unsupported(spec: Spec) -> tuple[Diagnostic, ...]:
    """What the file asks for and this version cannot build, each with its place."""
    found = Diagnostics()

    def refuse(what: str, span: Span | None, label: str = "") -> None:
        found.error("not-supported-yet", f"{what} not supported yet", span, label)

    for model in spec.models[1:]:
        refuse("Several models in one file are", model.at("name"), "the second")
    for model in spec.models:
        if model.source == "torch" and model.entry is None:
            refuse("Exported programs as a source are", model.at("path"), "name a Python function")
        elif model.source == "torch" and not model.path.endswith(".py"):
            refuse("Networks of importable modules are", model.at("path"), "name the .py file")
        for skip in model.skips:
            refuse(f"Gates that skip {skip.what} are", skip.span)
    for policy in spec.policies:
        _refuse_policy(policy, refuse)
    return found.in_order()


def _refuse_policy(policy: Policy, refuse: Callable[[str, Span | None], None]) -> None:
    for term in policy.rule.terms if policy.rule else ():
        if term.kind == "learned_score":
            refuse("Learned scores are", term.span)
        if term.kind == "auto":
            refuse("Choosing the rule is", term.span)
    parts = {
        "offload": "Offloading is",
        "split": "Choosing where to split is",
        "guard": "Guarding the accuracy is",
        "halt": "Halting at a budget is",
    }
    for part, what in parts.items():
        if getattr(policy, part) is not None:
            refuse(what, policy.at(part))
