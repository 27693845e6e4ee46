"""Board files: found by name, read strictly, every problem told at once with its line.

A file is TOML (`targets/boards/*.toml`, or a user's own): ``[machine]``, ``[board]``,
``[[cluster]]`` and ``[[sensor]]``; every number is ``{ value = ..., source = "..." }``. What it
contradicts itself in is an error: a model on wrong numbers would be worse than none.
"""

from __future__ import annotations

import errno
import re
import tomllib
from pathlib import Path
from typing import Any

from eecompile.board import Board, Sensor
from eecompile.boards.clusters import read_clusters
from eecompile.boards.entries import Quantity, Reader
from eecompile.boards.host import host_board
from eecompile.boards.toml_places import TomlPlaces
from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean_help,
)
from eecompile.hardware import BOARDS, Machine, board_names, detected, is_board_path
from eecompile.runtime.sysfs import LocalFiles

__all__ = [
    "BOARD_NUMBERS",
    "MACHINE_NUMBERS",
    "parse_board",
    "read_board",
]

#: What no board file reaches; `/dev/zero` is no board either.
_MOST_BYTES = 1 << 20
_BYTES = Quantity("bytes", 1024, 2**30, whole=True)
#: What `[machine]` may say besides texts. One vector is 16 (SVE, AVX) to 2048 bits wide.
MACHINE_NUMBERS = {
    "lanes": Quantity("float32 values", 1, 64, whole=True),
    "registers": Quantity("registers", 8, 64, whole=True),
    "fma_latency": Quantity("cycles", 1, 32, whole=True),
    "fma_per_cycle": Quantity("per cycle", 1, 8, whole=True),
    "l1_bytes": _BYTES,
    "l2_bytes": _BYTES,
    "cores": Quantity("cores", 1, 4096, whole=True),
}
#: What `[board]` may say.
BOARD_NUMBERS = {
    "memory_bandwidth": Quantity("bytes per second", 1e7, 1e13, hint="bytes, not megabytes"),
    "idle_power_w": Quantity("W", 0, 1000, hint="watts, not milliwatts"),
    "migration_latency_s": Quantity("s", 0, 1, above=True, hint="seconds, not microseconds"),
}
_SENSORS = ("rapl", "hwmon", "ina3221")


def read_board(name: str, folder: Path | None = None, place: Span | None = None) -> Board:
    """The board of that name; "host" is this very machine, its clocks as Linux tells them.

    Args:
        name: a shipped board's name, or the path of a user's own file (it has a slash in it or
            ends in ".toml").
        folder: where relative paths start: the folder of the `.ee` file.
        place: where the name stands, for messages.

    Raises:
        CompileErrors: there is no such board, or its file is wrong: everything that is.
    """
    if name == "host":
        return host_board(LocalFiles())
    path = _path_of(name, folder, place)
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {_MOST_BYTES >> 20} MiB")
        text = raw.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        message = f"Cannot read the board file `{path}`: {reason}"
        raise CompileErrors([Diagnostic("bad-board", message, place, path=str(path))]) from error
    return parse_board(text, path.stem, str(path))


def _path_of(name: str, folder: Path | None, place: Span | None) -> Path:
    """Where a board's file is.

    Raises:
        CompileErrors: there is none of that name.
    """
    if is_board_path(name):
        return (folder or Path()) / name
    if name in board_names():
        return BOARDS / f"{name}.toml"
    help = did_you_mean_help(name, board_names()) or f"boards: {', '.join(board_names())}"
    message = f"There is no board `{name}`"
    note = "a file of your own is named by its path: `./my-board.toml`"
    raise CompileErrors([Diagnostic("unknown-target", message, place, notes=(note,), help=help)])


def parse_board(text: str, name: str, path: str) -> Board:
    """The board a file's text describes; `path` is the file's, for messages.

    Raises:
        CompileErrors: the text is no TOML, or anything in it is unknown, missing, out of range
            or contradicted elsewhere in it; all such places at once.
    """
    source = Source(path, text)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompileErrors([_no_toml(source, error)]) from error
    found = Diagnostics()
    top = Reader(table, (), TomlPlaces(source), found)
    board = _board(top, name)
    found.raise_errors()
    assert board is not None, "a file without errors is a board"
    return board


