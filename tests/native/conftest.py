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


class Objects:
    """Sources compiled for this session; each only once with the same options."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self.compiler, self.folder = compiler, folder
        self.made: dict[tuple[Path, tuple[str, ...]], Path] = {}

    def of(self, source: Path, options: tuple[str, ...]) -> Path:
        """Raises `subprocess.CalledProcessError` where the compiler refuses it."""
        found = self.made.get((source, options))
        if found is None:
            found = self.folder / f"{len(self.made)}-{source.stem}.o"
            command = [self.compiler, *OPTIONS, *options, f"-I{NATIVE}", "-c"]
            subprocess.run([*command, str(source), "-o", str(found)], check=True)
            self.made[source, options] = found
        return found

    def linked(
        self, output: Path, sources: Sequence[Path], *options: str, shared: bool = False
    ) -> str:
        """The path of a program, or shared library, of sources that are compiled with options."""
        objects = [str(self.of(source, options)) for source in sources]
        kind = ["-shared"] if shared else []
        command = [self.compiler, *options, *kind, "-o", str(output)]
        subprocess.run([*command, *objects, "-pthread", "-lm"], check=True)
        return str(output)


@pytest.fixture(scope="session")
def objects(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """What is compiled already."""
    return Objects(compiler, tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="session")
def compiled(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Links sources of the runtime, by name, and code of the test's own; each only once."""
    made: dict[tuple[tuple[str, ...], str], ctypes.CDLL] = {}

    def compile_(sources: Sequence[str], own: str = "") -> ctypes.CDLL:
        key = (tuple(sources), own)
        if key not in made:
            folder = tmp_path_factory.mktemp("native")
            files = [NATIVE / name for name in sources]
            if own:
                (folder / "own.c").write_text(own)
                files.append(folder / "own.c")
            made[key] = ctypes.CDLL(objects.linked(folder / "part.so", files, shared=True))
        return made[key]

    return compile_


@pytest.fixture(scope="session")
def sanitized(
    objects: Objects, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str | Path]], str]:
    """Makes a program of C files that ends where it does what C does not define."""
    options = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

    def build_(files: Sequence[str | Path]) -> str:
        folder = tmp_path_factory.mktemp("sanitized")
        (folder / "main.c").write_text("int main(void) { return 0; }")
        try:
            objects.linked(folder / "main", [folder / "main.c"], *options)
        except subprocess.CalledProcessError:
            pytest.skip("needs a C compiler with sanitizers")
        return objects.linked(folder / "program", [Path(file) for file in files], *options)

    return build_
