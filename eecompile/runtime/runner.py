"""Runs compiled functions over many samples, every one asked for, with no exits taken.

Recording, verifying and test vectors use this; a `Session` decides on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from eecompile.compiled import CompiledGraph, CompiledStep, Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.memory import lasting_values, plan_network
from eecompile.runtime.inputs import Inputs, as_batch, as_mapping, bad_argument
from eecompile.runtime.lane import Lane
from eecompile.runtime.library import Library
from eecompile.runtime.steps import Program
from eecompile.segments import SHIFT

__all__ = ["GatedRun", "Runner", "batch_inputs", "chunk_size"]

#: Samples of each thread that go through the network together, at most; more gain nothing, as
#: compiled functions work sample by sample. Fewer where values are large, so that a lane stays
#: within `_LANE_BYTES`.
_CHUNK = 64
_LANE_BYTES = 64 << 20
#: Fewer where gates decide: all samples take a step before one takes the next, so that their values
#: should stay in caches.
_GATED_CHUNK = 16


def chunk_size(
    inputs: Sequence[Value],
    functions: Sequence[Function | CompiledStep],
    threads: int = 1,
    kept: Sequence[str] = (),
) -> int:
    """How many samples to pass together through these functions, 1 to 64 for each thread."""
    one = max(1, plan_network(inputs, functions, 1, 1, kept).nbytes)
    most = _GATED_CHUNK if lasting_values(functions) else _CHUNK
    return max(1, min(most * threads, _LANE_BYTES // one))


def batch_inputs(given: Inputs, inputs: Sequence[Value]) -> tuple[dict[str, np.ndarray], int]:
    """Each input as (n, ...), and n.

    Raises:
        CompileErrors: one is missing, or of another shape, element type or number of samples.
    """
    arrays = {
        name: as_batch(name, dict(inputs)[name], array, single=False)
        for name, array in as_mapping(given, inputs).items()
    }
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise bad_argument(f"The inputs have different numbers of samples: {sorted(counts)}")
    return arrays, counts.pop()


@dataclass(frozen=True, slots=True)
class GatedRun:
    """What came of samples whose gates decided.

    Attributes:
        values: what was asked for, by name, (n, ...). What lies within a block that was left out
            is not there: it is any value.
        shares: by the name of a score, float32 (n,): of the groups it decides on, those kept; 0 or
            1 for a whole block, 0 for channels inside a block that was left out.
        macs: int64 (n, segments): multiply-accumulates up to and with each segment, gates' among
            them and those of heads not.
        blocks_run: int64 (n,), the blocks that were not left out.
    """

    values: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    macs: np.ndarray
    blocks_run: np.ndarray


class Runner:
    """Compiled functions in execution order.

    A function may read network inputs and what earlier ones compute. A runner belongs to one
    thread; `run_all` has more at work.
    """

    def __init__(
        self,
        library: Library,
        inputs: Sequence[Value],
        functions: Sequence[Function | CompiledStep],
    ) -> None:
        """`inputs` are the network's; values have unique names.

        Raises:
            CompileErrors: the library lacks a function.
        """
        self.library, self.inputs = library, tuple(inputs)
        self.steps = tuple(
            step if isinstance(step, CompiledStep) else CompiledStep(step) for step in functions
        )
        scores = lasting_values(self.steps)
        self.gated = bool(scores)
        self.types = dict(self.inputs) | {n: v[1] for n, v in scores.items() if n == SHIFT[0]}
        for step in self.steps:
            function = step.function
            for name in step.reads:
                if name not in self.types or self.types[name] != dict(function.inputs).get(
                    name, self.types[name]
                ):
                    raise InternalError(f"{function.symbol} reads {name}, which is not there")
            for name, type_ in function.outputs:
                if name in self.types:
                    raise InternalError(f"{function.symbol} computes {name} again")
                self.types[name] = type_
            library.function(function)
        self._segments: dict[str, int] = {}
        self._lane: tuple[object, Lane, Program | None] | None = None
        self._most: tuple[object, int] | None = None

    @classmethod
    def of(cls, library: Library, network: CompiledGraph) -> Runner:
        """Runs all of a network's functions: segments, heads and comparators."""
        runner = cls(library, network.inputs, network.steps())
        for index, segment in enumerate(network.segments):
            runner._segments.update((function.symbol, index) for function in segment.functions)
        return runner

    def needed(self, outputs: Iterable[str]) -> tuple[CompiledStep, ...]:
        """What has to run for some values, in execution order."""
        wanted, found = set(outputs), []
        for step in reversed(self.steps):
            if any(name in wanted for name, _ in step.function.outputs):
                wanted.update(step.reads)
                found.append(step)
        return tuple(reversed(found))

    def run_all(
        self, inputs: Inputs, outputs: Sequence[str], threads: int = 1
    ) -> dict[str, np.ndarray]:
        """Values of every sample, by name: arrays (n, ...), see `batch_shape`.

        No gate decides: nothing is left out. Only functions that `outputs` need are run. Memory
        beside the results is bounded, however many samples there are; the results do not depend on
        `threads`, which share the samples.

        Raises:
            CompileErrors: `inputs` do not fit the network.
        """
        arrays, count = batch_inputs(inputs, self.inputs)
        results, steps = self._room(outputs, count), self.needed(outputs)
        for rows, lane, program in self._chunks(arrays, count, steps, outputs, threads):
            size = rows.stop - rows.start
            if program is None:
                for step in steps:
                    lane.calls[step.function.symbol].many(size)
            else:
                program.begin(size, gates=False)
                program.part(0, len(steps)).many(size)
            for name, result in results.items():
                result[rows] = lane.values[name][:size]
        return results

    def run_gated(
        self,
        inputs: Inputs,
        outputs: Sequence[str],
        threads: int = 1,
        *,
        shift: float = 0.0,
        keeps: Mapping[str, np.ndarray] | None = None,
    ) -> GatedRun:
        """The same with decisions, of gates or given. All segments of the network are run.

        Args:
            inputs: of all samples.
            outputs: names of the values that are wanted.
            threads: that share the samples.
            shift: what gates subtract from their scores: more leaves more out.
            keeps: scores by name, float32 (n or 1, groups), in the place of all gates': none runs,
                and where no score is given everything is kept.

        Raises:
            CompileErrors: `inputs` do not fit the network.
        """
        arrays, count = batch_inputs(inputs, self.inputs)
        values, blocks_run = self._room(outputs, count), np.zeros(count, np.int64)
        wanted = {step.function.symbol for step in self.needed(outputs)} | set(self._segments)
        steps = tuple(step for step in self.steps if step.function.symbol in wanted)
        scores = [name for name in lasting_values(steps) if name != SHIFT[0]]
        shares = {name: np.empty(count, np.float32) for name in scores}
        macs = np.zeros((count, 1 + max(self._segments.values(), default=0)), np.int64)
        given = {} if keeps is None else self._given(keeps, count)
        pieces = self._pieces(steps)
        for rows, lane, program in self._chunks(arrays, count, steps, outputs, threads):
            if program is None:
                raise InternalError("a network without gates decides nothing")
            size = rows.stop - rows.start
            program.begin(size, gates=keeps is None, shift=shift)
            if keeps is not None:
                program.given({name: scores_[rows] for name, scores_ in given.items()})
            tallies = program.tallies[:size]
            for segment, first, end in pieces:
                before = tallies["macs"].copy()
                program.part(first, end).many(size)
                if segment is not None:
                    macs[rows, segment] = tallies["macs"] - before
            blocks_run[rows] = tallies["blocks"]
            for name, share in shares.items():
                share[rows] = (lane.values[name][:size] > 0).mean(axis=1)
            for name, result in values.items():
                result[rows] = lane.values[name][:size]
        return GatedRun(values, shares, macs.cumsum(axis=1), blocks_run)

    def _pieces(self, steps: Sequence[CompiledStep]) -> list[tuple[int | None, int, int]]:
        """Steps of one segment in a row, or of none: its index, the first and behind the last."""
        found, end = [], 0
        for index, group in groupby(self._segments.get(s.function.symbol) for s in steps):
            first, end = end, end + len(list(group))
            found.append((index, first, end))
        return found

    def _given(self, keeps: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Scores of every sample."""
        known = lasting_values(self.steps)
        for name in keeps:
            if name not in known:
                raise InternalError(f"no step asks the score {name}")
        return {
            name: np.broadcast_to(scores, batch_shape(self.types[name], count))
            for name, scores in keeps.items()
        }

    def _room(self, outputs: Sequence[str], count: int) -> dict[str, np.ndarray]:
        for name in outputs:
            if name not in self.types:
                raise InternalError(f"no function computes {name}")
        return {
            name: np.empty(batch_shape(self.types[name], count), self.types[name].dtype)
            for name in outputs
        }

    def _chunks(
        self,
        arrays: Mapping[str, np.ndarray],
        count: int,
        steps: Sequence[CompiledStep],
        outputs: Sequence[str],
        threads: int,
    ) -> Iterator[tuple[slice, Lane, Program | None]]:
        """Some samples after the other, in a lane for these steps."""
        key = (tuple(outputs), tuple(step.function.symbol for step in steps), threads)
        if self._most is None or self._most[0] != key:
            self._most = key, chunk_size(self.inputs, steps, threads, outputs)
        chunk = min(self._most[1], max(count, 1))
        lane, program = self._lane_for(key, steps, outputs, chunk, threads)
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            for name, array in arrays.items():
                lane.values[name][: rows.stop - start] = array[rows]
            yield rows, lane, program

    def _lane_for(
        self,
        key: object,
        steps: Sequence[CompiledStep],
        outputs: Sequence[str],
        size: int,
        threads: int,
    ) -> tuple[Lane, Program | None]:
        """A lane for what is asked for, kept for the next call that wants the same."""
        if self._lane is None or self._lane[0] != key or self._lane[1].capacity < size:
            self._lane = None  # Not both at once.
            team = self.library.team(threads) if threads > 1 else None
            lane = Lane(self.library, self.inputs, steps, size, team, outputs)
            program = Program(lane, steps, outputs) if self.gated else None
            self._lane = (key, lane, program)
        return self._lane[1:]
