"""The one canonical layout of a `.ee` file. Comments stay with what they stand at.

Models and data sets take one line a statement, policies and targets one line each where that
fits. Lines of one kind that follow each other share their columns. At most one empty line is kept
where there were some. Nothing but spaces, line ends and commas' surroundings changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from eecompile.diagnostics import Source
from eecompile.dsl.parser import parse_tree
from eecompile.dsl.syntax import Branch, Leaf

__all__ = ["format_text"]

_WIDTH = 120
_INDENT = "    "
_STATEMENT_GAP = "   "
#: Blocks that stand on one line where they fit.
_SHORT_BLOCKS = ("policy", "target")


@dataclass
class _Line:
    """One line to be: its cells, each followed by its gap, and the comment behind them.

    `run` says with which neighbours it shares columns. A line without cells is a comment's.
    """

    start: int
    end: int
    cells: list[str] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    run: str = ""
    indent: str = ""
    blank_before: bool = False
    comment: str = ""


def format_text(text: str, path: str = "<text>") -> str:
    """The text in canonical layout; formatting it again changes nothing.

    Raises:
        CompileErrors: the text has a syntax error.

    >>> print(format_text("eecompile 1 target  host{cores 2}# mine"), end="")
    eecompile 1
    <BLANKLINE>
    target host { cores 2 }  # mine
    """
    tree = parse_tree(Source(path, text))
    comments = [m for m in re.finditer(r'"[^"\r\n]*"|#[^\n]*', text) if m[0][0] == "#"]
    lines = [line for block in tree.branches() for line in _block_lines(block, comments)]
    lines = _with_comments(lines, comments, text)
    _settle_blanks(lines, text)
    return "\n".join(_drawn(lines)) + "\n"


# Statements to lines.


def _block_lines(block: Branch, comments: list[re.Match[str]]) -> list[_Line]:
    span = block.span
    if block.rule == "version":
        return [_Line(span.start, span.end, [_spaced(block)], run="version")]
    statements = block.branches()
    head = f"{block.leaf(0).text} {block.leaf(1).text}"
    inside = _STATEMENT_GAP.join(_spaced(statement) for statement in statements)
    body = f"{{ {inside} }}" if statements else "{}"
    brace = block.leaf(2).span
    commented = any(brace.end <= comment.start() < span.end for comment in comments)
    fits = len(head) + 1 + len(body) <= _WIDTH
    if not commented and (not statements or (fits and block.rule in _SHORT_BLOCKS)):
        return [_Line(span.start, span.end, [head, body], [1], f"one-line {block.rule}")]
    opening = _Line(span.start, brace.end, [f"{head} {{"], run=f"block {block.rule}")
    closing = _Line(span.end - 1, span.end, ["}"], run="end")
    return [opening, *map(_statement_line, statements), closing]


def _statement_line(statement: Branch) -> _Line:
    cells, gaps = _cells(statement)
    run = statement.rule if statement.rule in ("exit", "skip") else "setting"
    return _Line(statement.span.start, statement.span.end, cells, gaps, run, _INDENT)


def _cells(statement: Branch) -> tuple[list[str], list[int]]:
    """A statement's columns and the gaps behind them."""
    starts = {
        "exit": {"NAME": 1, "AFTER": 1, "HEAD": 3, "COMPARATOR": 3},
        "skip": {"LAYERS": 1, "CHANNELS": 1, "STRING": 1, "GATE": 3},
        "when": {"rule": 1},
        "auto": {"AUTO": 1, "HEAD": 3},
    }.get(statement.rule)
    cells: list[list[tuple[Leaf, str]]] = [[]]
    gaps: list[int] = []
    for i, part in enumerate(statement.parts):
        if part is None:
            continue
        kind = part.kind if isinstance(part, Leaf) else part.rule
        gap = (1 if i == 1 else None) if starts is None else starts.get(kind)
        if gap is not None and i > 0:
            cells.append([])
            gaps.append(gap)
            starts = {k: v for k, v in starts.items() if k != kind} if starts else starts
        pairs = [(part, statement.rule)] if isinstance(part, Leaf) else _tokens(part)
        cells[-1] += pairs
    return [_joined(cell) for cell in cells], gaps


def _spaced(branch: Branch) -> str:
    return _joined(list(_tokens(branch)))


