"""Policies: their statements, from the tree to the nodes of a `Spec`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from eecompile.diagnostics import did_you_mean_help
from eecompile.dsl.endpoints import endpoint_fault
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.dsl.values import Values
from eecompile.spec import (
    Budget,
    Deadline,
    Guard,
    Name,
    Offload,
    Policy,
    Rule,
    RuleTerm,
)

__all__ = ["BUDGETS", "HALTS", "PolicyStatements"]

#: How border tensors may travel to a server.
BORDERS = ("float32", "float16", "int8")

#: The longest that an offloaded answer may be waited for: an hour.
_LONGEST_S = 3600.0

#: How a budget is written -> quantity, statistic, what its limit is measured in.
BUDGETS = {
    "mean macs": ("macs", "mean", "share"),
    "mean latency": ("latency", "mean", "time"),
    "mean energy": ("energy", "mean", "energy"),
    "accuracy drop": ("accuracy_drop", "mean", "accuracy"),
}
HALTS = {
    "macs": ("macs", "each", "share"),
    "latency": ("latency", "each", "time"),
    "energy": ("energy", "each", "energy"),
}
GUARDS = {"accuracy drop": BUDGETS["accuracy drop"]}


class PolicyStatements(Values):
    """Turns the branches of policies into nodes. One method a grammar rule."""

    def policy(self, tree: Branch) -> Policy:
        """A `policy` block."""
        name = tree.leaf(1)
        once = self.once(tree.branches(), lambda item: item.rule)
        spans = {key: item.span for key, item in once.items()} | {"name": name.span}
        fields: dict[str, Any] = {}
        if "when" in once:
            fields["rule"] = self.rule(once["when"].branch(2))
            spans["rule"] = spans.pop("when")
        if "budget" in once:
            fields["budget"] = self.limit(once["budget"].branch(1))
        if "halt" in once:
            fields["halt"] = self.limit(once["halt"].branch(3), HALTS, "limit of a halt")
        if "deadline" in once:
            fields["deadline"] = self.deadline(once["deadline"].branch(1))
        if "frequency" in once:
            fields["frequency"] = self.frequency_value(once["frequency"].branch(1))
        if "offload" in once:
            fields["offload"] = self.offload(once["offload"].branch(1))
        if "split" in once:
            fields["split"] = self.call(once["split"].branch(1))
        if "guard" in once:
            fields["guard"] = self.guard(once["guard"].branch(1))
        return Policy(name.text, span=tree.span, spans=spans, **fields)

    def rule(self, tree: Branch) -> Rule:
        """``confidence(class_means) or confidence(max_softmax) >= 0.8``."""
        return Rule(tuple(self.term(term) for term in tree.branches()), span=tree.span)

    def term(self, tree: Branch) -> RuleTerm:
        """One test of a rule."""
        call = self.call(tree.branch(0))
        options = dict(call.options)
        spans = dict(call.spans)
        measure = options.pop("measure", None) if call.kind == "confidence" else None
        threshold = None
        if tree.parts[1]:
            leaf = tree.leaf(2)
            end = tree.leaf(3).span if tree.parts[3] else leaf.span
            spans["threshold"] = leaf.span.to(end)
            threshold = self.number(leaf) / (100 if tree.parts[3] else 1)
            if not 0 <= threshold <= 1:
                self.found.error(
                    "bad-number",
                    f"Expected a confidence from 0 to 1, found `{spans['threshold'].text}`",
                    spans["threshold"],
                )
        return RuleTerm(
            call.kind,
            str(measure) if measure is not None else None,
            options,
            threshold,
            span=tree.span,
            spans=spans,
        )

    def limit(
        self,
        tree: Branch,
        known: Mapping[str, tuple[str, str, str]] = BUDGETS,
        what: str = "budget",
    ) -> Budget | None:
        """``mean macs <= 70 %``; None where it cannot be meant."""
        words = tree.leaves("NAME")
        written = " ".join(word.text for word in words)
        span = words[0].span.to(words[-1].span)
        if written not in known:
            listed = ", ".join(f"`{name}`" for name in known)
            help = did_you_mean_help(written, known)
            if known is HALTS and written in BUDGETS:  # what holds on average cannot be spent
                help = f"`budget {tree.span.text}` holds on average; halting, for each sample"
            self.found.error(
                "unknown-budget",
                f"Unknown {what} `{written}`",
                span,
                f"expected {listed}",
                help=help,
            )
            return None
        quantity, statistic, measured = known[written]
        value = self.quantity(tree.branch(3), measured)
        if value is None:
            return None
        if not (value > 0 or quantity == "accuracy_drop"):
            self.bad_number("above 0", tree.branch(3).span)
            return None
        return Budget(cast(Any, quantity), value, cast(Any, statistic), span=tree.span)

    def deadline(self, tree: Branch) -> Deadline | None:
        """``40 ms safe``; None where it cannot be meant."""
        seconds = self.quantity(tree.branch(0), "time")
        if seconds is None:
            return None
        kind = tree.leaf(1).text if tree.parts[1] else "expected"
        return Deadline(seconds, cast(Any, kind), span=tree.span)

    def offload(self, tree: Branch) -> Offload:
        """``"http://edge:8000" cost 0.5 border float16 timeout 200 ms retries 1``."""
        endpoints, cost = tree.branch(0), tree.leaf(2)
        once = self.once(tree.branches()[1:], lambda item: item.rule)
        spans = {"urls": endpoints.span, "cost": cost.span}
        spans |= {f"url{i}": leaf.span for i, leaf in enumerate(endpoints.leaves("STRING"))}
        spans |= {name: item.parts[1].span for name, item in once.items() if item.parts[1]}
        fields: dict[str, Any] = {}
        if "border" in once:
            fields["border"] = self.border(once["border"].branch(1))
        if "timeout" in once:
            fields["timeout_s"] = self.timeout(once["timeout"].branch(1))
        if "retries" in once:
            fields["retries"] = self.retries(once["retries"].leaf(1))
        return Offload(
            self.endpoints(endpoints.leaves("STRING")),
            self.number(cost, low=0.0),
            span=tree.span,
            spans=spans,
            **fields,
        )

    def endpoints(self, urls: Iterable[Leaf]) -> tuple[str, ...]:
        """``"http://a:8000", "grpc://b:8001"``, each of which a server may listen at."""
        first: dict[str, Leaf] = {}
        for leaf in urls:
            if leaf.value in first:
                self.twice(
                    f"Endpoint `{leaf.value}` is given twice", leaf.span, first[leaf.value].span
                )
                continue
            first[leaf.value] = leaf
            fault = endpoint_fault(leaf.value)
            if fault is not None:
                shown = f"`{leaf.value[:60]}`" if leaf.value else "nothing"
                self.found.error(
                    "bad-endpoint",
                    f"Expected an endpoint such as `http://edge:8000`, found {shown}",
                    leaf.span,
                    fault.label,
                    help=fault.help,
                )
        return tuple(first)

    def border(self, tree: Branch) -> Literal["float32", "float16", "int8"]:
        """``float16``."""
        leaf = tree.leaf(0)
        if leaf.text in BORDERS:
            return cast(Literal["float32", "float16", "int8"], leaf.text)
        self.unknown("unknown-dtype", "type of border tensors", leaf, BORDERS)
        return "float32"

    def timeout(self, tree: Branch) -> float:
        """``200 ms``."""
        seconds = self.quantity(tree, "time")
        if seconds is not None and seconds > _LONGEST_S:
            self.bad_number(f"of at most {_LONGEST_S:g} s", tree.span)
            return _LONGEST_S
        return 1.0 if seconds is None else seconds

    def retries(self, leaf: Leaf) -> int:
        """``1``."""
        return self.whole(leaf, low=0, high=10)

    def guard(self, tree: Branch) -> Guard | None:
        """``accuracy drop <= 1 % audit 5 %``; None where it cannot be meant."""
        limit = tree.branch(0)
        written = self.limit(limit, GUARDS, "guard")
        spans = {"drop": limit.branch(3).span}
        share: dict[str, float] = {}
        if tree.parts[1]:
            spans["share"] = tree.branch(2).span
            share["share"] = self.share(tree.branch(2))
        if written is None:
            return None
        self.drop(limit.branch(3), written.limit)
        return Guard(written.limit, **share, span=tree.span, spans=spans)

    def drop(self, tree: Branch, fraction: float | None = None) -> float:
        """``1 %``, of answers that may differ; `fraction` is its value where it is known."""
        value = self.quantity(tree, "accuracy") if fraction is None else fraction
        if value is not None and not 0 < value < 1:
            self.bad_number("above 0 % and below 100 %", tree.span)
        return 1.0 if value is None else value

    def share(self, tree: Branch) -> float:
        """``5 %``, of samples that are looked at."""
        value = self.quantity(tree, "share")
        if value is not None and not 0 < value <= 1:
            self.bad_number("above 0 % and of at most 100 %", tree.span)
        return 1.0 if value is None else value

    def frequency_value(self, tree: Branch) -> Name | float | None:
        """``lowest_energy`` or ``600 MHz``."""
        part = tree.parts[0]
        if isinstance(part, Leaf):
            return Name(part.text)
        return self.quantity(tree.branch(0), "frequency")
