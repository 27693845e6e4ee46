"""The command line's contract: exit status, one JSON object, help, and artifacts that are whole."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import content_digest, read_artifact
from eecompile.hardware import usable_cores
from eecompile.loading import check_file
from eecompile.memory import Peak
from eecompile.planning import choose_board
from eecompile.runtime import opening
from eecompile.runtime.governor import ClockWarning, NoGovernor
from tests.cli.calls import Call, content, copy_demo, edited, start

VERBS = (
    *("init", "check", "format", "build", "eval", "run", "verify", "inspect", "pack", "export"),
    *("targets", "doctor", "demo"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(verb: str, call: Call) -> None:
    done = call(verb, "--help")
    assert done.status == 0
    assert f"example:\n  eecompile {verb}" in done.out


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("check FILE", {"diagnostics", "gates"}),
        ("format FILE --check", {"file", "changed"}),
        (
            "build FILE -o OUT",
            {
                *("artifact", "exits", "policies", "max_abs_error", "unchanged"),
                *("threads", "memory"),
            },
        ),
        ("build FILE -o OUT --dry-run", {"artifact", "target", "exits", "steps"}),
        ("verify OUT", {"ok", "max_abs_error", "exits_agree", "plan_agrees", "files"}),
        ("inspect OUT", {"model", "macs", "exits", "segments", "cores", "memory"}),
        ("inspect FILE", {"model", "macs", "exits", "segments"}),
        (
            "eval OUT --data TEST --samples 5",
            {
                *("n", "accuracy", "full_depth_accuracy", "mean_macs_fraction", "policy"),
                *("mean_latency_s", "p50_latency_s", "p99_latency_s", "full_depth_latency_s"),
                *("mean_energy_j", "energy_provenance", "exits", "threads"),
            },
        ),
        ("export OUT -o APP", {"folder", "name", "symbol", "target", "files"}),
        ("targets", {"targets"}),
        ("targets show arm-cpu", {"name", "triple", "sources"}),
        ("doctor", {"findings"}),
        ("init MODEL", {"text"}),
    ],
)
def test_every_verb_gives_one_json_object(
    verb: str, keys: set[str], call: Call, built: Path, tmp_path: Path
) -> None:
    places = {
        "APP": tmp_path / "app",
        "FILE": built / "digits.ee",
        "OUT": built / "out",
        "TEST": built / "test.npz",
        "MODEL": built / "digits.onnx",
    }
    done = call(*(places.get(word, word) for word in verb.split()), "--json")
    assert keys <= set(done.json)
    assert done.status in ((0, 1) if "format" in verb else (0,))


def test_what_user_code_prints_is_kept_out_of_the_object(call: Call, demo: Path) -> None:
    (demo.parent / "samples.py").write_text(
        "import numpy as np\nprint('at import')\n"
        f"z = np.load({str(demo.parent / 'test.npz')!r})\n"
        "def some():\n    print('called')\n    yield z['images'][:20], z['labels'][:20]\n"
    )
    data = f"{demo.parent / 'samples.py'}:some"
    done = call("eval", demo.parent / "out", "--data", data, "--json")
    assert done.json["n"] == 20
    assert "at import" in done.err
    assert "called" in done.err


@pytest.mark.parametrize(
    "wrong", ["bogus", "run OUT", "build", "eval OUT --data x --samples 0", "build x --jobs many"]
)
def test_wrong_arguments_are_wrong_input(wrong: str, call: Call) -> None:
    done = call(*wrong.split(), "--json")
    assert (done.status, done.ids) == (1, ["bad-argument"])
    assert "--help` explains" in done.err


def test_a_bug_of_ours_is_told_as_one(
    call: Call, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("an invariant")

    monkeypatch.setattr("eecompile.inspection.inspect_path", broken)
    done = call("inspect", built / "out", "--json")
    assert done.status == 70
    assert done.json["error"] == {"kind": "bug", "message": "ZeroDivisionError: an invariant"}
    assert "this is a bug in eecompile" in done.err
    assert "ZeroDivisionError" in done.err


def test_clocks_that_cannot_be_set_are_told_in_one_line(
    call: Call, demo: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_governor(clusters: object) -> NoGovernor:
        warnings.warn("Clocks are left alone: not allowed", ClockWarning, stacklevel=1)
        return NoGovernor("not allowed")

    monkeypatch.setattr("eecompile.runtime.opening.open_governor", open_governor)
    given = ("--set", "policy.quick.frequency=highest", "-o", tmp_path / "out", "--quiet")
    assert call("build", demo, *given).status == 0
    np.save(tmp_path / "x.npy", images[0])
    done = call("run", tmp_path / "out", "--input", tmp_path / "x.npy", "--json")
    assert done.status == 0 and done.json["frequency_hz"] is None
    said = "warning: Clocks are left alone: not allowed; see `eecompile doctor`\n"
    assert done.err == said


def test_the_command_survives_a_reader_that_goes_away(built: Path) -> None:
    process = start("inspect", built / "out", "--ir")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_result_that_cannot_be_written_is_no_success(built: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "eecompile.cli", "inspect", str(built / "out"), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr


def test_the_same_build_twice_has_the_same_content(
    built: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder and with an empty cache; only measured tables may differ."""
    file = copy_demo(tmp_path / "elsewhere")
    monkeypatch.setenv("EECOMPILE_CACHE", str(tmp_path / "cache"))
    assert call("build", file, "-o", tmp_path / "out", "--quiet").status == 0
    one, other = (read_artifact(folder) for folder in (built / "out", tmp_path / "out"))
    assert content_digest(one.manifest) == content_digest(other.manifest)
    measured = {name for name, member in one.manifest.members.items() if member.measured}
    differing = {
        name
        for name, data in content(built / "out").items()
        if (tmp_path / "out" / name).read_bytes() != data
    }
    assert differing <= measured | {"manifest.json"}


