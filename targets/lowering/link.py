"""Step 8: from object files to a shared library, with whatever linker there is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from eecompile.atomic import replaced_directory
from eecompile.compiled import FunctionLike
from eecompile.diagnostics import CompileErrors, ToolError
from eecompile.hardware import Machine, usable_cores
from eecompile.native_names import library_file
from eecompile.targets.linkers import Linker, find_linkers, remedy
from eecompile.targets.native import (
    COMPILED,
    HEADERS,
    OPTIONS,
    exports,
    identity_of,
    native_folder,
    table_source,
)

__all__ = ["Linker", "find_linkers", "link", "link_kernels", "link_source"]

#: How C code is compiled that hides nothing by itself.
_PLAIN = ("-std=c11", "-O2", "-fPIC", "-pthread")


def link(
    objects: Sequence[bytes],
    functions: Sequence[FunctionLike],
    machine: Machine,
    *,
    network: str,
    weights_bytes: int,
    others: Sequence[str] = (),
) -> bytes:
    """A shared library of functions and the native runtime that executes them.

    It exports the functions, what apps and Python call of the runtime, and `others`, and nothing
    else. Equal input gives equal bytes.

    Args:
        objects: machine code.
        functions: that are in it.
        machine: it is for.
        network: name of the network, which apps know the library by.
        weights_bytes: of the blob that the functions read.
        others: symbols of the code.

    Raises:
        ToolError: no compiler for the machine, or it could not be run or failed; its output is
            told.
    """
    identity = identity_of(objects, functions, weights_bytes)
    parts = {f"part{index}.o": code for index, code in enumerate(objects)}
    parts |= {name: (native_folder() / name).read_bytes() for name in HEADERS}
    parts |= dict(_runtime(_compiler(machine), machine))
    table = table_source(network, functions, identity, weights_bytes, machine)
    parts["table.c"] = table.encode()
    names = [name for name in parts if not name.endswith(".h")]
    symbols = [*(function.symbol for function in functions), *others]
    script = exports(network, symbols)
    name = f"-Wl,-soname,{library_file(network)}"
    return _linked(parts, [*names, *OPTIONS, name], script, machine)


def link_kernels(objects: Sequence[bytes], symbols: Sequence[str], machine: Machine) -> bytes:
    """A shared library of kernels alone: it exports `symbols` and nothing else.

    Raises:
        ToolError: as `link`.
    """
    parts = {f"part{index}.o": code for index, code in enumerate(objects)}
    return _linked(parts, list(parts), _only(symbols), machine)


@cache
def _runtime(compiler: Linker, machine: Machine) -> tuple[tuple[str, bytes], ...]:
    """The runtime's object files for a machine: compiled once, which takes seconds, and kept."""
    sources = {name: (native_folder() / name).read_bytes() for name in (*COMPILED, *HEADERS)}
    command = [*compiler.command, *OPTIONS, "-c"]
    objects = [Path(file).with_suffix(".o").name for file in COMPILED]
    tool = os.stat(compiler.command[0])
    key = hashlib.sha256(repr((command, tool.st_size, tool.st_mtime_ns, sources)).encode())
    kept = _cache_folder() / "native" / key.hexdigest()
    try:
        return tuple((file, (kept / file).read_bytes()) for file in objects)
    except OSError:
        pass
    with tempfile.TemporaryDirectory(prefix="eecompile-") as name:
        folder = Path(name)
        for file, content in sources.items():
            (folder / file).write_bytes(content)

        def compile_(source: str, file: str) -> tuple[str, bytes]:
            _run([*command, source, "-o", file], folder, compiler, machine)
            return file, (folder / file).read_bytes()

        with ThreadPoolExecutor(usable_cores()) as pool:
            found = tuple(pool.map(compile_, COMPILED, objects))
    with contextlib.suppress(CompileErrors), replaced_directory(kept, lambda _: "") as made:
        for file, content in found:
            (made / file).write_bytes(content)
    return found


def link_source(
    sources: Sequence[Path], symbols: Sequence[str], machine: Machine, includes: Sequence[str] = ()
) -> bytes:
    """A shared library from C: the first of `sources`, which may include the others.

    It exports `symbols` and nothing else. What it uses and does not define is found when it is
    loaded.

    Raises:
        ToolError: as `link`.
    """
    parts = {source.name: source.read_bytes() for source in sources}
    options = [f"-I{folder}" for folder in includes]
    inputs = [sources[0].name, *options, "-ldl", *_PLAIN]
    return _linked(parts, inputs, _only(symbols), machine)


def _only(symbols: Sequence[str]) -> str:
    """A version script that exports these."""
    exported = "".join(f" {symbol};" for symbol in symbols)
    return f"{{ global:{exported} local: *; }};\n"


def _compiler(machine: Machine) -> Linker:
    linkers = find_linkers(machine)
    if not linkers:
        raise ToolError(f"No linker for `{machine.name}` ({machine.triple})", remedy(machine))
    return linkers[0]


def _linked(
    parts: Mapping[str, bytes], inputs: Sequence[str], script: str, machine: Machine
) -> bytes:
    linker = _compiler(machine)
    with tempfile.TemporaryDirectory(prefix="eecompile-") as name:
        folder = Path(name)
        for file, content in parts.items():
            (folder / file).write_bytes(content)
        (folder / "exports").write_text(script, encoding="ascii")
        command = [
            *linker.command,
            *("-shared", "-o", "kernels.so", *inputs),
            *("-pthread", "-lm", "-Wl,--build-id=none", "-Wl,--version-script=exports"),
            # Its own symbols are its own, whatever other libraries of a program are called.
            *("-Wl,-Bsymbolic", "-Wl,-z,relro,-z,now", "-s"),
        ]
        # Paths are relative to the folder, so that its random name can reach no byte of the result.
        _run(command, folder, linker, machine)
        return (folder / "kernels.so").read_bytes()


def _run(command: Sequence[str], folder: Path, linker: Linker, machine: Machine) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ToolError(f"Cannot run `{linker.name}`: {error}", remedy(machine)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise ToolError(f"The linker `{linker.name}` failed: {said}", remedy(machine))


def _cache_folder() -> Path:
    """A folder for compilers' results that is writable and not the project's."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eecompile"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        base = Path(tempfile.gettempdir()) / "eecompile-cache"
    return base


def _environment() -> dict[str, str]:
    """The environment with a place for ziglang's cache."""
    environment = dict(os.environ)
    base = _cache_folder() / "zig"
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(base))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(base))
    return environment
