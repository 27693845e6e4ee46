"""The tree a `.ee` file is parsed into: every token kept, every node with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eecompile.diagnostics import Span

__all__ = ["Branch", "Leaf"]


@dataclass(frozen=True)
class Leaf:
    """A token: its terminal's name and its text as written."""

    kind: str
    text: str
    span: Span

    @property
    def value(self) -> str:
        """The text, without the quotes of a string."""
        return self.text[1:-1] if self.kind == "STRING" else self.text


@dataclass(frozen=True)
class Branch:
    """A rule of the grammar and its parts in order; a part left out is None."""

    rule: str
    parts: tuple[Branch | Leaf | None, ...]
    span: Span

    def leaf(self, index: int) -> Leaf:
        """The token at a place where the grammar has one."""
        part = self.parts[index]
        assert isinstance(part, Leaf), f"{self.rule}[{index}] is no token"
        return part

    def branch(self, index: int) -> Branch:
        """The rule at a place where the grammar has one."""
        part = self.parts[index]
        assert isinstance(part, Branch), f"{self.rule}[{index}] is no rule"
        return part

    def branches(self) -> list[Branch]:
        """The parts that are rules."""
        return [part for part in self.parts if isinstance(part, Branch)]

    def leaves(self, *kinds: str) -> list[Leaf]:
        """The parts that are tokens of these kinds."""
        return [part for part in self.parts if isinstance(part, Leaf) and part.kind in kinds]

    def tokens(self) -> Iterator[Leaf]:
        """All tokens below, in order."""
        for part in self.parts:
            if isinstance(part, Leaf):
                yield part
            elif part is not None:
                yield from part.tokens()
