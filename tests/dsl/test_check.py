"""The check: what is right passes, and names are looked up as the language says."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eecompile.diagnostics import CompileErrors, Diagnostics, Source
from eecompile.dsl.check import GraphFacts, can_open, check, needs_calibration, unsupported
from eecompile.dsl.check_gates import require_gates, trained_skips
from eecompile.dsl.check_graph import Declared, check_inputs
from eecompile.dsl.options import HEADS, MEASURES
from eecompile.dsl.parser import parse
from eecompile.heads import HEADS as implemented_heads
from eecompile.ir import Graph, Op, TensorType
from eecompile.policies.scores import SCORES
from eecompile.spec import Spec, matching

#: The language's showpiece: all of it, on one page.
SKETCH = """
eecompile 1

model resnet56 {
    source onnx "resnet56.onnx"              # or: source torch "zoo.py:resnet56" weights "r.pth"
    input  image: float32[1, 3, 32, 32]      # fixes dynamic dimensions
    output logits: classes(10)

    exit early  after "layer1.8"   head linear(pool: 4)   comparator class_means(pool: 4)
    exit middle after "layer2.8"   head class_means(metric: euclidean)
    exit late   after "layer3.4"   head bag_of_features(codewords: 64)
    # or: exits auto(count: 3..6)

    skip layers   "layer3.[1-8]"           gate recurrent(hidden: 10)
    skip channels "layer3.*.conv1"         gate squeeze(groups: 4)
    gates "resnet56.gates.npz"
}

data cifar10 {
    fit "train.npz"   calibrate "calib.npz"   test "test.npz"
    normalize mean [0.485, 0.456, 0.406] std [0.229, 0.224, 0.225]
}

policy fast      { exit when confidence(max_softmax)   budget mean latency <= 2 ms }
policy thrifty   { exit when predicted(start: early, window: 8)   deadline 4 ms }
policy learned   { exit when learned_score   budget mean macs <= 50 % }
policy best      { exit when auto   budget accuracy drop <= 1 %
                   guard accuracy drop <= 2 % audit 5 % }
policy split     { exit when confidence(max_softmax) >= 0.8
                   offload "http://edge:8000", "grpc://edge:8001" cost 0.5
                       border float16 timeout 200 ms retries 1
                   split online_ucb(observations: side, discount: 0.99) }
policy held      { exit when confidence(entropy)   budget accuracy drop <= 1 %
                   offload "https://edge:443" cost 0.5   split fixed(at: late) }
policy either    { exit when confidence(class_means) or confidence(entropy)
                   budget accuracy drop <= 0.5 % }
policy patient   { exit when patience(count: 2) }
policy hard      { halt at budget energy <= 3 mJ }