def _tokens(branch: Branch) -> Iterator[tuple[Leaf, str]]:
    """Tokens with the rule each stands in."""
    for part in branch.parts:
        if isinstance(part, Leaf):
            yield part, branch.rule
        elif part is not None:
            yield from _tokens(part)


def _joined(tokens: list[tuple[Leaf, str]]) -> str:
    text = ""
    before = ""
    for leaf, rule in tokens:
        text += leaf.text if _touches(before, leaf.text, rule) else f" {leaf.text}"
        before = leaf.text
    return text


def _touches(before: str, token: str, rule: str) -> bool:
    """Whether no space stands between two tokens; `rule` is the second one's."""
    if before in ("", "(", "[") or token in (",", ")", "]", ":", "("):
        return True
    if token == "[":
        return rule in ("slice", "input_type")
    if token == "..":
        return rule != "frequency_range"
    return before == ".." and rule != "quantity"


# Comments.


def _with_comments(lines: list[_Line], comments: list[re.Match[str]], text: str) -> list[_Line]:
    """Comments go behind what ends on their line, else on a line before what follows."""
    before: list[list[_Line]] = [[] for _ in range(len(lines) + 1)]
    for comment in comments:
        start = comment.start()
        following = next((i for i, line in enumerate(lines) if line.end > start), len(lines))
        previous = lines[following - 1] if following else None
        next_line = lines[following] if following < len(lines) else None
        within = next_line is not None and start > next_line.start
        if previous and not within and "\n" not in text[previous.end : start]:
            previous.comment = comment[0].rstrip()
            continue
        inside = next_line is not None and (next_line.indent or next_line.run == "end")
        line = _Line(start, comment.end(), indent=_INDENT if inside else "", run="comment")
        line.comment = comment[0].rstrip()
        if next_line is not None and within:
            line.start = next_line.start  # within a statement: moved before it, as one with it
        before[following].append(line)
    result = []
    for i, line in enumerate(lines):
        result += [*before[i], line]
    return result + before[-1]


def _settle_blanks(lines: list[_Line], text: str) -> None:
    """Empty lines: one between blocks, none at a block's ends, elsewhere as the author had them."""
    previous: _Line | None = None
    for i, line in enumerate(lines):
        if previous is None or previous.run.startswith("block ") or line.run == "end":
            line.blank_before = False
        elif previous.start == line.start:
            line.blank_before = False  # a comment moved out of this statement
        else:
            forced = previous.run != "comment" and not line.indent
            line.blank_before = _is_blank_before(text, line.start) or (
                forced and not _stay_together(previous, lines[i:])
            )
        previous = line


def _stay_together(previous: _Line, following: list[_Line]) -> bool:
    """Whether a block on one line is followed by its like, comments before that aside."""
    block = next((line for line in following if line.run != "comment"), previous)
    return block is not previous and block.run.startswith("one-line") and block.run == previous.run


def _is_blank_before(text: str, start: int) -> bool:
    head = text[:start]
    return head[len(head.rstrip()) :].count("\n") > 1


# Lines to text.


def _drawn(lines: list[_Line]) -> Iterator[str]:
    runs: list[list[_Line]] = []
    kind = ""
    for line in lines:
        own = line.run if line.cells else kind  # a comment does not end a run
        if runs and own == kind and not line.blank_before:
            runs[-1].append(line)
        else:
            runs.append([line])
        kind = own
    for run in runs:
        yield from _drawn_run(run)


def _drawn_run(run: list[_Line]) -> Iterator[str]:
    width: dict[int, int] = {}
    for line in run:
        for i, cell in enumerate(line.cells[:-1]):
            width[i] = max(width.get(i, 0), len(cell) + line.gaps[i])
    texts = []
    for line in run:
        padded = [f"{cell:<{width[i]}}" for i, cell in enumerate(line.cells[:-1])]
        texts.append(line.indent + "".join(padded + line.cells[-1:]))
    commented = [text for text, line in zip(texts, run, strict=True) if line.comment]
    column = max(map(len, commented), default=0)
    for text, line in zip(texts, run, strict=True):
        if line.blank_before:
            yield ""
        if not line.cells:
            yield f"{text}{line.comment}"
        elif line.comment:
            yield f"{text:<{column}}  {line.comment}"
        else:
            yield text
