"""What gates could skip in a network: the statements that `eecompile init` proposes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from eecompile.cost import graph_macs
from eecompile.gates.places import ChannelPlace, LayerBlock
from eecompile.ir import Graph
from eecompile.passes.find_blocks import channel_places, layer_blocks
from eecompile.passes.host import Point
from eecompile.spec import matching

__all__ = ["patterns_of", "proposed_skips"]

#: Statements proposed; where a network needs more, one stands for all of its places.
_MOST = 8

_Place = LayerBlock | ChannelPlace


def proposed_skips(graph: Graph, points: Mapping[str, Point], trained: bool) -> list[str]:
    """`skip` statements for all that gates can leave out, each with its number and share of MACs.

    Of convolutions those whose channels save work in the convolutions after them too.

    Args:
        graph: a host's neutral view.
        points: the host's points.
        trained: whether the gates can be trained; else those are proposed that are fitted.
    """
    total = max(graph_macs(graph), 1)
    blocks = layer_blocks(graph, points).places
    rows = _rows("layers", "recurrent(hidden: 10)" if trained else "fitted", blocks, total)
    found = channel_places(graph, points).places
    convolutions = [place for place in found if place.read_macs and place.channels > 1]
    rows += _rows("channels", "squeeze" if trained else "fitted", convolutions, total)
    start, gate = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    return [f"{what:<{start}}   {kind:<{gate}}  # {note}" for what, kind, note in rows]


def _rows(what: str, gate: str, places: Sequence[_Place], total: int) -> list[tuple[str, str, str]]:
    """Of each statement what it skips, its gate, and what that is worth."""
    by_name = {place.name: place for place in places}
    names = [name for place in places for name in (place.name, *place.aliases)]
    noun = "block" if what == "layers" else "convolution"
    rows = []
    for pattern, members in patterns_of(list(by_name), names):
        count = f"{len(members)} {noun}{'s' if len(members) > 1 else ''}"
        share = 100 * sum(by_name[name].macs for name in members) / total
        note = f"{count}, {share:.0f} % of the MACs"
        rows.append((f'skip {what:<8} "{pattern}"', f"gate {gate}", note))
    return rows


def patterns_of(names: Sequence[str], known: Iterable[str] = ()) -> list[tuple[str, list[str]]]:
    """A few patterns that together stand for all of the names, and what each stands for.

    Names that differ in one number share a pattern, where it stands for nothing else.

    Args:
        names: to stand for.
        known: other names that a pattern must not stand for.

    >>> patterns_of(["layer1.0", "layer1.1", "layer1.2", "layer2.1"])
    [('layer1.[0-2]', ['layer1.0', 'layer1.1', 'layer1.2']), ('layer2.1', ['layer2.1'])]
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        groups.setdefault(_around_number(name), []).append(name)
    others = [name for name in known if name not in {*names}]
    found: list[tuple[str, list[str]]] = []
    for (before, after), members in groups.items():
        pattern = _pattern(before, after, members)
        if matching(pattern, [*names, *others]) == members:
            found.append((pattern, members))
        else:
            found += [(member, [member]) for member in members]
    return found if len(found) <= _MOST else [("**", list(names))]


def _around_number(name: str) -> tuple[str, str]:
    """What stands before and after the number that counts: a component, else the last one.

    >>> _around_number("layer1.0.conv1"), _around_number("relu_12"), _around_number("stem")
    (('layer1.', '.conv1'), ('relu_', ''), ('stem', ''))
    """
    components = list(re.finditer(r"(?<![^./])\d+(?![^./])", name))
    numbers = components or list(re.finditer(r"\d+", name))
    if not numbers:
        return name, ""
    return name[: numbers[-1].start()], name[numbers[-1].end() :]


def _pattern(before: str, after: str, members: Sequence[str]) -> str:
    if len(members) == 1:
        return members[0]
    digits = sorted(name[len(before) : len(name) - len(after)] for name in members)
    first, last = digits[0], digits[-1]
    whole = [str(number) for number in range(int(first), int(last) + 1)] if last.isdigit() else []
    return (
        f"{before}[{first}-{last}]{after}"
        if digits == whole and len(last) == 1
        else f"{before}*{after}"
    )
