"""Gives convolutions what stands before them: element-wise chains, and the input's transpose.

A batch normalisation with its activation in front of a convolution, or the scale of a
squeeze-and-excite block, is computed in the convolution's own kernel while its input is read
(`schedules/conv.py`), instead of writing a tensor as large as the input and reading it again.
Joining all of them is as fast as joining only those whose result leaves the second cache: 1.00
and 1.01 for the latter on DenseNet-121 and EfficientNet-B0 (AMD EPYC, family 25 model 17, one
thread).
"""

from __future__ import annotations

from typing import Any

from eecompile.ir import Graph, Op
from eecompile.targets.lowering.group import Group, Grouped, with_joined
from eecompile.targets.lowering.rewriting import ELEMENTWISE

__all__ = ["with_prologues"]

#: Channels of a picture, as networks are given it: so few that each is read by itself.
_PICTURE = 4


def with_prologues(grouped: Grouped, graph: Graph) -> Grouped:
    """The groups, with those that only feed a convolution joined to it. O(#operators)."""
    return with_joined(grouped, graph, lambda first, group: _takes(group, first, graph))


def _takes(group: Group, first: Group, graph: Graph) -> bool:
    """Whether a group is a convolution that can compute `first` while it reads."""
    anchor = group.ops[0]
    if anchor.kind != "Conv" or group.before or first.before:
        return False
    if not anchor.attributes.get("channels_last") or anchor.attributes["group"] != 1:
        return False
    if any(name and name not in graph.constants for name in anchor.inputs[1:]):
        return False
    if graph.types[first.output].dtype != "float32" or first.output in anchor.inputs[1:]:
        return False
    if [op.kind for op in first.ops] == ["Transpose"]:
        return graph.types[first.output].shape[-1] <= _PICTURE
    return _is_pointwise(anchor, graph) and _is_by_channel(first, graph)


def _is_pointwise(op: Op, graph: Graph) -> bool:
    """Whether a convolution reads each place once for all its outputs."""
    a: dict[str, Any] = dict(op.attributes)
    taps = graph.types[op.inputs[1]].shape[2:]
    return set(taps) == {1} == {*a["strides"], *(a.get("spread") or (1,))} and not any(a["pads"])


def _is_by_channel(group: Group, graph: Graph) -> bool:
    """Whether a group is element-wise in one tensor, its other operands at most one row of it."""
    if any(op.kind not in ELEMENTWISE - {"Keep"} or "axis" in op.attributes for op in group.ops):
        return False
    shape = graph.types[group.output].shape
    types = [graph.types[name] for name in group.inputs]
    others = [type_ for type_ in types if type_.shape != shape]
    return len(types) == len(others) + 1 and all(
        type_.dtype == "float32" and type_.size in (1, (type_.shape or (1,))[-1])
        for type_ in others
    )
