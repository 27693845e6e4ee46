"""``key.path=value``: the keys on the way to a node of a `Spec`, and the value for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean_help,
)
from eecompile.dsl.convert import Converter
from eecompile.dsl.options import Option
from eecompile.dsl.parser import parse_tree
from eecompile.dsl.syntax import Branch
from eecompile.spec import HeadSpec, Node

__all__ = ["Key", "OverridePath", "with_part"]

_T = TypeVar("_T")
_N = TypeVar("_N", bound=Node)


@dataclass(frozen=True)
class Key:
    """A part of a path, and its place."""

    text: str
    span: Span


@dataclass(frozen=True)
class OverridePath:
    """One ``key.path=value``: the way to what it sets, and the value there.

    Attributes:
        source: its text.
        keys: of its path.
        offset: of the value in the text.
        found: told what is wrong with the value.
    """

    source: Source
    keys: tuple[Key, ...]
    offset: int
    found: Diagnostics

    @classmethod
    def of(cls, text: str, found: Diagnostics) -> Self:
        """An override as it was given.

        Raises:
            CompileErrors: it is none.
        """
        source = Source("--set", text)
        path, equals, _ = text.partition("=")
        keys = [
            Key(match[0], Span(source, match.start(), match.end()))
            for match in re.finditer(r"[^.]+", path)
        ]
        if not equals or not keys:
            span = Span(source, 0, len(path))
            label = "no key here" if equals else "no `=` here"
            message = "Expected `key.path=value`"
            raise CompileErrors([Diagnostic("unknown-setting", message, span, label)])
        return cls(source, tuple(keys), len(path) + 1, found)

    # The way to the value.

    def key(self, depth: int, known: Iterable[str]) -> str:
        """The key at a depth, which has to be one of those known."""
        known = list(known)
        listed = ", ".join(f"`{name}`" for name in known) or "none"
        if depth >= len(self.keys):
            end = self.offset - 1
            where = Span(self.source, end, end)
            raise self.wrong("The path ends too early", where, f"expected {listed}")
        key = self.keys[depth]
        if key.text not in known:
            help = did_you_mean_help(key.text, known)
            raise self.wrong(f"Unknown key `{key.text}`", key.span, f"expected {listed}", help)
        return key.text

    def wrong(self, message: str, span: Span, label: str, help: str = "") -> CompileErrors:
        """What to raise where the path is wrong."""
        return CompileErrors([Diagnostic("unknown-setting", message, span, label, help=help)])

    def named(
        self, depth: int, nodes: Sequence[Any], kind: str, below: Sequence[str]
    ) -> tuple[int, int]:
        """Index of the node meant, and the next depth: a lone node may go without its name."""
        names = [node.name for node in nodes]
        if not nodes:
            help = "write one into the file: only what it has can be set"
            span = self.keys[depth - 1].span
            raise self.wrong(f"The file has no `{kind}`", span, "none there", help)
        key = self.key(depth, [*names, *below] if len(nodes) == 1 else names)
        return (names.index(key), depth + 1) if key in names else (0, depth)

    def end(self, depth: int) -> None:
        """Nothing may follow the key before `depth`."""
        if depth < len(self.keys):
            span = self.keys[depth].span.to(self.keys[-1].span)
            raise self.wrong(f"`{self.keys[depth - 1].text}` has no parts", span, "remove this")

    # The value.

    def leaf(self, depth: int, rule: str, of: Callable[[Converter], Callable[[Branch], _T]]) -> _T:
        """The value, parsed as a rule of the grammar and converted."""
        self.end(depth)
        return of(Converter(self.found))(parse_tree(self.source, rule, self.offset))

    def string(self, depth: int) -> tuple[str, Span]:
        """The value as a string, with or without its quotes."""
        self.end(depth)
        value = self.source.text[self.offset :]
        span = Span(self.source, self.offset, len(self.source.text))
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        return (value[1:-1] if quoted else value), span

    def word(self, depth: int) -> tuple[str, Span]:
        """The value as a bare word."""
        self.end(depth)
        leaf = parse_tree(self.source, "name", self.offset).leaf(0)
        return leaf.text, leaf.span

    @property
    def value_span(self) -> Span:
        """The place of the value."""
        return Span(self.source, self.offset, len(self.source.text))

    def option(
        self, head: HeadSpec, depth: int, kinds: Mapping[str, Mapping[str, Option]]
    ) -> HeadSpec:
        """A head, gate or rule with an option replaced."""
        key = self.key(depth, kinds.get(head.kind, head.options))
        self.end(depth + 1)
        if key in ("entry", "path", "weights"):
            value: Any = self.string(depth + 1)[0]
        else:
            value = self.leaf(depth + 1, "value", lambda c: c.value)
        options = {**head.options, key: value}
        return with_part(head, key, self.value_span, options=options)


def with_part(node: _N, part: str, span: Span, **changes: Any) -> _N:
    """The node with changes whose place is now on the command line."""
    return replace(node, spans={**node.spans, part: span}, **changes)
