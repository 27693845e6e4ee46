"""Diagnostics: how they are drawn, collected and told apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.diagnostic_ids import DIAGNOSTICS, LANGUAGE_IDS
from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    InternalError,
    Source,
    Span,
    ToolError,
    did_you_mean,
    did_you_mean_help,
)

SOURCE = Source("net.ee", "one\n\ttwo = 2 kg\nthree\n" + "\n" * 6 + "ten\n")


def span(text: str, source: Source = SOURCE) -> Span:
    start = source.text.index(text)
    return Span(source, start, start + len(text))


def test_full_rendering() -> None:
    diagnostic = Diagnostic(
        "unknown-unit",
        "Expected a unit of time, found `kg`",
        span("kg"),
        "expected `s`",
        secondary=((span("ten"), "asked for here"),),
        notes=("units are mandatory",),
        help="did you mean `s`?",
    )
    assert diagnostic.full().splitlines() == [
        "error[unknown-unit]: Expected a unit of time, found `kg`",
        "   --> net.ee:2:10",
        "   |",
        " 2 |     two = 2 kg",
        "   |             ^^ expected `s`",
        "   ::: net.ee:10:1",
        "   |",
        "10 | ten",
        "   | --- asked for here",
        "   = note: units are mandatory",
        "   = help: did you mean `s`?",
    ]


def test_without_a_place_only_the_file_is_named() -> None:
    diagnostic = Diagnostic("bad-data", "No array `images`", path="a.npz", notes=("it holds `x`",))
    assert diagnostic.full().splitlines() == [
        "error[bad-data]: No array `images`",
        "  --> a.npz",
        "  = note: it holds `x`",
    ]
    assert diagnostic.concise() == "a.npz: error[bad-data]: No array `images`"


def test_without_a_file_the_headline_stands_alone() -> None:
    diagnostic = Diagnostic("bad-argument", "No policy `fats`", severity="warning")
    assert diagnostic.full() == "warning[bad-argument]: No policy `fats`"
    assert diagnostic.concise() == diagnostic.full()


def test_json_has_the_keys_scripts_rely_on() -> None:
    assert Diagnostic("unknown-unit", "M", span("kg"), help="h").to_json() == {
        "id": "unknown-unit",
        "severity": "error",
        "message": "M",
        "file": "net.ee",
        "line": 2,
        "column": 10,
        "help": "h",
    }
    without = Diagnostic("bad-data", "M").to_json()
    assert [without[key] for key in ("file", "line", "column", "help")] == [None] * 4


def test_carets_stand_under_wide_and_combined_characters() -> None:
    source = Source("x", 'name "漢字" e\u0301 bad')
    lines = Diagnostic("syntax-error", "M", span("bad", source)).full().splitlines()
    assert lines[-1] == "  | " + " " * 14 + "^^^"  # 2 columns each for 漢 and 字, 1 for é


def test_a_span_over_lines_is_marked_on_its_first() -> None:
    lines = Diagnostic("syntax-error", "M", Span(SOURCE, 4, 30)).full().splitlines()
    assert lines[-1].count("^") == len("    two = 2 kg")


@pytest.mark.parametrize("place", [0, 59, 60, 61, 5000, 9990])
def test_of_a_very_long_line_what_is_around_the_place_is_shown(place: int) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(10_000))
    source = Source("net.ee", f"first\n{text}\n")
    found = Diagnostic("syntax-error", "M", Span(source, 6 + place, 6 + place + 10))
    *_, line, marks = found.full().splitlines()
    assert len(line) < 500
    assert line[marks.index("^") :].startswith(text[place : place + 10])
    assert marks.count("^") == 10
    assert f"net.ee:2:{place + 1}" in found.full()


def test_what_a_terminal_would_obey_is_not_passed_on() -> None:
    source = Source("x", "a \x1b[31m\x07 b")
    assert "\x1b" not in Diagnostic("syntax-error", "M", span("b", source)).full()
    named = Diagnostic("missing-file", "No `\x1b[31m`", path="\x1b[2J", help="\x1b")
    assert "\x1b" not in named.full() + named.concise()


@given(st.text(), st.integers(0, 50), st.integers(0, 50))
def test_any_span_is_drawn(text: str, start: int, length: int) -> None:
    start = min(start, len(text))
    source = Source("x", text)
    place = Span(source, start, min(len(text), start + length))
    rendered = Diagnostic("syntax-error", "M", place, "L").full()
    assert "^" in rendered.splitlines()[-1]
    line, column = source.position(start)
    assert text.split("\n")[line - 1][: column - 1] == text[start - column + 1 : start]


def test_errors_are_raised_together_in_order_and_once() -> None:
    found = Diagnostics()
    found.error("bad-data", "last")
    found.error("syntax-error", "second", span("three"))
    found.error("syntax-error", "first", span("one"))
    found.error("syntax-error", "first", span("one"))
    with pytest.raises(CompileErrors) as caught:
        found.raise_errors()
    assert [d.message for d in caught.value.diagnostics] == ["first", "second", "last"]
    assert str(caught.value).count("\n") == 2
    assert caught.value.full().count("error[") == 3


def test_warnings_alone_raise_nothing() -> None:
    found = Diagnostics([Diagnostic("bad-data", "M", severity="warning")])
    found.raise_errors()
    assert len(found) == 1


def test_an_id_nobody_explained_is_our_bug() -> None:
    with pytest.raises(InternalError, match="no-such-id"):
        Diagnostic("no-such-id", "M")


def test_every_id_is_kebab_case_and_explained() -> None:
    for id, info in DIAGNOSTICS.items():
        assert id == id.lower() and id.replace("-", "a").isalpha()
        assert info.what.endswith(".") and info.why.endswith(".") and info.example
    assert DIAGNOSTICS.keys() >= LANGUAGE_IDS


def test_only_close_names_are_suggested() -> None:
    names = ["layer1", "layer2", "layer3", "layer4", "fc"]
    assert len(did_you_mean("layer", names)) == 3
    assert did_you_mean("conv", names) == []
    assert did_you_mean_help("fcc", names) == "did you mean `fc`?"
    assert did_you_mean_help("conv", names) == ""


def test_a_tool_error_says_what_to_do() -> None:
    error = ToolError("no linker", "pip install ziglang")
    assert (error.message, error.remedy) == ("no linker", "pip install ziglang")


def test_the_language_raises_no_id_of_the_build() -> None:
    """Ids of the language are those its modules name; each of them has a Markdown case."""
    folder = Path(__file__).parent.parent / "dsl"
    named = {
        node.value
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert named & DIAGNOSTICS.keys() == LANGUAGE_IDS


def test_every_id_is_raised_somewhere_and_has_a_case() -> None:
    root = Path(__file__).parent.parent
    folders = ("eecompile", "passes", "targets", "dsl")
    sources = [path for folder in folders for path in (root / folder).rglob("*.py")]
    ours = [path for path in sources if path.name != "diagnostic_ids.py"]
    cases = [path for kind in ("*.py", "*.md") for path in (root / "tests").rglob(kind)]
    raised, tested = (
        "\n".join(path.read_text(encoding="utf-8") for path in of) for of in (ours, cases)
    )
    assert [id for id in DIAGNOSTICS if f'"{id}"' not in raised] == []
    # Rendered in a Markdown case, or named by a test.
    unseen = [id for id in DIAGNOSTICS if f'"{id}"' not in tested and f"[{id}]" not in tested]
    assert unseen == []
