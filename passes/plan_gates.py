"""Resolving what a `.ee` file says about gates to places of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from eecompile.cost import graph_macs
from eecompile.diagnostics import Diagnostics, did_you_mean_help
from eecompile.gates.graphs import gate_macs
from eecompile.gates.kinds import KINDS, GateKind
from eecompile.gates.places import ChannelPlace, Found, LayerBlock
from eecompile.gates.plan import Gate, GatePlan
from eecompile.ir import Graph
from eecompile.passes.find_blocks import channel_places, layer_blocks
from eecompile.passes.host import HostGraph, Point
from eecompile.passes.resolve_points import match_points
from eecompile.spec import Model, Skip, matching

__all__ = ["LANES", "plan_gates"]

#: Elements of the vectors that groups of channels are made for where nothing is said.
LANES = 8
_SHOWN = 6
_P = TypeVar("_P", bound=LayerBlock | ChannelPlace)


def plan_gates(model: Model, host: HostGraph, found: Diagnostics, lanes: int = LANES) -> GatePlan:
    """The gates that a model asks for, in the order in which they run.

    1. A pattern stands for the blocks, or convolutions, whose names or aliases it matches; what it
       matches beside them and cannot be gated is passed over, and told of in the plan.
    2. A recurrent gate of channels inside a block with a layer gate reads what the block reads, so
       that it can run in front of it. The first such of a block whose layer gate is recurrent is
       one gate with it.
    3. `groups` that are not given, or ``auto``, are as many as leave each a vector's width.

    Args:
        model: as in the file.
        host: its network, without gates.
        found: takes a diagnostic for every pattern that matches no place, every place that two
            statements name, blocks that lie within each other, and groups that do not divide the
            channels. What they are about is left out of the plan.
        lanes: vector's width that groups are made for where nothing is said.
    """
    graph, points = host.graph(), host.points()
    layers = _Chosen("layers", layer_blocks(graph, points), points, found)
    channels = _Chosen("channels", channel_places(graph, points), points, found)
    for skip in model.skips:
        (layers if skip.what == "layers" else channels).take(skip)
    kinds = _kinds(model.skips)
    _check_nested(layers, found)
    drafts = _drafts(graph, layers, channels, kinds, found, lanes)
    gates = _with_states(drafts)
    gates = [replace(gate, macs=gate_macs(gate)) for gate in gates]
    passed = layers.passed_over | channels.passed_over
    answer = next(iter(host.outputs().values()))
    return GatePlan(tuple(gates), graph_macs(graph.pruned((answer,))), passed)


@dataclass
class _Chosen(Generic[_P]):
    """Places of one sort, and the statements that gate them."""

    what: str
    found: Found[_P]
    points: Mapping[str, Point]
    errors: Diagnostics
    by: dict[str, tuple[Any, Skip]] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)

    def take(self, skip: Skip) -> None:
        """Notes what a statement gates."""
        names: dict[str, list[_P]] = {}
        for place in self.found.places:
            for name in (place.name, *place.aliases):
                names.setdefault(name, []).append(place)
        matched = matching(skip.point, names)
        chosen: dict[str, _P] = {p.name: p for name in matched for p in names[name]}
        refused = {
            name: self.found.refused[name] for name in matching(skip.point, self.found.refused)
        }
        if not chosen:
            self._tell(skip, refused, list(names))
            return
        self.passed_over.update(refused)
        for name, place in chosen.items():
            if name not in self.by:
                self.by[name] = (place, skip)
                continue
            there = self.by[name][1].at("point")
            self.errors.error(
                "duplicate-point",
                f"Two gates for {self.what} stand at `{name}`",
                skip.at("point"),
                "gated a second time",
                secondary=((there, "first here"),) if there else (),
                help="let one of the patterns leave it out",
            )

    def _tell(self, skip: Skip, refused: Mapping[str, str], known: list[str]) -> None:
        """Why a pattern matches nothing that can be gated."""
        block = "block that can be left out" if self.what == "layers" else "convolution"
        if not refused:
            why = (
                "no sum joins it with what it reads"
                if self.what == "layers"
                else "it is no convolution"
            )
            refused = {point.name: why for point in match_points(skip.point, self.points)}
        if refused:
            self.errors.error(
                "not-skippable",
                f"`{skip.point}` matches no {block}",
                skip.at("point"),
                "nothing it matches can be gated",
                notes=_reasons(refused),
                help=_known_help(known, self.found.places, self.what),
            )
            return
        self.errors.error(
            "unknown-point",
            f"No {block} matches `{skip.point}`",
            skip.at("point"),
            "nothing in the network has such a name",
            help=did_you_mean_help(skip.point, known)
            or _known_help(known, self.found.places, self.what),
        )


def _reasons(refused: Mapping[str, str]) -> tuple[str, ...]:
    """Each reason once, with all that it is the reason for.

    >>> _reasons({"a": "too small", "b": "an output", "c": "too small"})
    ('`a`, `c`: too small', '`b`: an output')
    """
    names: dict[str, list[str]] = {}
    for name, reason in refused.items():
        names.setdefault(reason, []).append(f"`{name}`")
    return tuple(f"{', '.join(named)}: {reason}" for reason, named in names.items())


def _known_help(known: list[str], places: Iterable[Any], what: str) -> str:
    names = [f"`{place.name}`" for place in places]
    if not names:
        return f"the network has no {what} that gates could leave out"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"what can be gated: {', '.join(names[:_SHOWN])}{more}"


def _kinds(skips: Iterable[Skip]) -> dict[int, GateKind]:
    """Statement (by its identity) -> its gates' kind; recurrent ones agree on what they share."""
    skips = list(skips)
    shared: dict[str, Any] = {}
    for skip in skips:
        if skip.gate.kind == "recurrent":
            shared |= {k: v for k, v in skip.gate.options.items() if k != "groups"}
    found = {}
    for skip in skips:
        options = {k: v for k, v in skip.gate.options.items() if k != "groups"}
        if skip.gate.kind == "recurrent":
            options = shared
        found[id(skip)] = KINDS[skip.gate.kind](**options)
    return found


