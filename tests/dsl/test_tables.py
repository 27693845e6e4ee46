"""The tables are those of the grammar, and the parser they drive agrees with lark's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import lark
import pytest
from hypothesis import given, settings

from eecompile.diagnostics import Source
from eecompile.dsl.syntax import Branch, Leaf
from eecompile.dsl.table_making import make_tables
from eecompile.dsl.tables import END, Mismatch, literals, tree_of
from tests.dsl.texts import damaged_texts, valid_texts

DSL = Path(__file__).parents[2] / "dsl"
FRAGMENTS = ("limit", "value", "deadline_value", "endpoints", "quantity")


@cache
def reference() -> lark.Lark:
    return lark.Lark(
        (DSL / "grammar.lark").read_text(encoding="utf-8"),
        parser="lalr",
        start=["file", *FRAGMENTS],
        propagate_positions=True,
        maybe_placeholders=True,
        keep_all_tokens=True,
    )


def by_lark(text: str, start: str) -> Any:
    try:
        return plain_lark(reference().parse(text, start=start))
    except lark.exceptions.UnexpectedToken as error:
        place = None if error.token.type == END else error.token.start_pos
        # lark names nothing where a single value is complete.
        return "token", error.token.type, place, set(error.accepts) or {END}
    except lark.exceptions.UnexpectedCharacters as error:
        return "character", error.pos_in_stream


def plain_lark(part: Any) -> Any:
    if isinstance(part, lark.Tree):
        return str(part.data), [plain_lark(child) for child in part.children]
    return part and (part.type, str(part), part.start_pos)


def by_tables(text: str, start: str) -> Any:
    try:
        return plain(tree_of(Source("a.ee", text), start))
    except Mismatch as error:
        if error.token is None:
            return "character", error.at
        place = None if error.token.kind == END else error.at
        return "token", error.token.kind, place, set(error.accepts)


def plain(part: Branch | Leaf | None) -> Any:
    if isinstance(part, Branch):
        return part.rule, [plain(child) for child in part.parts]
    return part and (part.kind, part.text, part.span.start)


def test_the_tables_are_made_from_the_grammar() -> None:
    kept = (DSL / "tables.json").read_text(encoding="utf-8")
    assert kept == make_tables(), "run `python -m eecompile.dsl.table_making`"


@settings(deadline=None)
@given(valid_texts())
def test_trees_are_those_of_lark(text: str) -> None:
    found = by_tables(text, "file")
    assert found == by_lark(text, "file")
    assert found[0] == "file"


@settings(deadline=None, max_examples=300)
@given(damaged_texts())
def test_what_is_wrong_is_found_where_lark_finds_it(text: str) -> None:
    assert by_tables(text, "file") == by_lark(text, "file")


@pytest.mark.parametrize("start", FRAGMENTS)
@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "safe", "40 ms safe", "40 safe", "40 hard hard", "90 %", "mean macs <= 60 %"),
        *(
            "accuracy drop <= 1",
            '"a", "b"',
            "[1, 2",
            "1 .. 2",
            "x",
            "x(1, y: 2)",
            "safety",
            "$",
            '"',
        ),
        "mean macs <= 60 % x",
    ],
)
def test_single_values_are_read_as_lark_reads_them(text: str, start: str) -> None:
    assert by_tables(text, start) == by_lark(text, start)


def test_where_nothing_more_belongs_the_end_is_expected() -> None:
    with pytest.raises(Mismatch) as caught:
        tree_of(Source("a.ee", "1 x"), "number")
    assert caught.value.accepts == {END}


def test_words_and_signs_are_known_by_name() -> None:
    assert (literals()["LBRACE"], literals()["MODEL"]) == ("{", "model")
    assert "NAME" not in literals()
