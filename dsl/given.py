"""Values of statements given on the command line, each for an option of its own: `--deadline`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from eecompile.diagnostics import Diagnostics, Source, Span
from eecompile.dsl.check_options import check_frequency
from eecompile.dsl.convert import Converter
from eecompile.dsl.convert_policies import HALTS
from eecompile.dsl.parser import parse_tree
from eecompile.dsl.syntax import Branch
from eecompile.spec import Budget, Deadline, FrequencyRange, Name

__all__ = ["given_budget", "given_deadline", "given_frequencies", "given_frequency", "given_halt"]

_T = TypeVar("_T")


def given_deadline(option: str, text: str) -> tuple[Deadline, Span]:
    """What a deadline says, and its place.

    >>> given_deadline("--deadline", "40 ms safe")[0].seconds
    0.04

    Raises:
        CompileErrors: it is none.
    """
    return _given(option, text, "deadline_value", lambda c: c.deadline)


def given_frequency(option: str, text: str) -> tuple[Name | float, Span]:
    """A frequency rule's name, or a clock in hertz, and its place.

    >>> given_frequency("--frequency", "600 MHz")[0]
    600000000.0

    Raises:
        CompileErrors: it is neither.
    """
    value: Name | float
    value, span = _given(option, text, "frequency_value", lambda c: c.frequency_value)
    found = Diagnostics()
    check_frequency(value, span, found)
    found.raise_errors()
    return value, span


def given_frequencies(option: str, text: str) -> tuple[tuple[FrequencyRange, ...], Span]:
    """A list of clocks and ranges of them, without its brackets, and its place.

    >>> [(f.low_hz, f.high_hz) for f in given_frequencies("--freq", "600 MHz, 1 GHz .. 2 GHz")[0]]
    [(600000000.0, 600000000.0), (1000000000.0, 2000000000.0)]

    Raises:
        CompileErrors: it is none.
    """
    return _given(option, text, "frequency_items", lambda c: c.frequency_list)


def given_budget(option: str, text: str) -> tuple[Budget, Span]:
    """What a budget says, and its place.

    >>> given_budget("--budget", "mean macs <= 70 %")[0].limit
    0.7

    Raises:
        CompileErrors: it is none.
    """
    return _given(option, text, "limit", lambda c: c.limit)


def given_halt(option: str, text: str) -> tuple[Budget, Span]:
    """What each sample may spend at most, and its place.

    >>> given_halt("--halt", "macs <= 50 %")[0].limit
    0.5

    Raises:
        CompileErrors: it is none.
    """
    return _given(
        option, text, "limit", lambda c: lambda tree: c.limit(tree, HALTS, "limit of a halt")
    )


def _given(
    option: str, text: str, rule: str, of: Callable[[Converter], Callable[[Branch], _T | None]]
) -> tuple[_T, Span]:
    """A value, parsed as a rule of the grammar and converted."""
    source, found = Source(option, text), Diagnostics()
    value = of(Converter(found))(parse_tree(source, rule))
    found.raise_errors()
    assert value is not None, "what cannot be meant is an error"
    return value, Span(source, 0, len(text))
