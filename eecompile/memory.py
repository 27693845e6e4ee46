"""Which values of a whole compiled network are needed when, where they lie, and in how much memory.

Values that cross a segment's border and the workspaces of all functions share one block: what is
not needed at the same time may lie at the same place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from eecompile.compiled import CompiledGraph, CompiledStep, Function, Value
from eecompile.diagnostics import InternalError
from eecompile.figures import readable, threads_in_words
from eecompile.packing import Buffer, Plan, aligned, pack
from eecompile.segments import SHIFT

__all__ = [
    "NetworkPlan",
    "Peak",
    "WayLeftOut",
    "border_values",
    "lasting_values",
    "plan_network",
    "values_needed_after",
    "ways_left_out",
    "workspace_bytes",
]

#: Buffers that are looked at for sharing; more, which no sensible network has, get memory each.
_MOST_BUFFERS = 5000


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Offsets in a block of `nbytes`: of values by name, of workspaces by function's symbol."""

    values: dict[str, int]
    workspaces: dict[str, int]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory a network needs at once to answer single samples, in bytes.

    Attributes:
        weights: all of them; processes that run the same artifact share them.
        activations: border values and workspaces, all threads' together.
        threads: that work on a sample.
        thread: what each thread more takes at most.
    """

    weights: int
    activations: int
    threads: int
    thread: int

    def __str__(self) -> str:
        """In words.

        >>> print(Peak(3_400_000, 900_000, 2, 4096))
        3.4 MB of weights, 900 kB of activations (one sample, 2 threads)
        """
        return (
            f"{readable(self.weights, 'B')} of weights, {readable(self.activations, 'B')} of "
            f"activations (one sample, {threads_in_words(self.threads)})"
        )

    def to_json(self) -> dict[str, int]:
        """For scripts."""
        return {
            "weights_bytes": self.weights,
            "activation_bytes": self.activations,
            "threads": self.threads,
            "thread_bytes": self.thread,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> Peak:
        """From what `to_json` gives."""
        names = ("weights_bytes", "activation_bytes", "threads", "thread_bytes")
        return cls(*(value[name] for name in names))

    @classmethod
    def of(cls, network: CompiledGraph, weights: int, threads: int) -> Peak:
        """Of a network whose weights are of a size, on some threads."""
        plan = plan_network(network.inputs, network.steps(), 1, threads)
        thread = max((function.private_bytes for function in network.functions()), default=0)
        return cls(weights, plan.nbytes, threads, thread)


def workspace_bytes(function: Function, capacity: int, threads: int) -> int:
    """What a function's workspace must hold where threads share its phases or its samples.

    Sharing phases they share the workspace, with a part of each thread's own behind it; sharing
    samples each has all of it for itself.

    >>> from eecompile.cost import Work
    >>> f = Function("f", (), (), workspace_bytes=128, private_bytes=64, threads=2, work=Work())
    >>> [workspace_bytes(f, capacity, threads) for capacity, threads in ((1, 1), (1, 4), (8, 4))]
    [192, 256, 768]
    """
    phases = function.workspace_bytes + min(threads, function.threads) * function.private_bytes
    alone = aligned(function.workspace_bytes + function.private_bytes)
    return max(phases, alone * min(capacity, threads))


def lasting_values(steps: Sequence[Function | CompiledStep]) -> dict[str, Value]:
    """By name, values of gates that are there all along, as more than functions set and read them.

    They are the scores that steps ask, and the shift where a gate reads it.
    """
    found: dict[str, Value] = {}
    for step in steps:
        function = step.function if isinstance(step, CompiledStep) else step
        scores = step.scores if isinstance(step, CompiledStep) else ()
        shift = (value for value in function.inputs if value[0] == SHIFT[0])
        found.update((value[0], value) for value in (*scores, *shift))
    return found


@dataclass(frozen=True, slots=True)
class WayLeftOut:
    """What becomes of a step that is left out.

    Attributes:
        output: the value that something stands for then; "" where nobody needs one.
        is_block: whether the step is the first that its score decides about: blocks are counted
            by it.
    """

    output: str
    is_block: bool


def ways_left_out(steps: Sequence[CompiledStep], wanted: Collection[str]) -> list[WayLeftOut]:
    """For each step; what only steps of the same score read is not needed where it is left out.

    Args:
        steps: in execution order.
        wanted: values that are read by others than these steps.

    Raises:
        InternalError: a step may be left out, but gives several values that are needed.
    """
    # Scores that are not made say that nothing was kept.
    outside = {*wanted, *lasting_values(steps)}
    # By value, the scores of those who read it, "" for those who always do.
    readers = defaultdict[str, set[str]](set, {name: {""} for name in outside})
    for step in steps:
        for name in step.reads:
            readers[name].add(step.keep)
    found = []
    seen: set[str] = set()
    for step in steps:
        is_block = bool(step.keep) and not step.gate and step.keep not in seen
        seen.update((step.keep,) * is_block)
        outputs = [n for n, _ in step.function.outputs if step.keep and readers[n] != {step.keep}]
        if len(outputs) > 1:
            names = ", ".join(outputs)
            raise InternalError(f"{step.function.symbol} may be left out, but gives {names}")
        found.append(WayLeftOut(outputs[0] if outputs else "", is_block))
    return found


def values_needed_after(network: CompiledGraph) -> tuple[tuple[str, ...], ...]:
    """For each segment, the values there when its exit has decided that something later reads."""
    exits = network.exits
    return _read_later(
        network,
        [[f for exit_ in exits[k + 1 :] for f in exit_.functions] for k in range(len(exits))],
    )


def border_values(network: CompiledGraph) -> tuple[tuple[str, ...], ...]:
    """For each segment, the values there that later segments read: all that a server has to know.

    A network input that is read again is among them.
    """
    return _read_later(network, [[] for _ in network.exits])


def _read_later(
    network: CompiledGraph, others: Sequence[Sequence[Function]]
) -> tuple[tuple[str, ...], ...]:
    """What later segments and, for each segment but the last, some other functions read."""
    known = [name for name, _ in network.inputs]
    found = []
    for index, segment in enumerate(network.segments):
        known += [name for f in segment.functions for name, _ in f.outputs]
        later = [step for part in network.segments[index + 1 :] for step in part.steps]
        later += [CompiledStep(f) for f in (others[index] if index < len(others) else ())]
        read = {name for step in later for name in step.reads}
        found.append(tuple(name for name in known if name in read))
    return tuple(found)


def plan_network(
    inputs: Sequence[Value],
    functions: Sequence[Function | CompiledStep],
    capacity: int,
    threads: int,
    kept: Collection[str] = (),
) -> NetworkPlan:
    """A place for every value and every workspace in one block.

    A value lives from the function that computes it to the last one that reads it; one that none
    reads is a result, and lives to the end. When the functions are run some may be left out, but
    they keep their order. What a step's output is a copy of where it is left out is read by it.

    Args:
        inputs: the network's; there before the first function.
        functions: in execution order; steps, where gates decide.
        capacity: samples of each value.
        threads: that share the work.
        kept: values that are wanted at the end, whoever reads them.
    """
    steps = [step if isinstance(step, CompiledStep) else CompiledStep(step) for step in functions]
    end, lasting = len(steps), lasting_values(functions)
    first = {name: 0 for name, _ in (*inputs, *lasting.values())}
    sizes = {name: type_.nbytes * capacity for name, type_ in (*inputs, *lasting.values())}
    last: dict[str, int] = {}
    buffers = []
    for at, step in enumerate(steps):
        last.update((name, at) for name in step.reads)
        for name, type_ in step.function.outputs:
            sizes[name] = type_.nbytes * capacity
            first.setdefault(name, at)
        needed = workspace_bytes(step.function, capacity, threads)
        buffers.append(Buffer(f"workspace {step.function.symbol}", needed, at, at))
    for name, size in sizes.items():
        until = end if name in kept or name in lasting else last.get(name, end)
        buffers.append(Buffer(f"value {name}", size, first[name], until))
    plan = pack(buffers) if len(buffers) <= _MOST_BUFFERS else _side_by_side(buffers)
    return NetworkPlan(
        {name: plan.offsets[f"value {name}"] for name in sizes},
        {s: plan.offsets[f"workspace {s}"] for s in (step.function.symbol for step in steps)},
        plan.nbytes,
    )


def _side_by_side(buffers: Sequence[Buffer]) -> Plan:
    offsets, end = {}, 0
    for buffer in buffers:
        offsets[buffer.name] = end
        end += aligned(buffer.nbytes)
    return Plan(offsets, end)
