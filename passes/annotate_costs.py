"""Puts what each piece of a compiled network costs beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.passes.base import Pass, PassResult, Program
from eecompile.verify import Stage

__all__ = ["AnnotateCosts"]


@dataclass(frozen=True)
class AnnotateCosts(Pass):
    """Every segment and exit gets its compiled functions and the costs of its row.

    1. Functions go to graphs in execution order: segment 0, exit 0's head and comparator, ...
    2. Rows go to segments and exits in order. A head and a comparator are one row: both graphs
       have the costs of the two together.
    3. A clock at which not every piece's latency is known is no operating point of the program.

    before::

        segment segment0 = graph segment0(x: float32[1, 4]) -> (y: float32[1, 4])

    after::

        # cost segment0: 2 ms modelled at 1 GHz, 1 ms measured at 2 GHz
        segment segment0 = graph segment0(x: float32[1, 4]) -> (y: float32[1, 4])

    It neither measures nor models, and code does not depend on it. The machine code was made
    before; its functions carry their work and modelled costs as attributes where that was asked
    for (`targets.lowering.annotating`). O(#pieces x #clocks).
    """

    compiled: CompiledGraph
    table: CostTable

    requires: ClassVar[Stage] = Stage.SEGMENTED
    ensures: ClassVar[Stage] = Stage.COSTED

    def run(self, program: Program) -> PassResult:
        """The program with `compiled` and `costs` filled in."""
        found = replace(program, compiled=self.compiled, costs=self.table)
        return PassResult(found, found != program)
