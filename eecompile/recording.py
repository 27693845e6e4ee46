"""The data, run once through the backbone compiled for this machine, and kept as records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from eecompile.cache import Cache, digest, source_digest
from eecompile.compiled import CompiledStep
from eecompile.compiling import Compiled, compile_graphs
from eecompile.console import Reporter
from eecompile.datasets import Dataset, Split, open_datasets
from eecompile.diagnostics import CompileErrors, Diagnostic, Span
from eecompile.hardware import Machine
from eecompile.head_fitting import ExitPlan
from eecompile.ir import Graph
from eecompile.passes.index_limits import index_limits
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord, record
from eecompile.runtime.runner import Runner
from eecompile.segments import SegmentGraph, score_names
from eecompile.spec import Spec

__all__ = ["Recorder", "Recording", "open_splits"]

_KINDS: Mapping[Split, type[Record]] = {
    "fit": FitRecord,
    "calibrate": CalibrateRecord,
    "test": TestRecord,
}
#: The network's logits with nothing left out, among what a batch gives.
_WHOLE = "logits with nothing left out"
#: Samples run together, for each thread.
_BATCH = 64


def open_splits(spec: Spec, graph: Graph) -> dict[str, Dataset]:
    """The data by split, their labels checked; none for a network without exits, gates or data.

    Raises:
        CompileErrors: everything that is wrong with them, or the network has several inputs.
    """
    data, output = spec.data_for(spec.model), spec.model.output
    decided = spec.model.exits or spec.model.skips
    if data is None or not decided or output is None or not output.classes:
        return {}
    if len(graph.inputs) != 1:
        message = "Heads can be fitted for networks with one input only"
        notes = (f"this one has {len(graph.inputs)}: {', '.join(graph.inputs)}",)
        raise CompileErrors([Diagnostic("not-supported-yet", message, data.span, notes=notes)])
    input_ = graph.types[graph.inputs[0]]
    limits = index_limits(graph, graph.inputs[0])
    return dict(open_datasets(spec, data, input_, output.classes, limits).items())


@dataclass(frozen=True)
class Recording:
    """A record, the digest of the samples in it, and the key of all that it was made from."""

    record: Record
    samples: str
    key: str


@dataclass(frozen=True)
class Recorder:
    """The backbone with what heads want of it, compiled for this machine.

    Attributes:
        backbone: cut at the exits.
        recorded: names of the values that are kept beside the network's answer.
        graphs: segments and recorders, in an order in which each reads what is there.
        machine: what they are compiled for: this one.
        compiled: their code.
        steps: the same with what gates decide about them.
    """

    backbone: SegmentGraph
    recorded: tuple[str, ...]
    graphs: tuple[Graph, ...]
    machine: Machine
    compiled: Compiled
    steps: tuple[CompiledStep, ...] = ()

    @classmethod
    def compile(
        cls,
        backbone: SegmentGraph,
        plans: Sequence[ExitPlan],
        machine: Machine,
        cache: Cache,
        place: Span | None = None,
    ) -> Recorder:
        """Compile the backbone with the recorders of all heads.

        Raises:
            CompileErrors: an operator has no compiled form.
            ToolError: no linker.
        """
        recorders = [plan.recorder for exit_ in plans for plan in exit_.heads]
        recorded = tuple(graph.outputs[0] for graph in recorders)
        graphs = _in_order(backbone, recorders)
        plain = backbone.shown | set(recorded)
        compiled = compile_graphs(graphs, machine, plain, cache, place)
        conditions = {step.graph.name: step for part in backbone.segments for step in part.steps}
        steps = tuple(
            CompiledStep.of(conditions.get(graph.name), function)
            for graph, function in zip(graphs, compiled.functions, strict=True)
        )
        return cls(backbone, recorded, graphs, machine, compiled, steps)

    def record(
        self, splits: Mapping[str, Dataset], *, threads: int, cache: Cache, progress: Reporter
    ) -> dict[str, Recording]:
        """A record of each split, from the cache where the same samples were recorded before.

        Raises:
            CompileErrors: some sample cannot be the network's input.
        """
        total = sum(data.count or 0 for data in splits.values())
        found: dict[str, Recording] = {}
        done = 0
        for split, data in splits.items():

            def tell(n: int, done: int = done, what: str = split) -> None:
                progress(done + n, total, what)

            found[split] = self._recording(data, threads, cache, tell)
            done += len(found[split].record)
        return found

    def shifted(
        self,
        data: Dataset,
        known: Record,
        shift: float,
        *,
        threads: int,
        cache: Cache,
        key: str,
        progress: Callable[[int], None] | None = None,
    ) -> Record:
        """The record of a split with the gates' scores shifted, from the cache where it is there.

        What exits give is that without a shift: who shifts gates takes no exit.

        Args:
            data: the split.
            known: its record without a shift.
            shift: what is subtracted from all scores.
            threads: that share the samples.
            cache: of records.
            key: of all that `known` was made from.
            progress: told the number of samples done.
        """
        output, scores = self.backbone.output, self.scores
        (name, _), *_ = self.backbone.inputs

        def compute() -> dict[str, np.ndarray]:
            parts: dict[str, list[np.ndarray]] = {value: [] for value in (output, *scores)}
            done = 0
            for images, _ in data.batches(_BATCH * threads):
                run = self._runner.run_gated({name: images}, [output], threads, shift=shift)
                parts[output].append(run.values[output].reshape(len(images), -1))
                for score in scores:
                    parts[score].append(run.shares[score][:, None])
                done += len(images)
                if progress is not None:
                    progress(done)
            return {value: np.concatenate(rows) for value, rows in parts.items()}

        made = cache.arrays(digest("shifted", key, float(shift)), compute)
        shares = {score: made[score] for score in scores}
        return replace(known, final=made[output], shares=shares, recorded={})

    def score_sample(self, data: Dataset, count: int, threads: int) -> np.ndarray:
        """Scores of all gates for the first samples of a split, float32 (any,)."""
        (name, _), *_ = self.backbone.inputs
        images, _ = next(iter(data.batches(count)))
        run = self._runner.run_gated({name: images[:count]}, self.scores, threads)
        rows = [run.values[score].reshape(-1) for score in self.scores]
        found = np.concatenate(rows)
        return np.asarray(found[np.isfinite(found)])  # Not there where a block was left out.

    def _recording(
        self, data: Dataset, threads: int, cache: Cache, progress: Callable[[int], None]
    ) -> Recording:
        kind, samples = _KINDS[data.split], data.digest()
        key = self._key(data.split, samples)
        kept = cache.folder / f"record-{key}"
        try:
            found = Recording(kind.load(kept), samples, key)
        except (OSError, ValueError, KeyError, TypeError):
            return cache.folder_made(kept, lambda f: self._made(data, threads, f, progress))
        cache.touch(kept)
        return found

    def _made(
        self, data: Dataset, threads: int, folder: Path, progress: Callable[[int], None]
    ) -> Recording:
        """A new record, kept under what it holds: a callable may give other samples each time."""
        content = data.content()

        def key() -> str:
            return self._key(data.split, content.hexdigest())

        made = record(
            _KINDS[data.split],
            lambda images: self._run(images, threads),
            data.batches(_BATCH * threads, content),
            output=self.backbone.output,
            exits=[exit_.name for exit_ in self.backbone.exits],
            recorded=self.recorded,
            shares=self.scores,
            whole={"logits": _WHOLE} if self.scores else {},
            folder=folder,
            named=lambda: f"record-{key()}",
            progress=progress,
        )
        return Recording(made, content.hexdigest(), key())

    def _key(self, split: Split, samples: str) -> str:
        """Everything a record follows from."""
        wanted = (*self.recorded, *self.scores, self.backbone.output)
        return digest("record", source_digest(), split, self.graphs, self.machine, wanted, samples)

    @cached_property
    def _runner(self) -> Runner:
        """Loaded when something has to be recorded."""
        return Runner(self.compiled.load(), self.backbone.inputs, self.steps)

    @property
    def scores(self) -> tuple[str, ...]:
        """What gates decide by; none of a network without gates."""
        return tuple(score_names(self.backbone))

    def _run(self, images: np.ndarray, threads: int) -> dict[str, np.ndarray]:
        (name, _), *_ = self.backbone.inputs
        output, wanted = self.backbone.output, [*self.recorded, self.backbone.output]
        if not self.scores:
            values = self._runner.run_all({name: images}, wanted, threads)
        else:
            run = self._runner.run_gated({name: images}, wanted, threads)
            whole = self._runner.run_all({name: images}, [output], threads)[output]
            shares = {score: share[:, None] for score, share in run.shares.items()}
            values = {**run.values, **shares, _WHOLE: whole.reshape(len(images), -1)}
        values[output] = values[output].reshape(len(images), -1)
        return values


def _in_order(backbone: SegmentGraph, recorders: Sequence[Graph]) -> tuple[Graph, ...]:
    """Segments and recorders in an order in which each reads what is there."""
    by_tap: dict[str, list[Graph]] = {}
    for graph in recorders:
        by_tap.setdefault(graph.inputs[0], []).append(graph)
    found: list[Graph] = []
    for index, segment in enumerate(backbone.segments):
        found.extend(segment.graphs)
        for exit_ in backbone.exits[index : index + 1]:
            found.extend(by_tap.get(exit_.feature, ()))
    return tuple(found)
