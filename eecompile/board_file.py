"""Board files: found by name, read strictly, every problem told at once with its line.

A file is TOML (`targets/boards/*.toml`, or a user's own): ``[machine]``, ``[board]``,
``[[cluster]]`` and ``[[sensor]]``; every number is ``{ value = ..., source = "..." }``. What it
contradicts itself in is an error: a model on wrong numbers would be worse than none.
"""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

from eecompile.board import Board, Cluster, DvfsState, Sensor
from eecompile.board_entries import Quantity, Reader
from eecompile.board_text import board_text
from eecompile.diagnostics import (
    CompileErrors,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean_help,
)
from eecompile.hardware import BOARDS, Machine, detected, is_board_path, machine_names
from eecompile.host_board import host_board
from eecompile.runtime.sysfs import LocalFiles
from eecompile.toml_places import TomlPlaces

__all__ = [
    "CLUSTER_NUMBERS",
    "MACHINE_NUMBERS",
    "board_names",
    "board_text",
    "host_board",
    "parse_board",
    "read_board",
]

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
_BOARD = {
    "memory_bandwidth": Quantity("bytes per second", 1e7, 1e13, hint="bytes, not megabytes"),
    "idle_power_w": Quantity("W", 0, 1000, hint="watts, not milliwatts"),
    "migration_latency_s": Quantity("s", 0, 1, above=True, hint="seconds, not microseconds"),
}
#: What a cluster may say in single numbers.
CLUSTER_NUMBERS = {
    "dynamic_power_coefficient": Quantity("uW/MHz/V^2", 1, 100_000),
    "static_power_w": Quantity("W", 0, 100, hint="watts, not milliwatts"),
    "transition_latency_s": Quantity("s", 0, 1, above=True, hint="seconds, not nanoseconds"),
    "lanes": MACHINE_NUMBERS["lanes"],
    "fma_per_cycle": Quantity("per cycle", 0.125, 8),
    "l2_bytes": _BYTES,
}
_CPU = Quantity("", 0, 4095, whole=True)
_CLOCK = Quantity(
    "Hz", 1e7, 1e10, hint="clocks are in Hz; Linux tells kHz: 1500000 there is 1.5e9 here"
)
_VOLTAGE = Quantity("V", 0.3, 3, hint="volts, where device trees have microvolts: 0.95")
_POWER = Quantity("W", 0, 1000, above=True, hint="watts, not milliwatts or microwatts")
_SENSORS = ("rapl", "hwmon", "ina3221")


def board_names() -> tuple[str, ...]:
    """Names of the boards that are shipped, sorted, "host" first."""
    return machine_names()


def read_board(name: str, folder: Path | None = None) -> Board:
    """The board of that name; "host" is this very machine, its clocks as Linux tells them.

    Args:
        name: a shipped board's name, or the path of a user's own file (it has a slash in it or
            ends in ".toml").
        folder: where relative paths start, and ``NAME.toml`` is looked for where no board of the
            name is shipped: the folder of the `.ee` file.

    Raises:
        CompileErrors: there is no such board, or its file is wrong: everything that is.
    """
    if name == "host":
        return host_board(LocalFiles())
    path = _path_of(name, folder)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        message = f"Cannot read the board file `{path}`: {reason}"
        raise CompileErrors([Diagnostic("bad-board", message, path=str(path))]) from error
    return parse_board(text, path.stem, str(path))


