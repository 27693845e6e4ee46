"""Whatever stops a build, what was there before stays, and nothing is left lying about."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from eecompile.atomic import write_file
from eecompile.console import Reporter, Steps
from tests.cli.calls import ROOT, Call, content, copy_demo, edited, start

pytestmark = pytest.mark.usefixtures("signals_heard")
STAGES = 10


@pytest.fixture
def changed(demo: Path) -> Path:
    """The demo's file, changed so that it is built again, all its expensive parts cached."""
    return edited(demo, ("policy quick", "# again\npolicy quick"))


def left_over(demo: Path) -> list[str]:
    return [name for name in os.listdir(demo.parent) if name.startswith(".")]


@pytest.mark.parametrize(
    ("stage", "number", "status"),
    [*((stage, signal.SIGINT, 130) for stage in range(1, STAGES + 1)), (7, signal.SIGTERM, 143)],
)
def test_an_interrupt_in_any_stage_leaves_the_earlier_artifact(
    stage: int,
    number: signal.Signals,
    status: int,
    call: Call,
    changed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = Steps.step

    @contextmanager
    def step(self: Steps, name: str) -> Iterator[Reporter]:
        with begin(self, name) as progress:
            if len(self.times_s) == stage - 1:
                signal.raise_signal(number)
            yield progress

    monkeypatch.setattr(Steps, "step", step)
    out = changed.parent / "out"
    before = content(out)
    done = call("build", changed, "-o", out, "--json")
    assert (done.status, done.json["error"]["kind"]) == (status, "interrupted")
    assert content(out) == before
    assert left_over(changed) == []


def test_an_interrupt_while_writing_leaves_the_earlier_artifact(
    call: Call, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, data: bytes | memoryview) -> None:
        if path.name == "policies.json":
            signal.raise_signal(signal.SIGINT)
        write_file(path, data)

    monkeypatch.setattr("eecompile.artifact_writing.write_file", interrupted)
    out = changed.parent / "out"
    before = content(out)
    assert call("build", changed, "-o", out, "--json").status == 130
    assert content(out) == before
    assert left_over(changed) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_compiling_process_can_be_stopped(
    number: signal.Signals, status: int, demo: Path, tmp_path: Path, call: Call
) -> None:
    """With an empty cache the compiler is at work for seconds after the second stage."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = demo.parent / "out"
    before = content(out)
    process = start(
        *("build", demo, "-o", out, "--set", "policy.budget=accuracy drop <= 3 %"),
        EECOMPILE_CACHE=str(tmp_path / "cache"),
        TMPDIR=str(scratch),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/"):
            process.send_signal(number)
            break
    process.communicate(timeout=60)
    assert process.returncode == status
    assert content(out) == before
    assert left_over(demo) == []
    if number != signal.SIGKILL:
        assert [path for path in scratch.iterdir() if "eecompile" in path.name] == []
        assert [path for path in tmp_path.glob("cache/.*")] == []


KILLED_WHILE_WRITING = """
import os, signal, sys
import eecompile.artifact_writing as writing
write = writing.write_file
def killed(path, data):
    if path.name == "policies.json":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
writing.write_file = killed
from eecompile.cli import main
main(sys.argv[1:])
"""


def test_what_a_killed_build_left_is_cleaned_up_by_the_next(call: Call, changed: Path) -> None:
    out = changed.parent / "out"
    before = content(out)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, "build", str(changed), "-o", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert content(out) == before
    assert len(left_over(changed)) == 1
    assert call("build", changed, "-o", out, "--quiet").status == 0
    assert left_over(changed) == []
    assert content(out)["model.ee"] == changed.read_bytes()
    assert call("verify", out).status == 0


def limited(
    nbytes: int, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command that cannot write files longer than `nbytes`: the stand-in for a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return subprocess.run(
        [sys.executable, "-m", "eecompile.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_artifact_for_which_there_is_no_room_is_not_written(changed: Path) -> None:
    out = changed.parent / "out"
    before = content(out)
    done = limited(300_000, "build", changed, "-o", out, "--json")
    assert done.returncode == 1, done.stderr
    assert '"cannot-write"' in done.stdout
    assert "free some space" in done.stderr
    assert content(out) == before
    assert left_over(changed) == []


def test_a_file_for_which_there_is_no_room_stays_as_it_was(changed: Path) -> None:
    picture = changed.parent / "out.svg"
    picture.write_text("the earlier one")
    file = edited(changed, ("exit early  after", "exit   early after"))
    before = file.read_bytes()
    for arguments in (
        ("inspect", changed.parent / "out", "--svg", picture),
        ("format", file),
        ("init", changed.parent / "digits.onnx", "-o", file, "--force"),
    ):
        done = limited(100, *arguments, PYTHONDONTWRITEBYTECODE="1")
        assert done.returncode == 1, done.stderr
        assert "cannot-write" in done.stderr
    assert picture.read_text() == "the earlier one"
    assert file.read_bytes() == before
    assert left_over(changed) == []


@pytest.mark.parametrize("kind", ["file", "foreign folder", "below a file", "own folder"])
def test_other_things_are_never_replaced(
    kind: str, call: Call, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is said before anything is computed."""
    place = changed.parent / "place"
    if kind == "foreign folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    elif kind == "own folder":
        place = changed.parent
    else:
        place.write_text("years of work")
    monkeypatch.setattr("eecompile.planning.check_source", None)  # not even the network is read
    target = place / "out" if kind == "below a file" else place
    done = call("build", changed, "-o", target, "--json")
    assert (done.status, done.ids) == (1, ["cannot-write"])
    if kind == "foreign folder":
        assert content(place) == {"thesis.tex": b"years of work"}
    elif kind != "own folder":
        assert place.read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(call: Call, changed: Path) -> None:
    closed = changed.parent / "closed"
    closed.mkdir(mode=0o500)
    done = call("build", changed, "-o", closed / "out", "--json")
    assert (done.status, done.ids) == (1, ["cannot-write"])


def test_a_build_without_a_usable_cache_works(
    call: Call, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("EECOMPILE_CACHE", str(tmp_path / "no folder" / "cache"))
    file = copy_demo(tmp_path / "demo")
    done = call("build", file, "-o", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    measured = {"costs.json", "plan.bin", "reports.json", "manifest.json"}
    one, other = content(built / "out"), content(tmp_path / "out")
    assert {name: data for name, data in one.items() if name not in measured} == {
        name: data for name, data in other.items() if name not in measured
    }


BLOCKED = """
import importlib.abc, importlib.util, sys
names = sys.argv[1].split(",")
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in names else find(name, package)
)
from eecompile.cli import main
sys.exit(main(sys.argv[2:]))
"""


def without(
    packages: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command on a machine that lacks some packages."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, packages, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_packages_are_the_environments_failure(demo: Path, tmp_path: Path) -> None:
    (demo.parent / "net.py").write_text("import torch\ndef net(): return torch.nn.ReLU()\n")
    (demo.parent / "torch.ee").write_text(
        'eecompile 1\nmodel net {\n source torch "net.py:net"\n input x: float32[1, 4]\n}\n'
    )
    cold = {"EECOMPILE_CACHE": str(tmp_path / "cold")}
    for package, file, remedy in (
        ("torch", "torch.ee", "pip install 'eecompile[torch]'"),
        ("onnx", "digits.ee", "pip install 'eecompile[build]'"),
        ("tvm", "digits.ee", "pip install 'eecompile[build]'"),
    ):
        done = without(package, "build", demo.parent / file, "-o", tmp_path / "new", **cold)
        assert done.returncode == 2, done.stderr
        assert remedy in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_linker_nothing_is_built(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [value], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "net.onnx",
    )
    file = tmp_path / "net.ee"
    file.write_text('eecompile 1\nmodel net { source onnx "net.onnx" }\n')
    environment = {"PATH": str(tmp_path), "EECOMPILE_CACHE": str(tmp_path / "cold")}
    done = without("ziglang", "build", file, "-o", tmp_path / "new", "--json", **environment)
    assert done.returncode == 2, done.stderr
    assert "pip install ziglang" in done.stdout
    assert not (tmp_path / "new").exists()
    assert without("ziglang", "doctor", **environment).returncode == 2


def test_concurrent_builds_share_output_and_cache(tmp_path: Path) -> None:
    file = copy_demo(tmp_path)
    places = [tmp_path / "out", tmp_path / "out"]
    cache = {"EECOMPILE_CACHE": str(tmp_path / "cache")}
    processes = [start("build", file, "-o", place, "--quiet", **cache) for place in places]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []
    done = start("verify", tmp_path / "out")
    done.communicate(timeout=60)
    assert done.returncode == 0
