"""Step 8: from object files to a shared library, with whatever linker there is."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from eecompile.diagnostics import ToolError
from eecompile.hardware import Machine
from eecompile.targets.linkers import Linker, find_linkers, remedy

__all__ = ["Linker", "find_linkers", "link", "link_source"]

#: Every library has the code that leads threads through its functions, and through the steps of a
#: network that has gates.
_TEAM = tuple(
    Path(str(files("eecompile") / "native" / name))
    for name in ("internal.h", "eecompile.h", "team.c", "steps.c")
)
_TEAM_SYMBOLS = (
    "eecompile_team_open",
    "eecompile_team_close",
    "eecompile_team_run",
    "eecompile_team_samples",
    "eecompile_chain",
    "eecompile_steps",
)


def link(
    objects: Sequence[bytes], symbols: Sequence[str], machine: Machine, *, team: bool = True
) -> bytes:
    """A shared library that exports `symbols` and those of team.c and steps.c and nothing else.

    Equal input gives equal bytes. Kernels alone need no `team`.

    Raises:
        ToolError: no linker for the machine, or it could not be run or failed; its output is told.
    """
    parts = {f"part{index}.o": code for index, code in enumerate(objects)}
    if team:
        parts |= {source.name: source.read_bytes() for source in _TEAM}
    compiled = [name for name in parts if not name.endswith(".h")]
    return _linked(parts, compiled, (*symbols, *_TEAM_SYMBOLS * team), machine)


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
    return _linked(parts, [sources[0].name, *options, "-ldl"], symbols, machine)


def _linked(
    parts: Mapping[str, bytes], inputs: Sequence[str], symbols: Sequence[str], machine: Machine
) -> bytes:
    linkers = find_linkers(machine)
    if not linkers:
        raise ToolError(f"No linker for `{machine.name}` ({machine.triple})", remedy(machine))
    with tempfile.TemporaryDirectory(prefix="eecompile-") as name:
        folder = Path(name)
        for file, content in parts.items():
            (folder / file).write_bytes(content)
        exported = "".join(f" {symbol};" for symbol in symbols)
        (folder / "exports").write_text(f"{{ global:{exported} local: *; }};\n", encoding="ascii")
        command = [
            *linkers[0].command,
            *("-shared", "-nostartfiles", "-o", "kernels.so", *inputs),
            *("-std=c11", "-O2", "-fPIC", "-pthread", "-lm"),
            *("-Wl,--build-id=none", "-Wl,--version-script=exports", "-s"),
        ]
        # Paths are relative to the folder, so that its random name can reach no byte of the result.
        try:
            done = subprocess.run(
                command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise ToolError(f"Cannot run `{linkers[0].name}`: {error}", remedy(machine)) from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise ToolError(f"The linker `{linkers[0].name}` failed: {said}", remedy(machine))
        return (folder / "kernels.so").read_bytes()


def _environment() -> dict[str, str]:
    """The environment with a place for ziglang's cache that is writable and not the project's."""
    environment = dict(os.environ)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eecompile" / "zig"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        base = Path(tempfile.gettempdir()) / "eecompile-zig"
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(base))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(base))
    return environment
