"""`eecompile build`: from a `.ee` file to an artifact, step by step.

The order is fixed by what each step needs: heads are fitted on features that the compiled backbone
recorded, policies on what the fitted heads give, latency budgets on the time the final code takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eecompile import __version__
from eecompile.artifact import Contents, PolicyEntry, write_artifact
from eecompile.atomic import write_errors
from eecompile.benching.observing import clock_now
from eecompile.benching.planning import is_board
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache, digest
from eecompile.clocks.building import build_clocks
from eecompile.clocks.planning import budget_costs
from eecompile.collapse import collapse_warnings
from eecompile.compiled import CompiledGraph
from eecompile.compiling import Compiled, TunedKernels, compile_graphs, tune_graphs
from eecompile.console import Reporter, Steps
from eecompile.cost_table import CostTable
from eecompile.costing import cost_table
from eecompile.equivalence import (
    Equivalence,
    compare_gated,
    compare_with_source,
    example_inputs,
)
from eecompile.exit_candidates import Placing
from eecompile.exit_placing import place_exits, with_exits
from eecompile.exit_table import exit_rows
from eecompile.freshness import Freshness
from eecompile.gate_fitting import fit_gates
from eecompile.gate_report import gating_json
from eecompile.gated_costs import costs_as_paid
from eecompile.gates_kept import with_gates_told
from eecompile.halt_building import build_halts
from eecompile.hardware import Machine, cpu_name, machine, usable_cores
from eecompile.head_fitting import ExitPlan, fit_plans, graphs_of, with_heads, with_outputs
from eecompile.ir import Graph
from eecompile.latency import measure
from eecompile.manifest import MOST_THREADS, Normalization, TargetInfo
from eecompile.memory import Peak
from eecompile.native_plan import plan_bytes
from eecompile.offload_building import build_offloads
from eecompile.outcomes import ExitCosts
from eecompile.passes.host import HostGraph
from eecompile.passes.insert_gates import insert_gates
from eecompile.passes.instruments import Timing
from eecompile.passes.pipelines import backbone_pipeline, segments_pipeline
from eecompile.planning import annotate, cut, plan_heads, prepare
from eecompile.policy_building import build_policies
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord
from eecompile.recording import Recorder, Recording
from eecompile.runtime.runner import Runner
from eecompile.runtime.sysfs import LocalFiles
from eecompile.runtime.vectors import make_vectors, shown_values
from eecompile.segments import SegmentGraph, score_names
from eecompile.server_folder import server_folder
from eecompile.shift_fitting import shifts_of
from eecompile.signatures import SigningKey
from eecompile.signing import sign_artifact
from eecompile.text import print_segments
from eecompile.tuning_file import TunedMachine, tuned_words, write_tuning

__all__ = ["BuildOptions", "BuildReport", "build"]

#: Samples bundled as test vectors, and samples compared with the source network.
_VECTORS = 16


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        artifact: the folder, or packed file, written.
        unchanged: whether it was up to date, so that nothing was done.
        summary: JSON value: target, segments, exits, equivalence, latency, policies, times.
    """

    artifact: Path
    unchanged: bool
    summary: Mapping[str, Any] = field(repr=False)


def build(
    path: Path, options: BuildOptions, steps: Steps, cache: Cache | None = None
) -> BuildReport:
    """Build an artifact; where nothing changed since the last build, only check that it is whole.

    Raises:
        CompileErrors: the file, the network or the data are wrong, or a budget cannot be kept.
        ToolError: the environment lacks something.
    """
    cache = cache or Cache()
    output = options.output_for(path)
    key = None if options.sign is None else SigningKey(options.sign)
    freshness = Freshness(cache, path, options, output)
    stored = freshness.stored_summary()
    if stored is not None:
        if key is not None:
            sign_artifact(output, key)
        steps.say(f"{output} is up to date")
        return BuildReport(output, True, stored)
    with steps.step("check the file against the network"):
        job = _Build(path, options, steps, cache, key)
    for warning in job.prepared.warnings:
        steps.warn(warning.full())
    summary = job.run()
    freshness.store(job.prepared.spec, summary)
    return BuildReport(output, False, summary)


