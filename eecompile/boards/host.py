"""Boards as a running Linux tells of them: cpufreq, the energy model, sensors, the device tree.

Whatever cannot be read, or makes no sense, is left out and said in a note; nothing here fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from eecompile.board import Board, Cluster, DvfsState
from eecompile.boards.core_kinds import kind_named
from eecompile.boards.device_tree import DeviceTree, live_device_tree, read_device_tree
from eecompile.boards.host_processor import core_name
from eecompile.boards.host_sensors import sensors_of
from eecompile.diagnostics import CompileErrors, ToolError
from eecompile.hardware import Machine, machine
from eecompile.runtime.clock_domains import CPUFREQ, cpu_list
from eecompile.runtime.sysfs import SysFiles, matching, number_in, read_number, read_text

__all__ = [
    "board_of",
    "cpus_in_words",
    "device_tree_of",
    "filled",
    "host_board",
    "named",
]

_CPUS = "/sys/devices/system/cpu"
_FDT = "/sys/firmware/fdt"
_MODEL = "/sys/kernel/debug/energy_model"
#: CPUFREQ_ETERNAL of Linux's include/linux/cpufreq.h: the driver does not know.
_ETERNAL = 0xFFFF_FFFF


def host_board(files: SysFiles) -> Board:
    """This machine with the clocks its kernel tells of, and what its device tree adds.

    Where there is no cpufreq it has one cluster "cpu" with one state: the clock /proc/cpuinfo
    tells, or None.
    """
    return board_of(files, machine("host"), live_device_tree(files), [])


def board_of(files: SysFiles, base: Machine, tree: DeviceTree | None, notes: list[str]) -> Board:
    """What the files of a running system tell; code is generated for `base`.

    Args:
        files: the system's.
        base: what is known of its processor.
        tree: its device tree.
        notes: what is missing or left out is appended, a line each.
    """
    clusters = _from_cpufreq(files, notes)
    if clusters:
        if tree is not None:
            told = tree.clusters([])
            clusters = [_with_tree(cluster, told) for cluster in clusters]
        clusters = [_with_energy_model(files, cluster, notes) for cluster in clusters]
    else:
        notes.append(
            "no cpufreq: the kernel does not let clocks be seen or set; one state, the clock now"
        )
        clusters = [_only_clock(files, base)]
    clusters = named([filled(cluster, base) for cluster in clusters])
    sensors, sources = sensors_of(files)
    return Board(
        base.name,
        base,
        tuple(clusters),
        sensors=sensors,
        description=base.description,
        sources=sources,
    )


def _only_clock(files: SysFiles, base: Machine) -> Cluster:
    text = read_text(files, "/proc/cpuinfo") or ""
    clock = re.search(r"^cpu MHz\s*:\s*(\d{1,6}(?:\.\d{1,6})?)\s*$", text, re.MULTILINE)
    hertz = float(round(float(clock[1]) * 1e6)) if clock else 0.0
    cpus = cpu_list(read_text(files, f"{_CPUS}/online") or "") or tuple(range(base.cores))
    sources = {"cpus": f"{_CPUS}/online"}
    if 1e7 <= hertz <= 1e10:
        sources["states"] = "/proc/cpuinfo, cpu MHz"
    state = DvfsState("", hertz if "states" in sources else None)
    return Cluster("", core_name(files, cpus), cpus, (state,), sources=sources)


def _from_cpufreq(files: SysFiles, notes: list[str]) -> list[Cluster]:
    """One cluster a policy, without names; policies of one CPU each that are alike are joined."""
    found: list[Cluster] = []
    for policy in matching(files, CPUFREQ, "policy"):
        cluster = _policy(files, policy, notes)
        if cluster is None:
            continue
        if any(set(cluster.cpus) & set(other.cpus) for other in found):
            notes.append(f"{policy}: its CPUs are in another policy already; left out")
        else:
            found.append(cluster)
    joined: list[Cluster] = []
    for cluster in found:
        alike = next((i for i, other in enumerate(joined) if _alike(cluster, other)), None)
        if alike is None:
            joined.append(cluster)
        else:
            cpus = tuple(sorted({*joined[alike].cpus, *cluster.cpus}))
            joined[alike] = replace(joined[alike], cpus=cpus)
    single = {cluster.cpus for cluster in found}
    for cluster in joined:
        if cluster.cpus not in single:
            notes.append(
                f"CPUs {cpus_in_words(cluster.cpus)}: each has a clock of its own; one cluster here"
            )
    return joined


def _alike(cluster: Cluster, other: Cluster) -> bool:
    """Whether two policies of single CPUs have the same clocks, as on x86."""
    owner = "related_cpus of one CPU each"
    same = (cluster.core, cluster.states, cluster.transition_latency_s)
    return (
        cluster.sources["cpus"].endswith(owner)
        and other.sources["cpus"].endswith(owner)
        and same == (other.core, other.states, other.transition_latency_s)
    )


def _policy(files: SysFiles, path: str, notes: list[str]) -> Cluster | None:
    cpus = cpu_list(read_text(files, f"{path}/related_cpus") or "")
    if not cpus or max(cpus) > 4095:
        notes.append(f"{path}: no CPUs can be read from related_cpus; left out")
        return None
    clocks, source = _clocks(files, path)
    if not clocks:
        notes.append(f"{path}: no clock that makes sense; left out")
        return None
    if "cpuinfo" in source:
        notes.append(f"{path}: the driver lists no clocks; only lowest and highest are known")
    boosts = _hertz((read_text(files, f"{path}/scaling_boost_frequencies") or "").split())
    if boosts := [clock for clock in boosts if clock not in clocks]:
        told = ", ".join(f"{clock / 1e6:g}" for clock in boosts)
        notes.append(f"{path}: {told} MHz left out, for short boosts only")
    alone = " of one CPU each" if len(cpus) == 1 else ""
    sources = {
        "cpus": f"{CPUFREQ}/policy*/related_cpus{alone}" if alone else f"{path}/related_cpus",
        "states": source,
    }
    latency = read_number(files, f"{path}/cpuinfo_transition_latency")
    seconds = None
    if latency is not None and 0 < latency <= 10**9 and latency != _ETERNAL:
        seconds = latency / 1e9
        sources["transition_latency_s"] = f"{path}/cpuinfo_transition_latency"
    else:
        notes.append(f"{path}: the driver does not know how long a change of clock takes")
    states = tuple(DvfsState("", clock) for clock in clocks)
    return Cluster(
        "", core_name(files, cpus), cpus, states, transition_latency_s=seconds, sources=sources
    )


def _clocks(files: SysFiles, path: str) -> tuple[list[float], str]:
    """Clocks in Hz by rising frequency, and where they were read."""
    listed = f"{path}/scaling_available_frequencies"
    table = _hertz((read_text(files, listed) or "").split())
    if table:
        return table, listed
    ends = [read_text(files, f"{path}/cpuinfo_{end}_freq") or "" for end in ("min", "max")]
    return _hertz(ends), f"{path}/cpuinfo_min_freq and cpuinfo_max_freq: the ends only"


def _hertz(texts: Iterable[str]) -> list[float]:
    clocks = {khz * 1e3 for text in texts if (khz := number_in(text)) is not None}
    return sorted(clock for clock in clocks if 1e7 <= clock <= 1e10)


def device_tree_of(files: SysFiles, notes: list[str]) -> DeviceTree | None:
    """The running system's device tree; None where there is none or it cannot be read."""
    if (live := live_device_tree(files)) is not None and live.cpus:
        return live
    try:
        blob = files.read_bytes(_FDT)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(
            f"{_FDT}: {error.strerror or error}; voltages may stand there: read it as root, "
            "`sudo cp /sys/firmware/fdt board.dtb`, then `targets import --dtb board.dtb`"
        )
        return None
    try:
        return read_device_tree(blob, _FDT)
    except CompileErrors as errors:
        notes.append(errors.diagnostics[0].message)
    except ToolError as error:
        notes.append(f"{_FDT} was not read: {error}")
    return None


