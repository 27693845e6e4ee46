"""Parts of the native runtime, compiled by themselves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers import ROOT

NATIVE = ROOT / "eecompile" / "native"
OPTIONS = ("-std=c11", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")

#: Sources and C code of the test's own -> a library of them.
Compile = Callable[..., ctypes.CDLL]


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler of this machine."""
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.fixture(scope="session")
def compiled(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles sources of the runtime, by name, and code of the test's own; each only once."""
    made: dict[tuple[tuple[str, ...], str], ctypes.CDLL] = {}

    def compile_(sources: Sequence[str], own: str = "") -> ctypes.CDLL:
        key = (tuple(sources), own)
        if key not in made:
            folder = tmp_path_factory.mktemp("native")
            files = [str(NATIVE / name) for name in sources]
            if own:
                (folder / "own.c").write_text(own)
                files.append(str(folder / "own.c"))
            made[key] = ctypes.CDLL(build(compiler, folder / "part.so", files, ["-shared"]))
        return made[key]

    return compile_


@pytest.fixture(scope="session")
def sanitized(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes a program of C files that ends where it does what C does not define."""

    def build_(files: Sequence[str | Path]) -> str:
        folder = tmp_path_factory.mktemp("sanitized")
        options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        (folder / "main.c").write_text("int main(void) { return 0; }")
        try:
            build(compiler, folder / "main", [str(folder / "main.c")], options)
        except subprocess.CalledProcessError:
            pytest.skip("needs a C compiler with sanitizers")
        return build(compiler, folder / "program", [str(file) for file in files], options)

    return build_


def build(compiler: str, output: Path, files: Sequence[str], options: Sequence[str]) -> str:
    """Compiles; the path of what came of it."""
    command = [compiler, *OPTIONS, *options, f"-I{NATIVE}", "-o", str(output), *files]
    subprocess.run([*command, "-pthread", "-lm"], check=True)
    return str(output)