def test_inputs_may_be_single_a_batch_or_raw(call: Call, demo: Path, images: np.ndarray) -> None:
    out, given = demo.parent / "out", demo.parent / "x.npy"

    def answered(array: np.ndarray, *more: str) -> list[dict[str, object]]:
        np.save(given, array)
        done = call("run", out, "--input", given, "--json", *more)
        assert done.status == 0, done.err
        found: list[dict[str, object]] = done.json.get("answers", [done.json])
        # Times differ; what is told of the whole run stands beside a single answer.
        other = ("latency_s", "offload", "offload_failure", "guard")
        return [{key: value for key, value in row.items() if key not in other} for row in found]

    expected = answered(images[:3])
    assert [row["label"] for row in expected] == [
        answered(image)[0]["label"] for image in images[:3]
    ]
    assert answered(images[:1]) == expected[:1]
    with np.load(demo.parent / "test.npz") as data:
        assert answered(data["images"][:1], "--normalize") == expected[:1]
        assert answered(data["images"][:3], "--normalize") == expected
    np.savez(demo.parent / "x.npz", image=images[:1])
    named = call("run", out, "--input", demo.parent / "x.npz", "--json").json
    assert named["label"] == expected[0]["label"]
    full = answered(images[:1], "--full-depth")
    assert full[0]["exit"] == "final"


def test_a_value_set_on_the_command_line_holds_for_eval_too(call: Call, demo: Path) -> None:
    """Normalisation that only `--set` gave: data of `eval` are normalised the same way."""
    out = demo.parent / "set"
    edited(demo, ("uci {", "uci {\n normalize mean [0.0] std [0.5]\n"))
    option = "data.normalize.mean=[0.25]"
    built = call("build", demo, "-o", out, "--set", option, "--json")
    assert built.status == 0, built.err
    (report,) = built.json["policies"].values()
    measured = call("eval", out, "--data", demo.parent / "test.npz", "--json").json
    assert measured["accuracy"] == report["test"]["accuracy"]["value"]
    assert measured["full_depth_accuracy"] == report["test"]["full_depth_accuracy"]["value"]


