"""What runs where only numpy and lark are installed: all that needs no network's source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.calls import ROOT

#: Refuses every package but the standard library, numpy and ours, then does what is asked.
DEVICE = """
import contextlib, importlib.abc, importlib.util, io, json, sys

allowed = {*sys.stdlib_module_names, "eecompile", "lark", "numpy"}

class OnlyNumpy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyNumpy())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    find(name, package) if name.partition(".")[0] in allowed else None
)
"""

COMMANDS = """
from eecompile.cli import main

found = []
for arguments in json.loads(sys.stdin.read()):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main(arguments)
    found.append([status, output.getvalue(), errors.getvalue()])
print(json.dumps(found))
"""

LIBRARY = """
import numpy as np
import eecompile

given = json.loads(sys.stdin.read())
images = np.load(given["images"])
with eecompile.load(given["artifact"]) as net:
    one = [net.run(image[None]).label for image in images]
    many = net.run_batch(images).labels.tolist()
print(json.dumps({"one": one, "many": many}))
"""


def on_device(program: str, given: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", DEVICE + program],
        input=json.dumps(given),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def images(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some test images as the network takes them."""
    path = tmp_path_factory.mktemp("device") / "images.npy"
    found = np.load(built / "test.npz")["images"][:20]
    np.save(path, (found[:, None].astype(np.float32) / 255 - 0.5) / 0.5)
    return path


def test_an_artifact_is_loaded_and_run(built: Path, images: Path) -> None:
    found = on_device(LIBRARY, {"artifact": str(built / "out"), "images": str(images)})
    assert found["one"] == found["many"]
    assert len(found["one"]) == 20


def test_commands_that_need_no_source_work(built: Path, images: Path, tmp_path: Path) -> None:
    out, test, first = built / "out", built / "test.npz", tmp_path / "x.npy"
    np.save(first, np.load(images)[:1])
    budget = ("--budget", "mean macs <= 60 %")
    commands: list[tuple[object, ...]] = [
        ("--help",),
        ("inspect", out),
        ("inspect", out, "--ir"),
        ("inspect", out, "--svg", tmp_path / "out.svg"),
        ("verify", out),
        ("run", out, "--input", first),
        ("run", out, "--input", first, *budget),
        ("run", out, "--input", first, "--halt", "macs <= 50 %"),
        ("eval", out, "--data", f"{test}[..50]"),
        ("eval", out, "--data", f"{test}[..50]", *budget),
        ("eval", out, "--data", built / "digits.ee", "--samples", 50),
        ("eval", out, "--data", f"{test}[..50]", "--sweep"),
        ("eval", out, "--data", f"{test}[..50]", "--board", "rk3399"),
        ("bench", out),
        ("bench", out, "--board", "rk3399"),
        ("pack", out, "-o", tmp_path / "out.eec"),
        ("verify", tmp_path / "out.eec"),
        ("export", out, "-o", tmp_path / "app"),
        ("targets", "list"),
        ("targets", "show", "rk3399"),
        ("targets", "import", "-o", tmp_path / "here.toml"),
        ("format", built / "digits.ee"),
    ]
    given = [[str(argument) for argument in command] for command in commands]
    for command, (status, output, errors) in zip(given, on_device(COMMANDS, given), strict=True):
        assert status == 0, f"{command}: {errors}"
        assert output or "format" in command, f"{command} says nothing"


@pytest.mark.parametrize("verb", ["init", "check", "build", "inspect", "demo"])
def test_what_builds_says_what_to_install(verb: str, built: Path, tmp_path: Path) -> None:
    places = {
        "init": [built / "digits.onnx", "-o", tmp_path / "x.ee"],
        "build": [built / "digits.ee", "-o", tmp_path / "out"],
        "demo": ["-o", tmp_path / "demo"],
    }
    command = [verb, *map(str, places.get(verb, [built / "digits.ee"]))]
    ((status, _, errors),) = on_device(COMMANDS, [command])
    assert status == 2
    assert errors.endswith(" is not installed: pip install 'eecompile[build]'\n")
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tells_what_building_needs() -> None:
    ((status, output, _),) = on_device(COMMANDS, [["doctor", "--json"]])
    found = {finding["what"]: finding for finding in json.loads(output)["findings"]}
    assert status == 2, "nothing can be built"
    assert found["numpy"]["ok"]
    assert not found["apache-tvm"]["ok"]
    assert found["apache-tvm"]["remedy"] == "pip install 'eecompile[build]'"
