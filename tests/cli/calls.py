"""What tests of the command line share: calls of the real command, and the demo's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import eecompile.demo
from eecompile.cli import main

__all__ = [
    "ROOT",
    "Call",
    "Done",
    "content",
    "copy_demo",
    "edited",
    "evaluating",
    "gated_demo",
    "in_process",
    "start",
]

ROOT = Path(__file__).parents[2]
FILES = ("digits.ee", "digits.onnx", "fit.npz", "calibrate.npz", "test.npz")


@dataclass(frozen=True)
class Done:
    """What a command did: exit status, and what it wrote to its two streams."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output, as strict JSON."""

        def refuse(text: str) -> Any:
            raise AssertionError(f"{text} is no JSON")

        found = json.loads(self.out, parse_constant=refuse)
        assert isinstance(found, dict)
        return found

    @property
    def ids(self) -> list[str]:
        """Ids of the diagnostics in the object."""
        return [found["id"] for found in self.json["diagnostics"]]


Call = Callable[..., Done]


def in_process(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs commands in this process."""

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        sys.stdout.flush()
        return Done(status, *capfd.readouterr())

    return run


def evaluating(call: Call, folder: Path) -> Callable[..., dict[str, Any]]:
    """Calls of `eval` with the artifact `out` and the data of a folder, whose result is given."""

    def run(*options: object, data: str = "test.npz") -> dict[str, Any]:
        done = call("eval", folder / "out", "--data", folder / data, *options, "--json")
        assert done.status == 0, done.err
        return done.json

    return run


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Runs a command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "eecompile.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def copy_demo(folder: Path) -> Path:
    """The demo's files in a folder; gives its `.ee` file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(Path(eecompile.demo.__file__).parent / name, folder / name)
    return folder / "digits.ee"


def edited(file: Path, *changes: tuple[str, str]) -> Path:
    """The file with texts replaced, each of which is in it."""
    text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


#: Gates that need no training, in front of the demo's data.
_GATES = """    skip layers   "layer*.*"       gate fitted
    skip channels "layer*.*.conv1" gate fitted(groups: 4)
}

data uci"""


def gated_demo(folder: Path, policies: str) -> Path:
    """The demo's files with gates, and with further policies; gives its `.ee` file."""
    file = edited(copy_demo(folder), ("}\n\ndata uci", _GATES))
    file.write_text(file.read_text() + policies)
    return file


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
