"""What a pass is, what it works on, and the manager that runs passes and checks their work.

A pass expects a valid `Program` of its `requires` stage and leaves a valid one of its `ensures`
stage; in between it need not check anything. The manager verifies both ends with the rule table of
`eecompile.verify`. The host inside a program is edited in place and belongs to whoever made the
program; everything else is frozen, and a pass returns a new `Program`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostRow, CostTable
from eecompile.diagnostics import CompileErrors
from eecompile.ir import TensorType
from eecompile.passes.host import HostError, HostGraph
from eecompile.segments import SegmentGraph
from eecompile.spec import Model
from eecompile.verify import Snapshot, Stage, verify

__all__ = [
    "Instrument",
    "Pass",
    "PassManager",
    "PassResult",
    "Program",
    "ResolvedExit",
    "Skip",
]


@dataclass(frozen=True, slots=True)
class ResolvedExit:
    """An exit whose point was found in the network.

    Attributes:
        name: as in the `.ee` file.
        point: the point's name, as `HostGraph.points` has it.
        value: the tapped value's name in the host's neutral graph.
        type: its type.
    """

    name: str
    point: str
    value: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Program:
    """A network on its way from the source to segments.

    Attributes:
        host: the source network, a private copy.
        model: what the `.ee` file says of it.
        exits: in the order they are reached; filled by `ResolvePoints`.
        segments: filled by `CutSegments`.
        compiled, costs: their functions and what those cost; filled by `AnnotateCosts`.
    """

    host: HostGraph
    model: Model
    exits: tuple[ResolvedExit, ...] = ()
    segments: SegmentGraph | None = None
    compiled: CompiledGraph | None = None
    costs: CostTable | None = None

    def input_names(self) -> dict[str, str]:
        """Network input -> its name in the `.ee` file (its own where the file names none).

        Inputs are matched by name, or by position where no name in the file is the network's.
        """
        own = self.host.graph().inputs
        given = [written.name for written in self.model.inputs]
        if len(given) > len(own) or not set(given).isdisjoint(own):
            return {name: name for name in own}
        return dict(zip(own, [*given, *own[len(given) :]], strict=True))

    def network_outputs(self) -> dict[str, str]:
        """The network's own outputs, name -> value: the answer first, called as in the file.

        An output that has an input's name (some networks hand an input on) gets another.
        """
        ends = tuple(f"{exit_.name}." for exit_ in self.model.exits)
        own = {n: v for n, v in self.host.outputs().items() if not n.startswith(ends)}
        written = self.model.output.name if self.model.output else ""
        answer = written if written in own else next(iter(own))
        value = own.pop(answer)
        inputs = self.input_names().values()
        named = {f"{n}.output" if n in inputs else n: v for n, v in own.items()}
        return {written or answer: value, **named}

    def exit_outputs(self, name: str) -> dict[str, str]:
        """What was inserted at an exit: output name without the exit's -> value."""
        start = f"{name}."
        outputs = self.host.outputs().items()
        return {n.removeprefix(start): v for n, v in outputs if n.startswith(start)}

    def snapshot(self) -> Snapshot:
        """What the rules of `eecompile.verify` look at."""
        return Snapshot(
            graph=self.host.graph(),
            answer=next(iter(self.network_outputs().values())),
            outputs=self.host.outputs(),
            taps={exit_.name: exit_.value for exit_ in self.exits},
            classes=self.model.output.classes if self.model.output else None,
            segments=self.segments,
            symbols=self._symbols(),
            costs=self._latencies(),
        )

    def _symbols(self) -> dict[str, str]:
        """Graph -> its function's symbol."""
        if self.segments is None or self.compiled is None:
            return {}
        pairs = zip(self.segments.graphs(), self.compiled.functions(), strict=False)
        return {graph.name: function.symbol for graph, function in pairs}

    def _latencies(self) -> dict[str, tuple[float, ...]]:
        """Graph -> seconds of its row, at every clock at which all rows are known."""
        if self.segments is None or self.costs is None:
            return {}
        segments, exits = self.costs.segments, self.costs.exits
        by_state = zip(*(row.costs for row in (*segments, *exits)), strict=True)
        known = [k for k, costs in enumerate(by_state) if None not in costs]

        def latencies(row: CostRow) -> tuple[float, ...]:
            return tuple(c.latency_s for k in known if (c := row.costs[k]) is not None)

        found = {
            graph.name: latencies(row)
            for part, row in zip(self.segments.segments, segments, strict=False)
            for graph in part.graphs
        }
        for exit_, row in zip(self.segments.exits, exits, strict=False):
            found |= {graph.name: latencies(row) for graph in exit_.graphs}
        return found


@dataclass(frozen=True, slots=True)
class Skip:
    """A place that a pass could have rewritten and did not, with the reason."""

    reason: str
    value: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did.

    Attributes:
        graph: the program after it.
        modified: whether anything changed; a pass run twice in a row says False the second time.
        skips: places left alone.
    """

    graph: Program
    modified: bool
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One step from a program to the next; its fields are its options."""

    requires: ClassVar[Stage]
    ensures: ClassVar[Stage]

    @property
    def name(self) -> str:
        """The class's name in kebab case: ``cut-segments``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Do it."""


class Instrument(Protocol):
    """Watches passes run; see `eecompile.passes.instruments`."""

    def before_pass(self, step: Pass, program: Program) -> None:
        """Called when `step` is about to run."""

    def after_pass(self, step: Pass, result: PassResult) -> None:
        """Called when `step` has run and its result was verified."""


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order, verifying the invariants before and after each.

    Attributes:
        passes: the steps.
        instruments: told of each step; the last one given is told first of a step's end.
    """

    passes: tuple[Pass, ...]
    instruments: Sequence[Instrument] = ()

    def run(self, program: Program) -> PassResult:
        """The program after all passes; `modified` where any pass changed something.

        Raises:
            CompileErrors, HostError: a pass found the user's input wrong.
            InvariantError: a pass was given, or left, a program that breaks a rule.
        """
        result = PassResult(program, False)
        done: list[str] = []
        for step in self.passes:
            try:
                result = self._step(step, result)
            except (CompileErrors, HostError):
                raise
            except Exception as error:
                error.add_note(f"in pass `{step.name}` after passes [{', '.join(done)}]")
                raise
            done.append(step.name)
        return result

    def _step(self, step: Pass, before: PassResult) -> PassResult:
        verify(step.requires, before.graph.snapshot(), f"before pass `{step.name}`")
        for instrument in self.instruments:
            instrument.before_pass(step, before.graph)
        result = step.run(before.graph)
        verify(step.ensures, result.graph.snapshot(), f"after pass `{step.name}`")
        for instrument in reversed(self.instruments):
            instrument.after_pass(step, result)
        return replace(
            result,
            modified=before.modified or result.modified,
            skips=before.skips + result.skips,
        )
