"""Whether an artifact is what its `.ee` file, network and data, and this tool, would give now."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eecompile import __version__
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache, digest, source_digest
from eecompile.diagnostics import CompileErrors
from eecompile.hardware import cpu_features_of_this_machine, usable_cores
from eecompile.spec import DataSource, Spec
from eecompile.tuning_file import tuning_path

__all__ = ["Freshness"]


class Freshness:
    """Remembers what a build read, file by file, and what it wrote.

    A build is repeated when any file it read has changed (user code included: every module that
    was loaded from outside the Python installation), when the artifact is not the one written
    then, or when data come from a callable, whose result no file tells.
    """

    def __init__(self, cache: Cache, path: Path, options: BuildOptions, output: Path) -> None:
        self._cache, self._path, self._output = cache, path, output
        self._wants_work = (options.emit, options.dump_ir, options.tune) != (None, None, None)
        self._tunes = options.tune is not None  # that build writes the file it reads
        self._begun_ns = time.time_ns() - _CLOCK_NS
        self._key = digest(
            "build",
            source_digest(),
            __version__,
            sorted(cpu_features_of_this_machine()),
            usable_cores(),
            str(path.resolve()),
            str(output.resolve()),
            options.target,
            tuple(options.overrides),
            options.seed,
        )

    def stored_summary(self) -> dict[str, Any] | None:
        """The summary of the build that wrote the artifact, if nothing has changed since."""
        raw = None if self._wants_work else self._cache.load(self._key)
        if raw is None:
            return None
        stored = json.loads(raw)
        if stored["manifest"] != _hash(_told_by(self._output)):
            return None
        files = {**stored["read"], **stored["served"]}
        if any(_hash(Path(name)) != value for name, value in files.items()):
            return None
        from eecompile.artifact import read_artifact

        try:
            read_artifact(self._output, must_run=False)
        except CompileErrors:
            return None  # edited or damaged: it is built again
        summary: dict[str, Any] = stored["summary"]
        return summary

    def store(self, spec: Spec, summary: Mapping[str, Any]) -> None:
        """Remember a build that has just been written.

        Where a file changed while the build was at work, nobody knows what was read of it: such a
        build is not remembered.
        """
        read = _files_of(spec, self._path)
        ours = tuning_path(self._path).resolve() if self._tunes else None
        if read is None or any(_changed_ns(p) >= self._begun_ns for p in read if p != ours):
            return
        entry = {
            "read": {str(path): _hash(path) for path in read},
            "manifest": _hash(_told_by(self._output)),
            "served": {str(path): _hash(path) for path in _served(summary)},
            "summary": summary,
        }
        self._cache.store(self._key, json.dumps(entry).encode())


def _told_by(output: Path) -> Path:
    """The file that changes whenever an artifact does: its manifest, or all of a packed one."""
    return output if output.is_file() else output / "manifest.json"


def _served(summary: Mapping[str, Any]) -> list[Path]:
    """Every file that a build wrote for servers."""
    folder = summary["server"]
    return [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []


#: File systems take their times from a clock that may be one tick behind.
_CLOCK_NS = 20_000_000


def _changed_ns(path: Path) -> int:
    """When a file was last written, moved here or otherwise changed."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0  # not there: remembered as such


def _hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _files_of(spec: Spec, path: Path) -> list[Path] | None:
    """Every file the build read; None where that cannot be told."""
    model = spec.model
    found = [path, tuning_path(path), spec.resolve(model.path)]
    found += [spec.resolve(name) for name in (model.weights, model.gates) if name]
    networks = [spec.resolve(model.path)] if model.source == "onnx" else []
    for exit_ in model.exits:
        for head in filter(None, (exit_.head, exit_.comparator)):
            for option in ("path", "weights"):
                if head.options.get(option):
                    found.append(spec.resolve(str(head.options[option])))
            networks += [spec.resolve(str(head.option("path")))] if head.kind == "onnx" else []
    sources = [s for data in spec.data for s in (data.fit, data.calibrate, data.test) if s]
    if any(source.entry is not None for source in sources):
        return None
    for source in sources:
        found += _paths(spec, source)
    found += [beside for network in networks for beside in _weights_of(network)]
    found += _user_modules()
    return sorted({file.resolve() for file in found})


def _weights_of(path: Path) -> tuple[Path, ...]:
    """Files that an ONNX file keeps weights in."""
    from eecompile.passes.onnx_read import external_files

    return external_files(path)


def _paths(spec: Spec, source: DataSource) -> list[Path]:
    return [spec.resolve(name) for name in (source.path, source.labels) if name]


def _user_modules() -> Iterable[Path]:
    """Files of loaded modules that belong neither to Python nor to an installed package or us."""
    paths = sysconfig.get_paths()
    known = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    known.append(Path(__file__).resolve().parent)
    known += [link.resolve() for link in Path(__file__).parent.iterdir() if link.is_symlink()]
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not name or not name.endswith(".py"):
            continue
        file = Path(name).resolve()
        if file.is_file() and not any(file.is_relative_to(folder) for folder in known):
            yield file
