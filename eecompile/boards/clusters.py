"""The clusters of a board file, each checked by itself and all of them against each other."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from eecompile.board import Cluster, DvfsState
from eecompile.boards.entries import Quantity, Reader
from eecompile.hardware import Machine

__all__ = ["CLUSTER_NUMBERS", "read_clusters"]

#: What a cluster may say in single numbers.
CLUSTER_NUMBERS = {
    "dynamic_power_coefficient": Quantity("uW/MHz/V^2", 1, 100_000),
    "static_power_w": Quantity("W", 0, 100, hint="watts, not milliwatts"),
    "transition_latency_s": Quantity("s", 0, 1, above=True, hint="seconds, not nanoseconds"),
    "lanes": Quantity("float32 values", 1, 64, whole=True),
    "fma_per_cycle": Quantity("per cycle", 0.125, 8),
    "l2_bytes": Quantity("bytes", 1024, 2**30, whole=True),
}
_CPU = Quantity("", 0, 4095, whole=True)
_CLOCK = Quantity(
    "Hz", 1e7, 1e10, hint="clocks are in Hz; Linux tells kHz: 1500000 there is 1.5e9 here"
)
_VOLTAGE = Quantity("V", 0.3, 3, hint="volts, where device trees have microvolts: 0.95")
_POWER = Quantity("W", 0, 1000, above=True, hint="watts, not milliwatts or microwatts")


def read_clusters(
    top: Reader, readers: list[Reader], machine: Machine | None
) -> list[Cluster | None]:
    """The clusters of a file; None for each that something is wrong with.

    Args:
        top: the whole file.
        readers: its ``[[cluster]]`` tables.
        machine: its ``[machine]``, whose numbers stand for those a cluster does not give.
    """
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
    reader.lanes(read["lanes"])
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
