"""`eecompile train`: from a `.ee` file to files of gates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from eecompile.console import Reporter, Steps
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.gates import GateFile, initial_parameters, read_gates, write_gates
from eecompile.passes.insert_gates import insert_gates
from eecompile.training.augment import fitting
from eecompile.training.checkpoint import State, read_checkpoint
from eecompile.training.choosing import chosen_shift, shifted
from eecompile.training.costs import Term, network_terms, read_prices
from eecompile.training.network import GATES, Network, measure, teacher_of
from eecompile.training.options import TrainOptions
from eecompile.training.preparing import Prepared, prepare
from eecompile.training.samples import Samples
from eecompile.training.schedule import Schedule
from eecompile.training.trainer import Diverged, Task, Trainer, in_words
from eecompile.training.warming import spread_scores

__all__ = ["train"]

#: What names of outputs begin with that show the exits' features to their helping heads.
_FEATURE = "training.feature."
#: Samples in a step whose own statistics are worth normalising by.
_MANY = 32
#: Samples that tell which blocks matter, and what gates to begin with cost.
_WARMING, _STARTED = 128, 1000


def train(path: Path, options: TrainOptions, steps: Steps) -> dict[str, Any]:
    """Trains the gates of a file's network; what it came to, as a JSON value.

    Every target's gates are written as soon as they are trained. A run that is stopped, however,
    is continued by the same call from its checkpoint, and comes to the same files.

    Raises:
        CompileErrors: the file, the network or the data are wrong; the checkpoint is another run's
            or damaged; the run diverges, and its last good state is written.
        ToolError: torch is not installed.
    """
    with steps.step("check the file against the network"):
        prepared = prepare(path, options)
    for warning in prepared.warnings:
        steps.warn(warning.full())
    with steps.step("read the data"):
        samples = {str(split): Samples.of(data) for split, data in prepared.splits.items()}
    with _settings(options):
        run = _Run(prepared, options, samples)
        if run.task.network.statistics and options.recipe.batch < _MANY:
            steps.warn(_small_batch(options.recipe.batch).full())
        with steps.step("measure the network without gates"):
            run.measure_ungated()
        if run.task.checkpoint.exists() and run.trainer.state.step:
            done, total = run.trainer.state.step, run.task.schedule.total
            steps.say(f"continuing {run.task.checkpoint} after step {done} of {total}")
        with steps.step("train") as progress:
            run.train(progress, steps.say)
    run.task.checkpoint.unlink(missing_ok=True)
    return run.report()


def _small_batch(batch: int) -> Diagnostic:
    return Diagnostic(
        "small-batch",
        f"Batches of {batch} are normalised by their own statistics, which are poor",
        severity="warning",
        help=f"give `--batch {_MANY}` or more, or leave out `--tune-backbone`",
    )


@contextmanager
def _settings(options: TrainOptions) -> Iterator[None]:
    """Torch's global settings for a run that gives equal bits again; as they were afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        try:
            torch.set_num_threads(options.threads or threads)
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.manual_seed(options.recipe.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)