def _path_of(name: str, folder: Path | None) -> Path:
    """Where a board's file is.

    Raises:
        CompileErrors: there is none of that name.
    """
    if is_board_path(name):
        return (folder or Path()) / name
    if name in board_names():
        return BOARDS / f"{name}.toml"
    if folder is not None and (own := folder / f"{name}.toml").is_file():
        return own
    help = did_you_mean_help(name, board_names()) or f"boards: {', '.join(board_names())}"
    message = f"There is no board `{name}`"
    note = "a file of your own is named by its path: `./my-board.toml`"
    raise CompileErrors([Diagnostic("unknown-target", message, notes=(note,), help=help)])


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
    numbers.only(_BOARD)
    read = {key: numbers.number(key, quantity) for key, quantity in _BOARD.items()}
    clusters = _clusters(top, machine)
    meters = _sections(top, "sensor")
    sensors = [_sensor(reader) for reader in meters]
    sources = dict(numbers.sources)
    for sensor, reader in zip(sensors, meters, strict=True):
        sources[f"sensor {sensor.name} {sensor.label}".rstrip()] = str(reader.table.get("source"))
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
    lanes = read["lanes"]
    if lanes is not None and int(lanes) & (int(lanes) - 1):
        reader.error(
            "`lanes` is no power of two", reader.inside("lanes"), "expected 1, 2, 4, 8, ..."
        )
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


def _clusters(top: Reader, machine: Machine | None) -> list[Cluster | None]:
    readers = _sections(top, "cluster")
    clusters = [_cluster(reader, machine) for reader in readers]
    _names_differ(readers)
    _cpus_differ(top, readers)
    _fastest_first(readers, clusters)
    return clusters


def _cluster(reader: Reader, machine: Machine | None) -> Cluster | None:
    """A cluster; None where something is wrong with it."""
    before = len(reader.found)
    reader.only(("name", "core", "cpus", "states", "core_power_w", *CLUSTER_NUMBERS))
    name = reader.text("name")
    if not name:
        reader.missing("name", 'name = "big"')
    elif not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        reader.error(
            f"`{name}` is no name of a cluster",
            reader.value_at("name"),
            "expected small letters, digits and `-`",
        )
    for key, example in (
        ("cpus", 'cpus = { value = [0, 1], source = "..." }'),
        ("states", 'states = { value = [[6e8, 0.8], [1.5e9, 0.9]], source = "..." }'),
    ):
        if key not in reader.table:
            reader.missing(key, example)
    core = reader.text("core")
    cpus = reader.numbers("cpus", _CPU)
    states = _states(reader, name)
    read: dict[str, Any] = {
        key: reader.number(key, range_) for key, range_ in CLUSTER_NUMBERS.items()
    }
    if len(reader.found) > before or machine is None or cpus is None or not states:
        return None
    for key in ("lanes", "fma_per_cycle", "l2_bytes"):
        if read[key] is None:
            read[key] = getattr(machine, key)
            said = machine.sources.get(key, "the default of eecompile/hardware.py")
            reader.sources[key] = f"as [machine]: {said}"
    coefficient = read.pop("dynamic_power_coefficient")
    return Cluster(
        name,
        core,
        tuple(int(cpu) for cpu in cpus),
        states,
        capacitance_f=None if coefficient is None else coefficient / 1e12,
        sources=reader.sources,
        **read,
    )


def _states(reader: Reader, cluster: str) -> tuple[DvfsState, ...]:
    """The clocks of a cluster; empty where they are missing or any is wrong."""
    before = len(reader.found)
    rows = reader.rows("states") or []
    table = [_state_row(reader, row, index) for index, row in enumerate(rows)]
    powers = reader.numbers("core_power_w", _POWER)
    if powers is not None and rows and len(powers) != len(rows):
        reader.error(
            f"{len(powers)} powers for {len(rows)} states",
            reader.inside("core_power_w"),
            "expected one power for each state",
        )
    if len(reader.found) > before:
        return ()
    _rising(reader, "states", [row[0] for row in table], "clock", 0)
    if len({len(row) for row in table}) > 1:
        reader.error(
            "Some states have a voltage, others have none",
            reader.inside("states"),
            help="give each row as [Hz, V], or each as [Hz] where a voltage is not known",
        )
    elif table and len(table[0]) > 1:
        _rising(reader, "states", [row[1] for row in table], "voltage", 1)
    _rising(reader, "core_power_w", powers or (), "power", None)
    if len(reader.found) > before:
        return ()
    return tuple(
        DvfsState(
            cluster,
            float(row[0]),
            float(row[1]) if len(row) > 1 else None,
            None if powers is None else float(powers[index]),
        )
        for index, row in enumerate(table)
    )


