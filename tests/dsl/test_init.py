"""What `eecompile init` writes is right, and so is what it leaves to be uncommented."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import eecompile.demo
from eecompile.diagnostics import Source
from eecompile.dsl.check import check
from eecompile.dsl.format import format_text
from eecompile.dsl.parser import parse
from eecompile.initialise import describe
from eecompile.spec import Spec

DEMO = Path(eecompile.demo.__file__).parent


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO / "digits.onnx", tmp_path)
    for name in ("fit", "calibrate", "test"):
        (tmp_path / f"{name}.npz").touch()
    return describe("digits.onnx", None, None, [], 2)


def read(text: str) -> Spec:
    spec, found = parse(Source("net.ee", text))
    found.add(*check(spec))
    assert not list(found), [d.full() for d in found]
    return spec


def test_the_template_is_right_and_in_canonical_layout(written: str) -> None:
    spec = read(written)
    assert [policy.name for policy in spec.policies] == ["quick"]
    assert format_text(written) == written


def test_policies_left_out_are_right(written: str) -> None:
    start = written.index("# policy best")
    end = written.index("\n\n", start)
    policies = re.sub("^# ", "", written[start:end], flags=re.MULTILINE)
    spec = read(written[:start] + policies + written[end:])
    assert [p.name for p in spec.policies] == ["quick", "best", "learned", "shared"]


def test_exits_may_be_left_to_the_compiler(written: str) -> None:
    own = re.sub("^    exit .*\n", "", written, flags=re.MULTILINE)
    spec = read(own.replace("    # exits auto", "    exits auto"))
    assert spec.model.exits == ()
    assert spec.model.auto_exits is not None and spec.model.auto_exits.low == 2
