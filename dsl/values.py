"""Numbers, quantities, lists and options: what statements are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from eecompile.diagnostics import Diagnostics, Span, did_you_mean_help
from eecompile.dsl.options import POSITIONAL
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.dsl.units import UNITS, in_si, listed_units
from eecompile.spec import HeadSpec, Name, Range, Value

__all__ = ["Values"]

_LARGEST = 2**63 - 1


class Values:
    """Turns the branches of values into values; what cannot be meant goes into `found`."""

    def __init__(self, found: Diagnostics) -> None:
        self.found = found

    def once(
        self, items: Iterable[Branch], name_of: Callable[[Branch], str | None]
    ) -> dict[str, Branch]:
        """Statements that may be given once, by name; `name_of` is None for the others."""
        once: dict[str, Branch] = {}
        for item in items:
            name = name_of(item)
            if name is None:
                continue
            if name in once:
                word = item.leaf(0).text
                shown = "exit when" if name == "when" else word
                self.twice(f"`{shown}` is given twice", item.span, once[name].span)
                continue
            once[name] = item
        return once

    def call(self, tree: Branch) -> HeadSpec:
        """``linear(pool: 4)``."""
        kind = tree.leaf(0)
        arguments = tree.branch(1) if tree.parts[1] else None
        options, spans = self.arguments(arguments, kind.text)
        spans["kind"] = kind.span
        return HeadSpec(kind.text, options, span=tree.span, spans=spans)

    def arguments(self, tree: Branch | None, kind: str) -> tuple[dict[str, Value], dict[str, Span]]:
        """Options and their places; one without a name has the name "" where none is meant."""
        options: dict[str, Value] = {}
        spans: dict[str, Span] = {}
        for item in tree.branches() if tree else ():
            if item.rule == "named":
                given = [(item.leaf(0).text, self.value(item.branch(2)))]
            elif item.rule == "positional":
                given = [(POSITIONAL.get(kind, ""), self.value(item.branch(0)))]
            else:
                given = [(POSITIONAL.get(kind, ""), item.leaf(0).value)]
                given.append(("weights", item.leaf(2).value))
            for name, value in given:
                if name in options:
                    what = f"Option `{name}`" if name else "An option without a name"
                    self.twice(f"{what} is given twice", item.span, spans[name])
                    continue
                options[name] = value
                spans[name] = item.span
        return options, spans

    def value(self, tree: Branch) -> Value:
        """What an option is given as."""
        part = tree.parts[0]
        if isinstance(part, Branch):
            return self.numbers(part) if part.rule == "numbers" else self.range(part)
        assert part is not None
        if part.kind == "STRING":
            return part.value
        if part.kind == "NAME":
            return Name(part.text)
        return self.either(part)

    def either(self, leaf: Leaf) -> int | float:
        """A number, whole where it is written so; what it may be is its option's to say."""
        return self.whole(leaf, low=-_LARGEST) if leaf.kind == "INT" else self.number(leaf)

    def range(self, tree: Branch) -> Range:
        """``3..6``."""
        low, high = (self.either(leaf) for leaf in tree.leaves("INT", "FLOAT"))
        if low > high:
            self.empty_range(tree.span)
        return Range(low, high)

    def numbers(self, tree: Branch) -> tuple[float, ...]:
        """``[0.485, 0.456, 0.406]``."""
        return tuple(self.number(leaf) for leaf in tree.leaves("INT", "FLOAT"))

    def quantity(self, tree: Branch, measured: str) -> float | None:
        """A number with a unit of `measured`, in SI; None where it cannot be meant."""
        number = self.number(tree.leaf(0))
        units = UNITS[measured]
        unit = tree.parts[1]
        if unit is None:
            self.found.error(
                "missing-unit",
                f"Expected a unit after `{tree.leaf(0).text}`",
                tree.leaf(0).span,
                f"needs {listed_units(measured)}",
            )
            return None
        assert isinstance(unit, Leaf)
        if unit.text not in units:
            what = "a share" if measured in ("share", "accuracy") else f"a unit of {measured}"
            same = [name for name in units if name.lower() == unit.text.lower()]
            help = f"did you mean `{same[0]}`?" if same else did_you_mean_help(unit.text, units)
            self.found.error(
                "unknown-unit",
                f"Expected {what}, found `{unit.text}`",
                unit.span,
                f"expected {listed_units(measured)}",
                help=help,
            )
            return None
        if measured in ("time", "frequency", "energy", "power") and not number > 0:
            self.bad_number("above 0", tree.leaf(0).span)
            return None
        if measured in ("share", "accuracy") and number < 0:
            self.bad_number("of at least 0", tree.leaf(0).span)
            return None
        value = in_si(number, unit.text, measured)
        if not math.isfinite(value):
            self.bad_number("that a computer can hold", tree.span)
            return None
        return value

    def number(self, leaf: Leaf, low: float = -math.inf) -> float:
        """A finite number."""
        value = float(leaf.text)
        if not math.isfinite(value):
            self.bad_number("that a computer can hold", leaf.span)
            return 1.0
        if value < low:
            self.bad_number(f"of at least {low:g}", leaf.span)
        return value

    def whole(
        self, leaf: Leaf, low: int = 0, high: int = _LARGEST, wrong: int | None = None
    ) -> int:
        """A whole number in a range; where another is written, `wrong` or else the lowest."""
        value = int(leaf.text) if leaf.kind == "INT" and len(leaf.text) < 20 else None
        if value is not None and low <= value <= high:
            return value
        limits = f"of at least {low}" if high == _LARGEST else f"from {low} to {high}"
        if -low == high == _LARGEST:
            limits = "that a computer can hold"
        self.found.error(
            "bad-number",
            f"Expected a whole number {limits}, found `{leaf.text[:40]}`",
            leaf.span,
        )
        return low if wrong is None else wrong

    def twice(self, message: str, span: Span, first: Span) -> None:
        """Something that may be given once is given again."""
        self.found.error(
            "duplicate-setting", message, span, "again here", secondary=((first, "first here"),)
        )

    def unknown(self, id: str, what: str, leaf: Leaf, known: Iterable[str]) -> None:
        """A word is none of those known."""
        known = list(known)
        self.found.error(
            id,
            f"Unknown {what} `{leaf.text}`",
            leaf.span,
            "expected " + ", ".join(f"`{name}`" for name in known),
            help=did_you_mean_help(leaf.text, known),
        )

    def bad_number(self, wanted: str, span: Span) -> None:
        """A number is not of the kind wanted."""
        self.found.error(
            "bad-number", f"Expected a number {wanted}, found `{span.text[:40]}`", span
        )

    def empty_range(self, span: Span) -> None:
        """A range ends before it starts."""
        self.found.error("bad-range", f"Range `{span.text[:60]}` is empty", span)
