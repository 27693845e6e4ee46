"""What an app in C or C++ needs of an artifact: a folder that a compiler can be pointed at.

lib<name>.so         the network's code and the native runtime
<name>.eec           the whole artifact in one file, of which the runtime reads plan and weights
<name>.h             its exits, policies and inputs as constants; eecompile.h and eecompile.hpp
example.c            a small app, with samples.bin to answer
CMakeLists.txt       builds it; <name>Config.cmake and <name>.pc are for other projects
README.md, LICENSE   the commands; of the runtime
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.app_header import AppNames, header_text, plain_text
from eecompile.artifact import Artifact, check_unchanged, read_artifact
from eecompile.artifact_writing import SUFFIX, replace_artifact
from eecompile.atomic import replaced_directory, write_file
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.native_names import code_identity
from eecompile.signatures import Trusted
from eecompile.targets.native import native_folder

__all__ = ["Exported", "export_artifact"]

_HEADERS = ("eecompile.h", "eecompile.hpp")
_SAMPLES = "samples.bin"
_SAMPLE_BYTES = 1 << 20  #: of samples that are written, one at least
#: Template -> the file it is of; "@NAME@" stands for the network's name.
_TEMPLATES = {
    "example.c": "example.c",
    "CMakeLists.txt": "CMakeLists.txt",
    "config.cmake": "@NAME@Config.cmake",
    "package.pc": "@NAME@.pc",
    "README.md": "README.md",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        name: of the network, in its files' names.
        symbol: of its `ee_library`.
        triple: of the machine it is for.
        files: sizes by name.
        python_only: policies that the native runtime does not know.
    """

    folder: Path
    name: str
    symbol: str
    triple: str
    files: Mapping[str, int]
    python_only: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The keys scripts rely on: folder, name, symbol, files."""
        return {
            "folder": str(self.folder),
            "name": self.name,
            "symbol": self.symbol,
            "target": self.triple,
            "files": dict(self.files),
            "python_only_policies": list(self.python_only),
        }


def export_artifact(
    artifact: str | Path, destination: str | Path, trusted: Trusted | None = None
) -> Exported:
    """Writes an app's files for an artifact: the same bytes for the same artifact.

    Args:
        artifact: a folder or a packed file; it may be for another machine.
        destination: a folder; an earlier one of this kind is replaced.
        trusted: public keys, one of which must have signed the artifact; None for any artifact.

    Raises:
        CompileErrors: the artifact is damaged, or holds no native runtime; other things are in the
            way, or the files cannot be written: what was there before is untouched then.
        ToolError: there are trusted keys, and the package `cryptography` is not installed.
    """
    found = read_artifact(artifact, must_run=False, trusted=trusted)
    _check_runtime(found)
    names = AppNames(found)
    texts = _files(names)
    folder = Path(destination)
    with replaced_directory(folder, _refusal) as fresh:
        for name, content in texts.items():
            write_file(fresh / name, content)
        replace_artifact(fresh / f"{names.name}{SUFFIX}", found.files)
        sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
        check_unchanged(found, "export")
    foreign = tuple(name for name, native in names.native.items() if not native)
    triple = found.manifest.target.triple
    return Exported(folder, names.name, names.symbol, triple, sizes, foreign)


def _check_runtime(artifact: Artifact) -> None:
    if code_identity(artifact.library) is not None:
        return
    raise CompileErrors(
        [
            Diagnostic(
                "wrong-artifact-version",
                "The artifact has no native runtime in it: it is of format "
                f"{artifact.manifest.format_version}",
                path=str(artifact.path),
                help="build it again with this version of eecompile",
            )
        ]
    )


def _files(names: AppNames) -> dict[str, bytes]:
    """Every file's content but the packed artifact's."""
    artifact, words = names.artifact, _words(names)
    found = {
        names.library: artifact.library,
        f"{names.name}.h": header_text(names).encode(),
        _SAMPLES: _samples(artifact),
        "LICENSE": _template("LICENSE").encode(),
    }
    found |= {name: (native_folder() / name).read_bytes() for name in _HEADERS}
    for template, file in _TEMPLATES.items():
        found[_filled(file, words)] = _filled(_template(template), words).encode()
    return found


def _template(name: str) -> str:
    return (files("eecompile") / "app_files" / name).read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub("@([A-Z]+)@", lambda match: words[match[1]], text)


def _words(names: AppNames) -> dict[str, str]:
    """What stands for the words between @ in the templates."""
    manifest = names.artifact.manifest
    network, target = manifest.network, manifest.target
    buffers = [f"input_{index}" for index, _ in enumerate(names.inputs)]
    sizes = zip(buffers, names.inputs, strict=True)
    exits = f"{len(names.exits)} exits" if network.exits else "no early exits"
    return {
        "NETWORK": plain_text(network.name),
        "NAME": names.name,
        "LIBRARY": names.library,
        "SYMBOL": names.symbol,
        "POLICY": names.policy,
        "VERSION": plain_text(manifest.version),
        "ABOUT": f"Network {plain_text(network.name)}: {exits}"
        + (f", {network.classes} classes" if network.classes else ""),
        "MACHINE": f"{plain_text(target.name)} ({plain_text(target.triple)})",
        "ARCHITECTURE": plain_text(target.architecture),
        "BUFFERS": "\n".join(f"static unsigned char {b}[{c}_BYTES];" for b, c in sizes),
        "NAMES": ", ".join(buffers),
        "READ": " && ".join(f"fread({b}, sizeof {b}, 1, file)" for b in buffers),
        "TELL": _telling(names),
    }


def _telling(names: AppNames) -> str:
    """The example's line that prints an answer."""
    manifest = names.artifact.manifest
    told = ["ee_exit_name(network, answer.exit)", "answer.latency_s * 1e3"]
    form = "by %s in %.3f ms"
    if not manifest.network.classes:
        form, told = f"%s begins with %g, {form}", [*_first_number(names), *told]
    elif manifest.labels is not None:
        form, told = f"%s {form}", ["ee_label(network, answer.label)", *told]
    else:
        form, told = f"class %u {form}", ["(unsigned)answer.label", *told]
    return f'printf("{form}\\n", ' + f",\n{' ' * 15}".join(told) + ");"


