"""Where the values of a TOML text stand: the standard library's reader tells no lines.

Only texts `tomllib` has accepted are scanned, so nothing is checked here; whatever the scanner
does not understand merely has no place of its own, and its table's place stands for it.
"""

from __future__ import annotations

import contextlib
import tomllib
from typing import NamedTuple

from eecompile.diagnostics import Source, Span

__all__ = ["Path", "Place", "TomlPlaces"]

#: Keys, and positions in lists, from the top of the file.
Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Where something is given."""

    key: Span
    value: Span


class TomlPlaces:
    r"""The place of every value of a TOML text.

    >>> places = TomlPlaces(Source("b.toml", 'a = 1\n[[c]]\nx = { value = [3, 4] }\n'))
    >>> places.value("c", 0, "x", "value", 1).text, places.key("c", 0, "x", "value").line
    ('4', 3)
    >>> places.value("c", 0, "nowhere").text
    '[[c]]'
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._places: dict[Path, Place] = {}
        # A text tomllib has accepted has an end to everything; its lists may be deeper than ours.
        with contextlib.suppress(IndexError, RecursionError):
            _Scanner(source, self._places).document()

    def _nearest(self, path: Path) -> Place:
        for length in range(len(path), 0, -1):
            if path[:length] in self._places:
                return self._places[path[:length]]
        start = Span(self._source, 0, 0)
        return Place(start, start)

    def value(self, *path: str | int) -> Span:
        """Where a value stands; what it is in, if it is not there."""
        return self._nearest(path).value

    def key(self, *path: str | int) -> Span:
        """Where a value's key stands; what it is in, if it is not there."""
        return self._nearest(path).key


class _Scanner:
    """Reads a valid text once, from the top."""

    def __init__(self, source: Source, places: dict[Path, Place]) -> None:
        self.source, self.text, self.places = source, source.text, places
        self.at = 0
        #: How many tables of an array there are, by the array's path.
        self.counts: dict[Path, int] = {}

    def span(self, start: int) -> Span:
        return Span(self.source, start, self.at)

    def document(self) -> None:
        """Table headers and keys with values."""
        table: Path = ()
        while True:
            self.skip(" \t\r\n")
            if self.at >= len(self.text):
                return
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``; returns the path of the table it opens."""
        start = self.at
        many = self.text.startswith("[[", self.at)
        self.at += 1 + many
        self.skip(" \t")
        path: Path = ()
        for name in self.keys():
            path = self.inner((*path, name))
        if many:
            # The keys before the last stand for the last table of their array, this one for a new.
            path = path[:-1] if path[-1:] and isinstance(path[-1], int) else path
            index = self.counts.get(path, -1) + 1
            self.counts[path] = index
            path = (*path, index)
        self.at += 1 + many
        self.places[path] = Place(self.span(start), self.span(start))
        return path

    def inner(self, path: Path) -> Path:
        """A path in a header means the last table of an array of tables."""
        return (*path, self.counts[path]) if path in self.counts else path

    def pair(self, table: Path) -> None:
        """``key = value``."""
        start = self.at
        path = (*table, *self.keys())
        key = Span(self.source, start, self.at - self.blanks_before())
        self.at += 1  # "="
        self.skip(" \t")
        value = self.value(path)
        self.places[path] = Place(key, value)

    def blanks_before(self) -> int:
        before = self.text[: self.at]
        return len(before) - len(before.rstrip(" \t"))

    def keys(self) -> list[str]:
        """A dotted key; stands after it and the blanks that follow it."""
        found = [self.simple_key()]
        while self.text[self.at] == ".":
            self.at += 1
            self.skip(" \t")
            found.append(self.simple_key())
        return found

    def simple_key(self) -> str:
        start = self.at
        if self.text[self.at] in "\"'":
            self.string()
        else:
            while self.text[self.at] not in "=.] \t":
                self.at += 1
        written = self.text[start : self.at]
        self.skip(" \t")
        return next(iter(tomllib.loads(f"{written} = 0"))) if written[:1] in "\"'" else written

    def value(self, path: Path) -> Span:
        """Any value, with those in it; returns its place."""
        start = self.at
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.items(path)
        elif first == "{":
            self.inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\r\n":
                self.at += 1
            written = self.text[start : self.at]
            return Span(self.source, start, start + len(written.rstrip(" \t")))
        return self.span(start)

    def items(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(" \t\r\n,")
            if self.text[self.at] == "]":
                break
            place = self.value((*path, index))
            self.places[(*path, index)] = Place(place, place)
            index += 1
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(" \t\r\n,")
            if self.text[self.at] == "}":
                break
            self.pair(path)
        self.at += 1

    def string(self) -> None:
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(mark)
        while not self.text.startswith(mark, self.at):
            self.at += 2 if self.text[self.at] == "\\" and quote == '"' else 1
        self.at += len(mark)
        # Up to two more quotes may stand before the mark that ends a long string.
        while len(mark) == 3 and self.text.startswith(quote, self.at):
            self.at += 1

    def skip(self, blanks: str) -> None:
        """Blanks, and where lines may end, comments."""
        while self.at < len(self.text):
            if self.text[self.at] == "#" and "\n" in blanks:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in blanks:
                self.at += 1
            else:
                return
