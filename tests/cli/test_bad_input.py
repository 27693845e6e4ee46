"""Bad input gets a clear error and the right exit status, and what was there before stays."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.cli.calls import Call, Done, content, edited


def refused(done: Done, id: str, *words: str) -> None:
    assert done.status == 1, done.err
    assert done.ids[0] == id
    for word in words:
        assert word in done.err


def untouched(demo: Path, act: Callable[[], Done]) -> Done:
    """What `act` gives; the demo's artifact is as before and nothing lies beside it."""
    out = demo.parent / "out"
    before, beside = content(out), sorted(os.listdir(demo.parent))
    done = act()
    assert content(out) == before
    assert sorted(os.listdir(demo.parent)) == beside
    return done


@pytest.mark.parametrize(
    ("old", "new", "id", "words"),
    [
        ('"layer1.3"', '"layr1.3"', "unknown-point", ["did you mean `layer1.3`", "digits.ee:"]),
        ("<= 0.5 %", "<= 0.5 ms", "unknown-unit", ["expected `%` or `points`"]),
        ("<= 0.5 %", "<= 0.5", "missing-unit", ["%"]),
        ("[1, 1, 8, 8]", "[1, 3, 8, 8]", "wrong-shape", ["float32[1, 1, 8, 8]", "input  image"]),
        ("float32[1", "int64[1", "wrong-dtype", ["float32[1, 1, 8, 8]"]),
        ("exit late ", "exit early ", "duplicate-name", ["first here"]),
        ("classes(10)", "classes(9)", "wrong-classes", ["Expected 10 classes, found 9"]),
        ("digits.onnx", "digit.onnx", "missing-file", ["did you mean `digits.onnx`"]),
        ("accuracy drop <= 0.5 %", "mean macs <= 1 %", "infeasible-budget", ["the strictest"]),
        (" budget accuracy drop <= 0.5 %", "", "missing-setting", ["no threshold"]),
        ('calibrate "calibrate.npz"', "", "missing-data", ["`calibrate`"]),
        ("eecompile 1\n", "eecompile 1\nmodel", "syntax-error", ["expected"]),
    ],
)
def test_mistakes_in_a_file_are_shown_where_they_are(
    old: str, new: str, id: str, words: list[str], call: Call, demo: Path
) -> None:
    edited(demo, (old, new))
    done = untouched(demo, lambda: call("build", demo, "-o", demo.parent / "out", "--json"))
    refused(done, id, *words)
    assert {"id", "severity", "message", "file", "line", "column", "help"} == set(
        done.json["diagnostics"][0]
    )


@pytest.mark.parametrize(
    ("options", "id"),
    [
        (["-t", "arm-cup"], "unknown-target"),
        (["--set", "policy.budgt=1"], "unknown-setting"),
        (["--set", "policy.fast.budget=accuracy drop <= 1 %"], "unknown-setting"),
        (["--set", "nonsense"], "unknown-setting"),
        (["--set", "policy.budget=accuracy drop <= 1 ms"], "unknown-unit"),
        (["-t", "arm-cpu", "--set", "policy.budget=mean latency <= 1 s"], "unknown-costs"),
        (["-t", "arm-cpu", "--set", "policy.halt=latency <= 1 s"], "unknown-costs"),
    ],
)
def test_wrong_options_are_refused(options: list[str], id: str, call: Call, demo: Path) -> None:
    arguments = ("build", demo, "-o", demo.parent / "out", "--json", *options)
    done = untouched(demo, lambda: call(*arguments))
    assert (done.status, done.ids) == (1, [id])


def test_check_tells_what_is_wrong_with_clusters_and_clocks(call: Call, demo: Path) -> None:
    target = 'target rk3399 { cluster "bgi" }'
    pi = "target raspberry-pi-4 { frequencies [900 MHz, 990 MHz .. 999 MHz] }"
    (demo.parent / "mine.toml").write_text("[machine]\n")
    own = 'target host { board "mine.toml" }'
    edited(demo, ("data uci", f"{target}\n{pi}\n{own}\ndata uci"))
    done = call("check", demo, "--json")
    assert done.status == 1
    assert set(done.ids) == {"unknown-target", "unknown-frequency", "bad-board"}
    assert "did you mean `big`?" in done.out
    assert "no clock of 990 MHz to 999 MHz" in done.out and done.out.count("no clock of") == 1


