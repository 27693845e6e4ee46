"""Joins a 1x1 convolution with the depthwise one that reads it: inverted residual blocks.

The wide tensor between the two is the largest of such networks; joined, it never reaches memory
(`schedules/expanded.py`).
"""

from __future__ import annotations

from dataclasses import replace

from eecompile.hardware import Machine
from eecompile.ir import Graph, Op
from eecompile.targets.lowering.group import Group, Grouped
from eecompile.targets.lowering.schedules.expanded import candidates
from eecompile.targets.lowering.spec import spec_of

__all__ = ["with_expansions"]


def with_expansions(grouped: Grouped, graph: Graph, machine: Machine) -> Grouped:
    """The groups, with each pair of them that is better computed as one joined. O(#operators)."""
    users = graph.users()
    outputs = frozenset(graph.outputs)
    makers = {group.output: group for group in grouped.groups}
    joined: dict[str, Group] = {}
    for group in grouped.groups:
        first = makers.get(group.ops[0].inputs[0]) if group.ops[0].inputs else None
        if first is None or first.output in outputs or len(users[first.output]) != 1:
            continue
        both = Group((*first.ops, *group.ops), len(first.ops))
        if not _expands(first, graph) or not _slides(group.ops[0], graph):
            continue
        if candidates(spec_of(both, graph)[0], machine):
            joined[first.output], joined[group.output] = both, both
    kept = [
        joined.get(group.output, group)
        for group in grouped.groups
        if group.output not in joined or joined[group.output].output == group.output
    ]
    return replace(grouped, groups=tuple(kept))


def _expands(group: Group, graph: Graph) -> bool:
    """Whether a group is a 1x1 convolution and operators on its result alone."""
    anchor = group.ops[0]
    return (
        _is_conv(anchor, graph)
        and graph.types[anchor.inputs[1]].shape[2:] == (1, 1)
        and anchor.attributes["strides"] == (1, 1)
        and anchor.attributes["pads"] == (0, 0, 0, 0)
        and anchor.attributes["group"] == 1
        and all(name in graph.constants for name in group.inputs if name not in anchor.inputs[:1])
    )


def _slides(op: Op, graph: Graph) -> bool:
    """Whether an operator is a depthwise convolution over two dimensions, a channel an output."""
    if not _is_conv(op, graph):
        return False
    shape = graph.types[op.inputs[1]].shape
    return (
        op.attributes["group"] == shape[0] > 1
        and shape[1] == 1
        and len(shape) == 4
        and op.attributes.get("spread") in (None, (1, 1))
    )


def _is_conv(op: Op, graph: Graph) -> bool:
    return (
        op.kind == "Conv"
        and bool(op.attributes.get("channels_last"))
        and all(name in graph.constants for name in op.inputs[1:] if name)
    )
