"""Heads, gates, rules and options, and what has to be fitted: shared by the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from eecompile.diagnostics import Diagnostics, Span, did_you_mean_help
from eecompile.dsl.options import FREQUENCIES, Option
from eecompile.spec import AutoExits, DataSet, HeadSpec, Model, Name, Value

__all__ = [
    "check_call",
    "check_frequency",
    "check_options",
    "heads_of",
    "listed_names",
    "missing_data",
    "placed_head",
]


def check_call(
    id: str,
    what: str,
    call: HeadSpec,
    known: Mapping[str, Mapping[str, Option]],
    found: Diagnostics,
) -> None:
    """A head, gate or rule is known, and so are its options."""
    if call.kind not in known:
        found.error(
            id,
            f"Unknown {what} `{call.kind}`",
            call.at("kind"),
            "expected " + listed_names(known),
            help=did_you_mean_help(call.kind, known),
        )
        return
    check_options(call.kind, call.options, call.at, known[call.kind], found)


def check_options(
    kind: str,
    options: Mapping[str, Value],
    at: Callable[[str], Span | None],
    known: Mapping[str, Option],
    found: Diagnostics,
) -> None:
    """Each option is known and of the right kind, and none that is needed is missing."""
    listed = f"options: {listed_names(known)}" if known else f"`{kind}` has no options"
    for name, value in options.items():
        if name == "":
            message = f"An option of `{kind}` has no name"
            place = at(name)
            help = f"write `{next(iter(known))}: {place.text}`" if place and len(known) == 1 else ""
            found.error("bad-option", message, place, listed, help=help)
        elif name not in known:
            found.error(
                "unknown-option",
                f"`{kind}` has no option `{name}`",
                at(name),
                listed,
                help=did_you_mean_help(name, known),
            )
        elif not known[name].accepts(value):
            message = f"Option `{name}` of `{kind}` cannot be this"
            found.error("bad-option", message, at(name), f"expected {known[name].expected}")
    for name, option in known.items():
        if option.required and name not in options and "" not in options:
            message = f"`{kind}` needs its option `{name}`"
            found.error("missing-setting", message, at("kind"), f"expected {option.expected}")


def listed_names(names: Iterable[str]) -> str:
    """Names for a message.

    >>> listed_names(["a", "b", "c"])
    '`a`, `b` or `c`'
    """
    *rest, last = [f"`{name}`" for name in names] or ["nothing"]
    return f"{', '.join(rest)} or {last}" if rest else last


def heads_of(model: Model) -> list[HeadSpec]:
    """All heads and comparators of a model, also the one of exits that the compiler places."""
    heads = [head for exit in model.exits for head in (exit.head, exit.comparator) if head]
    if model.auto_exits is not None:
        heads.append(placed_head(model.auto_exits))
    return heads


def placed_head(auto: AutoExits) -> HeadSpec:
    """The head of exits that the compiler places: as written, else `linear` with its defaults."""
    return auto.head or HeadSpec("linear", span=auto.span)


def missing_data(
    key: str, who: str, span: Span | None, data: DataSet | None, found: Diagnostics
) -> None:
    """Something has to be fitted on data that is not given."""
    where = f"in `data {data.name} {{ }}`" if data else "in a `data` block"
    found.error(
        "missing-data",
        f"{who} has to be fitted, and there is no `{key}` data",
        span,
        f"is fitted on `{key}` samples",
        help=f'add `{key} "....npz"` {where}',
    )


def check_frequency(value: Name | float | None, place: Span | None, found: Diagnostics) -> None:
    """Reports the name of no rule for the clock."""
    if isinstance(value, Name) and value not in FREQUENCIES:
        found.error(
            "unknown-rule",
            f"Unknown frequency rule `{value}`",
            place,
            f"expected {listed_names(FREQUENCIES)}, or a frequency such as `600 MHz`",
            help=did_you_mean_help(value, FREQUENCIES),
        )
