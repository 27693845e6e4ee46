"""`eecompile build`: from a `.ee` file to an artifact, step by step.

The order is fixed by what each step needs: heads are fitted on features that the compiled backbone
recorded, policies on what the fitted heads give, latency budgets on the time the final code takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eecompile import __version__
from eecompile.artifact import Contents, PolicyEntry, check_destination, write_artifact
from eecompile.cache import Cache, digest, source_digest
from eecompile.compiled import CompiledGraph
from eecompile.compiling import Compiled, compile_graphs
from eecompile.console import Reporter, Steps
from eecompile.datasets import Dataset, open_dataset
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics, did_you_mean_help
from eecompile.dsl.check_policies import needs_calibration
from eecompile.equivalence import Equivalence, compare_with_source, example_inputs
from eecompile.exit_table import exit_table
from eecompile.freshness import Freshness
from eecompile.hardware import Machine, machine, machine_names
from eecompile.head_fitting import ExitPlan, fit_plans, graphs_of, plan_exits, with_outputs
from eecompile.ir import Graph
from eecompile.latency import Latencies, cost_table, measure
from eecompile.loading import check_file, source_errors, with_classes
from eecompile.manifest import Normalization, TargetInfo
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.passes.base import Instrument, Pass, PassManager, Program
from eecompile.passes.host import HostError, HostGraph
from eecompile.passes.instruments import DumpText, Timing
from eecompile.passes.pipelines import backbone_pipeline, segments_pipeline
from eecompile.policies import ExitPolicy, from_json, to_json
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord, record
from eecompile.report import policy_report
from eecompile.rule_family import given_policy
from eecompile.runtime.runner import Runner
from eecompile.runtime.vectors import make_vectors, shown_values
from eecompile.segments import SegmentGraph
from eecompile.spec import DataSet, Policy, Spec
from eecompile.text import print_segments

__all__ = ["BuildOptions", "BuildReport", "build", "choose_machine", "cut_file", "plan"]

R = TypeVar("R", bound=Record)

_SPLITS: dict[str, type[Record]] = {
    "fit": FitRecord,
    "calibrate": CalibrateRecord,
    "test": TestRecord,
}
#: Samples bundled as test vectors, and samples compared with the source network.
_VECTORS = 16


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says beside the file.

    Attributes:
        target: target name; None for the file's, else this machine.
        output: artifact folder; None for ``<model>.artifact`` beside the file.
        overrides: ``key.path=value`` texts.
        emit: where to save the network with all its exits, in its host's format.
        dump_ir: folder for the IR after each pass.
        threads: used while recording; 0 for all cores.
        seed: of everything random.
    """

    target: str | None = None
    output: Path | None = None
    overrides: Sequence[str] = ()
    emit: Path | None = None
    dump_ir: Path | None = None
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        artifact: the folder written.
        unchanged: whether it was up to date, so that nothing was done.
        summary: JSON value: target, segments, exits, equivalence, latency, policies, times.
    """

    artifact: Path
    unchanged: bool
    summary: Mapping[str, Any] = field(repr=False)


def choose_machine(spec: Spec, target: str | None) -> Machine:
    """The machine to compile for: the command line's, else the file's, else this one.

    Raises:
        CompileErrors: there is no such target.
    """
    written = {entry.name: entry for entry in spec.targets}
    name = target or next(iter(written), "host")
    entry = written.get(name)
    board = (entry.board if entry else None) or name
    known = machine_names()
    if board not in known:
        help_ = did_you_mean_help(board, known) or f"targets: {', '.join(known)}"
        place = entry.at("board") if entry else None
        raise CompileErrors(
            [Diagnostic("unknown-target", f"Unknown target `{board}`", place, help=help_)]
        )
    return machine(board)


def build(
    path: Path, options: BuildOptions, steps: Steps, cache: Cache | None = None
) -> BuildReport:
    """Build an artifact; where nothing changed since the last build, only check that it is whole.

    Raises:
        CompileErrors: the file, the network or the data are wrong, or a budget cannot be kept.
        ToolError: the environment lacks something.
    """
    cache = cache or Cache()
    output = options.output or path.with_suffix(".artifact")
    freshness = Freshness(cache, path, options, output)
    stored = freshness.stored_summary()
    if stored is not None:
        steps.say(f"{output} is up to date")
        return BuildReport(output, True, stored)
    job = _Build(path, options, steps, cache, output)
    summary = job.run()
    freshness.store(job.spec, summary)
    return BuildReport(output, False, summary)


def cut_file(path: Path, overrides: Sequence[str] = ()) -> tuple[Spec, SegmentGraph]:
    """A file and its backbone, cut at its exits, with no heads inserted.

    Raises:
        CompileErrors: the file or the network are wrong.
    """
    job = _Build(path, BuildOptions(overrides=overrides), Steps(0, True), Cache(), path)
    host = job.checked()
    return job.spec, job.cut(host, backbone_pipeline())


def plan(path: Path, options: BuildOptions) -> dict[str, Any]:
    """What `build` would do, after all checks that need no data to be run: a JSON value.

    Raises:
        CompileErrors: as `build`, for the file, the network and the headers of the data.
    """
    spec, backbone = cut_file(path, options.overrides)
    found = choose_machine(spec, options.target)
    data = spec.data_for(spec.model)
    rows = exit_table(backbone, {e.name: str(e.head) for e in spec.model.exits})
    steps = [f"fit {exit_.head} at `{exit_.name}`" for exit_ in spec.model.exits]
    for split in _SPLITS:
        source = data and getattr(data, split)
        steps += [f"run the {split} data {source.path} through it once"] if source else []
    steps += [f"fit policy `{p.name}` to {p.budget or 'its default'}" for p in spec.policies]
    return {
        "artifact": str(options.output or path.with_suffix(".artifact")),
        "target": found.name,
        "triple": found.triple,
        "exits": [{name: getattr(row, name) for name in row.__slots__} for row in rows],
        "steps": steps,
    }


class _Build:
    """One build; attributes are filled in the order of `run`."""

    def __init__(
        self, path: Path, options: BuildOptions, steps: Steps, cache: Cache, output: Path
    ) -> None:
        self.path, self.options, self.steps, self.cache = path, options, steps, cache
        self.output = output
        self.threads = options.threads or os.cpu_count() or 1
        self.timing = Timing()
        self.spec = Spec()
        self.keys: dict[str, str] = {}
        self.data_digests: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """All steps, from the top to the bottom."""
        with self.steps.step("check the file against the network"):
            check_destination(self.output)
            host = self.checked()
            self.machine = choose_machine(self.spec, self.options.target)
            self.here = self.machine if self.machine.is_native else machine("host")
            splits = self._splits(host)
        with self.steps.step("find the exits and cut the backbone"):
            backbone = self.cut(host, backbone_pipeline())
            plans = self._plans(backbone)
        with self.steps.step("compile the backbone for this machine"):
            recorder = self._compile_recorder(backbone, plans) if splits else None
        with self.steps.step("run the data through it once") as progress:
            records = self._records(backbone, plans, recorder, splits, progress)
        with self.steps.step("fit the exit heads") as progress:
            heads, comparators, records = self._fit(backbone, plans, records, progress)
        with self.steps.step("insert the exits and cut again"):
            extended = host.copy()
            segments = self.cut(extended, segments_pipeline(heads, comparators))
            self._emit(extended)
        with self.steps.step(f"compile for {self.machine.name}"):
            compiled = self._compile(segments, self.machine)
            native = compiled if self.here is self.machine else self._compile(segments, self.here)
            network = CompiledGraph.of(segments, compiled.functions)
        with self.steps.step("compare with the source network, decisions off"):
            inputs = self._examples(segments, splits)
            runner = Runner.of(native.load(), CompiledGraph.of(segments, native.functions))
            values = runner.run_all(inputs, shown_values(network), 1)
            equivalence = compare_with_source(extended, segments, inputs, values, self.spec)
        with self.steps.step("measure, fit the policies to their budgets"):
            latencies = measure(runner, network, inputs) if self.here is self.machine else None
            policies, reports = self._policies(segments, network, latencies, records)
        with self.steps.step(f"write {self.output}"):
            costs = cost_table(self.machine.name, segments, network, latencies)
            summary = self._summary(segments, equivalence, reports, costs)
            write_artifact(
                self.output,
                Contents(
                    version=__version__,
                    target=TargetInfo(
                        self.machine.name, self.machine.triple, tuple(self.machine.features)
                    ),
                    network=network,
                    library=compiled.library,
                    weights=compiled.weights,
                    vectors=make_vectors(network, inputs, values, equivalence.source, policies),
                    segments_text=print_segments(segments, "full"),
                    source_text=self.path.read_text(encoding="utf-8"),
                    policies={
                        name: PolicyEntry(to_json(policy), reports[name])
                        for name, policy in policies.items()
                    },
                    default_policy=next(iter(policies), None),
                    costs=costs,
                    measured=latencies is not None,
                    normalizations=self._normalizations(segments),
                    fitted={
                        "heads": self._heads_in_words(),
                        "seed": self.options.seed,
                        "overrides": list(self.options.overrides),
                    },
                    data=self.data_digests,
                ),
            )
        return summary | {"times_s": self.steps.times_s}

    # -- the source ----------------------------------------------------------------------------

    def checked(self) -> HostGraph:
        """The network, after everything that can be checked was; sets `spec`."""
        spec, host, found = check_file(self.path, self.options.overrides)
        found.raise_errors()
        assert host is not None, "a host that cannot be opened is an error"
        self.spec = with_classes(spec, host)
        return host

    def cut(self, host: HostGraph, pipeline: tuple[Pass, ...]) -> SegmentGraph:
        """Run a pipeline that ends with cutting; the host is edited."""
        instruments: list[Instrument] = [self.timing]
        if self.options.dump_ir is not None:
            folder = "backbone" if len(pipeline) == 2 else "exits"
            instruments.append(DumpText(self.options.dump_ir / folder))
        try:
            with _written(self.options.dump_ir):
                result = PassManager(pipeline, instruments).run(Program(host, self.spec.model))
        except HostError as error:
            raise source_errors(error, self.spec.model) from error
        assert result.graph.segments is not None, "the pipelines end with cutting"
        return result.graph.segments

    def _plans(self, backbone: SegmentGraph) -> tuple[ExitPlan, ...]:
        try:
            return plan_exits(self.spec, backbone)
        except HostError as error:
            raise source_errors(error, self.spec.model) from error

    def _emit(self, host: HostGraph) -> None:
        if self.options.emit is not None:
            with _written(self.options.emit):
                host.save(self.options.emit)

    # -- data ----------------------------------------------------------------------------------

    @property
    def _data(self) -> DataSet | None:
        return self.spec.data_for(self.spec.model)

    def _splits(self, host: HostGraph) -> dict[str, Dataset]:
        """The data by split; none for a network without exits or data."""
        data, output = self._data, self.spec.model.output
        if data is None or not self.spec.model.exits or output is None or not output.classes:
            return {}
        graph = host.graph()
        if len(graph.inputs) != 1:
            message = "Heads can be fitted for networks with one input only"
            notes = (f"this one has {len(graph.inputs)}: {', '.join(graph.inputs)}",)
            raise CompileErrors([Diagnostic("not-supported-yet", message, data.span, notes=notes)])
        found: dict[str, Dataset] = {}
        problems = Diagnostics()
        for split in _SPLITS:
            try:
                opened = open_dataset(
                    self.spec,
                    data,
                    split,
                    graph.types[graph.inputs[0]],
                    output.classes,  # type: ignore[arg-type]
                )
                if opened is not None:
                    opened.check()
                    found[split] = opened
            except CompileErrors as errors:
                problems.add(*errors.diagnostics)
        problems.raise_errors()
        return found

    def _examples(
        self, segments: SegmentGraph, splits: Mapping[str, Dataset]
    ) -> dict[str, np.ndarray]:
        """Inputs to compare and bundle: real samples where there are any, else random ones."""
        source = splits.get("calibrate") or splits.get("fit")
        if source is None:
            return example_inputs(segments.inputs, _VECTORS // 4, self.options.seed)
        images, _ = next(iter(source.batches(_VECTORS)))
        return {segments.inputs[0][0]: images}

    def _normalizations(self, segments: SegmentGraph) -> dict[str, Normalization]:
        data = self._data
        if data is None or len(segments.inputs) != 1:
            return {}
        low, high = data.pixels
        if low != 0.0 or high == 0.0:
            return {}
        mean, std = ((0.0,), (1.0,))
        if data.normalize is not None:
            mean, std = data.normalize.mean, data.normalize.std
        elif segments.inputs[0][1].dtype != "float32":
            return {}
        return {segments.inputs[0][0]: Normalization(mean, std, 255.0 / high)}

    # -- compiling -----------------------------------------------------------------------------

    def _compile_recorder(self, backbone: SegmentGraph, plans: Sequence[ExitPlan]) -> Compiled:
        recorders = [plan.recorder for exit_ in plans for plan in exit_.heads]
        graphs = _in_order(backbone, recorders)
        plain = _plain(backbone) | {graph.outputs[0] for graph in recorders}
        return compile_graphs(graphs, self.here, plain, self.cache, self.spec.model.at("path"))

    def _compile(self, segments: SegmentGraph, for_machine: Machine) -> Compiled:
        place = self.spec.model.at("path")
        return compile_graphs(segments.graphs(), for_machine, _plain(segments), self.cache, place)

    # -- recording and fitting -----------------------------------------------------------------

    def _records(
        self,
        backbone: SegmentGraph,
        plans: Sequence[ExitPlan],
        recorder: Compiled | None,
        splits: Mapping[str, Dataset],
        progress: Reporter,
    ) -> dict[str, Record]:
        recorded = [plan.recorded for exit_ in plans for plan in exit_.heads]
        wanted = [*recorded, backbone.output]
        (name, _), *_ = backbone.inputs
        graphs = _in_order(backbone, [plan.recorder for e in plans for plan in e.heads])
        total = sum(split.count or 0 for split in splits.values())
        found: dict[str, Record] = {}
        done = 0
        runner: Runner | None = None
        for split, data in splits.items():
            self.data_digests[split] = data.digest()
            key = digest(
                "record",
                source_digest(),
                split,
                graphs,
                self.here,
                wanted,
                self.data_digests[split],
            )
            self.keys[split] = key
            kind = _SPLITS[split]
            kept = self.cache.folder / f"record-{key}"
            try:
                found[split] = kind.load(kept)
                self.cache.touch(kept)
            except (OSError, ValueError, KeyError, TypeError):
                if runner is None:
                    assert recorder is not None, "compiled where there are data"
                    runner = Runner(recorder.load(), backbone.inputs, recorder.functions)
                run = runner

                def run_batch(images: np.ndarray, run: Runner = run) -> dict[str, np.ndarray]:
                    values = run.run_all({name: images}, wanted, self.threads)
                    values[backbone.output] = values[backbone.output].reshape(len(images), -1)
                    return values

                def make(
                    folder: Path,
                    kind: type[Record] = kind,
                    data: Dataset = data,
                    at: int = done,
                ) -> Record:
                    return record(
                        kind,
                        run_batch,
                        data.batches(64 * self.threads),
                        output=backbone.output,
                        exits=[exit_.name for exit_ in backbone.exits],
                        recorded=recorded,
                        folder=folder,
                        progress=lambda n: progress(at + n, total, data.split),
                    )

                found[split] = self.cache.folder_made(kept, make)
            done += len(found[split])
        return found

    def _fit(
        self,
        backbone: SegmentGraph,
        plans: Sequence[ExitPlan],
        records: dict[str, Record],
        progress: Reporter,
    ) -> tuple[dict[str, Graph], dict[str, Graph], dict[str, Record]]:
        parameters: dict[str, Mapping[str, np.ndarray]] = {}
        fit, calibrate = records.get("fit"), records.get("calibrate")
        if isinstance(fit, FitRecord):
            parameters = fit_plans(
                plans,
                fit,
                calibrate if isinstance(calibrate, CalibrateRecord) else None,
                backbone.classes or 0,
                seed=self.options.seed,
                workers=self.threads,
                cache=self.cache,
                keys=(self.keys["fit"], self.keys.get("calibrate", "")),
                progress=progress,
            )
        heads, comparators = graphs_of(plans, parameters)
        kept = {n: with_outputs(r, plans, parameters) for n, r in records.items() if n != "fit"}
        return heads, comparators, kept

    def _policies(
        self,
        segments: SegmentGraph,
        network: CompiledGraph,
        latencies: Latencies | None,
        records: Mapping[str, Record],
    ) -> tuple[dict[str, ExitPolicy], dict[str, dict[str, Any]]]:
        costs = {"macs": ExitCosts.macs(segments)}
        if latencies is not None:
            costs["latency"] = latencies.exit_costs
        calibrate, test = records.get("calibrate"), records.get("test")
        policies: dict[str, ExitPolicy] = {}
        reports: dict[str, dict[str, Any]] = {}
        problems = Diagnostics()
        for written in self._policy_specs():
            if not self._cost_known(written, costs, problems):
                continue
            try:
                if isinstance(calibrate, CalibrateRecord):
                    fitted = self._fitted(written, calibrate, costs)
                else:
                    fitted = self._given(written, network)
            except CompileErrors as errors:
                problems.add(*errors.diagnostics)
                continue
            policies[written.name] = from_json(fitted["policy"])
            reports[written.name] = policy_report(
                written,
                fitted,
                evaluate(policies[written.name], test, costs)
                if isinstance(test, TestRecord)
                else None,
            )
        problems.raise_errors()
        return policies, reports

    def _policy_specs(self) -> tuple[Policy, ...]:
        return self.spec.policies if self.spec.model.exits else ()

    def _cost_known(
        self, written: Policy, costs: Mapping[str, ExitCosts], problems: Diagnostics
    ) -> bool:
        budget = written.budget
        if budget is None or budget.quantity in ("accuracy_drop", *costs):
            return True
        problems.error(
            "not-supported-yet",
            f"A budget of {budget.quantity} for `{self.machine.name}` is not supported yet",
            written.at("budget"),
            "nothing measures it here",
            help="use a budget of macs or of accuracy drop, or build for `host`",
        )
        return False

    def _fitted(
        self, written: Policy, calibrate: CalibrateRecord, costs: Mapping[str, ExitCosts]
    ) -> dict[str, Any]:
        fitted = fit_policy(written.rule, written.budget, calibrate, costs, seed=self.options.seed)
        return {
            "policy": to_json(fitted.policy),
            "point": fitted.point.to_json(),
            "points": [point.to_json() for point in fitted.points],
        }

    def _given(self, written: Policy, network: CompiledGraph) -> dict[str, Any]:
        """A policy without calibration data: all its thresholds have to be given."""
        if needs_calibration(written):
            message = f"Thresholds of policy `{written.name}` cannot be fitted"
            place = written.rule.span if written.rule else None
            why = "there are no calibration data for a network with one input and known classes"
            raise CompileErrors([Diagnostic("missing-data", message, place, notes=(why,))])
        heads = [exit_.head is not None for exit_ in network.exits]
        class_means = [exit_.comparator is not None for exit_ in network.exits]
        policy = given_policy(written.rule, heads, class_means)
        return {"policy": to_json(policy), "point": None, "points": []}

    # -- telling -------------------------------------------------------------------------------

    def _heads_in_words(self) -> dict[str, str]:
        return {
            exit_.name: str(exit_.head)
            + (f" comparator {exit_.comparator}" if exit_.comparator else "")
            for exit_ in self.spec.model.exits
        }

    def _summary(
        self,
        segments: SegmentGraph,
        equivalence: Equivalence,
        reports: Mapping[str, Any],
        costs: Mapping[str, Any],
    ) -> dict[str, Any]:
        rows = exit_table(segments, self._heads_in_words())
        roundings = equivalence.roundings
        return {
            "artifact": str(self.output),
            "model": segments.name,
            "target": self.machine.name,
            "triple": self.machine.triple,
            "macs": segments.macs,
            "exits": [{name: getattr(row, name) for name in row.__slots__} for row in rows],
            "max_abs_error": equivalence.max_abs_error,
            "max_exit_error": equivalence.max_exit_error,
            "max_source_error": equivalence.max_source_error,
            "roundings": roundings and {"values": roundings.values, "apart": roundings.apart},
            "full_depth": costs["full_depth"],
            "policies": dict(reports),
            "passes_s": self.timing.seconds,
        }


@contextmanager
def _written(path: Path | None) -> Iterator[None]:
    """Turns a failure to write to `path` into a diagnostic."""
    try:
        yield
    except OSError as error:
        if path is None:
            raise
        message = f"Cannot write `{path}`: {error.strerror or error}"
        raise CompileErrors([Diagnostic("cannot-write", message, path=str(path))]) from error


def _plain(segments: SegmentGraph) -> set[str]:
    """Values the outside sees: network inputs and outputs, and what exits give."""
    shown = {name for name, _ in segments.inputs} | set(segments.segments[-1].graph.outputs)
    return shown | {
        name for exit_ in segments.exits for graph in exit_.graphs for name in graph.outputs
    }


def _in_order(backbone: SegmentGraph, recorders: Sequence[Graph]) -> tuple[Graph, ...]:
    """Segments and recorders in an order in which each reads what is there."""
    by_tap: dict[str, list[Graph]] = {}
    for graph in recorders:
        by_tap.setdefault(graph.inputs[0], []).append(graph)
    found: list[Graph] = []
    for index, segment in enumerate(backbone.segments):
        found.append(segment.graph)
        for exit_ in backbone.exits[index : index + 1]:
            found.extend(by_tap.get(exit_.feature, ()))
    return tuple(found)
