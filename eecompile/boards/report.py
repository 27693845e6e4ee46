"""Boards as people and scripts read them: `eecompile targets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from eecompile.board import Board, Cluster, DvfsState
from eecompile.boards.file import BOARD_NUMBERS, MACHINE_NUMBERS
from eecompile.figures import hertz

__all__ = ["board_json", "board_row", "cluster_in_words", "cluster_rows", "facts"]

_MACHINE = ("triple", "mcpu", "features", *MACHINE_NUMBERS)
_CLUSTER = (
    *("cpus", "dynamic_power_coefficient", "core_power_w", "static_power_w"),
    *("transition_latency_s", "lanes", "fma_per_cycle", "l2_bytes", "states"),
)


def board_json(board: Board) -> dict[str, Any]:
    """The machine's fields at the top, and clusters with what each clock draws below."""
    return {
        **asdict(board.machine),
        "name": board.name,
        "board": {
            **{key: getattr(board, key) for key in BOARD_NUMBERS},
            "sources": dict(board.sources),
        },
        "clusters": [_cluster_json(cluster) for cluster in board.clusters],
        "sensors": [asdict(sensor) for sensor in board.sensors],
    }


def _cluster_json(cluster: Cluster) -> dict[str, Any]:
    return {
        **{
            key: getattr(cluster, key)
            for key in (
                *("name", "core", "cpus", "capacitance_f", "static_power_w"),
                *("transition_latency_s", "lanes", "fma_per_cycle", "l2_bytes"),
            )
        },
        "sources": dict(cluster.sources),
        "states": [
            {
                "frequency_hz": state.frequency_hz,
                "voltage_v": state.voltage_v,
                "core_power_w": cluster.core_power_w(state),
                "relative_energy_per_cycle": _relative_energy(cluster, state),
            }
            for state in cluster.states
        ],
    }


def _relative_energy(cluster: Cluster, state: DvfsState) -> float | None:
    """Energy of a cycle of one core against that at the top clock; None where no power is known.

    >>> states = (DvfsState("cpu", 1e9, 0.5), DvfsState("cpu", 2e9, 1.0))
    >>> cluster = Cluster("cpu", "", (0,), states, capacitance_f=1e-10)
    >>> _relative_energy(cluster, states[0])
    0.25
    """
    here, top = (_energy_per_cycle(cluster, other) for other in (state, cluster.states[-1]))
    return here / top if here and top else None


def _energy_per_cycle(cluster: Cluster, state: DvfsState) -> float | None:
    power = cluster.core_power_w(state)
    return power / state.frequency_hz if power and state.frequency_hz else None


def board_row(board: Board) -> tuple[str, str, str, str]:
    """Name, processor, clusters and description for `targets list`."""
    clusters = " + ".join(map(cluster_in_words, board.clusters)) or "no clocks known"
    machine = board.machine
    return board.name, machine.mcpu or "this machine's", clusters, board.description


def cluster_in_words(cluster: Cluster) -> str:
    """CPUs, their kind and their clocks.

    >>> states = (DvfsState("cpu", 6e8), DvfsState("cpu", 1.5e9))
    >>> cluster_in_words(Cluster("cpu", "cortex-a72", (0, 1), states))
    '2 cortex-a72, 600 MHz to 1.5 GHz (2 clocks)'
    >>> cluster_in_words(Cluster("cpu", "", (0,), states[:1]))
    '1 CPU, 600 MHz'
    """
    count = len(cluster.cpus)
    what = cluster.core or ("CPU" if count == 1 else "CPUs")
    low, high = (hertz(cluster.states[end].frequency_hz) for end in (0, -1))
    if len(cluster.states) == 1:
        return f"{count} {what}, {high}"
    return f"{count} {what}, {low} to {high} ({len(cluster.states)} clocks)"


def facts(board: Board) -> list[tuple[str, str, str]]:
    """Every number besides clocks: what, value, source; "-" for what no source gives."""
    machine = board.machine
    rows = [(key, _shown(getattr(machine, key)), machine.sources.get(key, "")) for key in _MACHINE]
    rows += [
        (key, _shown(getattr(board, key)), board.sources.get(key, "")) for key in BOARD_NUMBERS
    ]
    for cluster in board.clusters:
        for key in _CLUSTER:
            value = _value(cluster, key)
            rows.append((f"{cluster.name}.{key}", value, cluster.sources.get(key, "")))
    for sensor in board.sensors:
        about = f"{sensor.kind}: {sensor.covers}" if sensor.covers else sensor.kind
        rows.append((sensor.key, about, board.sources.get(sensor.key, "")))
    return rows


def _value(cluster: Cluster, key: str) -> str:
    if key == "dynamic_power_coefficient":
        farad = cluster.capacitance_f
        return "-" if farad is None else f"{farad * 1e12:.6g} uW/MHz/V^2"
    if key == "core_power_w":
        return "below" if key in cluster.sources else "-"
    if key == "states":
        return f"{len(cluster.states)} clock{'s' * (len(cluster.states) != 1)}, below"
    return _shown(getattr(cluster, key))


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def cluster_rows(cluster: Cluster) -> Sequence[tuple[str, str, str, str]]:
    """For each clock: its voltage, what a busy core draws, and the energy of a cycle."""
    rows = []
    for state in cluster.states:
        power, relative = cluster.core_power_w(state), _relative_energy(cluster, state)
        rows.append(
            (
                hertz(state.frequency_hz),
                "-" if state.voltage_v is None else f"{state.voltage_v:.4g} V",
                "-" if power is None else f"{power:.3g} W",
                "-" if relative is None else f"{100 * relative:.0f} %",
            )
        )
    return rows
