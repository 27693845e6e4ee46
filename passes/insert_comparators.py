"""Inserting class-mean comparators into the source network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from eecompile.ir import Graph
from eecompile.passes.base import Pass, PassResult, Program
from eecompile.passes.insert_exits import insert_at_exits
from eecompile.verify import Stage

__all__ = ["InsertComparators"]


@dataclass(frozen=True)
class InsertComparators(Pass):
    """Inserts a class-mean comparator behind each exit point and shows its result as an output.

    1. The output ``class_means`` becomes the network's output ``<exit>.class_means``, any other
       ``<exit>.class_means.<output>``, so that a comparator stands beside a head.
    2. An exit without a comparator in `graphs`, or that has one already, is skipped.

    before::

        graph net(x: float32[1, 4]) -> (y: float32[1, 2]) {
            a: float32[1, 4] = Relu(x)
            ...

    after, with a comparator that is one operator::

        graph net(x: float32[1, 4]) -> (y: float32[1, 2], early.class_means: float32[1, 2]) {
            a: float32[1, 4] = Relu(x)
            early.class_means: float32[1, 2] = MatMul(a, w) @ exit_comparators.early
            ...

    Attributes:
        graphs: exit -> its comparator, a graph with one input.

    Source: E2CM (arXiv 2103.01148) compares features with class means at each exit.
    """

    requires: ClassVar[Stage] = Stage.RESOLVED
    ensures: ClassVar[Stage] = Stage.EXITED

    graphs: Mapping[str, Graph] = field(default_factory=dict)

    def run(self, program: Program) -> PassResult:
        """The program, its host edited.

        Raises:
            HostError: as `InsertExits`.
        """
        return insert_at_exits(program, self.graphs, "exit_comparators", _shown)


def _shown(output: str) -> str:
    """What an output is called behind the exit's name.

    >>> _shown("class_means"), _shown("recorded")
    ('class_means', 'class_means.recorded')
    """
    return output if output == "class_means" else f"class_means.{output}"