target arm-cpu  { board "raspberry-pi-4"   cores 4   frequencies [600 MHz .. 1.5 GHz] }
"""


@dataclass(frozen=True)
class Point:
    value: str
    type: TensorType
    leads_to_output: bool = True


def facts() -> GraphFacts:
    """A network whose values are called as the points of the sketch."""
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(9)]
    blocks += [f"layer3.{j}.conv1" for j in range(9)]
    names = ["image", *blocks, "logits"]
    feature = TensorType("float32", (1, 16, 8, 8))
    types = dict.fromkeys(blocks, feature) | {
        "image": TensorType("float32", (1, 3, 32, 32)),
        "logits": TensorType("float32", (1, 10)),
    }
    ops = tuple(Op(out, "Relu", (before,), (out,)) for before, out in itertools.pairwise(names))
    graph = Graph("net", ("image",), ("logits",), ops, types=types)
    return GraphFacts.of(graph, {"logits": "logits"}, {n: Point(n, feature) for n in blocks})


def spec_of(text: str) -> Spec:
    spec, found = parse(Source("t.ee", text))
    assert not list(found)
    return spec


def test_the_sketch_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("resnet56.onnx", "resnet56.gates.npz", "train.npz", "calib.npz", "test.npz"):
        (tmp_path / name).touch()
    spec = spec_of(SKETCH)
    assert check(spec, facts(), ["arm-cpu", "host"], ["raspberry-pi-4"]) == ()
    assert {d.id for d in unsupported(spec)} == {"not-supported-yet"}


def test_what_can_be_built_is_not_refused() -> None:
    policies = [
        f"policy p{i} {{ exit when {rule} budget {budget} }}"
        for i, rule in enumerate(
            [
                "confidence(max_softmax)",
                "confidence(entropy)",
                "confidence(margin)",
                "confidence(class_means) or confidence(max_softmax)",
                "patience",
                "predicted(start: e0, window: 8)",
                "confidence(entropy) halt at budget latency <= 4 ms",
            ]
        )
        for budget in ("mean macs <= 70 %", "mean latency <= 2 ms", "accuracy drop <= 1 %")[i % 3 :]
    ]
    heads = ["linear(pool: 4)", "conv(channels: 8)", "bag_of_features", "class_means", "onnx('h')"]
    exits = [f'exit e{i} after "layer1.{i}" head {head}' for i, head in enumerate(heads)]
    gates = ["recurrent", "feedforward(hidden: 16)", "fitted"]
    exits += [f'skip layers "layer2.{i}" gate {gate}' for i, gate in enumerate(gates)]
    exits += ['skip channels "layer3" gate squeeze(groups: 4)']
    policies += ["policy gated { budget mean macs <= 75 % }", "policy trained { }"]
    policies += ["policy hard { halt at budget energy <= 3 mJ }"]
    body = " ".join(exits).replace("'", '"')
    text = f'eecompile 1 model m {{ source onnx "n" {body} }} {" ".join(policies)} target host {{}}'
    assert unsupported(spec_of(text)) == ()


def test_gates_have_to_be_trained_before_a_build_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").touch()
    gated = spec_of(
        'eecompile 1 model m { source onnx "net.onnx" gates "m.npz" '
        'skip layers "b" gate recurrent skip layers "c" gate fitted } data d { calibrate "d.py:f" }'
    )
    (tmp_path / "d.py").touch()
    assert [(d.id, d.severity) for d in check(gated)] == [("untrained-gates", "warning")]
    assert [skip.point for skip in trained_skips(gated.model)] == ["b"]
    with pytest.raises(CompileErrors) as caught:
        require_gates(gated)
    assert [(d.id, d.severity) for d in caught.value.diagnostics] == [("untrained-gates", "error")]
    (tmp_path / "m.npz").touch()
    assert check(gated) == ()
    require_gates(gated)


def test_gates_that_are_fitted_need_no_file() -> None:
    require_gates(spec_of('eecompile 1 model m { source onnx "n" skip layers "b" gate fitted }'))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("confidence(entropy)", True),
        ("confidence(entropy) >= 0.9", False),
        ("confidence(entropy) >= 0.9 or confidence(class_means)", True),
        ("predicted(start: early)", True),
        ("predicted(start: early, beta: 3)", True),
        ("predicted(start: early, beta: 3, forecast: sorted)", False),
        ("predicted(start: early, beta: 3, forecast: sorted, scale: mean_logit)", True),
        ("patience", True),
        ("patience(count: 2)", False),
        ("patience(count: 2) halt at budget macs <= 50 %", False),
    ],
)
def test_open_thresholds_need_calibration(rule: str, expected: bool) -> None:
    (policy,) = spec_of(f"eecompile 1 policy p {{ exit when {rule} }}").policies
    assert needs_calibration(policy) is expected


@pytest.mark.parametrize(
    ("statements", "expected"),
    [("", False), ("budget mean macs <= 75 %", True), ("halt at budget macs <= 50 %", False)],
)
def test_gates_alone_are_fitted_to_a_budget(statements: str, expected: bool) -> None:
    (policy,) = spec_of(f"eecompile 1 policy p {{ {statements} }}").policies
    assert needs_calibration(policy) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model m { source onnx "net.onnx" }', True),
        ('model m { source onnx "net.onnx" } policy p { deadline 4 }', True),
        ('model m { source onnx "net.onnx" exit e after "x" head liner }', True),
        ('model m { source onnx "other.onnx" }', False),
        ('model m { source onnx "net.onnx" input x: float32[0] }', False),
        ('model m { source onnx "net.onnx" input x: float[1] }', False),
        ('model m { source torch "zoo.py:net" weights "w.pth" }', False),
        ("model m { }", False),
        ("", False),
    ],
)
def test_the_network_is_opened_unless_its_own_lines_are_wrong(
    text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").touch()
    (tmp_path / "zoo.py").touch()
    spec, found = parse(Source("t.ee", f"eecompile 1 {text}"))
    found.add(*check(spec))
    assert can_open(spec, found) is expected


def test_the_tables_name_what_there_is() -> None:
    for kind, head in implemented_heads.items():
        assert HEADS[kind].keys() == inspect.signature(head).parameters.keys()
    assert HEADS.keys() - implemented_heads.keys() == {"module", "onnx"}
    assert {*MEASURES} == {*SCORES, "class_means"}


@pytest.mark.parametrize(
    ("statements", "ids"),
    [
        ("input a: float32[1, 3]   input b: int64[2]", []),
        ("input b: int64[2]   input a: float32[1, 3]", []),  # by name, in any order
        ("input x: float32[1, 3]   input y: int64[2]", []),  # no name is known: by position
        ("input x: int64[2]   input y: float32[1, 3]", ["wrong-dtype", "wrong-shape"] * 2),
        ("input a: float32[1, 3]", []),  # b is static
        ("input b: int64[2]", ["missing-input"]),
        ("input a: float32[1, 3]   input y: int64[2]", ["unknown-input"]),
        ("", ["missing-input"]),
    ],
)
def test_inputs_are_paired_by_name_or_else_by_position(statements: str, ids: list[str]) -> None:
    spec = spec_of(f'eecompile 1 model m {{ source onnx "n" {statements} }}')
    found = Diagnostics()
    declared = {"a": Declared("float32", (None, 3)), "b": Declared("int64", (2,))}
    check_inputs(spec.model, declared, found)
    assert [d.id for d in found] == ids


NAMES = ["layer1", "layer1.0", "layer1.10", "layer1.0.conv1", "/layer1/Relu", "a[1]", "a1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer1", ["layer1"]),
        ("layer1.*", ["layer1.0", "layer1.10"]),
        ("layer1.?", ["layer1.0"]),
        ("layer1.[0-5]*", ["layer1.0", "layer1.10"]),
        ("layer1.[!1]", ["layer1.0"]),
        ("layer1.**", ["layer1.0", "layer1.10", "layer1.0.conv1"]),
        ("**conv1", ["layer1.0.conv1"]),
        ("*", ["layer1", "a[1]", "a1"]),
        ("**", NAMES),
        ("a[1]", ["a[1]"]),  # a name is itself before it is a pattern
        ("a[0-9]", ["a1"]),
        ("a[", []),
        ("", []),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert matching(pattern, NAMES) == expected


@given(st.text("ab.*?[]!-", max_size=12), st.text("ab.", max_size=8))
def test_any_pattern_is_understood_and_two_stars_widen_it(pattern: str, name: str) -> None:
    found = matching(pattern, [name])
    if found and "*" in pattern and "**" not in pattern:
        assert matching(pattern.replace("*", "**"), [name])


def test_no_pattern_takes_long() -> None:
    assert matching("**a" * 50 + "b", ["a" * 500]) == []


def test_the_facts_of_a_graph() -> None:
    view = facts()
    assert view.inputs == {"image": Declared("float32", (1, 3, 32, 32))}
    assert view.output_values == {"logits"}
