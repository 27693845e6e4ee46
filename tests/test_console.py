"""Tables and progress, in plain text."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eecompile.console import Steps, folded, table

ROOT = Path(__file__).parent.parent


def lines(*rows: tuple[str, ...], left: int = 1, width: int = 120) -> list[str]:
    return list(folded(rows[0], rows[1:], left, width))


def test_texts_are_on_the_left_and_numbers_on_the_right() -> None:
    assert lines(("exit", "n"), ("early", "5"), ("e", "1000")) == [
        "exit      n",
        "early     5",
        "e      1000",
    ]


def test_wide_signs_take_two_columns() -> None:
    assert lines(("x", "n"), ("\N{CJK UNIFIED IDEOGRAPH-4E00}", "1"), ("ab", "22")) == [
        "x    n",
        "\N{CJK UNIFIED IDEOGRAPH-4E00}   1",
        "ab  22",
    ]


def test_the_widest_column_is_folded_at_spaces() -> None:
    found = lines(("name", "what"), ("a", "one two three four"), left=2, width=16)
    assert found == ["name  what", "a     one two", "      three four"]


def test_a_word_that_is_too_long_is_cut() -> None:
    found = lines(("a",), ("0123456789abcdef",), width=10)
    assert found == ["a", "0123456789", "abcdef"]


def test_what_cannot_be_folded_further_is_shown_whole() -> None:
    found = lines(("abcd", "abcd"), ("1234", "5678"), width=3)
    assert found == ["abcd  abcd", "1234  5678"]


def test_a_table_of_no_rows_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_steps_are_plain_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(2)
    with steps.step("first") as progress:
        progress(1, 2, "half")
    steps.warn("careful")
    shown = capsys.readouterr().err
    assert re.fullmatch(r"\[1/2\] first \.\.\. \d+\.\d s\ncareful\n", shown)
    assert list(steps.times_s) == ["first"]


def test_quiet_steps_say_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(1, quiet=True)
    with steps.step("first"):
        pass
    steps.say("all is well")
    steps.warn("careful")
    assert capsys.readouterr().err == "careful\n"


PROGRAM = """
import time
from eecompile.console import Steps
steps = Steps(1)
with steps.step("work") as progress:
    for done in range(5):
        time.sleep(0.11)  # more than the bar waits between two drawings
        progress(done, 4, "of it")
    steps.warn("careful")
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_on_a_terminal_a_bar_grows_and_goes(term: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stderr=theirs, env=environment, check=True, timeout=60
    )
    os.close(theirs)
    shown = io.StringIO(os.read(ours, 1 << 16).decode(), newline="").read()
    os.close(ours)
    assert done.returncode == 0
    kept = [line.rpartition("\x1b[K")[2] for line in shown.split("\r\n")]
    assert kept[0] == "careful"
    assert re.fullmatch(r"\[1/1\] work \.\.\. \d\.\d s", kept[1])
    assert kept[2] == ""
    if term == "dumb":
        assert "\x1b" not in shown
    else:
        assert re.search(r"\[1/1\] work of it \[={15} {15}\]  50% \d+:\d\d left", shown)