class _Build:
    """One build, its checks passed."""

    def __init__(
        self,
        path: Path,
        options: BuildOptions,
        steps: Steps,
        cache: Cache,
        key: SigningKey | None,
    ) -> None:
        self.key = key
        self.path, self.options, self.steps, self.cache = path, options, steps, cache
        self.prepared = prepared = prepare(path, options)
        self.spec, self.machine, self.splits = prepared.spec, prepared.machine, prepared.splits
        self.here = self.machine if self.machine.is_native else machine("host")
        #: What latencies are measured on: what loading gives where the artifact is built. Fewer
        #: than the target's only where the target is another machine than this, of its kind.
        self.cores = min(self.machine.cores, usable_cores())
        self.threads = options.threads or os.cpu_count() or 1
        self.output = options.output_for(path)
        self.tuning, self.gating = prepared.tuning, prepared.gating
        # A step more each: to choose the exits, and to fit gates.
        steps.total += (prepared.placing is not None) + bool(prepared.gating.unfitted)
        self.timing = Timing()

    def run(self) -> dict[str, Any]:
        """All steps, from the top to the bottom."""
        host, place = self.prepared.host, self.spec.model.at("path")
        if self.gating.unfitted:
            with self.steps.step("fit the gates") as progress:
                self._fit_gates(host, progress)
        with self.steps.step("find the exits and cut the backbone"):
            backbone = self._cut(host, "backbone")
            plans = plan_heads(self.prepared, backbone)
        with self.steps.step("compile the backbone for this machine"):
            recorder = None
            if self.splits:
                recorder = Recorder.compile(backbone, plans, self.here, self.cache, place)
        with self.steps.step("run the data through it once") as progress:
            recordings = self._recordings(recorder, progress)
        with self.steps.step("fit the exit heads") as progress:
            heads, comparators, records = self._fit(backbone, plans, recordings, progress)
        placing = self.prepared.placing
        placed: dict[str, Any] | None = None
        if placing is not None:
            with self.steps.step(f"choose {placing.count} of {len(placing.names)} exits"):
                candidates = with_heads(backbone, heads, comparators)
                placed = self._place(placing, candidates, records, recordings)
            heads, comparators, records = self._only(placed["chosen"], heads, comparators, records)
        with self.steps.step("insert the exits and cut again"):
            extended = host.copy()
            segments = self._cut(extended, "exits", heads, comparators)
        if self.options.tune is not None:
            with self.steps.step("measure the kernels") as progress:
                self._tune(segments, self.options.tune, progress)
        with self.steps.step(f"compile for {self.machine.name}"):
            compiled = self._compile(segments, self.machine)
            native = compiled if self.here is self.machine else self._compile(segments, self.here)
            network = CompiledGraph.of(segments, compiled.functions)
        self._warn_of_tuning(compiled.tuned)
        with self.steps.step("compare with the source network, decisions off"):
            inputs = self._examples(segments)
            own = CompiledGraph.of(segments, native.functions)
            runner = Runner.of(native.load(), own)
            values = runner.run_all(inputs, shown_values(network), 1)
            equivalence = compare_with_source(extended, segments, inputs, values, self.spec)
            masked, gated, decided = extended, None, None
            if network.gated:
                wanted = (*shown_values(network), *score_names(segments))
                gated = runner.run_gated(inputs, wanted, 1).values
                masked = extended.copy()
                insert_gates(masked, self.gating.plan, self.gating.parameters)
                decided = compare_gated(masked, segments, inputs, gated, self.spec)
        with self.steps.step("measure, fit the policies to their budgets") as progress:
            self._emit(masked)
            costs = self._costs(runner, network, inputs)
            dump = self.options.dump_ir and self.options.dump_ir / "costs"
            annotate(extended, self.spec.model, segments, network, costs, [self.timing], dump)
            written = self.spec.policies if self.spec.model.exits or network.gated else ()
            exit_costs = costs_as_paid(network, costs, records)
            shifts = shifts_of(
                recorder,
                recordings,
                records,
                self.splits,
                lambda paying: costs_as_paid(network, costs, paying),
                threads=self.threads,
                cache=self.cache,
                progress=progress,
            )
            policies = build_policies(
                written,
                network,
                exit_costs,
                records,
                seed=self.options.seed,
                shifts=shifts,
            )
            offloads = build_offloads(
                written,
                policies,
                segments,
                own,
                runner,
                self.splits,
                inputs,
                threads=self.threads,
                seed=self.options.seed,
            )
            halts = build_halts(written, offloads.policies, network, costs, exit_costs, records)
            clocks = build_clocks(
                written, halts.policies, network, costs, records, exit_costs, shifts
            )
            entries = with_gates_told(
                written, clocks.policies, clocks.entries, network, records, shifts
            )
        gates = gating_json(self.gating, decided)
        warnings = [*halts.warnings, *clocks.warnings]
        if isinstance(test := records.get("test"), TestRecord):
            told = {name: entry.report for name, entry in entries.items()}
            warnings += collapse_warnings(written, told, test.labels)
        for warning in warnings:
            self.steps.warn(warning.full())
        with self.steps.step(f"write {self.output}"):
            contents = Contents(
                version=__version__,
                target=_target_info(self.machine),
                network=network,
                library=compiled.library,
                weights=compiled.weights,
                vectors=make_vectors(
                    network, inputs, values, equivalence.source, clocks.policies, gated
                ),
                segments_text=print_segments(segments, "full"),
                source_text=self.path.read_text(encoding="utf-8"),
                policies=entries,
                default_policy=next(iter(policies), None),
                costs=costs,
                measured=costs.device is not None,
                normalizations=self._normalizations(segments),
                fitted={
                    "heads": self._heads_in_words(),
                    "seed": self.options.seed,
                    "overrides": list(self.options.overrides),
                    **({"placing": placed} if placed else {}),
                    **({"gates": gates} if gates else {}),
                },
                data={split: made.samples for split, made in recordings.items()},
            )
            served = offloads.write(server_folder(self.output), segments.name)
            write_artifact(self.output, replace(contents, plan=plan_bytes(contents)), self.key)
        peak = Peak.of(network, len(compiled.weights), min(self.machine.cores, MOST_THREADS))
        summary = self._summary(segments, equivalence, entries, costs, peak)
        tuned = compiled.tuned
        kernels = tuned and {"tuned": tuned.chosen, "by_model": tuned.by_model}
        done = {"placing": placed, "kernels": kernels, "server": served and str(served)}
        return summary | done | {"gates": gates, "times_s": self.steps.times_s}

    # -- the network ---------------------------------------------------------------------------

    def _cut(
        self,
        host: HostGraph,
        stage: str,
        heads: Mapping[str, Graph] | None = None,
        comparators: Mapping[str, Graph] | None = None,
    ) -> SegmentGraph:
        """The network cut at its exits, with no heads or with these."""
        gates = self.gating.placed
        pipeline = backbone_pipeline(gates)
        if heads is not None and comparators is not None:
            pipeline = segments_pipeline(heads, comparators, gates)
        dump = self.options.dump_ir and self.options.dump_ir / stage
        return cut(host, self.spec.model, pipeline, [self.timing], dump)

    def _emit(self, host: HostGraph) -> None:
        path = self.options.emit
        if path is not None:
            with write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                host.save(path)

    def _tune(self, segments: SegmentGraph, seconds: float, progress: Reporter) -> None:
        """Measures, and writes what is known, however it ends."""
        here = TunedMachine.of(self.machine, cpu_name())
        before = self.tuning.machine(here)
        found = {kernel.digest: kernel for kernel in before.kernels} if before else {}
        place = self.spec.model.at("path")
        known = self.tuning.choices(here)
        tuned = tune_graphs(
            segments.graphs(), self.machine, segments.shown, seconds, known, progress, place
        )
        measured, won = 0, 0
        try:
            for kernel in tuned:
                found[kernel.digest] = kernel
                measured, won = measured + 1, won + (kernel.choice != kernel.model_choice)
        finally:
            self.steps.say(tuned_words(measured, won))
            self.tuning = self.tuning.with_kernels(here, found.values())
            write_tuning(self.tuning)

    def _compile(self, segments: SegmentGraph, for_machine: Machine) -> Compiled:
        place, here = self.spec.model.at("path"), TunedMachine.of(for_machine, cpu_name())
        choices = self.tuning.choices(here)
        board, ir = None, None
        if for_machine is self.machine and self.options.dump_ir is not None:
            board, ir = self.prepared.board, self.options.dump_ir / "functions.txt"
        return compile_graphs(
            *(segments.graphs(), for_machine, segments.shown, self.cache, place, choices),
            *(board, ir, segments.name),
        )

    def _warn_of_tuning(self, tuned: TunedKernels | None) -> None:
        """Says what of the file was of no use."""
        here = TunedMachine.of(self.machine, cpu_name())
        stale = self.tuning.stale(tuned.stale, here) if tuned else None
        unused = self.tuning.unused(tuned.unused, here) if tuned else None
        for warning in (self.tuning.foreign(here), stale, unused):
            if warning is not None:
                self.steps.warn(warning.full())

    def _costs(
        self, runner: Runner, network: CompiledGraph, inputs: Mapping[str, np.ndarray]
    ) -> CostTable:
        """Measured where the code runs here, modelled elsewhere."""
        board, states = self.prepared.board, self.prepared.states
        files = LocalFiles()
        # Another board's code may well run here; its times would still be this machine's.
        elsewhere = bool(board.clusters) and board.name != "host" and not is_board(board, files)
        if self.here is not self.machine or elsewhere:
            return cost_table(board, states, network, self.machine.cores, None)
        clocks = [clock_now(files)]
        times_s = measure(runner, network, inputs, self.cores)
        clocks.append(clock_now(files))
        known = [clock for clock in clocks if clock is not None]
        return cost_table(board, states, network, self.cores, times_s, known)

    # -- the data ------------------------------------------------------------------------------

    def _recordings(self, recorder: Recorder | None, progress: Reporter) -> dict[str, Recording]:
        if recorder is None:
            return {}
        # Heads alone are fitted on `fit`; without exits there is nothing to record it for.
        splits = {s: data for s, data in self.splits.items() if s != "fit" or self.spec.model.exits}
        return recorder.record(splits, threads=self.threads, cache=self.cache, progress=progress)

    def _fit_gates(self, host: HostGraph, progress: Reporter) -> None:
        """Parameters of the gates that need no training."""
        self.gating = fit_gates(
            self.gating,
            host,
            self.spec.model,
            self.splits["calibrate"],
            self.here,
            threads=self.threads,
            seed=self.options.seed,
            cache=self.cache,
            progress=progress,
        )

    def _fit(
        self,
        backbone: SegmentGraph,
        plans: tuple[ExitPlan, ...],
        recordings: Mapping[str, Recording],
        progress: Reporter,
    ) -> tuple[dict[str, Graph], dict[str, Graph], dict[str, Record]]:
        """Exit -> head, exit -> comparator, and what policies are fitted and reported on."""
        parameters: dict[str, Mapping[str, np.ndarray]] = {}
        records = {split: made.record for split, made in recordings.items()}
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
                keys=[recordings[name].key for name in ("fit", "calibrate") if name in recordings],
                progress=progress,
            )
        heads, comparators = graphs_of(plans, parameters)
        kept = {n: with_outputs(r, plans, parameters) for n, r in records.items() if n != "fit"}
        return heads, comparators, kept

    # -- exits that the compiler places ---------------------------------------------------------

    def _place(
        self,
        placing: Placing,
        candidates: SegmentGraph,
        records: Mapping[str, Record],
        recordings: Mapping[str, Recording],
    ) -> dict[str, Any]:
        """Which of the candidates become exits, and why."""

        def costs(quantity: str) -> ExitCosts:
            if quantity == "macs":
                return ExitCosts.macs(candidates)
            native = compiled = self._compile(candidates, self.machine)
            if self.here is not self.machine:
                native = self._compile(candidates, self.here)
            network = CompiledGraph.of(candidates, compiled.functions)
            runner = Runner.of(native.load(), CompiledGraph.of(candidates, native.functions))
            return budget_costs(self._costs(runner, network, self._examples(candidates)))[quantity]

        calibrate = records["calibrate"]
        assert isinstance(calibrate, CalibrateRecord), "checked with the file"
        return place_exits(
            self.spec,
            placing,
            candidates,
            calibrate,
            costs,
            seed=self.options.seed,
            cache=self.cache,
            key=digest(recordings["calibrate"].key, self.machine),
        )

    def _only(
        self,
        chosen: Sequence[str],
        heads: Mapping[str, Graph],
        comparators: Mapping[str, Graph],
        records: Mapping[str, Record],
    ) -> tuple[dict[str, Graph], dict[str, Graph], dict[str, Record]]:
        """What was fitted at these exits, the only ones from here on: nothing is done anew."""
        model = with_exits(self.spec.model, chosen)
        self.spec = replace(self.spec, models=(model, *self.spec.models[1:]))
        return (
            {name: graph for name, graph in heads.items() if name in chosen},
            {name: graph for name, graph in comparators.items() if name in chosen},
            {
                split: made.at([n for n in made.exits if n in chosen])
                for split, made in records.items()
            },
        )

    def _examples(self, segments: SegmentGraph) -> dict[str, np.ndarray]:
        """Inputs to compare and bundle: real samples where there are any, else random ones."""
        source = self.splits.get("calibrate") or self.splits.get("fit")
        if source is None:
            return example_inputs(segments.inputs, _VECTORS // 4, self.options.seed)
        images, _ = next(iter(source.batches(_VECTORS)))
        return {segments.inputs[0][0]: images[:_VECTORS]}  # a callable's batches may be large

    def _normalizations(self, segments: SegmentGraph) -> dict[str, Normalization]:
        """How raw data become the input; none where no such rule is known."""
        data = self.spec.data_for(self.spec.model)
        if data is None or len(segments.inputs) != 1:
            return {}
        low, high = data.pixels
        if low != 0.0 or high == 0.0:
            return {}
        mean: tuple[float, ...] = (0.0,)
        std: tuple[float, ...] = (1.0,)
        if data.normalize is not None:
            mean, std = data.normalize.mean, data.normalize.std
        elif segments.inputs[0][1].dtype != "float32":
            return {}
        return {segments.inputs[0][0]: Normalization(mean, std, 255.0 / high)}

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
        policies: Mapping[str, PolicyEntry],
        costs: CostTable,
        peak: Peak,
    ) -> dict[str, Any]:
        roundings = equivalence.roundings
        return {
            "artifact": str(self.output),
            "model": segments.name,
            "target": self.machine.name,
            "triple": self.machine.triple,
            "macs": segments.macs,
            "exits": exit_rows(segments, self._heads_in_words()),
            "max_abs_error": equivalence.max_abs_error,
            "max_exit_error": equivalence.max_exit_error,
            "max_source_error": equivalence.max_source_error,
            "roundings": roundings and {"values": roundings.values, "apart": roundings.apart},
            "full_depth": costs.to_json()["full_depth"],
            "threads": costs.threads,
            "memory": peak.to_json(),
            "policies": {name: entry.report for name, entry in policies.items()},
            "passes_s": self.timing.seconds,
        }


def _target_info(machine: Machine) -> TargetInfo:
    cores = min(machine.cores, MOST_THREADS)
    return TargetInfo(machine.name, machine.triple, tuple(machine.features), cores)
