"""Text to Spec: every construct, every unit, and that nothing but CompileErrors ever comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.diagnostics import CompileErrors, Source
from eecompile.dsl.check import check, unsupported
from eecompile.dsl.format import format_text
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse, parse_file, read_spec
from eecompile.dsl.units import UNITS, in_si
from eecompile.ir import TensorType
from eecompile.spec import (
    AutoExits,
    Budget,
    DataSet,
    DataSource,
    Deadline,
    Exit,
    FrequencyRange,
    Guard,
    HeadSpec,
    Input,
    Model,
    Name,
    Normalize,
    Offload,
    Output,
    Policy,
    Rule,
    RuleTerm,
    Skip,
    Spec,
    Target,
)
from tests.dsl.texts import damaged_texts, valid_texts


def spec_of(*blocks: str) -> Spec:
    spec, found = parse(Source("t.ee", "eecompile 1\n" + "\n".join(blocks)))
    found.raise_errors()
    return spec


def policy_of(text: str) -> Policy:
    return spec_of(f"policy p {{ {text} }}").policies[0]


def test_a_model() -> None:
    spec = spec_of(
        """model net {
            source torch "zoo.py:resnet56" weights "resnet56.pth"
            input image: float32[1, 3, 32, 32]   input "mask.1": bool[]
            output logits: classes(10)
            data cifar10
            exit early after "layer1.8" head linear(pool: 4) comparator class_means(pool: raw)
            exit own after "layer2" head module("heads.py:Head" weights "head.pth")
            exit file after "layer3.*" head onnx("head.onnx")
            exits auto(count: 3..6) head conv(channels: 8)
            skip layers "layer3.[1-8]" gate recurrent(hidden: 10)
            skip channels "layer3.*.conv1" gate squeeze
            gates "net.gates.npz"
        }"""
    )
    assert spec.models == (
        Model(
            "net",
            "torch",
            "zoo.py",
            "resnet56",
            "resnet56.pth",
            (
                Input("image", TensorType("float32", (1, 3, 32, 32))),
                Input("mask.1", TensorType("bool", ())),
            ),
            Output("logits", 10),
            (
                Exit(
                    "early",
                    "layer1.8",
                    HeadSpec("linear", {"pool": 4}),
                    HeadSpec("class_means", {"pool": Name("raw")}),
                ),
                Exit(
                    "own",
                    "layer2",
                    HeadSpec("module", {"entry": "heads.py:Head", "weights": "head.pth"}),
                ),
                Exit("file", "layer3.*", HeadSpec("onnx", {"path": "head.onnx"})),
            ),
            AutoExits(3, 6, HeadSpec("conv", {"channels": 8})),
            (
                Skip("layers", "layer3.[1-8]", HeadSpec("recurrent", {"hidden": 10})),
                Skip("channels", "layer3.*.conv1", HeadSpec("squeeze")),
            ),
            "net.gates.npz",
            "cifar10",
        ),
    )


def test_data() -> None:
    (data,) = spec_of(
        """data cifar10 {
            fit "train.npz"   calibrate "x.npy"[..5000] labels "y.npy"   test "data.py:test"
            normalize mean [0.485, 0] std [0.229, 1e-1]
            keys images "x" labels "y"   layout HWC   pixels 0..255
        }"""
    ).data
    assert data == DataSet(
        "cifar10",
        DataSource("train.npz"),
        DataSource("x.npy", labels="y.npy", stop=5000),
        DataSource("data.py", "test"),
        Normalize((0.485, 0.0), (0.229, 0.1)),
        "x",
        "y",
        "HWC",
        (0.0, 255.0),
    )


def test_pixels_may_be_below_zero() -> None:
    assert spec_of("data d { pixels -1..1 }").data[0].pixels == (-1.0, 1.0)


def test_exit_rules() -> None:
    rule = policy_of(
        "exit when confidence(class_means) or confidence(entropy) >= 80 % or patience(count: 2)"
    ).rule
    assert rule == Rule(
        (
            RuleTerm("confidence", "class_means"),
            RuleTerm("confidence", "entropy", threshold=0.8),
            RuleTerm("patience", options={"count": 2}),
        )
    )
    assert str(rule) == (
        "confidence(class_means) or confidence(entropy) >= 0.8 or patience(count: 2)"
    )


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("mean macs <= 70 %", Budget("macs", 0.7)),
        ("mean latency <= 2 ms", Budget("latency", 0.002)),
        ("mean energy <= 3 mJ", Budget("energy", 0.003)),
        ("accuracy drop <= 0.5 %", Budget("accuracy_drop", 0.005)),
        ("accuracy drop <= 0 points", Budget("accuracy_drop", 0.0)),
    ],
)
def test_budgets_are_in_si_and_print_as_written(text: str, budget: Budget) -> None:
    assert policy_of(f"exit when learned_score budget {text}").budget == budget
    assert str(budget) == text.replace("points", "%")


def test_the_rest_of_policies() -> None:
    assert policy_of(
        'deadline 4 ms frequency 600 MHz offload "http://edge:8000" cost 0.5 '
        "split fixed(at: early) halt at budget energy <= 3 mJ"
    ) == Policy(
        "p",
        deadline=Deadline(0.004),
        frequency=600e6,
        offload=Offload(("http://edge:8000",), 0.5),
        split=HeadSpec("fixed", {"at": Name("early")}),
        halt=Budget("energy", 0.003, "each"),
    )
    assert policy_of("frequency lowest_energy").frequency == Name("lowest_energy")


def test_offers_guards_and_splits() -> None:
    assert policy_of(
        'offload "http://a:8000", "grpcs://[::1]:8001" cost 2 timeout 200 ms border int8 retries 0 '
        "split online_ucb(observations: side, unknown: impute, discount: 0.9, weight: 2)"
    ) == Policy(
        "p",
        offload=Offload(("http://a:8000", "grpcs://[::1]:8001"), 2.0, "int8", 0.2, 0),
        split=HeadSpec(
            "online_ucb",
            {"observations": Name("side"), "unknown": Name("impute"), "discount": 0.9, "weight": 2},
        ),
    )
    plain = policy_of('offload "http://a:8000" cost 0.5').offload
    assert plain == Offload(("http://a:8000",), 0.5, "float32", 1.0, 1)
    watched = policy_of("exit when auto guard accuracy drop <= 0.5 points audit 100 %")
    assert watched.rule == Rule((RuleTerm("auto"),))
    assert watched.guard == Guard(0.005, 1.0)
    assert policy_of("guard accuracy drop <= 1 %").guard == Guard(0.01, 0.02)


def test_parts_of_offers_and_guards_have_their_places() -> None:
    policy = policy_of(
        'offload "http://a:8000", "http://b:8000" cost 2 timeout 200 ms border int8 retries 3 '
        "guard accuracy drop <= 1 % audit 5 %"
    )
    assert policy.offload and policy.guard
    assert {part: place.text for part, place in policy.offload.spans.items()} == {
        "urls": '"http://a:8000", "http://b:8000"',
        "url0": '"http://a:8000"',
        "url1": '"http://b:8000"',
        "cost": "2",
        "timeout": "200 ms",
        "border": "int8",
        "retries": "3",
    }
    guarded = {part: place.text for part, place in policy.guard.spans.items()}
    assert guarded == {"drop": "1 %", "share": "5 %"}


@pytest.mark.parametrize(
    ("text", "low", "high"), [("", 1, 8), ("(count: 4)", 4, 4), ("(count: 3..6)", 3, 6)]
)
def test_exits_of_the_compiler_have_a_count(text: str, low: int, high: int) -> None:
    spec = spec_of(f'model m {{ source onnx "n" exits auto{text} }}')
    assert spec.model.auto_exits == AutoExits(low, high)


@pytest.mark.parametrize("kind", ["safe", "hard"])
def test_deadlines_say_what_a_wrong_forecast_may_do(kind: str) -> None:
    deadline = policy_of(f"deadline 40 ms {kind} frequency highest").deadline
    assert deadline == Deadline(0.04, cast(Any, kind))
    assert str(deadline) == f"40 ms {kind}"
    assert str(policy_of("deadline 40 ms").deadline) == "40 ms"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs <= 50 %", Budget("macs", 0.5, "each")),
        ("latency <= 1 ms", Budget("latency", 0.001, "each")),
        ("energy <= 3 mJ", Budget("energy", 0.003, "each")),
    ],
)
def test_halts_are_for_each_sample(text: str, budget: Budget) -> None:
    policy = policy_of(f"exit when patience halt at budget {text}")
    assert policy.halt == budget and policy.rule is not None
    assert str(budget) == text


def test_targets() -> None:
    assert spec_of(
        'target arm-cpu { board "pi" cluster "big" cores 4 '
        "frequencies [600 MHz .. 1.5 GHz, 2 GHz] }"
    ).targets == (
        Target("arm-cpu", "pi", "big", 4, (FrequencyRange(600e6, 1.5e9), FrequencyRange(2e9, 2e9))),
    )


def test_words_of_the_language_may_be_names() -> None:
    spec = spec_of('model model { source onnx "a" exit when after "x" head linear } data data { }')
    assert (spec.models[0].name, spec.models[0].exits[0].name, spec.data[0].name) == (
        "model",
        "when",
        "data",
    )


def test_places_are_those_of_the_parts() -> None:
    exit = spec_of('model m { source onnx "n"\n  exit early after "p" head linear(pool: 4) }').model
    (early,) = exit.exits
    texts = {part: place.text for part, place in early.spans.items()}
    assert texts == {"name": "early", "point": '"p"'}
    assert early.span is not None and early.span.line == 3
    assert early.head.at("pool") is not None
    assert early.head.spans["pool"].text == "pool: 4"
    assert early.head.at("unheard of") == early.head.span


@pytest.mark.parametrize(("measured", "unit"), [(m, u) for m in UNITS for u in UNITS[m]])
def test_units_round_once(measured: str, unit: str) -> None:
    scale = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}
    factor = scale.get(unit[0], 1.0) if unit not in ("%", "points") else 1e-2
    for number in (1.0, 3.0, 0.7, 1.5):
        assert in_si(number, unit, measured) == pytest.approx(number * factor, rel=1e-15)
    assert in_si(7, "ms", "time") == 0.007  # 7 * 1e-3 is not


def test_a_file_gives_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "net.ee"
    path.write_bytes('\ufeffeecompile 1\r\nmodel m { source onnx "net.onnx" }\r\n'.encode())
    assert read_spec(path).resolve("net.onnx") == tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read `{path}`: No such file or directory"),
        (b"\x08\x07\x12\x07pytorch\xff", "`{path}` is no UTF-8 text (byte 11)"),
        (b"#" * (1 << 20) + b"#", "`{path}` is larger than 1 MiB, so no .ee file"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "net.ee"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompileErrors) as caught:
        parse_file(path)
    (found,) = caught.value.diagnostics
    assert (found.id, found.file) == ("unreadable-file", str(path))
    assert found.message == message.format(path=path)


def test_a_folder_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match="unreadable-file"):
        parse_file(tmp_path)


# Whatever is fed in, only CompileErrors come out.


def run_all(text: str) -> None:
    try:
        spec, found = parse(Source("fuzz.ee", text))
        found.add(*check(spec, None, ["host"], []), *unsupported(spec))
        rendered = [d.full() + d.concise() + str(d.to_json()) for d in found]
        assert all(rendered)
        format_text(text)
    except CompileErrors as errors:
        assert errors.diagnostics and errors.full()


@given(damaged_texts())
@settings(max_examples=200, deadline=None)
def test_damaged_texts_give_diagnostics(text: str) -> None:
    run_all(text)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_diagnostics(text: str) -> None:
    run_all(text)
    run_all("eecompile 1 " + text)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_give_diagnostics(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.ee"
    path.write_bytes(b"eecompile 1\n" + raw)
    try:
        parse_file(path)
    except CompileErrors as errors:
        assert errors.full()


@given(valid_texts(), st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_override_gives_diagnostics(text: str, override: str) -> None:
    spec, _ = parse(Source("fuzz.ee", text))
    for start in (
        "",
        "model.",
        "model.exit.early.head.",
        "model.skip.layers",
        "model.skip.channels.gate=",
        "policy.a.",
        "policy.a.offload",
        "policy.a.guard=",
        "policy.a.split.",
        "data.fit=",
        "target.cores=",
    ):
        try:
            apply_overrides(spec, [start + override])
        except CompileErrors as errors:
            assert errors.full()
