"""All of lowering, read from top to bottom: graphs in, one shared library and its weights out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import tvm
from tvm import tirx

from eecompile.board import Board
from eecompile.cost import WIDE_BYTES, Work, op_work
from eecompile.diagnostics import InternalError
from eecompile.hardware import Machine
from eecompile.ir import Graph
from eecompile.targets.lowering.annotating import annotated
from eecompile.targets.lowering.aot import Address, Call, Shared, entry_functions
from eecompile.targets.lowering.build import Phase, emit_objects, plain_phases, target_of
from eecompile.targets.lowering.counting import Instructions, count
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.expansions import with_expansions
from eecompile.targets.lowering.fuse_gelu import fuse_gelu
from eecompile.targets.lowering.fuse_norms import fuse_norms
from eecompile.targets.lowering.group import Group, group
from eecompile.targets.lowering.identity import kernel_key
from eecompile.targets.lowering.keeping import with_kept_lists
from eecompile.targets.lowering.layout import SOURCE, LaidOut, channels_last, lay_out
from eecompile.targets.lowering.library import CompiledFunction, CompiledLibrary, KernelUse, Tuned
from eecompile.targets.lowering.link import link
from eecompile.targets.lowering.placing import Placed, place
from eecompile.targets.lowering.plan import Use, aligned, plan_workspace
from eecompile.targets.lowering.prologues import with_prologues
from eecompile.targets.lowering.schedules import Choice, choices, schedule
from eecompile.targets.lowering.simplify import simplify
from eecompile.targets.lowering.spec import (
    Argument,
    KernelSpec,
    Output,
    Packed,
    Passed,
    PerThread,
    Scratch,
    spec_of,
)
from eecompile.targets.lowering.strides import StridesLost, strided
from eecompile.targets.lowering.weights import WeightPool

__all__ = ["KernelCount", "border_orders", "compile_functions", "kernel_counts"]

Progress = Callable[[str, int, int], None]

#: Every kernel scheduled by estimates.
_NO_CHOICES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class KernelCount:
    """A kernel of some graphs, and how many times they use it.

    Attributes:
        work: of one use, in cycles of one core that neither waits nor loads.
    """

    spec: KernelSpec
    uses: int
    work: float


@dataclass(frozen=True)
class _Kernel:
    """A kernel's name, what it is called with, its code, and what that executes."""

    symbol: str
    arguments: tuple[Argument, ...]
    phases: tuple[Phase, ...]
    instructions: Instructions


@dataclass
class _Kernels:
    """Kernels by what they compute: equal ones are emitted once.

    Attributes:
        written: choices by kernel's key.
        lowers: whether there will be code.
        found: what has been asked for.
        chosen: the choices among them that were written down, None for misfits.
    """

    machine: Machine
    target: tvm.target.Target
    written: Mapping[str, str] = field(default_factory=dict)
    lowers: bool = True
    found: dict[KernelSpec, _Kernel] = field(default_factory=dict)
    chosen: dict[KernelSpec, Choice | None] = field(default_factory=dict)

    def get(self, spec: KernelSpec, group: Group) -> _Kernel:
        if spec not in self.found:
            try:
                choice = self._choice(spec)
                made = schedule(spec, self.machine, choice) if choice else None
                scheduled = strided(spec, made or schedule(spec, self.machine))
            except UnsupportedOperator as error:
                raise _about(group, error) from error
            word = re.sub(r"\W", "", spec.anchor.kind.lower())
            symbol = f"kernel{len(self.found)}_{word}"
            phases: tuple[Phase, ...] = ()
            if self.lowers:
                phases = plain_phases(scheduled.function, symbol, self.target)
            counted = count(phases, self.machine.lanes)
            self.found[spec] = _Kernel(symbol, scheduled.arguments, phases, counted)
        return self.found[spec]

    def _choice(self, spec: KernelSpec) -> Choice | None:
        """The choice that was written down, if it is still one of the kernel's."""
        text = self.written.get(kernel_key(spec)) if self.written else None
        if text is not None:
            found = (c for c in choices(spec, self.machine) if str(c) == text)
            self.chosen[spec] = next(found, None)
        return self.chosen.get(spec)

    def tuned(self) -> Tuned | None:
        """How the kernels were scheduled; None where no choices were written down."""
        if not self.written:
            return None
        stale = {kernel_key(spec) for spec, choice in self.chosen.items() if choice is None}
        chosen = sum(choice is not None for choice in self.chosen.values())
        having = sum(len(choices(spec, self.machine)) > 1 for spec in self.found)
        unused = set(self.written) - {kernel_key(spec) for spec in (*self.found, *self.chosen)}
        return Tuned(chosen, having - chosen, tuple(sorted(stale)), tuple(sorted(unused)))

    def code(self) -> dict[str, tirx.PrimFunc]:
        """The functions of all kernels by name."""
        return {p.symbol: p.function for kernel in self.found.values() for p in kernel.phases}


