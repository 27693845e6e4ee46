"""Inserting exit heads into the source network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from eecompile.ir import Graph
from eecompile.passes.base import Pass, PassResult, Program, Skip
from eecompile.verify import Stage

__all__ = ["InsertExits", "insert_at_exits"]


@dataclass(frozen=True)
class InsertExits(Pass):
    """Inserts a head behind each exit point and shows its results as outputs of the network.

    1. An output ``logits`` of the head becomes the network's output ``<exit>.logits``, and any
       other output likewise.
    2. An exit without a head in `graphs` is skipped.
    3. An exit that has outputs of these names already is skipped.

    before::

        graph net(x: float32[1, 4]) -> (y: float32[1, 2]) {
            a: float32[1, 4] = Relu(x)
            ...

    after, with a head that is one matrix product::

        graph net(x: float32[1, 4]) -> (y: float32[1, 2], early.logits: float32[1, 2]) {
            a: float32[1, 4] = Relu(x)
            early.logits: float32[1, 2] = MatMul(a, w) @ exit_heads.early
            ...

    The backbone stays as it is. Weights come under the module path ``exit_heads.<exit>``.

    Attributes:
        graphs: exit -> its head, a graph with one input.
    """

    requires: ClassVar[Stage] = Stage.RESOLVED
    ensures: ClassVar[Stage] = Stage.EXITED

    graphs: Mapping[str, Graph] = field(default_factory=dict)

    def run(self, program: Program) -> PassResult:
        """The program, its host edited.

        Raises:
            HostError: the host cannot express a head, which is then not inserted; those of
                earlier exits are.
        """
        return insert_at_exits(program, self.graphs, "exit_heads", str)


def insert_at_exits(
    program: Program, graphs: Mapping[str, Graph], module: str, shown: Callable[[str], str]
) -> PassResult:
    """The program with `graphs` spliced in behind the taps of their exits.

    Args:
        program: with resolved exits; its host is edited.
        graphs: exit -> graph with one input.
        module: module path that the exits' own are put under.
        shown: a graph's output -> the name it is shown by, after the exit's own and a dot.

    Raises:
        HostError: as `HostGraph.splice`.
    """
    host, modified = program.host, False
    known = set(host.outputs())
    skips: list[Skip] = []
    for exit_ in program.exits:
        graph = graphs.get(exit_.name)
        if graph is None:
            skips.append(Skip("nothing to insert", exit_.name))
            continue
        names = [f"{exit_.name}.{shown(value)}" for value in graph.outputs]
        if not known.isdisjoint(names):
            skips.append(Skip("inserted already", exit_.name))
            continue
        values = host.splice(graph, exit_.value, f"{module}.{exit_.name}")
        for name, value in zip(names, values, strict=True):
            host.add_output(name, value)
        modified = True
    return PassResult(program, modified, tuple(skips))