class _Run:
    """A run with its network made and its data at hand."""

    def __init__(
        self, prepared: Prepared, options: TrainOptions, samples: Mapping[str, Samples]
    ) -> None:
        self.prepared, self.options, self.samples = prepared, options, samples
        recipe, input_ = options.recipe, prepared.splits["fit"].input
        #: Weights that come with the gates that are begun with.
        self.begun: Mapping[str, Any] = {}
        prices = None
        if options.costs is not None and options.quantity != "macs":
            prices = read_prices(options.costs, options.quantity, prepared.segments)
        terms = network_terms(prepared.segments, prices)
        check_reachable(terms, options)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fits = fitting(input_.shape[1:], input_.dtype)
        network, first = self._network(terms).to(device), 1.0
        if options.start is not None:
            first = measure(network, samples["calibrate"].first(_STARTED), terms).cost
        self.task = Task(
            network,
            prepared.classes,
            (teacher_of(prepared.host.copy().module).to(device), prepared.answer),
            terms,
            samples["fit"],
            samples["calibrate"],
            recipe,
            fits if recipe.augment is None else recipe.augment,
            Schedule(options.targets, recipe.steps, first),
            options.checkpoint,
            self._key(terms),
            options.every_s,
        )
        state = None
        if not options.restart:
            state = read_checkpoint(options.checkpoint, self.task.key)
        if state is None and options.start is None:
            inputs, _ = self.task.fit.batch(0, _WARMING, recipe.seed)
            least = min(options.targets)
            spread_scores(self.task.network, inputs.to(device), terms, least)
        self.trainer = Trainer(self.task, state or State())
        self.full: dict[str, Any] = {}

    def _network(self, terms: tuple[Term, ...]) -> Network:
        prepared, recipe = self.prepared, self.options.recipe
        host, exits = prepared.host.copy(), {}
        types = host.graph().types
        if recipe.backbone_rate is not None and recipe.exit_weight:
            for name, value in prepared.exits.items():
                host.add_output(f"{_FEATURE}{name}", value)
                shape = types[value].shape
                exits[f"{_FEATURE}{name}"] = shape[2] if len(shape) == 3 else shape[1]
        parameters = initial_parameters(prepared.plan, recipe.seed)
        if self.options.start is not None:
            begun = read_gates(self.options.start, prepared.plan)
            parameters |= begun.parameters
            host.set_weights(begun.weights)
            self.begun = begun.weights
        insert_gates(host, prepared.plan, parameters)
        return Network(
            host.module,
            prepared.answer,
            terms,
            exits,
            prepared.classes,
            tune=recipe.backbone_rate is not None,
        )

    def _key(self, terms: tuple[Term, ...]) -> dict[str, str]:
        """What a run consists of: a checkpoint of another is not continued."""
        options = self.options
        start = options.start.read_bytes() if options.start else b""
        found = {
            "network": self.prepared.host.fingerprint(),
            "gates": repr([(g.name, g.kind, g.outputs) for g in self.prepared.plan.gates]),
            "exits": repr(dict(self.prepared.exits)),
            "fit data": self.samples["fit"].digest,
            "calibrate data": self.samples["calibrate"].digest,
            "targets": f"{options.quantity} {options.targets}",
            "costs": repr(terms),
            "start": hashlib.sha256(start).hexdigest(),
        }
        return found | {name: repr(value) for name, value in options.recipe.to_json().items()}

    def measure_ungated(self) -> None:
        """Accuracy of the network itself."""
        for split in ("calibrate", "test"):
            if split in self.samples:
                self.full[split] = self.trainer.ungated_accuracy(self.samples[split])

    def train(self, progress: Reporter, say: Any) -> None:
        """All steps that are left.

        Raises:
            CompileErrors: the run diverges; what is left is told.
        """
        total = self.task.schedule.total
        self.trainer.tell = lambda step, what: progress(step, total, what)
        self.trainer.told = say
        try:
            self.trainer.run(lambda stage: self._finished(stage, say))
        except Diverged as error:
            raise self._diverged(error) from error

    def _finished(self, stage: int, say: Any) -> dict[str, Any]:
        """Chooses the shift of a trained target, writes its file, and measures it."""
        network, target = self.task.network, self.options.targets[stage]
        calibrate, terms = self.samples["calibrate"], self.task.terms
        shift, found = chosen_shift(network, calibrate, terms, target)
        with shifted(network, shift):
            report = {
                "target": target,
                "file": str(self.options.file_for(target)),
                "shift": shift,
                "calibrate": found.to_json(),
                "kept": found.kept,
            }
            if "test" in self.samples:
                report["test"] = measure(network, self.samples["test"], terms).to_json()
            self._write(self.options.file_for(target), report)
        say(f"{target * 100:g} %: {in_words(found)} on `calibrate`; wrote {report['file']}")
        return report

    def _write(self, path: Path, report: Mapping[str, Any]) -> None:
        state = self.task.network.source_state()
        arrays = {**self.begun, **{name: value.numpy() for name, value in state.items()}}
        write_gates(
            path,
            GateFile.of(
                self.prepared.plan,
                {name: a for name, a in arrays.items() if name.startswith(GATES)},
                {name: a for name, a in arrays.items() if not name.startswith(GATES)},
                report,
            ),
        )

    def _diverged(self, error: Diverged) -> CompileErrors:
        rates = "`--rate`"
        if self.options.recipe.backbone_rate is not None:
            rates += " and `--backbone-rate`"
        notes = ["nothing good was seen before"]
        if error.good:
            self.task.network.load(error.good["parameters"])
            found = {key: value for key, value in error.good.items() if key != "parameters"}
            self._write(self.options.last_good, {"calibrate": found})
            cost, accuracy = found["mean_cost_fraction"] * 100, found["accuracy"] * 100
            notes = [
                f"the last good state is in {self.options.last_good}: "
                f"accuracy {accuracy:.1f} % at cost {cost:.1f} %"
            ]
        if self.trainer.state.reports:
            done = [report["file"] for report in self.trainer.state.reports]
            notes.append(f"trained before: {', '.join(done)}")
        return CompileErrors(
            [
                Diagnostic(
                    "training-diverged",
                    f"Training was stopped: {error}",
                    notes=tuple(notes),
                    help=f"give --restart with lower {rates}, more --steps, or targets nearer to "
                    "each other",
                )
            ]
        )

    def report(self) -> dict[str, Any]:
        """What was trained: a JSON value."""
        return {
            "model": self.prepared.spec.model.name,
            "quantity": self.options.quantity,
            "gates": len(self.prepared.plan.gates),
            "gates_cost_fraction": sum(t.cost for t in self.task.terms) - 1,
            "tuned": bool(self.begun) or self.options.recipe.backbone_rate is not None,
            "full_depth": self.full,
            "targets": self.trainer.state.reports,
            "steps": self.trainer.state.step,
            "samples_per_s": self.trainer.images_per_s,
        }


def check_reachable(terms: tuple[Term, ...], options: TrainOptions) -> None:
    """Refuses targets below what is left where gates leave out all they can.

    Raises:
        CompileErrors: as said; the least possible is named.
    """
    least = sum(term.cost for term in terms if not term.gates)
    low = [target for target in options.targets if target < least]
    if low:
        named = ", ".join(f"{target * 100:g} %" for target in low)
        message = f"No gates can bring {options.quantity} down to {named}"
        notes = (
            f"where they leave out all they can, {least * 100:.1f} % are left, gates included",
        )
        help_ = "ask for more, or let gates skip more of the network"
        raise CompileErrors([Diagnostic("infeasible-budget", message, notes=notes, help=help_)])