def _about(group: Group, error: UnsupportedOperator) -> UnsupportedOperator:
    """The same refusal, about the group's own operator."""
    same = [op for op in group.ops if op.kind == error.op.kind]
    return UnsupportedOperator(same[0] if same else group.ops[0], error.reason)


def compile_functions(
    graphs: Sequence[Graph],
    machine: Machine,
    *,
    plain: Collection[str],
    progress: Progress | None = None,
    export_kernels: bool = False,
    choices: Mapping[str, str] = _NO_CHOICES,
    board: Board | None = None,
    tell_ir: Callable[[str], None] | None = None,
    network: str = "network",
) -> CompiledLibrary:
    """Compiles graphs that share weights, kernels and border values into one library.

    A value of the same name in two graphs is the same tensor. Values in `plain` have the source's
    layout where they cross a graph's border; others may keep the kernels', the same in all graphs.

    Args:
        graphs: with different names.
        machine: what to generate code for.
        plain: network inputs, logits, recorded features.
        progress: called with (step, done, total).
        export_kernels: lets every kernel be called by its name, for profiles.
        choices: kernel's key -> the schedule chosen for it, as `tuning` writes them. What is not
            there, or no choice of the kernel, is chosen by estimates.
        board: adds what each function costs at the board's clocks to the functions' attributes;
            the library is the same without.
        tell_ir: called with the functions and kernels as TVM's script, before code is generated.
        network: name of the network, which apps know the library by.

    Raises:
        UnsupportedOperator: an operator has no compiled form.
        ToolError: no linker for the machine.
    """
    tell = progress or (lambda step, done, total: None)
    laid_out = _laid_out([_simpler(graph) for graph in graphs], plain)
    target = target_of(machine)
    kernels, weights = _Kernels(machine, target, choices), WeightPool()
    symbols = _symbols(graphs)
    functions: list[CompiledFunction] = []
    entries: dict[str, tirx.PrimFunc] = {}
    for index, (graph, laid, symbol) in enumerate(zip(graphs, laid_out, symbols, strict=True)):
        tell("schedule", index, len(graphs))
        function, entry = _lowered(graph, laid, symbol, kernels, weights)
        functions.append(function)
        entries |= entry
    code = kernels.code()
    entries |= annotated(entries, functions, board, machine.cores)
    if tell_ir is not None:
        tell_ir("\n".join(str(function) for function in (*entries.values(), *code.values())))
    tell("generate code", 0, 1)
    # Objects of their own, so that no kernel is inlined into an entry function: TVM gives every
    # buffer of a kernel an alias class of its own, and one kernel's output is the next one's input.
    # Inlined, the load would be free to move before the store.
    objects = [*emit_objects(code, target), *emit_objects(entries, target)]
    tell("link", 0, 1)
    blob = weights.blob()
    library = link(
        objects,
        functions,
        machine,
        network=network,
        weights_bytes=blob.nbytes,
        others=tuple(code) if export_kernels else (),
    )
    return CompiledLibrary(library, blob, tuple(functions), kernels.tuned())


