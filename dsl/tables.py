"""A parser driven by `tables.json`: text to tree, or what was found where something else belongs.

The tables are made from `grammar.lark` (`table_making`), so that reading the language needs nothing
but the standard library. Words are only reserved where they can stand: each state knows which
tokens may follow, and a word that is one of them is that one, not a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from eecompile.diagnostics import Source, Span
from eecompile.dsl.syntax import Branch, Leaf

__all__ = ["END", "Mismatch", "literals", "tree_of"]

#: The token behind the last one.
END = "$END"

_Part = Branch | Leaf | None


class Mismatch(Exception):
    """The text is not of the grammar.

    Attributes:
        accepts: terminals that may stand there.
        token: what stands there; of kind `END`, behind the last token, where the text ends. None
            where no token starts.
        at: the character where it starts.
    """

    def __init__(self, accepts: frozenset[str], at: int, token: Leaf | None = None) -> None:
        self.accepts, self.at, self.token = accepts, at, token
        super().__init__(f"expected one of {sorted(accepts)} at {at}")


@dataclass(frozen=True)
class _Rule:
    """`name` from `symbols`; `gaps[i]` parts are left out before symbol i, the last at the end.

    Rules whose names start with `_` are no nodes, their parts stand in the one above; with
    `single` a node of one part is that part.
    """

    name: str
    symbols: tuple[str, ...]
    gaps: tuple[int, ...]
    single: bool


@dataclass(frozen=True)
class _Terminal:
    name: str
    is_pattern: bool
    value: str
    priority: int

    @property
    def pattern(self) -> str:
        return self.value if self.is_pattern else re.escape(self.value)


@dataclass(frozen=True)
class _Tables:
    """Each state's symbols lead to a state (>= 0), or to the reduction by rule -1 - number.

    The state behind a whole text takes `END`. Terminals are tried in their order.
    """

    terminals: tuple[_Terminal, ...]
    ignored: frozenset[str]
    rules: tuple[_Rule, ...]
    starts: Mapping[str, int]
    states: tuple[Mapping[str, int], ...]


@cache
def _tables() -> _Tables:
    text = resources.files("eecompile.dsl").joinpath("tables.json").read_text(encoding="utf-8")
    read = json.loads(text)
    return _Tables(
        tuple(_Terminal(name, kind == "re", *rest) for name, kind, *rest in read["terminals"]),
        frozenset(read["ignored"]),
        tuple(
            _Rule(name, tuple(symbols), tuple(gaps), single)
            for name, symbols, gaps, single in read["rules"]
        ),
        dict(read["starts"]),
        tuple(read["states"]),
    )


@cache
def literals() -> Mapping[str, str]:
    """Terminal -> the word or sign it stands for, where it is no pattern."""
    return {t.name: t.value for t in _tables().terminals if not t.is_pattern}


class _Scanner:
    """Finds the token that starts at a place, of some kinds."""

    def __init__(self, kinds: frozenset[str]) -> None:
        terminals = [t for t in _tables().terminals if t.name in kinds]
        #: Pattern -> words it would match too.
        self._words: dict[str, dict[str, str]] = {}
        for terminal in terminals:
            if terminal.is_pattern:
                self._words[terminal.name] = {
                    word.value: word.name
                    for word in terminals
                    if not word.is_pattern
                    and word.priority == terminal.priority
                    and re.fullmatch(terminal.value, word.value)
                }
        inside = {name for words in self._words.values() for name in words.values()}
        tried = [f"(?P<{t.name}>{t.pattern})" for t in terminals if t.name not in inside]
        self._pattern = re.compile("|".join(tried) or "(?!)")

    def find(self, text: str, at: int) -> tuple[str, int] | None:
        """The token's kind and where it ends."""
        found = self._pattern.match(text, at)
        if found is None:
            return None
        assert found.lastgroup is not None, "every alternative is a group"
        words = self._words.get(found.lastgroup, {})
        return words.get(found[0], found.lastgroup), found.end()


@cache
def _scanner(kinds: frozenset[str]) -> _Scanner:
    return _Scanner(kinds)


