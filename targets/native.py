"""The native runtime's C code, and the table that tells it of a library's functions.

Both are compiled by whatever links the library; nothing of TVM is needed here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from eecompile.compiled import FunctionLike
from eecompile.hardware import Machine, cpuinfo_names
from eecompile.native_names import MARK, library_symbol

__all__ = [
    "COMPILED",
    "HEADERS",
    "OPTIONS",
    "PRIVATE",
    "PUBLIC",
    "VERSION",
    "exports",
    "identity_of",
    "native_folder",
    "table_source",
]

#: Symbol version of the public functions; see eecompile.h for what is promised.
VERSION = "EECOMPILE_1"

#: How the runtime is compiled. No multiplication is fused with an addition, so that all machines
#: decide alike. No tables for unwinding: nothing is thrown through it, and they were an eighth.
OPTIONS = (
    *("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
)

#: What Python calls in a library, beside its functions and the public ones: see team.c, steps.c and
#: python.c.
PRIVATE = (
    "eecompile_open_parts",
    "eecompile_session_open",
    "eecompile_decide_by",
    "eecompile_run",
    "eecompile_input",
    "eecompile_value",
    "eecompile_team_open",
    "eecompile_team_close",
    "eecompile_team_run",
    "eecompile_team_samples",
    "eecompile_chain",
    "eecompile_steps",
)

_DECLARED = re.compile(r"^(?:[a-z_0-9]+ )+\*?(ee_[a-z_]+)\(", re.MULTILINE)


def native_folder() -> Path:
    """Where the C code is."""
    return Path(str(files("eecompile") / "native"))


def _named(suffix: str) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in native_folder().iterdir() if path.suffix == suffix))


#: Files that are compiled, and those they include.
COMPILED, HEADERS = _named(".c"), _named(".h")

#: The functions that eecompile.h declares.
PUBLIC = tuple(
    sorted(set(_DECLARED.findall((native_folder() / "eecompile.h").read_text(encoding="utf-8"))))
)


def identity_of(
    parts: Sequence[bytes], functions: Sequence[FunctionLike], weights_bytes: int
) -> bytes:
    """32 bytes that a library and its plans have in common: equal for equal code only."""
    told = [_told(function) for function in functions]
    digest = hashlib.sha256(json.dumps([told, weights_bytes]).encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()


def _told(function: FunctionLike) -> list[object]:
    sizes = [type_.nbytes for _, type_ in (*function.inputs, *function.outputs)]
    numbers = function.workspace_bytes, function.private_bytes, function.threads
    return [function.symbol, len(function.inputs), *numbers, *sizes]


def table_source(
    network: str,
    functions: Sequence[FunctionLike],
    identity: bytes,
    weights_bytes: int,
    machine: Machine | None = None,
) -> str:
    """C code of a library's `ee_library`; see internal.h.

    Args:
        network: its name.
        functions: of the library.
        identity: see `identity_of`.
        weights_bytes: size of the blob that the functions read.
        machine: whose features the code needs; None: nothing beyond the architecture.
    """
    functions = sorted(functions, key=lambda function: function.symbol)
    lines = ['#include "internal.h"', ""]
    for function in functions:
        lines.append(f"int32_t {function.symbol}(const int64_t *, int32_t, int32_t, void *);")
    sizes: list[int] = []
    rows = []
    for function in functions:
        own = [type_.nbytes for _, type_ in (*function.inputs, *function.outputs)]
        rows.append(
            f'    {{"{function.symbol}", {function.symbol}, {function.workspace_bytes},'
            f" {function.private_bytes}, {function.threads}, {len(function.inputs)},"
            f" {len(function.outputs)}, bytes + {len(sizes)}}},"
        )
        sizes += own
    written = "".join(f"\\x{byte:02x}" for byte in identity)
    features = " ".join(cpuinfo_names(machine.features, machine.arch)) if machine else ""
    lines += [
        "",
        f"static const int64_t bytes[] = {{{', '.join(map(str, sizes or [0]))}}};",
        "static const function_t functions[] = {",
        *rows,
        "};",
        f'static const char identity[] = {json.dumps(MARK.decode())} "{written}";',
        f"VISIBLE const ee_library {library_symbol(network)} = {{",
        f"    &eecompile_operations, {json.dumps(network)},",
        f"    (const unsigned char *)identity + {len(MARK)}, {json.dumps(features)},",
        f"    functions, {len(functions)}, {weights_bytes}}};",
        "",
    ]
    return "\n".join(lines)


def exports(network: str, symbols: Sequence[str]) -> str:
    """The linker's version script: the public functions with their version, and nothing unnamed."""
    public = "".join(f" {name};" for name in (*PUBLIC, library_symbol(network)))
    private = "".join(f" {name};" for name in (*symbols, *PRIVATE))
    return (
        f"{VERSION} {{ global:{public} local: *; }};\nEECOMPILE_PRIVATE {{ global:{private} }};\n"
    )
