"""What each piece of a compiled network costs at each clock: the table the scheduler decides by.

It stands in an artifact's ``costs.json``. A cost says where it comes from: ``measured`` or
``modelled``. What is not known is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from eecompile.board import Cluster, DvfsState
from eecompile.checked_json import ObjectReader
from eecompile.cost import Work

__all__ = ["Cost", "CostRow", "CostTable", "Provenance", "together", "total"]

Provenance = Literal["measured", "modelled"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one piece at one clock, for one sample.

    Attributes:
        latency_s: time from call to return.
        energy_j: drawn meanwhile, by the CPUs unless the table's `energy_covers` says more.
        provenance: of the latency.
        energy_provenance: of the energy; None where there is none.
    """

    latency_s: float
    energy_j: float | None = None
    provenance: Provenance = "modelled"
    energy_provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class CostRow:
    """A segment, or an exit's head and comparator together.

    Attributes:
        name: of the segment or exit.
        work: what it computes and moves, whatever the machine.
        costs: one for each of the table's states, in their order; None where nothing is known.
    """

    name: str
    work: Work
    costs: tuple[Cost | None, ...]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of a network's pieces at the clocks of one machine.

    Attributes:
        target: what the code was compiled for.
        board: name of the board whose clocks these are; "host" for this machine.
        device: the processor that was measured; None where nothing was.
        threads: cores that work on an answer.
        governor: that chose the clock while measuring, "eecompile" where it was set for that;
            None where nothing was measured or nothing chooses clocks.
        states: the clocks, clusters in the board's order, each by rising frequency.
        segments, exits: in execution order; one segment more than exits. Of a segment with gates
            all that they may leave out counts, and the gates do not.
        steps: what segments with gates consist of, gates included, in execution order; called as
            `CompiledGraph.named_steps` does.
        transition_latency_s: by cluster; a cluster without one is not known to change clocks.
        migration_latency_s: between clusters, None where not known.
        idle_power_w: while waiting, None where not known.
        energy_covers: in words, what the energies include.
        notes: what the figures rest on, and what is missing, in sentences.
        cpus: by cluster, Linux's numbers of its CPUs; a cluster that is not there has unknown ones.
    """

    target: str
    board: str
    device: str | None
    threads: int
    states: tuple[DvfsState, ...]
    segments: tuple[CostRow, ...]
    exits: tuple[CostRow, ...] = ()
    transition_latency_s: Mapping[str, float] | None = None
    migration_latency_s: float | None = None
    idle_power_w: float | None = None
    energy_covers: str = ""
    notes: tuple[str, ...] = ()
    governor: str | None = None
    cpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: tuple[CostRow, ...] = ()

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """The clusters as a governor wants them: their CPUs and clocks."""
        names = dict.fromkeys(state.cluster for state in self.states)
        return tuple(
            Cluster(
                name,
                "",
                self.cpus.get(name, ()),
                tuple(state for state in self.states if state.cluster == name),
            )
            for name in names
        )

    def full_depth(self, state: int) -> Cost | None:
        """All segments, no exit heads, at the state of that index; None where one is not known."""
        return total([row.costs[state] for row in self.segments])

    @property
    def fastest(self) -> int | None:
        """Index of the state at which the full depth is fastest; None where none is known."""
        known = {
            state: cost.latency_s
            for state in range(len(self.states))
            if (cost := self.full_depth(state)) is not None
        }
        return min(known, key=lambda state: known[state], default=None)

    @property
    def latency_provenance(self) -> Provenance | None:
        """Of all latencies of the full depth taken together."""
        return together(cost.provenance for cost in self._full_depths())

    @property
    def energy_provenance(self) -> Provenance | None:
        """Of all its energies that are known."""
        return together(cost.energy_provenance for cost in self._full_depths())

    def _full_depths(self) -> list[Cost]:
        found = map(self.full_depth, range(len(self.states)))
        return [cost for cost in found if cost is not None]

    def restricted(self, states: Sequence[int]) -> CostTable:
        """The table with these states only, by their indices."""

        def row(found: CostRow) -> CostRow:
            return replace(found, costs=tuple(found.costs[index] for index in states))

        return replace(
            self,
            states=tuple(self.states[index] for index in states),
            segments=tuple(map(row, self.segments)),
            exits=tuple(map(row, self.exits)),
            steps=tuple(map(row, self.steps)),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal table; keys scripts rely on.

        Costs of a row are its `points`, one for each state where something is known.
        """

        def row(found: CostRow) -> dict[str, Any]:
            work = found.work
            return {
                "name": found.name,
                "macs": work.macs,
                "bytes": work.value_bytes + work.weight_bytes,
                "work": work.to_json(),
                "points": _points(self.states, found.costs),
            }

        full = [self.full_depth(state) for state in range(len(self.states))]
        transitions = self.transition_latency_s
        return {
            "target": self.target,
            "board": self.board,
            "device": self.device,
            "threads": self.threads,
            "governor": self.governor,
            "states": [_state_json(state) for state in self.states],
            "segments": [row(found) for found in self.segments],
            "exits": [row(found) for found in self.exits],
            "steps": [row(found) for found in self.steps],
            "full_depth": {
                "macs": sum(found.work.macs for found in self.segments),
                "points": _points(self.states, full),
            },
            "transition_latency_s": None if transitions is None else dict(transitions),
            "migration_latency_s": self.migration_latency_s,
            "idle_power_w": self.idle_power_w,
            "energy_covers": self.energy_covers,
            "notes": list(self.notes),
            "cpus": {name: list(numbers) for name, numbers in self.cpus.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> CostTable:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such table; the message names the place.
        """
        top = ObjectReader(value, "")
        target, board = top.text("target"), top.text("board")
        device = top.maybe("device", top.text)
        threads = top.whole("threads", 1 << 30, 1)
        states = _read_states(top)
        segments = tuple(_read_row(entry, states) for entry in top.objects("segments"))
        exits = tuple(_read_row(entry, states) for entry in top.objects("exits"))
        steps = tuple(_read_row(entry, states) for entry in top.objects("steps"))
        full = top.take("full_depth")
        transitions = top.maybe("transition_latency_s", top.mapping)
        found = cls(
            target,
            board,
            device,
            threads,
            states,
            segments,
            exits,
            None if transitions is None else _read_transitions(transitions),
            top.maybe("migration_latency_s", lambda key: _positive(top, key)),
            top.maybe("idle_power_w", lambda key: _positive(top, key)),
            top.text("energy_covers"),
            top.texts("notes"),
            top.maybe("governor", top.text),
            _read_cpus(top.mapping("cpus")),
            steps,
        )
        top.done()
        if len(segments) != len(exits) + 1:
            top.fail("segments", "one more than `exits`")
        if full != found.to_json()["full_depth"]:
            top.fail("full_depth", "all segments together")
        return found


def _points(states: Sequence[DvfsState], costs: Sequence[Cost | None]) -> list[dict[str, Any]]:
    return [
        {
            "cluster": state.cluster,
            "frequency_hz": state.frequency_hz,
            "voltage_v": state.voltage_v,
            "latency_s": cost.latency_s,
            "energy_j": cost.energy_j,
            "provenance": cost.provenance,
            "energy_provenance": cost.energy_provenance,
        }
        for state, cost in zip(states, costs, strict=True)
        if cost is not None
    ]


def _state_json(state: DvfsState) -> dict[str, Any]:
    return {
        "cluster": state.cluster,
        "frequency_hz": state.frequency_hz,
        "voltage_v": state.voltage_v,
        "core_power_w": state.core_power_w,
    }


def _read_states(top: ObjectReader) -> tuple[DvfsState, ...]:
    found = []
    for entry in top.objects("states", 10_000):
        cluster = entry.text("cluster")
        numbers = ("frequency_hz", "voltage_v", "core_power_w")
        frequency, voltage, power = (_number_or_none(entry, key) for key in numbers)
        entry.done()
        found.append(DvfsState(cluster, frequency, voltage, power))
    if len({(state.cluster, state.frequency_hz) for state in found}) < len(found):
        top.fail("states", "different clocks")
    return tuple(found)


def _read_row(entry: ObjectReader, states: Sequence[DvfsState]) -> CostRow:
    name, macs, nbytes = entry.text("name"), entry.take("macs"), entry.take("bytes")
    work = Work.from_json(entry.object("work"))
    if (macs, nbytes) != (work.macs, work.value_bytes + work.weight_bytes):
        entry.fail("macs", "those of `work`, as must be `bytes`")
    place = {(state.cluster, state.frequency_hz): index for index, state in enumerate(states)}
    costs: list[Cost | None] = [None] * len(states)
    for point in entry.objects("points", len(states)):
        clock = (point.text("cluster"), _number_or_none(point, "frequency_hz"))
        voltage = _number_or_none(point, "voltage_v")
        cost = _read_cost(point)
        point.done()
        index = place.get(clock)
        if index is None or costs[index] is not None or states[index].voltage_v != voltage:
            point.fail("frequency_hz", "one of `states`, with its voltage, each once")
        costs[index] = cost
    entry.done()
    return CostRow(name, work, tuple(costs))


def _read_cost(point: ObjectReader) -> Cost:
    latency, energy = _positive(point, "latency_s"), _number_or_none(point, "energy_j")
    provenance, of_energy = point.take("provenance"), point.take("energy_provenance")
    for key, given in (("provenance", provenance), ("energy_provenance", of_energy)):
        if given not in get_args(Provenance) and (key == "provenance" or given is not None):
            point.fail(key, "`measured` or `modelled`")
    if (energy is None) != (of_energy is None):
        point.fail("energy_provenance", "there exactly where there is `energy_j`")
    return Cost(latency, energy, provenance, of_energy)


def _read_transitions(by_cluster: Mapping[str, Any]) -> dict[str, float]:
    entry = ObjectReader(by_cluster, "transition_latency_s")
    return {name: _positive(entry, name) for name in by_cluster}


def _read_cpus(by_cluster: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    entry = ObjectReader(by_cluster, "cpus")
    found = {}
    for name, numbers in by_cluster.items():
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            entry.fail(name, "a list of numbers of CPUs")
        found[name] = tuple(numbers)
    return found


def _positive(entry: ObjectReader, key: str) -> float:
    found = entry.number(key)
    if found < 0:
        entry.fail(key, "a number from 0")
    return found


def _number_or_none(entry: ObjectReader, key: str) -> float | None:
    return entry.maybe(key, lambda name: _positive(entry, name))


def together(provenances: Iterable[Provenance | None]) -> Provenance | None:
    """Of several figures taken as one: measured only where each is; None where there are none.

    >>> together(["measured", "modelled", None]), together(["measured"]), together([None])
    ('modelled', 'measured', None)
    """
    told = set(provenances) - {None}
    if not told:
        return None
    return "measured" if told == {"measured"} else "modelled"


def total(costs: Sequence[Cost | None]) -> Cost | None:
    """Several pieces one after the other; measured only where each of them is.

    >>> total([Cost(1.0, 2.0, "measured", "modelled"), Cost(2.0)])
    Cost(latency_s=3.0, energy_j=None, provenance='modelled', energy_provenance=None)
    """
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    energies = [cost.energy_j for cost in known if cost.energy_j is not None]
    whole = len(energies) == len(known)
    return Cost(
        sum(cost.latency_s for cost in known),
        sum(energies) if whole else None,
        together(cost.provenance for cost in known) or "measured",
        (together(cost.energy_provenance for cost in known) or "measured") if whole else None,
    )
