"""Every diagnostic of the language, by example: the Markdown files beside this one.

A case is a heading, a ```ee block, perhaps a ```set block with overrides, and the exact rendering
of what is wrong. ``--update-golden`` rewrites the renderings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from eecompile.diagnostic_ids import LANGUAGE_IDS
from eecompile.diagnostics import CompileErrors, Diagnostic, Source
from eecompile.dsl.check import Declared, GraphFacts, check, unsupported
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse
from eecompile.ir import TensorType

FEATURE = TensorType("float32", (1, 16, 32, 32))
HERE = Path(__file__).parent
FILES = ("net.onnx", "train.npz", "calib.npz", "zoo.py", "heads.py", "w.pth", "x.npy", "gates.npz")
#: Ids that no text can bring about; tested in test_parser.py.
OTHERWISE_TESTED = {"unreadable-file"}


@dataclass(frozen=True)
class Point:
    value: str
    type: TensorType = FEATURE
    leads_to_output: bool = True


POINTS = {name: Point(name) for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1")} | {
    "layer1": Point("layer1.1"),
    "/layer1/Relu_output_0": Point("layer1.1"),
    "layer2": Point("layer2.1"),
    "auxiliary": Point("auxiliary", leads_to_output=False),
    "fc": Point("logits"),
}
LOGITS = {"logits": Declared("float32", (1, 10))}
VIEWS = {
    "": GraphFacts(
        {"image": Declared("float32", (1, 3, 32, 32))}, LOGITS, frozenset({"logits"}), POINTS
    ),
    "dynamic": GraphFacts(
        {"image": Declared("float32", (None, 3, None, None))}, LOGITS, frozenset({"logits"}), POINTS
    ),
    "two-outputs": GraphFacts(
        {"image": Declared("float32", (1, 3, 32, 32))},
        LOGITS | {"features": Declared("float32", (1, 64))},
        frozenset({"logits", "features"}),
        POINTS,
    ),
    "dotted-output": GraphFacts(
        {"image": Declared("float32", (1, 3, 32, 32))},
        {"early.1": Declared("float32", (1, 10))},
        frozenset({"logits"}),
        POINTS,
    ),
    "tokens": GraphFacts(
        {"tokens": Declared("int64", (1, 64))}, LOGITS, frozenset({"logits"}), POINTS
    ),
    "none": None,
}


@dataclass(frozen=True)
class Case:
    path: Path
    title: str
    view: str
    text: str
    overrides: tuple[str, ...]
    expected: str
    place: tuple[int, int]  # of the expected rendering in the file


CASE = re.compile(
    r"^## (?P<title>.+?)\n.*?"
    r"^```ee(?: (?P<view>\S+))?\n(?P<text>.*?)^```\n+"
    r"(?:^```set\n(?P<set>.*?)^```\n+)?"
    r"^```diagnostics\n(?P<expected>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def cases() -> list[Case]:
    found = []
    for path in sorted(HERE.glob("*.md")):
        for match in CASE.finditer(path.read_text(encoding="utf-8")):
            overrides = tuple((match["set"] or "").splitlines())
            found.append(
                Case(
                    path,
                    match["title"],
                    match["view"] or "",
                    match["text"],
                    overrides,
                    match["expected"],
                    match.span("expected"),
                )
            )
    return found


def diagnostics(case: Case) -> list[Diagnostic]:
    """All that `build` would tell before it builds."""
    try:
        spec, found = parse(Source("case.ee", case.text))
        spec = apply_overrides(spec, case.overrides)
    except CompileErrors as errors:
        return list(errors.diagnostics)
    found.add(*check(spec, VIEWS[case.view], ["arm-cpu", "host"], ["raspberry-pi-4"], 4))
    if not found:
        found.add(*unsupported(spec))
    return list(found.in_order())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.path.stem}: {case.title}")
@pytest.mark.usefixtures("folder")
def test_diagnostics_are_as_shown(case: Case, request: pytest.FixtureRequest) -> None:
    rendered = "\n\n".join(d.full() for d in diagnostics(case))
    if request.config.getoption("--update-golden"):
        _rewrite(case, rendered)
    else:
        assert rendered == case.expected.rstrip("\n")


def _rewrite(case: Case, rendered: str) -> None:
    """Replaces the rendering of a case; the file may have changed since it was read."""
    now = next(other for other in cases() if (other.path, other.title) == (case.path, case.title))
    text = case.path.read_text(encoding="utf-8")
    start, end = now.place
    case.path.write_text(f"{text[:start]}{rendered}\n{text[end:]}", encoding="utf-8")


def test_titles_are_unique_and_every_block_is_read() -> None:
    found = cases()
    assert len({(case.path, case.title) for case in found}) == len(found)
    for path in HERE.glob("*.md"):
        read = sum(case.path == path for case in found)
        assert read == path.read_text(encoding="utf-8").count("\n```ee")


def test_every_id_of_the_language_has_a_case() -> None:
    shown = {id for case in cases() for id in re.findall(r"^\w+\[([\w-]+)\]:", case.expected, re.M)}
    assert shown | OTHERWISE_TESTED == LANGUAGE_IDS
