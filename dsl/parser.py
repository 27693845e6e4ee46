"""Text to tree to `Spec`. The grammar is `grammar.lark`; this is the one importer of lark."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

import lark

from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean_help,
)
from eecompile.dsl.convert import convert
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.spec import Spec

__all__ = ["parse", "parse_file", "parse_tree", "read_source", "read_spec"]

VERSION = 1
_MAX_BYTES = 1 << 20
_HEADER_HELP = f"a file starts with `eecompile {VERSION}`"
_FRAGMENTS = (
    "call",
    "deadline_value",
    "endpoints",
    "frequency_items",
    "frequency_list",
    "frequency_value",
    "guard_value",
    "input_type",
    "limit",
    "name",
    "number",
    "numbers",
    "offload_value",
    "quantity",
    "range",
    "rule",
    "samples_value",
    "string",
    "value",
)
_SHOWN = {
    "NAME": "a name",
    "STRING": 'a string ("...")',
    "INT": "a whole number",
    "FLOAT": "a number",
    "$END": "the end of the text",
}


@cache
def _grammar() -> lark.Lark:
    text = resources.files("eecompile.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    return lark.Lark(
        text,
        parser="lalr",
        start=["file", *_FRAGMENTS],
        propagate_positions=True,
        maybe_placeholders=True,
        keep_all_tokens=True,
    )


def read_source(path: Path | str) -> Source:
    """The text of a `.ee` file.

    Raises:
        CompileErrors: the file cannot be read, is too large, or is no UTF-8 text.
    """
    name = str(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _unreadable(name, f"Cannot read `{name}`: {reason}") from error
    if len(raw) > _MAX_BYTES:
        raise _unreadable(name, f"`{name}` is larger than {_MAX_BYTES >> 20} MiB, so no .ee file")
    try:
        return Source(name, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _unreadable(name, f"`{name}` is no UTF-8 text (byte {error.start})") from error


def _unreadable(path: str, message: str) -> CompileErrors:
    help = "a .ee file is text that starts with `eecompile 1`; `eecompile init` writes one"
    return CompileErrors([Diagnostic("unreadable-file", message, help=help, path=path)])


def read_spec(path: Path | str) -> Spec:
    """What a `.ee` file says, not yet checked against its network.

    Raises:
        CompileErrors: it cannot be read, has a syntax error, or a value that cannot be meant.
    """
    spec, found = parse_file(path)
    found.raise_errors()
    return spec


def parse_file(path: Path | str) -> tuple[Spec, Diagnostics]:
    """As `parse`, for a file; relative paths in it start from its folder."""
    return parse(read_source(path), folder=str(Path(path).parent))


def parse(source: Source, folder: str = ".") -> tuple[Spec, Diagnostics]:
    """What a text says, and what is wrong with its values.

    Where something is wrong the `Spec` has a gap, so that `check` can go on and everything
    independent is told at once; it must not be built.

    Raises:
        CompileErrors: with the first syntax error, after which nothing can be trusted.
    """
    found = Diagnostics()
    spec = convert(parse_tree(source), found, folder)
    return spec, found


def parse_tree(source: Source, start: str = "file", offset: int = 0) -> Branch:
    """The text's tree; `start` is the rule it has to follow from `offset` on.

    Raises:
        CompileErrors: with the first syntax error, or the unknown language version that may
            have caused it.
    """
    try:
        tree = _grammar().parse(source.text[offset:], start=start)
    except lark.exceptions.UnexpectedInput as error:
        wrong_version = _check_version(source) if start == "file" else None
        raise CompileErrors([wrong_version or _syntax_error(source, error, offset)]) from None
    if start == "file" and (wrong_version := _check_version(source)):
        raise CompileErrors([wrong_version])
    return _branch(tree, source, offset)


def _branch(tree: lark.Tree[lark.Token], source: Source, offset: int) -> Branch:
    parts: list[Branch | Leaf | None] = []
    for child in tree.children:
        if isinstance(child, lark.Token):
            assert child.start_pos is not None and child.end_pos is not None
            span = Span(source, offset + child.start_pos, offset + child.end_pos)
            parts.append(Leaf(child.type, str(child), span))
        else:
            parts.append(None if child is None else _branch(child, source, offset))
    given = [part for part in parts if part is not None]
    return Branch(str(tree.data), tuple(parts), given[0].span.to(given[-1].span))


def _check_version(source: Source) -> Diagnostic | None:
    """The version is looked for before anything else: another one may have another grammar."""
    match = re.match(r"(?:\s|#[^\n]*\n)*eecompile\s+(-?\d+)", source.text)
    if match is None or match[1].lstrip("0") == str(VERSION):
        return None
    return Diagnostic(
        "unsupported-version",
        f"Unknown language version {match[1][:20]}",
        Span(source, match.start(1), match.end(1)),
        f"this compiler knows version {VERSION}",
    )


def _syntax_error(
    source: Source, error: lark.exceptions.UnexpectedInput, offset: int
) -> Diagnostic:
    if not isinstance(error, lark.exceptions.UnexpectedToken):
        return _bad_character(source, error, offset)
    token = error.token
    # lark names nothing where a fragment is complete.
    accepted = set(error.accepts or error.expected) or {"$END"}
    if "FLOAT" in accepted:
        accepted.discard("INT")  # a number is told once
    accepts = sorted(accepted, key=lambda name: (name in _SHOWN, name))
    expected = _listed([_shown(name) for name in accepts])
    if token.type == "$END":
        # lark gives the place of the last token here; the caret belongs behind it.
        end = min(offset + (token.end_pos or 0), len(source.text))
        help = _HEADER_HELP if "EECOMPILE" in accepts else ""
        message = f"Expected {expected}, found the end of the text"
        span = Span(source, end, end)
        return Diagnostic("syntax-error", message, span, "the text ends here", help=help)
    assert token.start_pos is not None and token.end_pos is not None
    words = [_literal(name) for name in accepts]
    help = did_you_mean_help(str(token), [word for word in words if word.isalpha()])
    if "EECOMPILE" in accepts:
        help = _HEADER_HELP
    return Diagnostic(
        "syntax-error",
        f"Expected {expected}, found `{_short(token)}`",
        Span(source, offset + token.start_pos, offset + token.end_pos),
        f"expected {expected}" if len(accepts) <= 2 else "not expected here",
        help=help,
    )


def _bad_character(
    source: Source, error: lark.exceptions.UnexpectedInput, offset: int
) -> Diagnostic:
    start = offset + (error.pos_in_stream or 0)
    char = source.text[start]
    if char == '"':
        line_end = source.text.find("\n", start)
        span = Span(source, start, len(source.text) if line_end < 0 else line_end)
        return Diagnostic(
            "syntax-error", "Unterminated string", span, 'no closing `"` on this line'
        )
    allowed = sorted(getattr(error, "allowed", None) or ())
    signs = [_literal(name) for name in allowed if not _literal(name).isalpha()]
    meant = next((sign for sign in signs if sign.startswith(char)), None)
    shown = char if char.isprintable() else f"U+{ord(char):04X}"
    return Diagnostic(
        "syntax-error",
        f"Unexpected character `{shown}`",
        Span(source, start, start + 1),
        f"expected {_listed([_shown(name) for name in allowed])}" if 0 < len(allowed) <= 2 else "",
        help=f"did you mean `{meant}`?" if meant else "",
    )


def _literal(terminal: str) -> str:
    """The word or sign a terminal stands for, or its name where it is a pattern."""
    return _literals().get(terminal, terminal)


@cache
def _literals() -> dict[str, str]:
    terminals = _grammar().terminals
    return {t.name: t.pattern.value for t in terminals if t.pattern.type == "str"}


def _shown(terminal: str) -> str:
    return _SHOWN.get(terminal) or f"`{_literal(terminal)}`"


def _listed(words: list[str]) -> str:
    """Words joined for a sentence.

    >>> _listed(["a", "b", "c"])
    'a, b or c'
    """
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