def _state_row(reader: Reader, row: Any, index: int) -> list[float]:
    """Clock, and voltage where it is given; what is wrong is told and stands as 0."""
    if not isinstance(row, list) or len(row) not in (1, 2):
        reader.error(
            "A state is a clock, or a clock and a voltage",
            reader.value_at("states", "value", index),
            "expected [Hz] or [Hz, V]",
        )
        return [0.0]
    kinds = ((_CLOCK, "The clock"), (_VOLTAGE, "The voltage"))
    return [
        reader.checked(value, quantity, what, "states", "value", index, column) or 0.0
        for column, (value, (quantity, what)) in enumerate(zip(row, kinds, strict=False))
    ]


def _rising(reader: Reader, key: str, values: Any, what: str, column: int | None) -> None:
    """Complain where a clock does not rise, or a voltage or power falls, from row to row."""
    for index in range(1, len(values)):
        last, here = values[index - 1], values[index]
        place = (index,) if column is None else (index, column)
        if what == "clock" and here <= last:
            found, rule = f"{here:g} Hz after {last:g} Hz", "each clock once, by rising frequency"
        elif here < last:
            found, rule = f"{here:g} after {last:g}", f"the {what} falls while the clock rises"
        else:
            continue
        help = "" if what == "clock" else "one of the numbers is wrong, or of another revision"
        span = reader.value_at(key, "value", *place)
        reader.error(f"The {what} does not rise with the states: {found}", span, rule, help)


def _names_differ(readers: list[Reader]) -> None:
    first: dict[str, Reader] = {}
    for reader in readers:
        name = reader.table.get("name")
        if isinstance(name, str) and first.setdefault(name, reader) is not reader:
            span = reader.value_at("name")
            reader.error(f"Two clusters are named `{name}`", span, "expected another name")


def _cpus_differ(top: Reader, readers: list[Reader]) -> None:
    """Complain of CPUs given twice, and of a number of cores that is not theirs."""
    seen: dict[int, str] = {}
    for reader in readers:
        entry = reader.table.get("cpus")
        given = entry.get("value") if isinstance(entry, dict) else None
        for index, cpu in enumerate(given if isinstance(given, list) else []):
            if type(cpu) is not int:
                continue
            owner = str(reader.table.get("name"))
            if cpu in seen:
                reader.error(
                    f"CPU {cpu} is in two clusters" if seen[cpu] != owner else f"CPU {cpu} twice",
                    reader.value_at("cpus", "value", index),
                    f"it is in `{seen[cpu]}` already",
                )
            seen.setdefault(cpu, owner)
    machine = top.table.get("machine")
    cores = machine.get("cores") if isinstance(machine, dict) else None
    told = cores.get("value") if isinstance(cores, dict) else None
    if seen and type(told) is int and told != len(seen):
        top.error(
            f"`cores` is {told}, and the clusters have {len(seen)} CPUs",
            top.value_at("machine", "cores", "value"),
            "expected all CPUs of all clusters",
        )


def _fastest_first(readers: list[Reader], clusters: list[Cluster | None]) -> None:
    peaks = [None if cluster is None else _peak(cluster) for cluster in clusters]
    for (last, here), reader in zip(pairwise(peaks), readers[1:], strict=True):
        if last is not None and here is not None and here > last * (1 + 1e-9):
            reader.error(
                "Clusters do not stand fastest first",
                reader.value_at("name"),
                f"{here / 1e9:.4g} against {last / 1e9:.4g} billion multiply-accumulates a second",
                "put the fastest cluster first: lanes x fma_per_cycle x highest clock",
            )


def _peak(cluster: Cluster) -> float:
    """Multiply-accumulates a core starts in a second at its highest clock."""
    return cluster.lanes * cluster.fma_per_cycle * (cluster.states[-1].frequency_hz or 0.0)