def _first_number(names: AppNames) -> list[str]:
    """C for the name of the first output, and for its first element."""
    network = names.artifact.manifest.network
    constant, (_, type_) = names.outputs[0], network.segments[-1].outputs[0]
    of = {"float32": "float", "bool": "unsigned char"}.get(type_.dtype, f"{type_.dtype}_t")
    return [constant, f"(double)*(const {of} *)ee_output(session, {constant})"]


def _samples(artifact: Artifact) -> bytes:
    """The artifact's test vectors as the example reads them: sample by sample, all inputs."""
    network, vectors = artifact.manifest.network, artifact.vectors()
    arrays = []
    for name, type_ in network.inputs:
        array = vectors.get(f"input.{name}")
        if array is None or array.dtype != type_.dtype or array[:1].nbytes != type_.nbytes:
            message = f"The artifact has no test vectors of its input `{plain_text(name)}`"
            raise CompileErrors([Diagnostic("bad-artifact", message, path=str(artifact.path))])
        arrays.append(np.ascontiguousarray(array))
    nbytes = sum(type_.nbytes for _, type_ in network.inputs)
    count = min(*map(len, arrays), max(_SAMPLE_BYTES // nbytes, 1)) if arrays else 0
    return b"".join(array[sample].tobytes() for sample in range(count) for array in arrays)


def _refusal(folder: Path) -> str:
    """Why a folder may not be replaced, empty where it is an earlier one.

    What the commands of README.md make there is no other thing.
    """
    other = "is a folder with other things in it"
    names = {path.name for path in folder.iterdir()}
    packages = [name.removesuffix(".pc") for name in names if name.endswith(".pc")]
    if len(packages) != 1:
        return other
    (name,) = packages
    known = {f"lib{name}.so", f"{name}.eec", f"{name}.h", _SAMPLES, "LICENSE", *_HEADERS}
    known |= {_filled(file, {"NAME": name}) for file in _TEMPLATES.values()}
    if not known <= names | {_SAMPLES}:
        return other
    made = {"example"} if (folder / "example").is_file() else set()
    made |= {"build"} if _is_build_of(folder / "build", folder) else set()
    extra = names - known - made
    shown = ", ".join(sorted(map(plain_text, extra)))
    return f"is a folder for apps with other files in it: {shown}" if extra else ""


def _is_build_of(build: Path, folder: Path) -> bool:
    """Whether CMake has made a folder, for this one: all in it can be made again."""
    try:
        cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return False
    return f"CMAKE_HOME_DIRECTORY:INTERNAL={folder}\n" in cache
