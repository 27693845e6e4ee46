"""Joins a 1x1 convolution with the depthwise one that reads it: inverted residual blocks.

The wide tensor between the two is the largest of such networks; joined, it never reaches memory
(`schedules/expanded.py`).
"""

from __future__ import annotations

from eecompile.hardware import Machine
from eecompile.ir import Graph, Op
from eecompile.targets.lowering.group import Group, Grouped, with_joined
from eecompile.targets.lowering.schedules.expanded import candidates
from eecompile.targets.lowering.spec import spec_of

__all__ = ["with_expansions"]


def with_expansions(grouped: Grouped, graph: Graph, machine: Machine) -> Grouped:
    """The groups, with each pair of them that is better computed as one joined. O(#operators)."""

    def joins(first: Group, group: Group) -> bool:
        if not _expands(first, graph) or not _slides(group.ops[0], graph):
            return False
        both = Group((*first.ops, *group.ops), len(first.ops))
        return bool(candidates(spec_of(both, graph)[0], machine))

    return with_joined(grouped, graph, joins)


def _expands(group: Group, graph: Graph) -> bool:
    """Whether a group is a 1x1 convolution and operators on its result alone."""
    anchor = group.ops[0]
    gates = [name for op in group.ops if op.kind == "Keep" for name in op.inputs[1:]]
    free = {anchor.inputs[0], *gates} if anchor.inputs else set()
    return (
        _is_conv(anchor, graph)
        and graph.types[anchor.inputs[1]].shape[2:] == (1, 1)
        and anchor.attributes["strides"] == (1, 1)
        and anchor.attributes["pads"] == (0, 0, 0, 0)
        and anchor.attributes["group"] == 1
        and all(name in graph.constants for name in group.inputs if name not in free)
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
