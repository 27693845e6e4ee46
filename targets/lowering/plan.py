"""Step 5: where every value of a graph lives while it runs.

Graph inputs and outputs are the caller's memory, constants lie in the weights, everything else in
one workspace whose bytes are used again as soon as their value is dead. A kernel that reads each
element of an operand only for the element of its result at the same place takes over the operand's
memory if nobody needs it afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from eecompile.ir import TensorType
from eecompile.packing import ALIGNMENT, Buffer, aligned, pack
from eecompile.targets.lowering.views import View

__all__ = ["ALIGNMENT", "Use", "Workspace", "aligned", "plan_workspace"]


@dataclass(frozen=True)
class Use:
    """What one kernel call touches.

    Attributes:
        output: the value it writes.
        operands: the values it reads.
        scratch: bytes of each of its scratch arrays.
        in_place: operands whose memory the result may take over.
    """

    output: str
    operands: tuple[str, ...]
    scratch: tuple[int, ...] = ()
    in_place: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """Offsets of dense buffers and of scratch arrays in a workspace.

    Attributes:
        values: root of views -> offset in bytes.
        scratch: offsets of each call's scratch arrays.
        nbytes: size of the workspace.
    """

    values: Mapping[str, int]
    scratch: tuple[tuple[int, ...], ...]
    nbytes: int


def plan_workspace(
    uses: Sequence[Use],
    views: Mapping[str, View],
    types: Mapping[str, TensorType],
    outside: Collection[str],
) -> Workspace:
    """A place for everything that lives only inside a graph.

    Args:
        uses: the kernel calls, in order.
        views: where each value lies in its root.
        types: of the roots.
        outside: roots that have memory elsewhere.

    >>> f = TensorType("float32", (16,))
    >>> views = {name: View.of(name, (16,)) for name in "xabcy"}
    >>> uses = [Use("a", ("x",)), Use("b", ("a",), in_place=("a",)), Use("y", ("b",))]
    >>> plan_workspace(uses, views, dict.fromkeys("xaby", f), "xy").values
    {'a': 0, 'b': 0}
    """
    first, last = _lives(uses, views)
    takes = _taken_over(uses, views, types, outside, last)
    buffers: dict[str, Buffer] = {}
    for root, step in first.items():
        if root in outside:
            continue
        holder = takes.get(root, root)
        begun = buffers.get(holder)
        start = step if begun is None else begun.first
        buffers[holder] = Buffer(holder, types[holder].nbytes, start, last[root])
    arrays = [
        [Buffer(f"{step}/{index}", nbytes, step, step) for index, nbytes in enumerate(use.scratch)]
        for step, use in enumerate(uses)
    ]
    plan = pack([*buffers.values(), *(array for some in arrays for array in some)])
    return Workspace(
        {root: plan.offsets[takes.get(root, root)] for root in first if root not in outside},
        tuple(tuple(plan.offsets[array.name] for array in some) for some in arrays),
        plan.nbytes,
    )


def _lives(uses: Sequence[Use], views: Mapping[str, View]) -> tuple[dict[str, int], dict[str, int]]:
    """Step of the first write to each root, in that order, and of its last use."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, use in enumerate(uses):
        first.setdefault(views[use.output].root, step)
        last.update((views[name].root, step) for name in (*use.operands, use.output))
    return first, last


def _taken_over(
    uses: Sequence[Use],
    views: Mapping[str, View],
    types: Mapping[str, TensorType],
    outside: Collection[str],
    last: Mapping[str, int],
) -> dict[str, str]:
    """Root -> the root whose memory it has, where that is another's."""
    takes: dict[str, str] = {}
    for step, use in enumerate(uses):
        output = use.output
        if output in outside or not _is_whole(output, views, types):
            continue
        for name in use.in_place:
            root = views[name].root
            sharing = [other for other in use.operands if views[other].root == root]
            if (
                sharing == [name]
                and root not in outside
                and last[root] == step
                and types[root].nbytes == types[output].nbytes
                and _is_whole(name, views, types)
            ):
                takes[output] = takes.get(root, root)
                break
    return takes


def _is_whole(name: str, views: Mapping[str, View], types: Mapping[str, TensorType]) -> bool:
    """Whether a value is all of its root, in order."""
    view = views[name]
    return view.is_dense and prod(view.shape) == types[view.root].size