@pytest.mark.parametrize(("threads", "words"), [(1, "one thread"), (3, "3 threads")])
def test_titles_stand_on_a_line_of_their_own(
    call: Call, built: Path, threads: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "usable_cores", lambda: 4)
    options = ("--data", built / "digits.ee", "--samples", 20, "--quiet", "--threads", threads)
    done = call("eval", built / "out", *options)
    assert done.out.splitlines()[0] == (
        f"20 samples, policy quick; {words}, measured, exits and full depth in turn"
    )


def test_latencies_say_how_many_threads_they_are_of(call: Call, demo: Path) -> None:
    edited(demo, ("data uci", "target host { cores 1 } data uci"))
    done = call("build", demo, "-o", demo.parent / "one", "--json")
    assert (done.json["threads"], done.json["memory"]["threads"]) == (1, 1)
    again = call("build", demo, "-o", demo.parent / "one")  # It is up to date: told as before.
    assert "measured on one thread" in again.out
    options = ("--data", demo.parent / "test.npz", "--samples", 5, "--json")
    assert call("eval", demo.parent / "one", *options).json["threads"] == 1
    assert call("eval", demo.parent / "one", *options, "--threads", 2).json["threads"] == 2
    costs = json.loads((demo.parent / "one" / "costs.json").read_text())
    assert costs["threads"] == 1
    assert read_artifact(demo.parent / "one").manifest.target.cores == 1


def test_cores_no_cluster_of_a_board_has_are_warned_of(call: Call, demo: Path) -> None:
    edited(demo, ("data uci", 'target rk3399 { cores 16 cluster "big" } data uci'))
    done = call("build", demo, "-o", demo.parent / "many", "--json")
    assert done.status == 0 and done.err.count("warning[more-cores]") == 1
    assert "No cluster of `rk3399` has 16 cores" in done.err and "write `cores 2` or" in done.err
    edited(demo, ("cores 16", "cores 2"))
    assert "more-cores" not in call("build", demo, "-o", demo.parent / "two", "--json").err


def test_without_cores_in_the_file_an_artifact_is_for_one(call: Call, built: Path) -> None:
    assert "cores" not in (built / "digits.ee").read_text()
    assert read_artifact(built / "out").manifest.target.cores == 1
    options = ("--data", built / "digits.ee", "--samples", 5, "--json")
    assert call("eval", built / "out", *options).json["threads"] == 1


def test_more_cores_than_there_are_are_told_and_not_built_for(call: Call, demo: Path) -> None:
    there = usable_cores()
    edited(demo, ("data uci", "target host { cores 1000 } data uci"))
    checked = call("check", demo, "--json")
    assert (checked.status, checked.ids) == (0, ["more-cores"])
    out = demo.parent / "many"
    done = call("build", demo, "-o", out, "--json")
    assert (done.json["threads"], done.json["memory"]["threads"]) == (there, there)
    assert done.err.count("more-cores") == 1
    assert read_artifact(out).manifest.target.cores == there


def test_check_tells_what_gates_can_skip_and_build_that_they_are_not_trained(
    call: Call, demo: Path
) -> None:
    edited(demo, ("exit early", 'skip layers "layer2.*" gate recurrent\n    exit early'))
    checked = call("check", demo)
    assert checked.status == 0 and "warning[untrained-gates]" in checked.err
    assert "gates for 2 blocks (43 % of the MACs)" in checked.out
    assert "no gate for `layer2.0`: shortcut is downsampled" in checked.out
    told = call("check", demo, "--json")
    assert [gate["block"] for gate in told.json["gates"]["gates"]] == ["layer2.1", "layer2.2"]
    refused = call("build", demo, "-o", demo.parent / "out", "--json")
    assert (refused.status, refused.ids) == (1, ["untrained-gates"])
    edited(demo, ("layer2.*", "layer9.*"))
    nothing = call("check", demo, "--json")
    assert (nothing.status, nothing.json["gates"]) == (1, None)
    assert nothing.ids == ["unknown-point", "untrained-gates"]


