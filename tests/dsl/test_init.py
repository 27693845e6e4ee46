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
from eecompile.loading import check_file, planned_gates
from eecompile.skip_proposals import patterns_of
from eecompile.spec import Spec, matching

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
    assert [p.name for p in spec.policies] == ["quick", "best", "learned", "shared", "hard"]


def test_exits_may_be_left_to_the_compiler(written: str) -> None:
    own = re.sub("^    exit .*\n", "", written, flags=re.MULTILINE)
    spec = read(own.replace("    # exits auto", "    exits auto"))
    assert spec.model.exits == ()
    assert spec.model.auto_exits is not None and spec.model.auto_exits.low == 2


def uncommented(text: str, *starts: str) -> str:
    pattern = "|".join(map(re.escape, starts))
    return re.sub(rf"^    # (?={pattern})", "    ", text, flags=re.MULTILINE)


def test_gates_left_out_are_right(written: str) -> None:
    gated = uncommented(written, "skip ").replace("policy quick", "policy gated { }\npolicy quick")
    skips = read(gated).model.skips
    Path("gated.ee").write_text(gated, encoding="utf-8")
    spec, host, found = check_file(Path("gated.ee"))
    assert host is not None and not found
    names = [gate.name for gate in planned_gates(spec, host).gates]
    blocks = [f"layer1.{i}" for i in range(4)] + ["layer2.1", "layer2.2"]
    assert sorted(names) == sorted([*blocks, *(f"{b}.conv1" for b in (*blocks, "layer2.0"))])
    assert [(skip.what, skip.point, str(skip.gate)) for skip in skips] == [
        ("layers", "layer1.[0-3]", "fitted"),
        ("layers", "layer2.[1-2]", "fitted"),  # layer2.0 changes the shape of what it reads
        ("channels", "layer1.[0-3].conv1", "fitted"),
        ("channels", "layer2.[0-2].conv1", "fitted"),
    ]
    assert "4 blocks, 38 % of the MACs" in gated and "2 blocks, 43 % of the MACs" in gated


NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


def net():
    blocks = [Block() for _ in range(11)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(*blocks), *head)
"""


def test_gates_of_networks_that_can_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(NETWORK, encoding="utf-8")
    for name in ("fit.npz", "calibrate.npz", "test.npz", "net.gates.npz"):
        (tmp_path / name).touch()
    written = describe("zoo.py:net", None, None, ["x=1,3,8,8"], 2)
    gated = uncommented(written, "skip ", "gates ")
    model = read(gated).model
    Path("gated.ee").write_text(gated, encoding="utf-8")
    spec, host, found = check_file(Path("gated.ee"))
    assert host is not None and not found
    assert len(planned_gates(spec, host).gates) == 22
    assert [(skip.what, skip.point, str(skip.gate)) for skip in model.skips] == [
        ("layers", "1.*", "recurrent(hidden: 10)"),
        ("channels", "1.*.conv1", "squeeze"),
    ]
    assert model.gates == "net.gates.npz"
    assert "# 11 blocks, 97 % of the MACs" in written
    assert "# 11 convolutions, 48 % of the MACs" in written


def test_nothing_is_proposed_where_nothing_can_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(NETWORK.replace("x + self", "self"), encoding="utf-8")
    assert "skip layers" not in describe("zoo.py:net", None, None, ["x=1,3,8,8"], 2)


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["a.0", "a.1", "b.1"], [], ["a.[0-1]", "b.1"]),
        (["a.0.c", "a.2.c"], [], ["a.*.c"]),
        ([f"a.{i}" for i in range(12)], [], ["a.*"]),
        (["a.0", "a.2"], ["a.1"], ["a.0", "a.2"]),  # a pattern would stand for the other too
        (["relu_9", "relu_10"], [], ["relu_*"]),
        (["a[1].0", "a[1].1"], [], ["a[1].0", "a[1].1"]),  # brackets of a name are no set
        (["stem"], [], ["stem"]),
        ([f"{letter}.0" for letter in "abcdefghi"], [], ["**"]),
        ([], [], []),
    ],
)
def test_patterns_stand_for_the_names_and_nothing_else(
    names: list[str], known: list[str], expected: list[str]
) -> None:
    found = patterns_of(names, known)
    assert [pattern for pattern, _ in found] == expected
    for pattern, members in found:
        assert matching(pattern, [*names, *known]) == members
