"""Runs compiled functions over many samples, every one asked for, with no decisions.

Recording, verifying and test vectors use this; a `Session` decides on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from eecompile.compiled import CompiledGraph, Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.runtime.inputs import Inputs, as_batch, as_mapping, bad_argument
from eecompile.runtime.lane import Lane, sample_bytes
from eecompile.runtime.library import Library

__all__ = ["Runner", "batch_inputs", "chunk_size", "for_each"]

#: Samples that go through the network together, at most; more gain nothing, as compiled functions
#: work sample by sample. Fewer where values are large, so that a lane stays within `_LANE_BYTES`.
_CHUNK = 64
_LANE_BYTES = 64 << 20
_T = TypeVar("_T")


def chunk_size(inputs: Sequence[Value], functions: Sequence[Function]) -> int:
    """How many samples to pass together through these functions, 1 to 64."""
    return max(1, min(_CHUNK, _LANE_BYTES // max(1, sample_bytes(inputs, functions))))


def for_each(work: Callable[[_T], None], items: Sequence[_T], workers: int) -> None:
    """Call `work` on every item, from up to `workers` threads; an exception ends it."""
    if workers <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, items):
            pass


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

    A function may read network inputs and what earlier ones compute. For several threads at once
    use `run_all`'s own; a runner itself belongs to one thread.
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
        self._lanes: dict[tuple[str, ...], list[Lane]] = {}

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
        many samples there are; the results do not depend on `threads`.

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
        chunk = chunk_size(self.inputs, functions)
        starts = range(0, count, chunk)
        workers = max(1, min(threads, len(starts)))
        lanes: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._lanes_for(functions, min(chunk, max(count, 1)), workers):
            lanes.put(lane)

        def work(start: int) -> None:
            lane = lanes.get()
            size = min(chunk, count - start)
            for name, array in arrays.items():
                lane.values[name][:size] = array[start : start + size]
            for function in functions:
                lane.calls[function.symbol].many(size)
            for name, result in results.items():
                result[start : start + size] = lane.values[name][:size]
            lanes.put(lane)

        for_each(work, starts, workers)
        return results

    def _lanes_for(self, functions: Sequence[Function], size: int, count: int) -> list[Lane]:
        """Lanes for a set of functions, kept for the next call that wants the same ones."""
        key = tuple(function.symbol for function in functions)
        kept = self._lanes.get(key, [])
        found = [lane for lane in kept if lane.capacity >= size][:count]
        while len(found) < count:
            found.append(Lane(self.library, self.inputs, functions, size))
        self._lanes = {key: found}
        return found
