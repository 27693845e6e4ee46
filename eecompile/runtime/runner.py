"""Runs compiled functions over many samples, every one asked for, with no decisions.

Recording, verifying and test vectors use this; a `Session` decides on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from eecompile.compiled import CompiledGraph, Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.memory import plan_network
from eecompile.runtime.inputs import Inputs, as_batch, as_mapping, bad_argument
from eecompile.runtime.lane import Lane
from eecompile.runtime.library import Library

__all__ = ["Runner", "batch_inputs", "chunk_size"]

#: Samples of each thread that go through the network together, at most; more gain nothing, as
#: compiled functions work sample by sample. Fewer where values are large, so that a lane stays
#: within `_LANE_BYTES`.
_CHUNK = 64
_LANE_BYTES = 64 << 20


def chunk_size(
    inputs: Sequence[Value],
    functions: Sequence[Function],
    threads: int = 1,
    kept: Sequence[str] = (),
) -> int:
    """How many samples to pass together through these functions, 1 to 64 for each thread."""
    one = max(1, plan_network(inputs, functions, 1, 1, kept).nbytes)
    return max(1, min(_CHUNK * threads, _LANE_BYTES // one))


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


class Runner:
    """Compiled functions in execution order.

    A function may read network inputs and what earlier ones compute. A runner belongs to one
    thread; `run_all` has more at work.
    """

    def __init__(
        self, library: Library, inputs: Sequence[Value], functions: Sequence[Function]
    ) -> None:
        """`inputs` are the network's; values have unique names.

        Raises:
            CompileErrors: the library lacks a function.
        """
        self.library, self.inputs, self.functions = library, tuple(inputs), tuple(functions)
        self.types = dict(self.inputs)
        for function in self.functions:
            for name, type_ in function.inputs:
                if self.types.get(name) != type_:
                    raise InternalError(f"{function.symbol} reads {name}, which is not there")
            for name, type_ in function.outputs:
                if name in self.types:
                    raise InternalError(f"{function.symbol} computes {name} again")
                self.types[name] = type_
            library.function(function)
        self._lane: tuple[object, Lane] | None = None

    @classmethod
    def of(cls, library: Library, network: CompiledGraph) -> Runner:
        """Runs all of a network's functions: segments, heads and comparators."""
        return cls(library, network.inputs, network.functions())

    def needed(self, outputs: Iterable[str]) -> tuple[Function, ...]:
        """The functions that have to run for some values, in execution order."""
        wanted, found = set(outputs), []
        for function in reversed(self.functions):
            if any(name in wanted for name, _ in function.outputs):
                wanted.update(name for name, _ in function.inputs)
                found.append(function)
        return tuple(reversed(found))

    def run_all(
        self, inputs: Inputs, outputs: Sequence[str], threads: int = 1
    ) -> dict[str, np.ndarray]:
        """Values of every sample, by name: arrays (n, ...), see `batch_shape`.

        Only functions that `outputs` need are run. Memory beside the results is bounded, however
        many samples there are; the results do not depend on `threads`, which share the samples.

        Raises:
            CompileErrors: `inputs` do not fit the network.
        """
        arrays, count = batch_inputs(inputs, self.inputs)
        for name in outputs:
            if name not in self.types:
                raise InternalError(f"no function computes {name}")
        results = {
            name: np.empty(batch_shape(self.types[name], count), self.types[name].dtype)
            for name in outputs
        }
        functions = self.needed(outputs)
        chunk = min(chunk_size(self.inputs, functions, threads, outputs), max(count, 1))
        lane = self._lane_for(functions, outputs, chunk, threads)
        for start in range(0, count, chunk):
            size = min(chunk, count - start)
            for name, array in arrays.items():
                lane.values[name][:size] = array[start : start + size]
            for function in functions:
                lane.calls[function.symbol].many(size)
            for name, result in results.items():
                result[start : start + size] = lane.values[name][:size]
        return results

    def _lane_for(
        self, functions: Sequence[Function], outputs: Sequence[str], size: int, threads: int
    ) -> Lane:
        """A lane for what is asked for, kept for the next call that wants the same."""
        key = (tuple(outputs), threads)
        if self._lane is None or self._lane[0] != key or self._lane[1].capacity < size:
            self._lane = None  # Not both at once.
            team = self.library.team(threads) if threads > 1 else None
            lane = Lane(self.library, self.inputs, functions, size, team, outputs)
            self._lane = (key, lane)
        return self._lane[1]