def _with_tree(cluster: Cluster, told: Sequence[Cluster]) -> Cluster:
    """A cluster of cpufreq with what the device tree says of the same CPUs."""
    from_tree = next((other for other in told if set(cluster.cpus) <= set(other.cpus)), None)
    if from_tree is None:
        return cluster
    sources = dict(cluster.sources)
    voltages = {state.frequency_hz: state.voltage_v for state in from_tree.states}
    states = cluster.states
    if all(voltages.get(state.frequency_hz) is not None for state in states):
        states = tuple(replace(state, voltage_v=voltages[state.frequency_hz]) for state in states)
        sources["states"] += f"; voltages: {from_tree.sources['states']}"
    given: dict[str, Any] = {}
    for key, name in (
        ("capacitance_f", "dynamic_power_coefficient"),
        ("transition_latency_s", "transition_latency_s"),
        ("l2_bytes", "l2_bytes"),
    ):
        if name in from_tree.sources and name not in sources:
            given[key] = getattr(from_tree, key)
            sources[name] = from_tree.sources[name]
    core = cluster.core or from_tree.core
    return replace(cluster, core=core, states=states, sources=sources, **given)


def _with_energy_model(files: SysFiles, cluster: Cluster, notes: list[str]) -> Cluster:
    """A cluster with the powers of Linux's energy model, where it may be read and has watts."""
    domain = f"{_MODEL}/cpu{cluster.cpus[0]}"
    unit = _unit(files, domain)
    try:
        rows = [name for name in files.names(domain) if name.startswith("ps:")]
    except FileNotFoundError:
        return cluster
    except OSError as error:
        notes.append(f"{domain}: {error.strerror or error}; powers may stand there for root")
        return cluster
    if unit is None:
        notes.append(f"{domain}: its powers are on a scale of their own, no watts; left out")
        return cluster
    powers: dict[float, float] = {}
    for row in rows:
        khz, power = (read_number(files, f"{domain}/{row}/{key}") for key in ("frequency", "power"))
        if khz is not None and power is not None:
            powers[khz * 1e3] = power * unit
    watts = [powers.get(state.frequency_hz or 0.0, 0.0) for state in cluster.states]
    if watts != sorted(watts) or not 0 < watts[0] <= watts[-1] <= 1000:
        notes.append(f"{domain}: its powers are not for the clocks of cpufreq, or fall; left out")
        return cluster
    states = tuple(
        replace(state, core_power_w=watt) for state, watt in zip(cluster.states, watts, strict=True)
    )
    sources = {**cluster.sources, "core_power_w": f"{domain}/ps:*/power"}
    return replace(cluster, states=states, sources=sources)


