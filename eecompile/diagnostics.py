"""What is told to the user when something is wrong, and how it is drawn.

Three kinds of failure, never mixed:

* the user's input is wrong: `Diagnostic` values, raised together as `CompileErrors` (exit
  status 1);
* the environment lacks something: `ToolError`, which says what to install or set (2);
* we are wrong: any other exception, `InternalError` where an invariant is known to be broken (70).
"""

from __future__ import annotations

import bisect
import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from eecompile.diagnostic_ids import DIAGNOSTICS, DiagnosticInfo

__all__ = [
    "DIAGNOSTICS",
    "CompileErrors",
    "Diagnostic",
    "DiagnosticInfo",
    "Diagnostics",
    "InternalError",
    "Source",
    "Span",
    "ToolError",
    "columns_of",
    "did_you_mean",
    "did_you_mean_help",
    "missing_package",
]

_TAB = "    "
#: Longer lines are shown in part: so many characters, and so many of them before the place.
_LONG_LINE = 480
_AROUND = 60


@dataclass(frozen=True)
class Source:
    """A text the user wrote: a file, or a value given on the command line."""

    path: str
    text: str = field(repr=False)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        r"""Line and column of a character offset, both counted from 1.

        >>> Source("a.ee", "one\ntwo").position(5)
        (2, 2)
        """
        line = bisect.bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Text of a line, counted from 1, without its end."""
        start = self._line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : len(self.text) if end < 0 else end].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """The characters `start` to `end` (excluded) of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """Line of the first character, from 1."""
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        """Column of the first character, from 1."""
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        """The characters themselves."""
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """From this span's start to the other's end."""
        return Span(self.source, self.start, max(self.end, other.end))


@dataclass(frozen=True)
class Diagnostic:
    """One thing the user has to know, as data; drawn by `full`, `concise` or `to_json`.

    Attributes:
        id: a key of `DIAGNOSTICS`.
        message: the headline: sentence case, no full stop, names in backticks.
        span: the place, as narrow as it can be; None where there is no text to point into.
        label: a few words drawn under the carets.
        secondary: further places, each with its label.
        notes: facts that help to understand, one line each.
        help: what to do about it.
        severity: "error" or "warning".
        path: the file concerned, where there is no span (a data file, an artifact).
    """

    id: str
    message: str
    span: Span | None = None
    label: str = ""
    secondary: tuple[tuple[Span, str], ...] = ()
    notes: tuple[str, ...] = ()
    help: str = ""
    severity: Literal["error", "warning"] = "error"
    path: str | None = None

    def __post_init__(self) -> None:
        if self.id not in DIAGNOSTICS:
            raise InternalError(f"diagnostic id {self.id!r} is not in DIAGNOSTICS")

    @property
    def file(self) -> str | None:
        """The file to name, if any."""
        return self.span.source.path if self.span else self.path

    def concise(self) -> str:
        """One line.

        >>> Diagnostic("bad-data", "No key `images`", path="a.npz").concise()
        'a.npz: error[bad-data]: No key `images`'
        """
        place = f"{self.file}: " if self.file else ""
        if self.span:
            place = f"{self.file}:{self.span.line}:{self.span.column}: "
        return _safe(f"{place}{self.severity}[{self.id}]: {self.message}")

    def full(self) -> str:
        """Headline, place, source lines with carets, notes and help."""
        lines = [f"{self.severity}[{self.id}]: {self.message}"]
        shown = [(self.span, self.label, "^")] if self.span else []
        shown += [(span, label, "-") for span, label in self.secondary]
        width = max((len(str(span.line)) for span, _, _ in shown), default=1)
        if self.path and not self.span:
            lines.append(f"{'':{width}} --> {self.path}")
        for i, (span, label, mark) in enumerate(shown):
            arrow = "-->" if i == 0 else ":::"
            lines.append(f"{'':{width}} {arrow} {span.source.path}:{span.line}:{span.column}")
            lines += _snippet(span, label, mark, width)
        lines += [f"{'':{width}} = note: {note}" for note in self.notes]
        if self.help:
            lines.append(f"{'':{width}} = help: {self.help}")
        return _safe("\n".join(lines))

    def to_json(self) -> dict[str, str | int | None]:
        """The keys scripts rely on: id, severity, message, file, line, column, help."""
        return {
            "id": self.id,
            "severity": self.severity,
            "message": self.message,
            "file": self.file,
            "line": self.span.line if self.span else None,
            "column": self.span.column if self.span else None,
            "help": self.help or None,
        }


def _snippet(span: Span, label: str, mark: str, width: int) -> list[str]:
    line, column = span.source.position(span.start)
    text = span.source.line(line)
    # Of a very long line what stands around the place: there may be thousands of places in it.
    left = column - 1 - _AROUND if len(text) > _LONG_LINE and column > _AROUND else 0
    right = left + _LONG_LINE if len(text) > _LONG_LINE else len(text)
    dots = "..." if left else ""
    before = dots + _drawn(text[left : column - 1])
    marked = _drawn(text[column - 1 : min(column - 1 + span.end - span.start, right)])
    marks = mark * max(1, columns_of(marked))
    shown = dots + _drawn(text[left:right]) + ("..." if right < len(text) else "")
    return [
        f"{'':{width}} |",
        f"{line:>{width}} | {shown}".rstrip(),
        f"{'':{width}} | {' ' * columns_of(before)}{marks} {label}".rstrip(),
    ]


