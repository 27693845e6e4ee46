"""Boards: their clusters of CPUs, the clocks and voltages those can run at, and what they draw.

A board is one file of `targets/boards/`: ``[machine]`` says how code is generated (see
`eecompile.hardware`), ``[[cluster]]`` and ``[board]`` what running it costs. Every number there is
``{ value = ..., source = "..." }``. What no source gives is left out of the file and None here;
costs that would need it are left out in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eecompile.hardware import Machine

__all__ = ["Board", "Cluster", "DvfsState", "Sensor"]


@dataclass(frozen=True, slots=True)
class DvfsState:
    """One clock of one cluster, which its CPUs share.

    Attributes:
        cluster: the cluster's name.
        frequency_hz: its clock; None on a machine that does not tell.
        voltage_v: its supply at that clock; None where no source says.
        core_power_w: what one busy core draws there, where a source gives it directly; it then
            stands for capacitance x voltage^2 x frequency and the static power.
    """

    cluster: str
    frequency_hz: float | None
    voltage_v: float | None = None
    core_power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """CPUs of one kind that share a clock.

    Attributes:
        name: "big", "little", "cpu", ...
        core: the cores' name as LLVM has it ("cortex-a72"); empty where unknown.
        cpus: numbers of its CPUs in Linux.
        states: by rising frequency; at least one.
        capacitance_f: effective switched capacitance of one busy core in farad, so that it draws
            ``capacitance_f * voltage_v**2 * frequency_hz`` watts. One unit of the device tree's
            ``dynamic-power-coefficient`` (uW / MHz / V^2) is 1e-12.
        static_power_w: what one core draws besides, whatever it does.
        transition_latency_s: from asking for another clock to running at it.
        lanes: float32 elements of one vector register.
        fma_per_cycle: vector multiply-accumulates a core starts in a cycle.
        l2_bytes: last cache before memory as seen by one core.
        sources: where each number comes from.
    """

    name: str
    core: str
    cpus: tuple[int, ...]
    states: tuple[DvfsState, ...]
    capacitance_f: float | None = None
    static_power_w: float | None = None
    transition_latency_s: float | None = None
    lanes: int = 4
    fma_per_cycle: float = 1.0
    l2_bytes: int = 512 * 1024
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def core_power_w(self, state: DvfsState) -> float | None:
        """What one busy core draws at a state; None where the board file does not say enough.

        Source: the dynamic power of CMOS, as Linux's energy model has it
        (Documentation/power/energy-model.rst): P = C V^2 f.

        >>> state = DvfsState("cpu", 1e9, 1.0)
        >>> Cluster("cpu", "", (0,), (state,), capacitance_f=400e-12).core_power_w(state)
        0.4
        """
        if state.core_power_w is not None:
            return state.core_power_w
        if None in (self.capacitance_f, state.voltage_v, state.frequency_hz):
            return None
        assert self.capacitance_f is not None, "looked at above"
        assert state.voltage_v is not None and state.frequency_hz is not None, "likewise"
        dynamic = self.capacitance_f * state.voltage_v**2 * state.frequency_hz
        return dynamic + (self.static_power_w or 0.0)


@dataclass(frozen=True, slots=True)
class Sensor:
    """Where a board tells what it draws.

    Attributes:
        kind: "rapl", "hwmon" or "ina3221".
        name: the device's name in sysfs.
        label: the channel ("VDD_CPU"); empty for the only one.
        covers: in words, what the reading includes.
    """

    kind: str
    name: str
    label: str = ""
    covers: str = ""

    @property
    def key(self) -> str:
        """Of its source among a board's.

        >>> Sensor("ina3221", "ina3221", "VDD_CPU").key, Sensor("rapl", "package-0").key
        ('sensor ina3221 VDD_CPU', 'sensor package-0')
        """
        return f"sensor {self.name} {self.label}".rstrip()


@dataclass(frozen=True, slots=True)
class Board:
    """A machine with what running on it costs.

    Attributes:
        name: the board file's name.
        machine: what code is generated for.
        clusters: those code can run on, the fastest first; empty where no clocks are known, and
            then nothing can be modelled.
        memory_bandwidth: bytes per second one core gets from memory.
        idle_power_w: what the CPUs draw while they wait for the next input.
        migration_latency_s: to move a thread to another cluster, cold caches included. None: a
            sample stays on the cluster it began on.
        sensors: meters the board has.
        sources: where each number comes from.
    """

    name: str
    machine: Machine
    clusters: tuple[Cluster, ...] = ()
    memory_bandwidth: float | None = None
    idle_power_w: float | None = None
    migration_latency_s: float | None = None
    sensors: tuple[Sensor, ...] = ()
    description: str = ""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    @property
    def states(self) -> tuple[DvfsState, ...]:
        """Every clock of every cluster, clusters in order, each by rising frequency."""
        return tuple(state for cluster in self.clusters for state in cluster.states)

    def cluster(self, name: str) -> Cluster:
        """The cluster of that name.

        Raises:
            KeyError: there is none.
        """
        return {cluster.name: cluster for cluster in self.clusters}[name]
