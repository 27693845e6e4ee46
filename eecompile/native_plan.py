"""What the native runtime is told of a network: ``plan.bin``, written once and read in one go.

A flat stream of little-endian values, no text format: plan.c reads it from front to back and
believes nothing. The order here is the format; plan.c has the same, and a change raises
`PLAN_VERSION`.

    magic, version, size of the stream, its SHA-256     what follows is whole and unchanged
    name, identity of the code, SHA-256 and size of the weights, threads
    values, inputs, output, classes, labels, outputs, shift
    segments with their steps, exits
    costs, policies, the default one

Texts, and lists of anything, begin with their length (u32). An index that may be missing is
0xFFFFFFFF then; a number that is not known is NaN.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TypeVar

import numpy as np

from eecompile.artifact import Artifact, Contents, PolicyEntry
from eecompile.checked_json import JsonError
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledGraph, CompiledStep, Function
from eecompile.cost_table import CostRow, CostTable
from eecompile.diagnostics import InternalError
from eecompile.halt_rule import HaltRule
from eecompile.memory import border_values, lasting_values, ways_left_out
from eecompile.native_names import code_identity
from eecompile.native_policies import has_native_form, policy_bytes
from eecompile.policies import from_json
from eecompile.segments import SHIFT

__all__ = ["PLAN_VERSION", "plan_agrees", "plan_bytes", "plan_of", "runs_natively"]

PLAN_VERSION = 1
_MAGIC = b"\x89EEP\r\n\x1a\n"
_NONE = 0xFFFFFFFF
_DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool")
_OBJECTIVES = ("lowest_energy", "lowest_latency", "race_to_idle", "fixed", "unchanged")

T = TypeVar("T")


@dataclass
class _Stream:
    """Bytes so far."""

    parts: list[bytes] = field(default_factory=list)

    def put(self, kinds: str, *values: float | bool) -> None:
        """Values of the kinds that `struct` knows: B u8, I u32, q i64, d f64."""
        self.parts.append(struct.pack(f"<{kinds}", *values))

    def text(self, text: str) -> None:
        encoded = text.encode()
        self.put("I", len(encoded))
        self.parts.append(encoded)

    def list(self, values: Iterable[T], one: Callable[[T], None]) -> None:
        values = tuple(values)
        self.put("I", len(values))
        for value in values:
            one(value)

    def index(self, value: int | None) -> None:
        self.put("I", _NONE if value is None else value)

    def numbers(self, values: Iterable[float | None]) -> None:
        found = [nan if value is None else float(value) for value in values]
        self.put(f"{len(found)}d", *found)


@dataclass
class _Writer:
    """Writes the parts of a network that refer to values by their places."""

    network: CompiledGraph
    out: _Stream = field(default_factory=_Stream)

    def __post_init__(self) -> None:
        steps = self.network.steps()
        types = dict(self.network.inputs)
        self.lasting = lasting_values(steps)
        types |= dict(self.lasting.values())
        for step in steps:
            types |= dict(step.function.outputs)
        self.types = types
        self.places = {name: place for place, name in enumerate(types)}
        #: For each exit, the values there that later segments read.
        self.borders = border_values(self.network)[: len(self.network.exits)]

    def place(self, name: str) -> int | None:
        """Of a value; None for no name."""
        return self.places[name] if name else None

    def values(self) -> None:
        out = self.out

        def one(name: str) -> None:
            type_ = self.types[name]
            out.text(name)
            out.put("B", _DTYPES.index(type_.dtype))
            out.list(type_.shape, lambda extent: out.put("I", extent))
            out.put("B", name in self.lasting)

        out.list(self.types, one)

    def call(self, function: Function) -> None:
        out = self.out
        out.text(function.symbol)
        for side in (function.inputs, function.outputs):
            out.list(side, lambda value: out.index(self.places[value[0]]))
        out.put("q", function.macs)

    def segments(self) -> None:
        """Steps with what stands for them where they are left out."""
        out, network = self.out, self.network
        wanted = {name for name, _ in network.segments[-1].outputs}
        wanted.update(name for e in network.exits for f in e.functions for name, _ in f.inputs)
        wanted.update(name for border in self.borders for name in border)
        steps = [step for segment in network.segments for step in segment.steps]
        ways = iter(ways_left_out(steps, wanted))

        def one(step: CompiledStep) -> None:
            way = next(ways)
            self.call(step.function)
            out.put("BB", step.gate, way.is_block)
            for name in (step.keep, step.otherwise, step.channels, way.output):
                out.index(self.place(name))
            out.put("qq", step.groups, step.group_macs)

        out.list(network.segments, lambda segment: out.list(segment.steps, one))

    def exits(self) -> None:
        out = self.out
        for exit_, border in zip(self.network.exits, self.borders, strict=True):
            out.text(exit_.name)
            out.put("B", (exit_.head is not None) + 2 * (exit_.comparator is not None))
            for function in exit_.functions:
                self.call(function)
            out.list(border, lambda name: out.index(self.places[name]))


def plan_bytes(contents: Contents) -> bytes:
    """The plan of what an artifact is written from.

    Raises:
        InternalError: the library has no identity, or a policy no native form.
    """
    network, writer = contents.network, _Writer(contents.network)
    identity = code_identity(contents.library)
    if identity is None:
        raise InternalError("the library has no identity")
    out, blob = writer.out, np.frombuffer(contents.weights, np.uint8)
    out.text(network.name)
    out.parts += [identity, hashlib.sha256(blob.data).digest()]
    out.put("qI", blob.nbytes, contents.target.cores)
    writer.values()

    def normalized(name: str) -> None:
        out.index(writer.places[name])
        how = contents.normalizations.get(name)
        out.put("B", how is not None)
        if how is not None:
            out.put("dI", how.scale, len(how.mean))
            out.numbers((*how.mean, *how.std))

    out.list([name for name, _ in network.inputs], normalized)
    out.index(writer.places[network.output])
    out.put("I", network.classes or 0)
    out.list(contents.labels or (), out.text)
    out.list(network.segments[-1].outputs, lambda value: out.index(writer.places[value[0]]))
    out.index(writer.places.get(SHIFT[0]))
    writer.segments()
    writer.exits()
    _put_costs(out, contents.costs)

    def policy(name: str) -> None:
        out.text(name)
        _put_policy(out, name, contents.policies[name])

    names = list(contents.policies)
    out.list(names, policy)
    default = contents.default_policy
    out.index(None if default is None else names.index(default))
    stream = b"".join(out.parts)
    head = struct.pack("<II", PLAN_VERSION, len(stream))
    return _MAGIC + head + hashlib.sha256(stream).digest() + stream


def plan_of(artifact: Artifact, costs: CostTable | None) -> bytes:
    """The plan that an artifact would have been written with, had these been its costs.

    Raises:
        InternalError: as `plan_bytes`.
    """
    manifest = artifact.manifest
    return plan_bytes(
        Contents(
            version=manifest.version,
            target=manifest.target,
            network=manifest.network,
            library=artifact.library,
            weights=artifact.weights,
            vectors={},
            segments_text="",
            source_text="",
            policies=artifact.policies,
            default_policy=manifest.default_policy,
            costs=costs,
            normalizations=manifest.normalizations,
            labels=manifest.labels,
        )
    )


def plan_agrees(artifact: Artifact) -> bool:
    """Whether its plan says what manifest, policies and costs say; true where there is none.

    Raises:
        CompileErrors: its costs are no cost table.
    """
    try:
        return not artifact.plan or artifact.plan == plan_of(artifact, artifact.costs)
    except InternalError:  # What no build writes has no plan.
        return False


def runs_natively(entry: PolicyEntry) -> bool:
    """Whether the native runtime decides by a policy; session.c refuses the others."""
    try:
        return entry.guard is None and has_native_form(from_json(entry.rule))
    except ValueError:  # of a kind that nobody here knows
        return False


def _put_policy(out: _Stream, name: str, entry: PolicyEntry) -> None:
    try:
        found = None if entry.clock is None else ClockRule.from_json(entry.clock)
        limits = None if entry.halt is None else HaltRule.from_json(entry.halt)
        rule = from_json(entry.rule)
        is_ours = has_native_form(rule)  # Else it runs in Python alone.
        out.put("B", is_ours)
        if is_ours:
            out.parts.append(policy_bytes(rule))
    except (ValueError, JsonError) as error:
        raise InternalError(f"policy {name} has no native form: {error}") from error
    out.put("B", found is not None)
    if found is not None:
        out.put("B", _OBJECTIVES.index(found.objective))
        out.numbers((found.deadline_s, found.frequency_hz))
        out.put("BB", found.safe, found.hard)
        out.index(found.start)
    out.put("B", limits is not None)
    if limits is not None:
        out.numbers((limits.macs, limits.latency_s, limits.energy_j))
    out.put("BB", entry.offload is not None, entry.guard is not None)


def _put_costs(out: _Stream, costs: CostTable | None) -> None:
    if costs is not None and not costs.states:
        costs = None  # of a board without clocks: nothing is known
    out.put("B", costs is not None)
    if costs is None:
        return
    clusters = costs.clusters
    names = [cluster.name for cluster in clusters]
    transitions = dict(costs.transition_latency_s or {})

    def cluster(name: str) -> None:
        out.text(name)
        out.numbers([transitions.get(name)])
        out.list(costs.cpus.get(name, ()), lambda cpu: out.put("I", cpu))

    out.list(names, cluster)

    def state(index: int) -> None:
        out.index(names.index(costs.states[index].cluster))
        out.numbers([costs.states[index].frequency_hz])

    out.list(range(len(costs.states)), state)
    out.put("III", len(costs.segments), len(costs.exits), len(costs.steps))
    rows = (*costs.segments, *costs.exits, *costs.steps)
    out.numbers(_of_rows(rows, "latency_s"))
    out.numbers(_of_rows(rows, "energy_j"))
    out.numbers((costs.migration_latency_s, costs.idle_power_w))


def _of_rows(rows: Sequence[CostRow], quantity: str) -> list[float | None]:
    return [None if cost is None else getattr(cost, quantity) for row in rows for cost in row.costs]
