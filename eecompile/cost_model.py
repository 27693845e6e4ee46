"""What a piece of a network takes at clocks and on boards where nothing was measured.

    seconds = cycles / clock + bytes beyond the last cache / memory bandwidth

The first part scales with the clock, the second does not. Cycles are a sum of what the piece has
to do (`eecompile.cost.Work`), each kind in units of what the core can do in a cycle, times
coefficients fitted on measured kernels. Energy is that of the busy cores: their power at the clock,
as the board's file has it, times the time. Where a piece was measured, `eecompile.cost_merging`
scales or replaces what is modelled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eecompile.board import Board, Cluster, DvfsState
from eecompile.compiled import CompiledGraph, Function, FunctionLike
from eecompile.cost import WIDE_BYTES, Work
from eecompile.cost_table import Cost, CostRow, CostTable, total

__all__ = [
    "COEFFICIENTS",
    "FEATURES",
    "CostModel",
    "features",
    "function_costs",
    "model_table",
]

#: What cycles are a sum of, in words.
FEATURES = (
    "arithmetic",
    "divisions",
    "loads and stores",
    "cache lines of values",
    "cache lines of weights",
    "kernels",
)

#: Cycles of each of them.
#: Source: benchmarks/cost_model.py on one core of an AMD EPYC (family 25 model 17, 3.68 GHz,
#: November 2026): 460 pieces of twelve networks, each with vectors of 4, 8 and 16 float32, as if
#: three machines; arithmetic is held at 1 or more, and cache lines from the third cache, 3.4 cycles
#: each, stand for memory and are left out. Full depth of the ten networks of 500,000 cycles and
#: more is foretold with a mean error of 9.3 % (31 % at most) by a fit without the network, of
#: 10.6 % (35 % at most) by one without the machine; pieces of them with 14 and 15 %. Smaller
#: networks take up to 2.5 times less than foretold. No ARM core was measured.
COEFFICIENTS = (1.0, 1.40, 0.170, 0.0, 1.03, 999.0)

_LINE_BYTES = 64


def features(work: Work, fma_per_cycle: float, loads_per_cycle: float) -> tuple[float, ...]:
    """Cycles of a core that does one kind of work at a time and never waits, by kind.

    The kinds are `FEATURES`; divisions, cache lines and kernels count as one cycle each.

    >>> features(Work(operations=16, accesses=8, value_bytes=128, kernels=3), 2.0, 1.0)
    (8.0, 0.0, 8.0, 2.0, 0.0, 3.0)
    """
    return (
        work.operations / fma_per_cycle,
        float(work.divisions),
        work.accesses / loads_per_cycle,
        work.value_bytes / _LINE_BYTES,
        work.weight_bytes / _LINE_BYTES,
        float(work.kernels),
    )


@dataclass(frozen=True)
class CostModel:
    """Of one core of a cluster.

    Attributes:
        cluster: the cores.
        memory_bandwidth: bytes a second that one core gets from memory; None where not known, and
            then the time for that is left out.
        coefficients: cycles of each of `FEATURES`.
    """

    cluster: Cluster
    memory_bandwidth: float | None = None
    coefficients: tuple[float, ...] = COEFFICIENTS

    @classmethod
    def of(cls, board: Board, cluster: Cluster) -> CostModel:
        """The model of a cluster of a board, with the coefficients shipped."""
        return cls(cluster, board.memory_bandwidth)

    def cycles(self, work: Work) -> float:
        """Of one core that has all it reads in its caches.

        Instructions that were counted in vectors of another width are taken for as many more, or
        fewer: near for wide loops, while schedules and choices are those of the other machine.
        """
        # ARM's cores load as many vectors in a cycle as they multiply; nothing else is known.
        rate = self.cluster.fma_per_cycle
        widths = work.lanes / self.cluster.lanes
        work = replace(
            work,
            operations=round(work.operations * widths),
            divisions=round(work.divisions * widths),
            accesses=round(work.accesses * widths),
        )
        found = features(work, rate, rate)
        return sum(a * b for a, b in zip(self.coefficients, found, strict=True))

    def memory_bytes(self, work: Work, network: Work) -> float:
        """What comes from or goes to memory, because the last cache does not hold it.

        Of the network's weights, what is more than the cache is read anew for every sample, each
        piece's in proportion. Values of a kernel that touches more of them than the cache holds
        all count; sizes in between those of `WIDE_BYTES` are taken for the next larger one.
        """
        cache = self.cluster.l2_bytes
        weights = network.weight_bytes
        missed = max(0.0, 1 - cache / weights) if weights else 0.0
        wide = (
            nbytes
            for size, nbytes in zip(WIDE_BYTES, work.wide_bytes, strict=True)
            if size >= cache
        )
        return missed * work.weight_bytes + next(wide, 0)

    def latency_s(self, work: Work, network: Work, frequency_hz: float, cores: int = 1) -> float:
        """Of one sample; `cores` share the cycles equally, memory is no faster for several."""
        bandwidth = self.memory_bandwidth
        memory_s = self.memory_bytes(work, network) / bandwidth if bandwidth else 0.0
        return self.cycles(work) / cores / frequency_hz + memory_s


def model_table(network: CompiledGraph, board: Board, threads: int, target: str) -> CostTable:
    """Every piece of a compiled network at every clock of a board, all of it modelled.

    Args:
        network: the pieces; their work is all that is looked at.
        board: whose clocks.
        threads: that share an answer, each on a core of its own.
        target: what the code was compiled for.
    """
    whole = sum((part.work for part in network.segments), Work())

    def row(name: str, work: Work, functions: Sequence[Function]) -> CostRow:
        return CostRow(name, work, costs(functions))

    def costs(functions: Sequence[Function]) -> tuple[Cost | None, ...]:
        each = [function_costs(function, whole, board, threads) for function in functions]
        return tuple(total(of_state) for of_state in zip(*each, strict=True))

    transitions = {
        cluster.name: cluster.transition_latency_s
        for cluster in board.clusters
        if cluster.transition_latency_s is not None
    }
    return CostTable(
        target,
        board.name,
        None,
        threads,
        board.states,
        tuple(row(name, part.work, part.backbone) for name, part in network.named_segments()),
        tuple(row(exit_.name, exit_.work, exit_.functions) for exit_ in network.exits),
        transitions or None,
        board.migration_latency_s,
        board.idle_power_w,
        _COVERS if any(_power(board, state) is not None for state in board.states) else "",
        tuple(_notes(network, board, threads, whole)),
        cpus={cluster.name: cluster.cpus for cluster in board.clusters if cluster.cpus},
        steps=tuple(row(name, f.work, (f,)) for name, f in network.named_steps()),
    )


def function_costs(
    function: FunctionLike, network: Work, board: Board, threads: int
) -> tuple[Cost | None, ...]:
    """One function at every clock of a board, as part of a network with that work in all."""
    return tuple(
        _cost(CostModel.of(board, board.cluster(state.cluster)), function, network, state, threads)
        for state in board.states
    )


_COVERS = "the cores that work, without caches, memory and what else the board draws"


def _cost(
    model: CostModel, function: FunctionLike, network: Work, state: DvfsState, threads: int
) -> Cost | None:
    if state.frequency_hz is None:
        return None
    cores = _cores(model.cluster, threads)
    sharing = min(cores, function.threads)
    latency_s = model.latency_s(function.work, network, state.frequency_hz, sharing)
    power_w = model.cluster.core_power_w(state)
    if power_w is None:
        return Cost(latency_s)
    # Threads with nothing to do wait for the others spinning, at full power.
    return Cost(latency_s, cores * power_w * latency_s, energy_provenance="modelled")


def _cores(cluster: Cluster, threads: int) -> int:
    return min(threads, len(cluster.cpus) or threads)


def _power(board: Board, state: DvfsState) -> float | None:
    return board.cluster(state.cluster).core_power_w(state)


def _notes(network: CompiledGraph, board: Board, threads: int, whole: Work) -> list[str]:
    """What the figures rest on and what is missing."""
    if not board.clusters:
        return [f"nothing is modelled: the board file of {board.name} gives no clocks"]
    notes = [
        "latencies that are modelled: cycles of the kernels' work, with coefficients fitted on "
        "x86-64 cores, over the clock"
    ]
    far = max(CostModel.of(board, c).memory_bytes(whole, whole) for c in board.clusters)
    if far and board.memory_bandwidth is None:
        notes.append(
            f"time for {far / 1e6:.1f} MB a sample from memory is left out: no source gives "
            f"the bandwidth of {board.name}"
        )
    elif far:
        notes.append(f"up to {far / 1e6:.1f} MB a sample come from memory at any clock")
    if any(state.frequency_hz is None for state in board.states):
        notes.append("nothing is modelled for clocks that the machine does not tell")
    for cluster in board.clusters:
        notes += _power_notes(cluster)
    if threads > 1:
        notes.append(
            f"{threads} threads are modelled as sharing all cycles of a function equally, as far "
            "as any of its kernels can be shared: their real speed-up is lower"
        )
        few = [c.name for c in board.clusters if _cores(c, threads) < threads]
        if few:
            notes.append(f"fewer cores than threads in {', '.join(few)}: one thread each counts")
    return notes


def _power_notes(cluster: Cluster) -> list[str]:
    without = [state for state in cluster.states if cluster.core_power_w(state) is None]
    where = f"of the cluster {cluster.name}"
    if not without:
        direct = any(state.core_power_w is not None for state in cluster.states)
        if cluster.static_power_w is None and not direct:
            return [f"energies {where} are without static power: no source gives it"]
        return []
    missing = []
    if cluster.capacitance_f is None:
        missing.append("the dynamic power coefficient")
    if any(state.voltage_v is None for state in without):
        missing.append("voltages")
    return [f"no energies {where}: no source gives {' and '.join(missing or ['the clocks'])}"]
