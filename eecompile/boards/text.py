"""Boards as the text of a board file: what `parse_board` reads, in its canonical layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from eecompile.board import Board, Cluster, Sensor
from eecompile.boards.file import BOARD_NUMBERS, MACHINE_NUMBERS
from eecompile.hardware import Machine

__all__ = ["board_text"]

_CLUSTER = ("static_power_w", "transition_latency_s", "lanes", "fma_per_cycle", "l2_bytes")


def board_text(board: Board, notes: Iterable[str] = ()) -> str:
    """The board as TOML. Only numbers with a source are written; `notes` become comments on top.

    >>> print(board_text(Board("b", Machine("b", "aarch64-linux-gnu"), description="a board")))
    description = "a board"
    <BLANKLINE>
    [machine]
    triple = "aarch64-linux-gnu"
    <BLANKLINE>
    """
    parts = [[f"# {_printable(line)}" for note in notes for line in note.splitlines()]]
    parts.append([f"description = {_quoted(board.description)}"])
    parts.append(list(_machine(board.machine)))
    numbers = list(_numbers(board, BOARD_NUMBERS, board.sources))
    if numbers:
        parts.append(["[board]", *numbers])
    parts += [list(_cluster(cluster)) for cluster in board.clusters]
    parts += [list(_sensor(sensor, board.sources)) for sensor in board.sensors]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _machine(machine: Machine) -> Iterator[str]:
    yield "[machine]"
    yield f"triple = {_quoted(machine.triple)}"
    if machine.mcpu:
        yield f"mcpu = {_quoted(machine.mcpu)}"
    if machine.features:
        yield f"features = [{', '.join(map(_quoted, machine.features))}]"
    yield from _numbers(machine, MACHINE_NUMBERS, machine.sources)


def _cluster(cluster: Cluster) -> Iterator[str]:
    yield "[[cluster]]"
    yield f"name = {_quoted(cluster.name)}"
    if cluster.core:
        yield f"core = {_quoted(cluster.core)}"
    source = cluster.sources.get
    yield f"cpus = {_entry(str(list(cluster.cpus)), source('cpus', ''))}"
    yield "states = { value = ["
    for state in cluster.states:
        clock = f"{state.frequency_hz:_.0f}" if state.frequency_hz is not None else "0"
        voltage = "" if state.voltage_v is None else f", {_number(state.voltage_v)}"
        yield f"    [{clock}{voltage}],"
    yield f"], source = {_quoted(source('states', ''))} }}"
    if "dynamic_power_coefficient" in cluster.sources and cluster.capacitance_f is not None:
        value = _number(round(cluster.capacitance_f * 1e12, 6))
        said = cluster.sources["dynamic_power_coefficient"]
        yield f"dynamic_power_coefficient = {_entry(value, said)}"
    powers = [state.core_power_w for state in cluster.states]
    if "core_power_w" in cluster.sources and None not in powers:
        value = f"[{', '.join(_number(power or 0.0) for power in powers)}]"
        yield f"core_power_w = {_entry(value, cluster.sources['core_power_w'])}"
    yield from _numbers(cluster, _CLUSTER, cluster.sources)


def _sensor(sensor: Sensor, sources: Mapping[str, str]) -> Iterator[str]:
    yield "[[sensor]]"
    for key in ("kind", "name", "label", "covers"):
        if value := getattr(sensor, key):
            yield f"{key} = {_quoted(value)}"
    yield f"source = {_quoted(sources.get(sensor.key, ''))}"


def _numbers(of: object, keys: Iterable[str], sources: Mapping[str, str]) -> Iterator[str]:
    """Entries of what has both a value and a source of its own."""
    for key in keys:
        value = getattr(of, key)
        if value is not None and key in sources and not sources[key].startswith("as [machine]: "):
            yield f"{key} = {_entry(_number(value), sources[key])}"


def _entry(value: str, source: str) -> str:
    return f"{{ value = {value}, source = {_quoted(source)} }}"


def _number(value: float) -> str:
    """As TOML has it, and as short as it reads back equal.

    >>> _number(4), _number(4.0), _number(3.55e-05), _number(0.95)
    ('4', '4', '3.55e-05', '0.95')
    """
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _printable(text: str) -> str:
    """Comments of TOML hold no control characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _quoted(text: str) -> str:
    """A text in quotation marks: TOML's escapes are those of JSON, and DEL is one more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