def _unit(files: SysFiles, domain: str) -> float | None:
    """Watts of one unit of a domain's powers; None where they are on an abstract scale.

    Source: kernel/power/energy_model.c. Linux 5.11 to 5.15 tell "units"; then "flags", whose
    lowest bit says that powers are watts: milliwatts before 6.0, microwatts since.
    """
    units = {"milliWatts": 1e-3, "microWatts": 1e-6}
    told = read_text(files, f"{domain}/units")
    if told is not None:
        return units.get(told)
    flags = read_text(files, f"{domain}/flags") or ""
    if not re.fullmatch(r"0x[0-9a-f]{1,16}", flags) or not int(flags, 16) & 1:
        return None
    release = re.match(r"(\d{1,3})\.", read_text(files, "/proc/sys/kernel/osrelease") or "")
    if release is None:
        return None
    return 1e-6 if int(release[1]) >= 6 else 1e-3


def filled(cluster: Cluster, base: Machine) -> Cluster:
    """A cluster with what its kind of core computes with, or else what `base` does."""
    sources = dict(cluster.sources)
    given: dict[str, Any] = {}
    kind = kind_named(cluster.core)
    if kind and kind.fma_per_cycle and "fma_per_cycle" not in sources:
        given["fma_per_cycle"] = kind.fma_per_cycle
        sources["fma_per_cycle"] = kind.source
    for key in ("lanes", "fma_per_cycle", "l2_bytes"):
        if key not in sources:
            given[key] = getattr(base, key)
            sources[key] = f"as [machine]: {base.sources.get(key, 'detected')}"
    return replace(cluster, sources=sources, **given)


def named(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Clusters with names, the fastest first.

    One is "cpu"; two kinds are "big" and "little", three "big", "mid", "little"; clusters of one
    kind are numbered.

    >>> fast, slow = (Cluster("", "", (i,), (DvfsState("", hz),)) for i, hz in ((1, 2e9), (0, 1e9)))
    >>> [(c.name, c.cpus, c.states[0].cluster) for c in named([slow, fast])]
    [('big', (1,), 'big'), ('little', (0,), 'little')]
    """

    def speed(cluster: Cluster) -> float:
        clock = cluster.states[-1].frequency_hz if cluster.states else None
        return -cluster.lanes * cluster.fma_per_cycle * (clock or 0.0)

    ordered = sorted(clusters, key=lambda cluster: (speed(cluster), cluster.cpus))
    kinds = [list(group) for _, group in groupby(ordered, lambda c: (c.core, speed(c)))]
    names = {1: ("cpu",), 2: ("big", "little"), 3: ("big", "mid", "little")}.get(len(kinds))
    found = []
    for index, kind in enumerate(kinds):
        for number, cluster in enumerate(kind):
            name = names[index] if names else f"kind{index}-"
            name += str(number) if len(kind) > 1 else "" if names else "0"
            states = tuple(replace(state, cluster=name) for state in cluster.states)
            found.append(replace(cluster, name=name, states=states))
    return found


def cpus_in_words(cpus: Sequence[int]) -> str:
    """CPU numbers as Linux writes them.

    >>> cpus_in_words((0, 1, 2, 5))
    '0-2,5'
    """
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
