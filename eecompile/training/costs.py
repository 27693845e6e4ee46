"""What a gated network costs, as a formula of what its gates keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eecompile.artifact import read_artifact
from eecompile.cost_table import Cost, CostRow
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.kept_macs import kept_macs
from eecompile.segments import Segment, SegmentGraph

__all__ = ["Prices", "Term", "gate_names", "network_terms", "read_prices"]


@dataclass(frozen=True)
class Term:
    """A part of a network that costs `cost` times the share that each of its gates keeps.

    Attributes:
        cost: as a fraction of the whole ungated network's.
        gates: names of the masks; of channels the share of the groups kept counts.
    """

    cost: float
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prices:
    """What pieces of a network cost, in one unit.

    Attributes:
        segments: by name, nothing left out, gates apart.
        steps: of segments with gates, named as by `CompiledGraph.named_steps`; may be empty.
    """

    segments: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)


def network_terms(segments: SegmentGraph, prices: Prices | None = None) -> tuple[Term, ...]:
    """The terms of a network whose segments are cut where its gates decide.

    A step's price is shared by its multiply-accumulates: those of channels that may be left out,
    and the others. Where the steps of a segment have no prices, its own is shared alike.

    Args:
        segments: with steps.
        prices: of its pieces; None counts multiply-accumulates.

    Returns:
        Terms whose costs sum to 1, and those of the gates beside them.
    """
    if prices is None:
        prices = Prices({segment.name: segment.macs for segment in segments.segments})
    whole = sum(prices.segments[segment.name] for segment in segments.segments)
    found: dict[tuple[str, ...], float] = {}
    for segment in segments.segments:
        for gates, cost in _parts(segment, prices):
            found[gates] = found.get(gates, 0.0) + cost / whole
    return tuple(Term(cost, gates) for gates, cost in found.items() if cost)


def _parts(segment: Segment, prices: Prices) -> Iterator[tuple[tuple[str, ...], float]]:
    """(gates, price) of what a segment consists of."""
    price = prices.segments[segment.name]
    if not segment.steps:
        yield (), price
        return
    named = segment.named_steps()
    known = all(name in prices.steps for name, _ in named)
    per_mac = price / max(segment.macs, 1)
    for name, step in named:
        cost = prices.steps[name] if known else step.macs * per_mac
        layers = (step.keep,) if step.keep else ()
        always, _ = kept_macs(step.graph)
        share = 1 - always / step.macs if step.channels and step.macs else 0.0
        yield layers, cost * (1 - share)
        if share:
            yield (*layers, step.channels), cost * share


def gate_names(terms: Sequence[Term]) -> tuple[str, ...]:
    """All masks that costs depend on, each once, in order of the terms.

    >>> gate_names((Term(0.5), Term(0.3, ("a.keep", "a.channels")), Term(0.2, ("b.keep",))))
    ('a.keep', 'a.channels', 'b.keep')
    """
    return tuple(dict.fromkeys(name for term in terms for name in term.gates))


def read_prices(
    path: Path, quantity: Literal["latency", "energy"], segments: SegmentGraph
) -> Prices:
    """Seconds or joules of a network's pieces, from an artifact of the same network.

    Taken at the clock at which the whole network is fastest. The artifact must have been built of
    the same network with the same exits; where it has gates at the same places, what each step
    takes is known too, and else what segments take.

    Raises:
        CompileErrors: there is no such artifact, it is another network's, or its costs are not
            known.
    """
    artifact = read_artifact(path, must_run=False)
    there = [part.macs for part in artifact.manifest.network.segments]
    here = [part.macs for part in segments.segments]
    if there != here:
        raise _unknown(path, f"It is of another network than the file, or has other exits: {there}")
    table = artifact.costs
    state = None if table is None else table.fastest
    if table is None or state is None:
        raise _unknown(path, "Nothing is known of its latency")
    rows = {row.name: _amount(row.costs[state], quantity) for row in table.segments}
    if None in rows.values():
        raise _unknown(path, f"What {quantity} its segments take is not known")
    steps = {row.name: _amount(row.costs[state], quantity) for row in _same(table.steps, segments)}
    return Prices(
        {name: amount for name, amount in rows.items() if amount is not None},
        {name: amount for name, amount in steps.items() if amount is not None},
    )


def _same(rows: Sequence[CostRow], segments: SegmentGraph) -> list[CostRow]:
    """The rows of steps that compute as much as those of that name here."""
    macs = {
        name: (step.gate, step.macs)
        for segment in segments.segments
        for name, step in segment.named_steps()
    }
    return [
        row
        for row in rows
        if row.name in macs and (macs[row.name][0] or macs[row.name][1] == row.work.macs)
    ]


def _amount(cost: Cost | None, quantity: Literal["latency", "energy"]) -> float | None:
    if cost is None:
        return None
    return cost.latency_s if quantity == "latency" else cost.energy_j


def _unknown(path: Path, message: str) -> CompileErrors:
    help_ = "build the network with these exits first, e.g. with `gate fitted` or without gates"
    return CompileErrors([Diagnostic("unknown-costs", message, help=help_, path=str(path))])
