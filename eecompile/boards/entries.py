"""Entries of a board file, ``{ value = ..., source = "..." }``: read strictly, all errors kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eecompile.boards.toml_places import Path, TomlPlaces
from eecompile.diagnostics import Diagnostics, Span, did_you_mean_help

__all__ = ["Quantity", "Reader"]


@dataclass(frozen=True)
class Quantity:
    """A number a board file may give.

    Attributes:
        unit: what it is in, in words; empty for a bare number.
        low, high: the range, both included; where `above` is set, `low` is not.
        above: whether `low` itself is excluded.
        whole: whether it has to be a whole number.
        hint: which mix-up a value out of range usually is.
    """

    unit: str
    low: float
    high: float
    above: bool = False
    whole: bool = False
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    @property
    def allowed(self) -> str:
        """The range in words.

        >>> Quantity("Hz", 1e6, 1e10).allowed, Quantity("", 8, 64, whole=True).allowed
        ('a number from 1e+06 to 1e+10 Hz', 'a whole number from 8 to 64')
        """
        start = f"above {self.low:g} and at most" if self.above else f"from {self.low:g} to"
        words = f"a {'whole ' if self.whole else ''}number {start} {self.high:g} {self.unit}"
        return words.rstrip()


class Reader:
    """One table of a board file; problems are collected, and what has one reads as None."""

    def __init__(
        self, table: Mapping[str, Any], path: Path, places: TomlPlaces, found: Diagnostics
    ) -> None:
        self.table, self.path, self.places, self.found = table, path, places, found
        #: Where each number read comes from.
        self.sources: dict[str, str] = {}

    def error(self, message: str, span: Span, label: str = "", help: str = "") -> None:
        """Keep one problem of the file."""
        self.found.error("bad-board", message, span, label, help=help)

    def value_at(self, *path: str | int) -> Span:
        """Where something below this table stands."""
        return self.places.value(*self.path, *path)

    def inside(self, key: str) -> Span:
        """The place of an entry's value itself."""
        return self.value_at(key, "value")

    def only(self, allowed: Iterable[str]) -> None:
        """Complain of every other key."""
        names = tuple(allowed)
        for key in self.table:
            if key not in names:
                help = did_you_mean_help(key, names) or f"known: {', '.join(names)}"
                span = self.places.key(*self.path, key)
                self.error(f"Unknown key `{key}`", span, "not a key of this table", help)

    def missing(self, key: str, example: str) -> None:
        """Complain that a key is not there."""
        self.error(
            f"`{key}` is missing", self.value_at(), f"has no `{key}`", f"for example `{example}`"
        )

    def text(self, key: str, default: str = "") -> str:
        """A plain text."""
        value = self.table.get(key, default)
        if isinstance(value, str):
            return value
        self.error(f"Expected a text, found {_kind(value)}", self.value_at(key))
        return default

    def texts(self, key: str) -> tuple[str, ...]:
        """A plain list of texts."""
        value = self.table.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.error(f"Expected a list of texts, found {_kind(value)}", self.value_at(key))
        return ()

    def number(self, key: str, quantity: Quantity) -> float | None:
        """A number with its source; None where it is absent or wrong."""
        value = self.entry(key)
        return None if value is None else self.checked(value, quantity, f"`{key}`", key, "value")

    def lanes(self, value: float | None) -> None:
        """Complain of a vector that is no power of two wide."""
        if value is not None and int(value) & (int(value) - 1):
            span = self.inside("lanes")
            self.error("`lanes` is no power of two", span, "expected 1, 2, 4, 8, ...")

    def numbers(self, key: str, quantity: Quantity) -> tuple[float, ...] | None:
        """A list of numbers with their source; None where it is absent or one is wrong."""
        rows = self.rows(key)
        if rows is None:
            return None
        read = [
            self.checked(value, quantity, f"A number of `{key}`", key, "value", index)
            for index, value in enumerate(rows)
        ]
        kept = tuple(value for value in read if value is not None)
        return kept if len(kept) == len(read) else None

    def rows(self, key: str) -> list[Any] | None:
        """A list with its source, its items as they are; None where it is absent or empty."""
        value = self.entry(key)
        if value is None or (isinstance(value, list) and value):
            return value
        empty = "an empty list" if value == [] else _kind(value)
        self.error(f"Expected a list for `{key}`, found {empty}", self.inside(key))
        return None

    def entry(self, key: str) -> Any:
        """An entry's value, unread; its source is kept. None where it is absent or has none."""
        if key not in self.table:
            return None
        entry = self.table[key]
        form = f'{key} = {{ value = ..., source = "..." }}'
        if not isinstance(entry, dict):
            self.error(
                f"`{key}` has no source",
                self.value_at(key),
                "a bare value",
                f"write `{form}`: where the number comes from",
            )
            return None
        for name in entry:
            if name not in ("value", "source"):
                span = self.places.key(*self.path, key, name)
                self.error(f"Unknown key `{name}` of `{key}`", span, help=f"write `{form}`")
        source = entry.get("source")
        if not isinstance(source, str) or not source.strip():
            span = self.value_at(key, "source") if "source" in entry else self.value_at(key)
            help = "say where the number comes from; leave the key out where nothing says"
            self.error(f"`{key}` has no source", span, "where from?", help)
            return None
        if "value" not in entry:
            self.error(f"`{key}` has no value", self.value_at(key), help=f"write `{form}`")
            return None
        self.sources[key] = source
        return entry["value"]

    def checked(self, value: Any, quantity: Quantity, what: str, *path: str | int) -> float | None:
        """A number in its range, or None and a complaint about what stands at `path`."""
        span = self.value_at(*path)
        expected = f"expected {quantity.allowed}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.error(f"{what} is {_kind(value)}", span, expected)
        elif not _finite(value) or value not in quantity:
            self.error(f"{what} is out of range", span, expected, quantity.hint)
        elif quantity.whole and value != int(value):
            self.error(f"{what} is no whole number", span, expected)
        else:
            return int(value) if quantity.whole else value
        return None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _kind(value: Any) -> str:
    """What a TOML value is, in words.

    >>> _kind("a"), _kind(True), _kind([1])
    ('a text', 'true or false', 'a list')
    """
    names = {bool: "true or false", str: "a text", list: "a list", dict: "a table"}
    names |= {int: "a number", float: "a number"}
    return names.get(type(value), "a date or a time")
