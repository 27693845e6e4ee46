"""Step 4: which operators run in one kernel.

A group is an operator with the element-wise operators that follow it, as far as everything in
between is read by nobody else: a convolution with its bias, residual sum and activation; a chain
of element-wise operators. A group has one result. What only moves values that lie in their place
already is in no group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from eecompile.ir import Graph, Op
from eecompile.targets.lowering.placing import Placed
from eecompile.targets.lowering.rewriting import ELEMENTWISE

__all__ = ["Group", "Grouped", "group", "with_joined"]

#: Functions whose approximations read their argument in several pieces. TVM's simplifier writes
#: out what is inside each time: nested in one kernel they take time exponential in the depth
#: (three tanh more than a minute), in kernels of their own a pass over memory.
_CURVED = frozenset({"Erf", "Gelu", "Mish", "Softplus", "Tanh"})

#: Element-wise operators that one kernel may end with, and operands it may read in all.
_LONGEST = 16
_OPERANDS = 8


@dataclass(frozen=True)
class Group:
    """Operators of one kernel, in order; its schedule is that of the one after `before` others."""

    ops: tuple[Op, ...]
    before: int = 0

    @property
    def anchor(self) -> Op:
        """The operator that the schedule is chosen by."""
        return self.ops[self.before]

    @property
    def output(self) -> str:
        """The one value that others read."""
        return self.ops[-1].outputs[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Values from outside, each once, in the order of their first use."""
        inside = {name for op in self.ops for name in op.outputs}
        names = (name for op in self.ops for name in op.inputs if name)
        return tuple(dict.fromkeys(name for name in names if name not in inside))


@dataclass(frozen=True)
class Grouped:
    """The groups of a placed graph, in the order they run."""

    placed: Placed
    groups: tuple[Group, ...]


def group(placed: Placed) -> Grouped:
    """The groups of a placed graph. O(#operators x longest group)."""
    graph = placed.graph
    users = graph.users()
    outputs = frozenset(graph.outputs)
    place = {op.outputs[0]: index for index, op in enumerate(graph.ops)}
    taken: set[str] = set()
    groups: list[Group] = []
    for op in graph.ops:
        if op.outputs[0] in taken or op.outputs[0] in placed.moved:
            continue
        found = _grow(op, graph, users, outputs, place, taken)
        taken.update(member.outputs[0] for member in found.ops)
        groups.append(found)
    # A group runs where its last operator stood: all its operands are there by then, and nothing
    # before that place reads what it makes.
    groups.sort(key=lambda found: place[found.output])
    return Grouped(placed, tuple(groups))


def _grow(
    op: Op,
    graph: Graph,
    users: Mapping[str, list[Op]],
    outputs: frozenset[str],
    place: Mapping[str, int],
    taken: set[str],
) -> Group:
    """`op` with the longest run of element-wise operators that leaves a single result."""
    best = [op]
    members = [op]
    inside = {op.outputs[0]}
    curved = {op.outputs[0]} if op.kind in _CURVED else set()
    shape = graph.types[op.outputs[0]].shape
    while len(members) <= _LONGEST:
        if not outputs.isdisjoint(inside):
            break  # Everything inside is an output itself or already commits to being one.
        readers = [user for name in inside for user in users.get(name, ())]
        waiting = [user for user in readers if user.outputs[0] not in inside]
        if not waiting:
            break
        following = min(waiting, key=lambda user: place[user.outputs[0]])
        if not _joins(following, graph, shape, taken):
            break
        nested = not curved.isdisjoint(following.inputs)
        if nested and following.kind in _CURVED:
            break
        members.append(following)
        inside.add(following.outputs[0])
        if nested or following.kind in _CURVED:
            curved.add(following.outputs[0])
        last = following.outputs[0]
        hidden = inside - {last}
        closed = outputs.isdisjoint(hidden) and all(
            user.outputs[0] in inside for name in hidden for user in users.get(name, ())
        )
        if closed and len(Group(tuple(members)).inputs) <= _OPERANDS:
            best = list(members)
    return Group(tuple(best))


def _joins(op: Op, graph: Graph, shape: tuple[int, ...], taken: set[str]) -> bool:
    return (
        op.kind in ELEMENTWISE
        and op.outputs[0] not in taken
        and graph.types[op.outputs[0]].shape == shape
    )


def with_joined(grouped: Grouped, graph: Graph, joins: Callable[[Group, Group], bool]) -> Grouped:
    """The groups, some joined with the one that makes their first input. O(#operators).

    Args:
        grouped: the groups.
        graph: theirs.
        joins: (maker, group) -> whether the two become one kernel; asked only where nobody but the
            group's first operator reads what the maker makes.
    """
    users = graph.users()
    outputs = frozenset(graph.outputs)
    makers = {group.output: group for group in grouped.groups}
    gone: set[str] = set()
    groups: list[Group] = []
    for group in grouped.groups:
        first = makers.get(group.ops[0].inputs[0]) if group.ops[0].inputs else None
        if (
            first is not None
            and first.output not in outputs
            and users[first.output] == [group.ops[0]]
            and joins(first, group)
        ):
            gone.add(first.output)
            group = Group((*first.ops, *group.ops), len(first.ops))
        groups.append(group)
    return replace(grouped, groups=tuple(g for g in groups if g.output not in gone))
