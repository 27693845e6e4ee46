"""Every example of the language reference parses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eecompile.diagnostics import Source
from eecompile.dsl.check import check
from eecompile.dsl.format import format_text
from eecompile.dsl.options import GATES, SPLITS
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse
from eecompile.spec import Spec

README = (Path(__file__).parents[2] / "dsl" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
#: What stands before and after an example of a table, by the block it belongs to.
AROUND = {
    "model": {"... comparator": 'exit e after "p" head linear '},
    "data": {"... ": "fit "},
    "policy": {},
    "target": {},
}

#: What stands around the examples of a table, by its header.
SHAPES = {
    "head": 'exit e after "p" head {}',
    "layer gate": 'skip layers "p" gate {}',
    "channel gate": 'skip channels "p" gate {}',
    "rule": "exit when {}",
}


def parsed(text: str) -> Spec:
    spec, found = parse(Source("README", text))
    assert not list(found), [d.full() for d in found]
    return spec


def examples() -> list[tuple[str, str]]:
    found = []
    for section in re.split(r"^## ", README, flags=re.MULTILINE):
        kind = section.split(" ")[0].strip("`")
        header = ""
        for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE):
            header = row if "`" not in row and "-" not in row else header
            for code in re.findall(r"`([^`]+)`", row):
                shape = SHAPES.get(header)
                found.append((kind, shape.format(code) if shape else code))
    return found


@pytest.mark.parametrize(("kind", "code"), examples())
def test_examples_of_tables_parse(kind: str, code: str) -> None:
    for dots, start in AROUND[kind].items():
        code = code.replace("... ", start, 1) if code.startswith(dots) else code
    for word, value in (
        ("NAME", "e"),
        ('"POINT"', '"p"'),
        ("HEAD", "linear"),
        ("RULE", "patience"),
        ("CHANNEL_GATE", "squeeze"),
        ("GATE", "fitted"),
    ):
        code = code.replace(word, value)
    source = 'source onnx "n"' if kind == "model" and not code.startswith("source") else ""
    parsed(f"eecompile 1 {kind} x {{ {source} {code} }}")


def test_there_are_examples_of_every_statement() -> None:
    assert len(examples()) > 40
    assert {kind for kind, _ in examples()} == AROUND.keys()


@pytest.mark.parametrize("text", BLOCKS[:-1])
def test_the_page_long_examples_are_right_and_in_canonical_layout(text: str) -> None:
    assert {d.id for d in check(parsed(text))} - {"untrained-gates"} == {"missing-file"}
    assert format_text(text) == text


def test_every_option_of_a_split_is_explained() -> None:
    rows = re.findall(r"`split online_ucb\((.*?)\)`", README)
    written = {option for row in rows for option in re.findall(r"(\w+):", row)}
    assert written == SPLITS["online_ucb"].keys()


def test_every_option_of_a_gate_is_shown() -> None:
    for what, header in (("layers", "layer gate"), ("channels", "channel gate")):
        table = README.split(f"| {header} |")[1].split("\n\n")[0]
        for kind, options in GATES[what].items():
            assert re.search(rf"^\| `{kind}\b", table, re.MULTILINE)
            assert {*re.findall(r"(\w+):", table)} >= options.keys()


def test_the_overrides_shown_apply() -> None:
    overrides = re.findall(r'^--set "?(.*?)"?$', BLOCKS[-1], re.MULTILINE)
    assert len(overrides) == 8
    spec = apply_overrides(parsed(BLOCKS[0]), overrides)
    assert spec.model.exits[0].head.option("pool") == 2
    assert spec.targets[0].cores == 4