def _check_nested(layers: _Chosen[LayerBlock], found: Diagnostics) -> None:
    """Refuses a block that lies within another gated one."""
    owner: dict[str, str] = {}
    for name, (block, skip) in sorted(layers.by.items(), key=lambda e: -len(e[1][0].ops)):
        outer = {owner[op] for op in block.ops if op in owner}
        if outer:
            found.error(
                "duplicate-point",
                f"Block `{name}` lies within `{min(outer)}`, which has a gate too",
                skip.at("point"),
                help="gate the one or the other",
            )
            del layers.by[name]
            continue
        owner.update((op, name) for op in block.ops)


def _drafts(
    graph: Graph,
    layers: _Chosen[LayerBlock],
    channels: _Chosen[ChannelPlace],
    kinds: Mapping[int, GateKind],
    found: Diagnostics,
    lanes: int,
) -> list[Gate]:
    """The gates in order, their states not yet connected."""
    position = {value: -1 for value in graph.inputs}
    position |= {out: i for i, op in enumerate(graph.ops) for out in op.outputs}
    drafts: dict[str, Gate] = {}
    owner: dict[str, str] = {}
    for name, (block, skip) in layers.by.items():
        kind = kinds[id(skip)]
        axis = _channel_axis(graph, block)
        drafts[name] = Gate(name, kind, block.entry, block.type, axis, block)
        owner.update((op, name) for op in block.ops)
    for name, (place, skip) in channels.by.items():
        kind, groups = kinds[id(skip)], _groups(place, skip, lanes, found)
        if not groups or not _fits(kind, place, skip, found):
            continue
        outer = drafts.get(owner.get(place.op, ""))
        if outer is not None and outer.block is not None and kind.stateful:
            if outer.kind.stateful and not outer.groups:
                drafts[outer.name] = replace(outer, place=place, groups=groups)
                continue
            feature, type_, axis = outer.feature, outer.type, outer.axis
        else:
            feature, type_, axis = place.entry, place.type, 1
        own = f"{name}_channels" if name in drafts else name
        within = outer.name if outer is not None else ""
        drafts[own] = Gate(own, kind, feature, type_, axis, None, place, groups, within=within)

    def order(gate: Gate) -> tuple[int, int, bool, int]:
        """Gates in a block follow its own, before those of another block that reads the same."""
        decided = gate.block.result if gate.block else gate.place.value if gate.place else ""
        around = drafts[gate.within].block if gate.within else gate.block
        last = around.result if around else decided
        return position[gate.feature], position[last], gate.block is None, position[decided]

    return sorted(drafts.values(), key=order)


def _channel_axis(graph: Graph, block: LayerBlock) -> int:
    """Dimension of the block's entry that holds channels: 1 where a convolution is in it."""
    rank, ops = len(block.type.shape), set(block.ops)
    for op in graph.ops:
        if op.name in ops and op.kind in ("Conv", "ConvTranspose"):
            read = graph.types[op.inputs[0]].shape
            if len(read) == rank and read[1] == block.type.shape[1]:
                return 1
    return rank - 1


def _groups(place: ChannelPlace, skip: Skip, lanes: int, found: Diagnostics) -> int:
    """How many groups the gate decides about; 0 where they do not divide the channels."""
    given = skip.gate.options.get("groups")
    if not isinstance(given, int):
        wide = [g for g in range(1, place.channels + 1) if place.channels % g == 0]
        return max((g for g in wide if place.channels // g >= lanes), default=1)
    if place.channels % given == 0:
        return given
    nearest = sorted(
        (g for g in range(1, place.channels + 1) if place.channels % g == 0),
        key=lambda g: (abs(g - given), g),
    )
    found.error(
        "bad-option",
        f"{given} groups do not divide the {place.channels} channels of `{place.name}`",
        skip.gate.at("groups") or skip.at("point"),
        f"{place.channels} is no multiple of {given}",
        help=f"use {nearest[0]} groups" + (f" or {nearest[1]}" if len(nearest) > 1 else ""),
    )
    return 0


def _fits(kind: GateKind, place: ChannelPlace, skip: Skip, found: Diagnostics) -> bool:
    """Whether the gate can read what the convolution reads."""
    if not kind.maps_only or len(place.type.shape) == 4:
        return True
    found.error(
        "wrong-shape",
        f"Gate `{kind.kind}` needs a map [1, C, H, W]",
        skip.gate.span or skip.at("point"),
        f"`{place.name}` reads {place.type}",
        help="use `gate squeeze`",
    )
    return False


def _with_states(gates: list[Gate]) -> list[Gate]:
    """The gates with each recurrent one connected to the recurrent one before it."""
    before, found = "", []
    last = next((gate.name for gate in reversed(gates) if gate.kind.stateful), "")
    for gate in gates:
        if gate.kind.stateful:
            found.append(replace(gate, before=before, hands_on=gate.name != last))
            before = gate.name
        else:
            found.append(gate)
    return found