def test_an_exit_on_a_dead_branch_is_refused(call: Call, demo: Path) -> None:
    model = onnx.load(demo.parent / "digits.onnx")
    value = model.graph.node[2].output[0]
    model.graph.node.append(helper.make_node("Relu", [value], ["dead"], name="dead_end"))
    onnx.save(model, demo.parent / "digits.onnx")
    edited(demo, ('"layer1.0"', '"dead_end"'))
    refused(call("build", demo, "--json"), "unreachable-output", "dead_end")


def _spoil(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    if part == "labels":
        labels = labels + 1
    elif part == "real labels":
        labels = labels.astype(np.float32)
    elif part == "nan":
        images = images.astype(np.float32)
        images[7, 3, 3] = np.nan
    elif part == "few":
        images, labels = images[:9], labels[:9]
    elif part == "lengths":
        labels = labels[:-1]
    elif part == "shape":
        images = images[:, :5]
    elif part == "objects":
        images = np.array([{}] * len(labels), object)
    elif part == "keys":
        return {"image": images, "labels": labels}
    return {"images": images, "labels": labels}


@pytest.mark.parametrize(
    ("part", "id", "words"),
    [
        ("labels", "bad-labels", ["from 0 to 9, found 10 in sample"]),
        ("real labels", "bad-labels", ["integer"]),
        ("nan", "bad-data", ["not finite in sample 7"]),
        ("few", "too-few-samples", ["at least 50"]),
        ("lengths", "bad-data", ["300 samples and 299 labels"]),
        ("shape", "bad-data", ["float32[1, 1, 8, 8]", "[5, 8]"]),
        ("objects", "bad-data", ["never loaded"]),
        ("keys", "bad-data", ["did you mean `image`"]),
    ],
)
def test_wrong_data_are_refused(
    part: str, id: str, words: list[str], call: Call, demo: Path
) -> None:
    file = demo.parent / "calibrate.npz"
    with np.load(file) as data:
        np.savez(file, **_spoil(part, dict(data)))  # type: ignore[arg-type]
    done = untouched(demo, lambda: call("build", demo, "-o", demo.parent / "out", "--json"))
    refused(done, id, "calibrate.npz", *words)


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty", "text", "missing"])
def test_unreadable_data_are_refused(how: str, call: Call, demo: Path) -> None:
    file = demo.parent / "calibrate.npz"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    new = {"truncated": bytes(raw[:3000]), "one bit": bytes(raw), "empty": b"", "text": b"hello"}
    file.unlink()
    if how in new:
        file.write_bytes(new[how])
    done = call("build", demo, "-o", demo.parent / "out", "--json")
    refused(done, "missing-file" if how == "missing" else "bad-data", "calibrate.npz")


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "noise", "folder"])
@pytest.mark.parametrize("verb", ["build", "init"])
def test_unreadable_networks_are_refused(how: str, verb: str, call: Call, demo: Path) -> None:
    file = demo.parent / "digits.onnx"
    raw = file.read_bytes()
    noise = np.random.default_rng(0).bytes(5000)
    new = {"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"hello " * 99, "noise": noise}
    file.unlink()
    if how in new:
        file.write_bytes(new[how])
    else:
        file.mkdir()
    done = call(verb, demo if verb == "build" else file, "--json")
    assert done.status == 1, done.err
    assert done.ids[0] in ("unreadable-model", "missing-file")
    assert "digits.onnx" in done.err


_SHAPE = [1, 1, 8, 8]


def _network(*nodes: onnx.NodeProto, inputs: bool = True, outputs: bool = True) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, _SHAPE)

    graph = helper.make_graph(
        nodes,
        "net",
        [value("image")] if inputs else [],
        [value("scores")] if outputs else [],
        [helper.make_tensor("w", TensorProto.FLOAT, _SHAPE, np.ones(64))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _passed_on() -> onnx.ModelProto:
    model = _network(helper.make_node("Relu", ["image"], ["scores"]))
    model.graph.output.append(model.graph.input[0])
    return model


def _branch(kind: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(kind, TensorProto.FLOAT, _SHAPE)
    return helper.make_graph([helper.make_node(kind, ["image"], [kind])], kind, [], [output])


NETWORKS = {
    "custom domain": (
        _network(helper.make_node("Magic", ["image"], ["scores"], name="trick", domain="my.ops")),
        ["my.ops::Magic", "trick"],
    ),
    "condition": (
        _network(
            helper.make_node("ReduceMax", ["image"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["so"], to=TensorProto.BOOL),
            helper.make_node(
                "If",
                ["so"],
                ["scores"],
                name="choose",
                then_branch=_branch("Relu"),
                else_branch=_branch("Neg"),
            ),
        ),
        ["`If`", "choose"],
    ),
    "random": (
        _network(helper.make_node("RandomNormalLike", ["image"], ["scores"], name="dice")),
        ["RandomNormalLike", "dice"],
    ),
    "no output": (_network(helper.make_node("Relu", ["image"], ["r"]), outputs=False), ["outputs"]),
    "no input": (_network(helper.make_node("Relu", ["w"], ["scores"]), inputs=False), ["inputs"]),
    "input as output": (_passed_on(), ["`image`", "Identity"]),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_that_cannot_be_built_are_refused(kind: str, call: Call, tmp_path: Path) -> None:
    model, words = NETWORKS[kind]
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "net.ee").write_text('eecompile 1\nmodel net { source onnx "net.onnx" }\n')
    for arguments in (("build", tmp_path / "net.ee"), ("init", tmp_path / "net.onnx")):
        done = call(*arguments, "--json")
        assert done.status == 1, done.err
        assert done.ids[0] in ("unsupported-operator", "unreadable-model")
        for word in words:
            assert word in done.err


@pytest.mark.parametrize("verb", ["run", "eval", "verify", "inspect"])
@pytest.mark.parametrize("how", ["truncated", "edited", "missing", "extra", "empty", "foreign"])
def test_artifacts_that_are_not_whole_are_refused(
    how: str, verb: str, call: Call, demo: Path, images: np.ndarray
) -> None:
    out = demo.parent / "out"
    library = out / "kernels.so"
    raw = bytearray(library.read_bytes())
    if how == "truncated":
        library.write_bytes(raw[:-9])
    elif how == "edited":
        raw[len(raw) // 2] ^= 1
        library.write_bytes(raw)
    elif how == "missing":
        library.unlink()
    elif how == "extra":
        (out / "more.so").write_bytes(raw)
    else:
        shutil.rmtree(out)
        out.mkdir()
        if how == "foreign":
            (out / "manifest.json").write_text('{"format": "something else"}')
    np.save(demo.parent / "x.npy", images[:1])
    more = {"run": ["--input", demo.parent / "x.npy"], "eval": ["--data", demo.parent / "test.npz"]}
    refused(call(verb, out, "--json", *more.get(verb, [])), "bad-artifact", str(out))


def test_code_for_another_machine_is_never_loaded(
    call: Call, demo: Path, images: np.ndarray
) -> None:
    out = demo.parent / "arm"
    assert call("build", demo, "-t", "arm-cpu", "-o", out, "--quiet").status == 0
    np.save(demo.parent / "x.npy", images[:1])
    for arguments in (
        ("run", out, "--input", demo.parent / "x.npy"),
        ("eval", out, "--data", demo.parent / "test.npz"),
        ("verify", out),
    ):
        refused(call(*arguments, "--json"), "wrong-machine", "aarch64-linux-gnu", "--target host")
    assert call("inspect", out, "--json").json["target"] == "arm-cpu"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (np.zeros((8, 8), np.float32), "float32[1, 1, 8, 8]"),
        (np.zeros((1, 1, 8, 7), np.float32), "float32[1, 1, 8, 7]"),
        (np.zeros((1, 1, 8, 8), np.float64), "astype('float32')"),
        (np.zeros((0, 1, 8, 8), np.float32), "no samples"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "not finite"),
        (b"", "Cannot read"),
        (b"hello", "no plain array"),
        (None, "No such file"),
    ],
)
def test_wrong_inputs_are_refused(given: object, word: str, call: Call, demo: Path) -> None:
    file = demo.parent / "x.npy"
    if isinstance(given, np.ndarray):
        np.save(file, given)
    elif isinstance(given, bytes):
        file.write_bytes(given)
    done = call("run", demo.parent / "out", "--input", file, "--json")
    assert done.status == 1
    assert word in done.err


@pytest.mark.parametrize(
    ("options", "id", "word"),
    [
        (["--data", "nope.npz"], "bad-data", "nope.npz"),
        (["--data", 'a".npz'], "bad-argument", "cannot be a path"),
        (["--data", "TEST[900..]"], "too-few-samples", "500"),
        (["--data", "TEST", "--policy", "quik"], "bad-argument", "did you mean `quick`"),
        (["--data", "TEST", "--budget", "mean macs <= 1 %"], "infeasible-budget", "strictest"),
        (["--data", "TEST", "--budget", "macs"], "syntax-error", "Expected `<=`"),
        (["--data", "TEST", "--budget", "mean macs <= 1 ms"], "unknown-unit", "%"),
    ],
)
def test_eval_refuses_what_it_cannot_measure(
    options: list[str], id: str, word: str, call: Call, built: Path
) -> None:
    given = [option.replace("TEST", str(built / "test.npz")) for option in options]
    refused(call("eval", built / "out", "--json", *given), id, word)


def test_init_refuses_what_it_cannot_write(call: Call, demo: Path) -> None:
    shutil.copy(demo.parent / "digits.onnx", demo.parent / 'a"b.onnx')
    done = call("init", demo.parent / 'a"b.onnx', "--json")
    refused(done, "bad-argument", "rename")
    refused(call("init", demo.parent / "digits.onnx", "-o", demo, "--json"), "cannot-write")
    folder = demo.parent / "sp ace ü'"
    folder.mkdir()
    shutil.copy(demo.parent / "digits.onnx", folder / "nä't #1.onnx")
    assert call("init", folder / "nä't #1.onnx", "-o", folder / "é.ee").status == 0
    done = call("check", folder / "é.ee", "--json")
    assert set(done.ids) == {"missing-file"}  # the data it proposes
    assert call("format", folder / "é.ee", "--check").status == 0


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_place_nothing_can_be_emitted_to_is_refused_first(
    kind: str, call: Call, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eecompile.planning.check_source", None)  # not even the network is read
    edited(demo, ("policy quick", "policy other"))
    place = demo.parent if kind == "folder" else demo.parent / "test.npz" / "net.onnx"
    options = ("-o", demo.parent / "out", "--emit", place, "--json")
    refused(untouched(demo, lambda: call("build", demo, *options)), "cannot-write")


@pytest.mark.parametrize("head", ["conv(channels: 4)", "bag_of_features(codewords: 8)"])
@pytest.mark.parametrize("dry", [True, False])
def test_without_torch_a_head_that_needs_it_stops_the_build_before_data_are_run(
    head: str, dry: bool, call: Call, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(demo, ("linear(pool: 4)", head))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("eecompile.recording.record", None)
    monkeypatch.setattr("eecompile.recording.compile_graphs", None)
    options = ["--dry-run"] if dry else []
    done = call("build", demo, "-o", demo.parent / "other", "--json", *options)
    assert (done.status, done.json["error"]["kind"]) == (2, "environment")
    assert "eecompile[torch]" in done.err


@pytest.mark.parametrize("classes", [1, 7])
def test_a_head_of_the_users_that_answers_otherwise_is_refused(
    classes: int, call: Call, demo: Path
) -> None:
    weights = np.zeros((32, classes), np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["f"], keepdims=0),
        helper.make_node("MatMul", ["f", "w"], ["scores"]),
    ]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 32, 8, 8)), ("scores", (1, classes)))
    ]
    constants = [
        onnx.numpy_helper.from_array(weights, "w"),
        onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    graph = helper.make_graph(nodes, "head", shapes[:1], shapes[1:], constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=8),
        demo.parent / "head.onnx",
    )
    edited(demo, ('"layer1.0" head linear(pool: 4)', '"layer1.0" head onnx("head.onnx")'))
    done = untouched(demo, lambda: call("build", demo, "-o", demo.parent / "out", "--json"))
    refused(done, "bad-head", f"float32[1, {classes}]", "float32[1, 10]")
