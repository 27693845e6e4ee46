"""What the language has and this version cannot build: told plainly, each with its place."""

from __future__ import annotations

from typing import Protocol

from eecompile.diagnostics import Diagnostic, Diagnostics, Span
from eecompile.spec import Policy, Spec

__all__ = ["unsupported"]


class _Refuse(Protocol):
    """Keeps a refusal: what is not built, where, and a few words for the place."""

    def __call__(self, what: str, span: Span | None, label: str = "") -> None: ...


def unsupported(spec: Spec) -> tuple[Diagnostic, ...]:
    """What the file asks for and this version cannot build, each with its place."""
    found = Diagnostics()

    def refuse(what: str, span: Span | None, label: str = "") -> None:
        found.error("not-supported-yet", f"{what} not supported yet", span, label)

    for model in spec.models[1:]:
        label = "write a file of its own for each"
        refuse("Several models in one file are", model.at("name"), label)
    for model in spec.models:
        if model.source == "torch" and model.entry is None:
            refuse("Exported programs as a source are", model.at("path"), "name a Python function")
        elif model.source == "torch" and not model.path.endswith(".py"):
            refuse("Networks of importable modules are", model.at("path"), "name the .py file")
    has_gates = any(model.skips for model in spec.models)
    for policy in spec.policies:
        _refuse_together(policy, refuse)
        _refuse_halted(policy, refuse)
        if has_gates:
            _refuse_gated(policy, refuse)
    return found.in_order()


def _refuse_halted(policy: Policy, refuse: _Refuse) -> None:
    """Halting stands beside `exit when` and gates, and nothing else that decides."""
    if policy.halt is None:
        return
    why = {
        "deadline": "remove it: `halt at budget latency <= ...` holds for each sample",
        "frequency": "remove it: what is left of a budget is known for one clock",
        "offload": "remove it: a server's time is no part of the budget",
        "split": "remove it: a server's time is no part of the budget",
        "guard": "remove it: its audits run to the end, whatever the budget",
    }
    for part, label in why.items():
        if getattr(policy, part) is not None:
            refuse(f"`{part}` beside `halt` is", policy.at(part), label)


def _refuse_gated(policy: Policy, refuse: _Refuse) -> None:
    """What does not work for a network with gates."""
    for part in ("offload", "split"):
        if getattr(policy, part) is not None:
            label = "remove it: a server would run the rest without its gates"
            refuse(f"`{part}` in a network with gates is", policy.at(part), label)


def _refuse_together(policy: Policy, refuse: _Refuse) -> None:
    """Statements that are each built, and not yet side by side."""
    given = {
        part: getattr(policy, part) is not None
        for part in ("deadline", "frequency", "offload", "split", "guard")
    }
    sends = next((part for part in ("offload", "split") if given[part]), None)
    partner = sends or ("guard" if given["guard"] else None)
    for part in ("deadline", "frequency"):
        if given[part] and partner:
            label = f"remove it, or the {partner} it stands beside"
            refuse(f"`{part}` beside `{partner}` is", policy.at(part), label)
    if sends and given["guard"]:
        label = f"remove it: what leaves beside `{sends}` is decided as it runs"
        refuse(f"`guard` beside `{sends}` is", policy.at("guard"), label)