def test_check_reads_the_file_of_gates(call: Call, demo: Path) -> None:
    gates = 'gates "net.gates.npz"\n    skip layers "layer2.*" gate recurrent\n    exit early'
    edited(demo, ("exit early", gates))
    (demo.parent / "net.gates.npz").write_bytes(b"spoilt")
    for command in (("check", demo, "--json"), ("build", demo, "-o", demo.parent / "o", "--json")):
        told = call(*command)
        assert (told.status, told.ids) == (1, ["bad-gates"])
    assert '9 |     gates "net.gates.npz"' in call("check", demo).err


def test_cores_of_another_machine_are_as_written(demo: Path) -> None:
    edited(demo, ("data uci", "target arm-cpu { cores 1000 } data uci"))
    spec, _, found = check_file(demo)
    assert not found
    assert choose_board(spec, None)[0].machine.cores == 1000
    assert choose_board(spec, "host")[0].machine.cores == 1


def test_answers_do_not_depend_on_threads(
    call: Call, demo: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "usable_cores", lambda: 4)
    np.save(demo.parent / "x.npy", images[:3])
    given = ("run", demo.parent / "out", "--input", demo.parent / "x.npy", "--json")
    one, four = (call(*given, "--threads", threads).json["answers"] for threads in (1, 4))
    for row, other in zip(one, four, strict=True):
        assert row | {"latency_s": 0} == other | {"latency_s": 0}


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "two"])
def test_impossible_threads_are_wrong_input(call: Call, demo: Path, threads: str) -> None:
    np.save(demo.parent / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    given = ("run", demo.parent / "out", "--input", demo.parent / "x.npy")
    done = call(*given, "--threads", threads, "--json")
    assert (done.status, done.ids) == (1, ["bad-argument"])


def test_the_most_memory_it_takes_is_told(call: Call, demo: Path) -> None:
    memory = call("inspect", demo.parent / "out", "--json").json["memory"]
    assert memory["weights_bytes"] == (demo.parent / "out" / "weights.bin").stat().st_size
    assert 8 * 8 * 4 < memory["activation_bytes"] < 1 << 20
    assert memory["threads"] == 1
    line = f"memory: {Peak.from_json(memory)}"
    assert call("inspect", demo.parent / "out").out.splitlines()[1] == line
    built = call("build", demo, "-o", demo.parent / "out")
    assert line in built.out.splitlines()


def test_features_of_the_processor_are_for_scripts(call: Call, built: Path) -> None:
    title = call("inspect", built / "out").out.splitlines()[0]
    assert title.startswith("digits: ")
    assert "target host, triple " in title
    assert "features" not in title
    assert call("inspect", built / "out", "--json").json["features"]


def test_a_leading_dimension_that_is_no_batch_belongs_to_the_sample(
    call: Call, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 3)) for name in "xy"
    ]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "pair", shapes[:1], shapes[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, tmp_path / "pair.onnx")
    file = tmp_path / "pair.ee"
    file.write_text('eecompile 1\nmodel pair { source onnx "pair.onnx" }\n')
    assert call("build", file, "-o", tmp_path / "out", "--json").status == 0
    np.save(tmp_path / "one.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "four.npy", np.zeros((4, 2, 3), np.float32))
    one = call("run", tmp_path / "out", "--input", tmp_path / "one.npy", "--json").json
    four = call("run", tmp_path / "out", "--input", tmp_path / "four.npy", "--json").json
    assert one["exit"] == "final"
    assert [answer["exit"] for answer in four["answers"]] == ["final"] * 4


def test_an_evaluation_says_which_budget_it_was_for(call: Call, built: Path) -> None:
    options = ("--data", built / "digits.ee", "--samples", 20, "--json")
    assert call("eval", built / "out", *options).json["budget"] is None
    chosen = call("eval", built / "out", *options, "--budget", "mean macs <= 90 %").json
    assert chosen["budget"] == "mean macs <= 90 %"