@cache
def _followers(state: int) -> frozenset[str]:
    """Terminals a state knows."""
    known = {terminal.name for terminal in _tables().terminals}
    return frozenset(known.intersection(_tables().states[state]))


def tree_of(source: Source, start: str, offset: int = 0) -> Branch:
    """The text's tree from `offset` on, which has to be of the rule `start`.

    Raises:
        Mismatch: it is none; the first place is told.
    """
    parser = _Parser(start)
    at = end = offset
    while True:
        at = _behind_blanks(source.text, at)
        if at == len(source.text):
            return parser.finish(Leaf(END, "", Span(source, end, end)))
        kind, end = _next(source, at, parser)
        parser.feed(Leaf(kind, source.text[at:end], Span(source, at, end)))
        at = end


def _behind_blanks(text: str, at: int) -> int:
    """Where the next token starts."""
    blanks = _scanner(_tables().ignored)
    while found := blanks.find(text, at):
        at = found[1]
    return at


def _next(source: Source, at: int, parser: _Parser) -> tuple[str, int]:
    found = _scanner(_followers(parser.state)).find(source.text, at)
    if found is not None:
        return found
    other = _scanner(frozenset(t.name for t in _tables().terminals)).find(source.text, at)
    if other is None:
        raise Mismatch(_followers(parser.state) or frozenset((END,)), at)
    token = Leaf(other[0], source.text[at : other[1]], Span(source, at, other[1]))
    raise Mismatch(parser.accepts(), at, token)


class _Parser:
    """The states passed through, and what was made of the tokens so far."""

    def __init__(self, start: str) -> None:
        self._states = [_tables().starts[start]]
        self._values: list[_Part | list[_Part]] = []

    @property
    def state(self) -> int:
        return self._states[-1]

    def feed(self, token: Leaf) -> None:
        """Take a token.

        Raises:
            Mismatch: it cannot stand there.
        """
        while True:
            action = _tables().states[self.state].get(token.kind)
            if action is None:
                raise Mismatch(self.accepts(), token.span.start, token)
            if action >= 0:
                self._states.append(action)
                self._values.append(token)
                return
            self._reduce(_tables().rules[-1 - action])

    def finish(self, end: Leaf) -> Branch:
        """The tree, where the text may end.

        Raises:
            Mismatch: it may not.
        """
        self.feed(end)
        tree = self._values[0]
        assert isinstance(tree, Branch), "what a text can start with is a rule that stays a node"
        return tree

    def accepts(self) -> frozenset[str]:
        """The terminals that may follow."""
        known = (*_followers(self.state), END)
        return frozenset(kind for kind in known if _is_taken(self._states, kind))

    def _reduce(self, rule: _Rule) -> None:
        count = len(rule.symbols)
        at = len(self._values) - count
        made = _made(rule, self._values[at:])
        del self._values[at:], self._states[len(self._states) - count :]
        self._values.append(made)
        self._states.append(_tables().states[self.state][rule.name])


def _made(rule: _Rule, values: Sequence[_Part | list[_Part]]) -> _Part | list[_Part]:
    parts: list[_Part] = []
    for gap, value in zip(rule.gaps, values, strict=False):
        parts += [None] * gap
        if not isinstance(value, list):
            parts.append(value)
        elif parts:
            parts += value
        else:
            parts = value  # a long list that grows is not copied each time
    parts += [None] * rule.gaps[-1]
    if rule.name.startswith("_"):
        return parts
    if rule.single and len(parts) == 1:
        return parts[0]
    given = [part for part in parts if part is not None]
    return Branch(rule.name, tuple(parts), given[0].span.to(given[-1].span))


def _is_taken(states: Sequence[int], kind: str) -> bool:
    """Whether a token of that kind can follow, seen through all reductions it leads to."""
    passed = list(states)
    while True:
        action = _tables().states[passed[-1]].get(kind)
        if action is None or action >= 0:
            return action is not None
        rule = _tables().rules[-1 - action]
        del passed[len(passed) - len(rule.symbols) :]
        passed.append(_tables().states[passed[-1]][rule.name])
