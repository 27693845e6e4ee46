"""``--set policy.NAME...``: statements of policies, whole or by part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.dsl.convert import Converter
from eecompile.dsl.convert_policies import HALTS
from eecompile.dsl.options import SPLITS
from eecompile.dsl.override_path import OverridePath, with_part
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.spec import Guard, Offload, Policy

__all__ = ["POLICY", "PolicyOverride"]

_T = TypeVar("_T")

POLICY = ("exit", "budget", "halt", "deadline", "frequency", "offload", "split", "guard")
#: Field of a policy -> how a value for it is written, and converted.
_STATEMENTS: Mapping[str, tuple[str, Callable[[Converter], Callable[[Branch], Any]]]] = {
    "rule": ("rule", lambda c: c.rule),
    "budget": ("limit", lambda c: c.limit),
    "halt": ("limit", lambda c: lambda tree: c.limit(tree, HALTS, "limit of a halt")),
    "deadline": ("deadline_value", lambda c: c.deadline),
    "frequency": ("frequency_value", lambda c: c.frequency_value),
    "offload": ("offload_value", lambda c: c.offload),
    "split": ("call", lambda c: c.call),
    "guard": ("guard_value", lambda c: c.guard),
}
_OFFLOAD = ("urls", "url", "cost", "border", "timeout", "retries")


@dataclass(frozen=True)
class PolicyOverride(OverridePath):
    """Gives a policy with one of its values replaced."""

    def policy(self, policy: Policy, depth: int) -> Policy:
        """With a statement replaced, or a part of one."""
        key = self.key(depth, POLICY)
        depth += 1
        if key == "exit":
            if depth < len(self.keys):
                self.key(depth, ("when",))
                depth += 1
            key = "rule"
        elif key in ("offload", "split", "guard") and depth < len(self.keys):
            return self.part(policy, key, depth)
        new: dict[str, Any] = {key: self.leaf(depth, *_STATEMENTS[key])}
        return with_part(policy, key, self.value_span, **new)

    def part(self, policy: Policy, key: str, depth: int) -> Policy:
        """With a part of a statement replaced."""
        if key == "split":
            split = self.given(policy.split, key, depth)
            return replace(policy, split=self.option(split, depth, SPLITS))
        if key == "guard":
            guard = self.given(policy.guard, key, depth)
            return replace(policy, guard=self.guard(guard, depth))
        offload = self.given(policy.offload, key, depth)
        return replace(policy, offload=self.offload(offload, depth))

    def given(self, node: _T | None, key: str, depth: int) -> _T:
        """A statement of a policy, of which a part is set: it has to be there."""
        if node is None:
            help = "write it into the file, or set all of it at once"
            span = self.keys[depth - 1].span
            raise self.wrong(f"The policy has no `{key}`", span, "not given", help)
        return node

    def guard(self, guard: Guard, depth: int) -> Guard:
        """With a part replaced."""
        at = self.value_span
        if self.key(depth, ("drop", "audit")) == "drop":
            return with_part(
                guard, "drop", at, drop=self.leaf(depth + 1, "quantity", lambda c: c.drop)
            )
        return with_part(
            guard, "share", at, share=self.leaf(depth + 1, "quantity", lambda c: c.share)
        )

    def offload(self, offload: Offload, depth: int) -> Offload:
        """With a part replaced."""
        key = self.key(depth, _OFFLOAD)
        at = self.value_span
        if key in ("urls", "url"):
            return self.endpoints(offload, depth + 1)
        if key == "cost":
            cost = self.leaf(depth + 1, "number", lambda c: lambda t: c.number(t.leaf(0), 0.0))
            return with_part(offload, key, at, cost=cost)
        if key == "border":
            border = self.leaf(depth + 1, "name", lambda c: c.border)
            return with_part(offload, key, at, border=border)
        if key == "timeout":
            timeout_s = self.leaf(depth + 1, "quantity", lambda c: c.timeout)
            return with_part(offload, key, at, timeout_s=timeout_s)
        retries = self.leaf(depth + 1, "number", lambda c: lambda t: c.retries(t.leaf(0)))
        return with_part(offload, key, at, retries=retries)

    def endpoints(self, offload: Offload, depth: int) -> Offload:
        """One endpoint or several with commas between, each with or without its quotes."""
        self.end(depth)
        leaves = []
        for match in re.finditer(r"[^,]+", self.source.text[self.offset :]):
            text = match[0].strip()
            start = self.offset + match.start() + match[0].index(text)
            span = Span(self.source, start, start + len(text))
            quoted = len(text) > 1 and text[0] == text[-1] == '"'
            if '"' in text and not quoted:
                message, label = "Unterminated string", 'no closing `"`'
                raise CompileErrors([Diagnostic("syntax-error", message, span, label)])
            leaves.append(Leaf("STRING" if quoted else "NAME", text, span))
        if not leaves:
            leaves = [Leaf("NAME", "", self.value_span)]
        urls = Converter(self.found).endpoints(leaves)
        spans = {f"url{i}": leaf.span for i, leaf in enumerate(leaves)} | {"urls": self.value_span}
        return replace(offload, urls=urls, spans={**offload.spans, **spans})