def kernel_counts(
    graphs: Sequence[Graph], machine: Machine, plain: Collection[str]
) -> list[KernelCount]:
    """The distinct kernels that `compile_functions` would compile, with no choice written down.

    Raises:
        UnsupportedOperator: an operator has no compiled form.
    """
    kernels = _Kernels(machine, target_of(machine), lowers=False)
    uses: dict[KernelSpec, int] = {}
    work: dict[KernelSpec, float] = {}
    for laid in _laid_out([_simpler(graph) for graph in graphs], plain):
        placed, calls = _called(laid.graph, kernels)
        for called in calls:
            spec = called.spec
            uses[spec] = uses.get(spec, 0) + 1
            work[spec] = _cycles(_work(called, placed.graph, machine), machine)
    return [KernelCount(spec, count, work[spec]) for spec, count in uses.items()]


def border_orders(graphs: Sequence[Graph], plain: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Values that `compile_functions` gives another layout than the source's where they cross.

    By name: the source's dimension that each dimension in memory holds.
    """
    found: dict[str, tuple[int, ...]] = {}
    for graph, laid in zip(graphs, _laid_out([_simpler(g) for g in graphs], plain), strict=True):
        for name, layout in laid.borders.items():
            if layout != SOURCE:
                found[name] = channels_last(len(graph.types[name].shape))
    return found


def _symbols(graphs: Sequence[Graph]) -> list[str]:
    symbols: list[str] = []
    for graph in graphs:
        word = re.sub(r"\W", "_", graph.name, flags=re.ASCII)
        symbol, count = f"eec_{word}", 1
        while symbol in symbols:
            count += 1
            symbol = f"eec_{word}_{count}"
        symbols.append(symbol)
    return symbols


def _simpler(graph: Graph) -> Graph:
    """What both hosts and all exporters have in common."""
    # GELUs first: simplification moves their factor 0.5 into the next product.
    return fuse_norms(simplify(fuse_gelu(graph)))


def _laid_out(graphs: Sequence[Graph], plain: Collection[str]) -> list[LaidOut]:
    """Layouts of all graphs, producers before consumers, so that all agree on border values."""
    produced = {name for graph in graphs for name in graph.outputs}
    known: dict[str, str] = {}
    done: dict[int, LaidOut] = {}
    while len(done) < len(graphs):
        waiting = [i for i in range(len(graphs)) if i not in done]
        ready = [
            i
            for i in waiting
            if all(name in known or name not in produced for name in graphs[i].inputs)
        ]
        for i in ready or waiting[:1]:
            laid = lay_out(graphs[i], plain, known)
            done[i] = replace(laid, graph=with_kept_lists(laid.graph))
            known.update(done[i].borders)
    return [done[i] for i in range(len(graphs))]


def _lowered(
    source: Graph, laid: LaidOut, symbol: str, kernels: _Kernels, weights: WeightPool
) -> tuple[CompiledFunction, dict[str, tirx.PrimFunc]]:
    """A graph's kernels, its workspace, and its entry function with the parts of it."""
    placed, calls = _called(laid.graph, kernels)
    graph, views = placed.graph, placed.views
    fixed = {name: f"in{index}" for index, name in enumerate(graph.inputs)}
    fixed |= {name: f"out{index}" for index, name in enumerate(graph.outputs)}
    plan = plan_workspace(
        [called.use() for called in calls],
        views,
        graph.types,
        frozenset(fixed) | frozenset(graph.constants),
    )

    def where(name: str) -> Address:
        view = views[name]
        type_ = graph.types[view.root]
        offset = view.offset * np.dtype(type_.dtype).itemsize
        if view.root in graph.constants:
            return Address("weights", weights.add(graph.constants[view.root]) + offset)
        if view.root in fixed:
            return Address(fixed[view.root], offset, type_.nbytes)
        return Address("workspace", plan.values[view.root] + offset)

    uses, private_bytes = [], 0
    for called, scratch in zip(calls, plan.scratch, strict=True):
        free = iter(scratch)
        arguments = []
        private = 0
        for argument in called.kernel.arguments:
            match argument:
                case Passed(operand):
                    arguments.append(where(called.operands[operand]))
                case Packed(operand, pack):
                    packed = pack(graph.constants[called.operands[operand]])
                    arguments.append(Address("weights", weights.add(packed)))
                case Scratch():
                    arguments.append(Address("workspace", next(free)))
                case PerThread(nbytes):
                    arguments.append(Address("private", private))
                    private += aligned(nbytes)
                case Output():
                    arguments.append(where(called.group.output))
        private_bytes = max(private_bytes, private)
        uses.append(_use(called, graph, tuple(arguments), kernels.machine))
    entry = entry_functions(
        symbol,
        [use.call for use in uses],
        len(graph.inputs),
        len(graph.outputs),
        plan.nbytes,
        private_bytes,
    )
    function = CompiledFunction(
        symbol,
        tuple((name, source.types[name]) for name in source.inputs),
        tuple((name, source.types[name]) for name in source.outputs),
        {name: laid.borders[name] for name in (*source.inputs, *source.outputs)},
        plan.nbytes,
        private_bytes,
        max((phase.threads for use in uses for phase in use.call.phases), default=1),
        tuple(uses),
    )
    return function, entry


@dataclass(frozen=True)
class _Called:
    """A kernel, the operators it stands for and the values it is called with."""

    group: Group
    spec: KernelSpec
    operands: tuple[str, ...]
    kernel: _Kernel

    def use(self) -> Use:
        """What the plan has to know."""
        return Use(
            self.group.output,
            tuple(dict.fromkeys(self.operands)),
            tuple(a.nbytes for a in self.kernel.arguments if isinstance(a, Scratch)),
            tuple(self.operands[index] for index in self.spec.element_by_element),
        )


def _called(graph: Graph, kernels: _Kernels) -> tuple[Placed, list[_Called]]:
    """Where the values of a graph lie, and its kernels in order.

    A schedule that cannot read or write a value where it was placed gets a dense one.
    """
    dense: set[str] = set()
    while True:
        placed = place(graph, dense)
        calls, refused = [], set()
        grouped = with_expansions(group(placed), placed.graph, kernels.machine)
        for found in with_prologues(grouped, placed.graph).groups:
            spec, operands = spec_of(found, placed.graph, placed.views)
            try:
                calls.append(_Called(found, spec, operands, kernels.get(spec, found)))
            except StridesLost as error:
                name = found.output if error.operand is None else operands[error.operand]
                refused.add(name)
        if not refused:
            return placed, calls
        if refused <= dense:
            raise InternalError(f"a schedule needs {sorted(refused)} denser than dense")
        dense |= refused


#: Cycles of work that are worth a thread of its own. Waiting for the other threads takes some
#: 0.2 us (benchmarks/kernels.py --overheads), 700 cycles.
_WORTH_A_THREAD = 3000


def _work(called: _Called, graph: Graph, machine: Machine) -> Work:
    """What one kernel does; each tensor it touches is counted once."""
    group, executed = called.group, called.kernel.instructions
    constants = [name for name in group.inputs if name in graph.constants]
    values = [name for name in (*group.inputs, group.output) if name not in graph.constants]
    nbytes = sum(graph.types[name].nbytes for name in values)
    touched = Work(
        operations=round(executed.operations),
        divisions=round(executed.divisions),
        accesses=round(executed.accesses),
        kernels=1,
        value_bytes=nbytes,
        weight_bytes=sum(graph.types[name].nbytes for name in constants),
        wide_bytes=tuple(nbytes if nbytes > size else 0 for size in WIDE_BYTES),
        lanes=machine.lanes,
    )
    return sum((op_work(op, graph) for op in group.ops), touched)


def _cycles(work: Work, machine: Machine) -> float:
    """Of one core, where one vector is loaded or stored a cycle."""
    loads = (work.value_bytes + work.weight_bytes) / (4 * machine.lanes)
    return work.macs / (machine.lanes * machine.fma_per_cycle) + loads


def _use(
    called: _Called, graph: Graph, arguments: tuple[Address, ...], machine: Machine
) -> KernelUse:
    group, kernel, work = called.group, called.kernel, _work(called, graph, machine)
    sharing = max(1, int(_cycles(work, machine) // _WORTH_A_THREAD))
    phases = tuple(Shared(p.symbol, p.units, min(p.units, sharing)) for p in kernel.phases)
    return KernelUse(
        kernel.symbol,
        tuple(op.kind for op in group.ops),
        group.output,
        graph.types[group.output].shape,
        work,
        Call(phases, arguments),
    )