def _safe(text: str) -> str:
    r"""The text with what a terminal would obey, line ends and tabs aside, made harmless.

    >>> _safe("\x1b[31mnet.onnx") == "\N{REPLACEMENT CHARACTER}[31mnet.onnx"
    True
    """
    known = (c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(known)


def _drawn(text: str) -> str:
    """A line of a source as it is shown, tabs expanded."""
    return _safe(text).replace("\n", "\N{REPLACEMENT CHARACTER}").replace("\t", _TAB)


def columns_of(text: str) -> int:
    """Terminal columns a text takes.

    >>> columns_of("x"), columns_of("\N{CJK UNIFIED IDEOGRAPH-4E00}")
    (1, 2)
    """
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


class CompileErrors(Exception):
    """Everything that is wrong with the user's input, told at once."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(d.concise() for d in self.diagnostics))

    def full(self) -> str:
        """All diagnostics drawn in full, an empty line between them."""
        return "\n\n".join(d.full() for d in self.diagnostics)


class ToolError(Exception):
    """The environment lacks something; `remedy` says what to install or set.

    >>> str(ToolError("torch is not installed", "pip install 'eecompile[torch]'"))
    "torch is not installed: pip install 'eecompile[torch]'"
    """

    def __init__(self, message: str, remedy: str) -> None:
        self.message, self.remedy = message, remedy
        super().__init__(f"{message}: {remedy}")


#: What builds artifacts; running one needs numpy only.
_BUILDS = {
    "networkx": "networkx",
    "onnx": "onnx",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "scipy": "scipy",
    "threadpoolctl": "threadpoolctl",
    "tvm": "apache-tvm",
}
#: Import name -> distribution and what installs it.
_PACKAGES = {
    "fdt": ("fdt", "pip install 'eecompile[boards]'"),
    "numpy": ("numpy", "pip install numpy"),
    "torch": ("torch", "pip install 'eecompile[torch]'"),
    **{name: (package, "pip install 'eecompile[build]'") for name, package in _BUILDS.items()},
}


def missing_package(error: ModuleNotFoundError) -> ToolError | None:
    """The environment's failure behind an import that failed; None where it is not ours to need.

    >>> str(missing_package(ModuleNotFoundError("No module named 'tvm'", name="tvm.tirx")))
    "apache-tvm is not installed: pip install 'eecompile[build]'"
    """
    found = _PACKAGES.get((error.name or "").partition(".")[0])
    return found and ToolError(f"{found[0]} is not installed", found[1])


class InternalError(Exception):
    """A broken invariant of ours: a bug in eecompile, whatever the user wrote."""


class Diagnostics:
    """Collects diagnostics, so that all independent errors are told at once.

    >>> found = Diagnostics()
    >>> found.error("bad-data", "No key `images`", path="a.npz")
    >>> found.raise_errors()
    Traceback (most recent call last):
    eecompile.diagnostics.CompileErrors: a.npz: error[bad-data]: No key `images`
    """

    def __init__(self, found: Iterable[Diagnostic] = ()) -> None:
        self._found = list(found)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, *diagnostics: Diagnostic) -> None:
        """Keep diagnostics for later."""
        self._found += diagnostics

    def error(
        self,
        id: str,
        message: str,
        span: Span | None = None,
        label: str = "",
        *,
        secondary: tuple[tuple[Span, str], ...] = (),
        notes: tuple[str, ...] = (),
        help: str = "",
        path: str | None = None,
    ) -> None:
        """Keep one error; arguments as in `Diagnostic`."""
        self.add(Diagnostic(id, message, span, label, secondary, notes, help, path=path))

    def in_order(self) -> tuple[Diagnostic, ...]:
        """By text in the order met, then by place; those without a place last; each only once."""
        texts: dict[int, int] = {}
        for found in self._found:
            if found.span:
                texts.setdefault(id(found.span.source), len(texts))

        def place(found: Diagnostic) -> tuple[int, int]:
            span = found.span
            return (texts[id(span.source)], span.start) if span else (len(texts), 0)

        return tuple(sorted(dict.fromkeys(self._found), key=place))

    def raise_errors(self) -> None:
        """Raise what was found if any of it is an error.

        Raises:
            CompileErrors: with every diagnostic kept, warnings included.
        """
        if any(d.severity == "error" for d in self._found):
            raise CompileErrors(self.in_order())


def did_you_mean(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates close to a misspelt name, best first, at most three.

    >>> did_you_mean("layr3", ["layer3", "layer4", "fc"])
    ['layer3', 'layer4']
    """
    return difflib.get_close_matches(name, list(dict.fromkeys(candidates)), n=3, cutoff=0.6)


def did_you_mean_help(name: str, candidates: Iterable[str]) -> str:
    """The help line that suggests close names, empty where none is close.

    >>> did_you_mean_help("layr3", ["layer3", "layer4", "fc"])
    'did you mean `layer3` or `layer4`?'
    """
    close = [f"`{candidate}`" for candidate in did_you_mean(name, candidates)]
    if not close:
        return ""
    *rest, last = close
    return f"did you mean {', '.join(rest) + ' or ' if rest else ''}{last}?"