def _no_toml(source: Source, error: Exception) -> Diagnostic:
    """What tomllib says, where it says it."""
    reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value cannot be read"
    place = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
    start = len(source.text)
    if place:
        line, column = int(place[1]), int(place[2])
        lines = source.text.replace("\r\n", "\n\n").split("\n")  # as many characters as there are
        start = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
        start = min(start, len(source.text))
    if isinstance(error, RecursionError):
        reason = "lists are nested too deeply"
    headline = f"The board file is no TOML: {reason.partition(' (at ')[0]}"
    return Diagnostic("bad-board", headline, Span(source, start, min(start + 1, len(source.text))))


def _board(top: Reader, name: str) -> Board | None:
    top.only(("description", "machine", "board", "cluster", "sensor"))
    machine = _machine(top, name)
    numbers = _section(top, "board")
    numbers.only(BOARD_NUMBERS)
    read = {key: numbers.number(key, quantity) for key, quantity in BOARD_NUMBERS.items()}
    clusters = read_clusters(top, _sections(top, "cluster"), machine)
    meters = _sections(top, "sensor")
    sensors = [_sensor(reader) for reader in meters]
    sources = dict(numbers.sources)
    for sensor, reader in zip(sensors, meters, strict=True):
        sources[sensor.key] = str(reader.table.get("source"))
    if machine is None or len(top.found):
        return None
    return Board(
        name,
        machine,
        tuple(cluster for cluster in clusters if cluster is not None),
        **read,
        sensors=tuple(sensors),
        description=machine.description,
        sources=sources,
    )


def _section(top: Reader, key: str) -> Reader:
    """A table of the file; an empty one where there is none."""
    given = top.table.get(key, {})
    if not isinstance(given, dict):
        top.error(f"`{key}` is no table", top.value_at(key), f"expected `[{key}]`")
        given = {}
    return Reader(given, (key,), top.places, top.found)


def _sections(top: Reader, key: str) -> list[Reader]:
    """Tables of which a file may have several."""
    given = top.table.get(key, [])
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        top.error(f"`{key}` is no list of tables", top.value_at(key), f"expected `[[{key}]]`")
        return []
    return [Reader(item, (key, i), top.places, top.found) for i, item in enumerate(given)]


def _machine(top: Reader, name: str) -> Machine | None:
    description = top.text("description")
    reader = _section(top, "machine")
    if "machine" not in top.table:
        start = Span(top.value_at().source, 0, 0)
        help = 'at least `[machine]` with `triple = "aarch64-linux-gnu"`'
        top.error("`[machine]` is missing", start, "nothing says what to compile for", help)
        return None
    reader.only(("triple", "mcpu", "features", *MACHINE_NUMBERS))
    if "triple" not in reader.table:
        reader.missing("triple", 'triple = "aarch64-linux-gnu"')
    triple, mcpu = reader.text("triple"), reader.text("mcpu")
    if triple and not re.fullmatch(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+){1,3}", triple):
        reader.error(
            f"`{triple}` is no target triple", reader.value_at("triple"), "expected ARCH-OS-ABI"
        )
    features = reader.texts("features")
    read = {key: reader.number(key, quantity) for key, quantity in MACHINE_NUMBERS.items()}
    reader.lanes(read["lanes"])
    if len(top.found):
        return None
    given: dict[str, Any] = {key: value for key, value in read.items() if value is not None}
    machine = Machine(
        name, triple, mcpu, features, **given, description=description, sources=reader.sources
    )
    return machine if triple else detected(machine)


def _sensor(reader: Reader) -> Sensor:
    reader.only(("kind", "name", "label", "covers", "source"))
    kind = reader.text("kind")
    if kind not in _SENSORS:
        reader.error(
            f"Unknown kind of sensor `{kind}`",
            reader.value_at("kind"),
            help=f"kinds: {', '.join(_SENSORS)}",
        )
    for key, example in (("name", "package-0"), ("source", "where it is documented")):
        if not reader.text(key).strip():
            reader.missing(key, f'{key} = "{example}"')
    return Sensor(kind, reader.text("name"), reader.text("label"), reader.text("covers"))
