"""The training loop: steps, checks, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from eecompile.outcomes import commonest_share
from eecompile.training.augment import mixed
from eecompile.training.checkpoint import State, write_checkpoint
from eecompile.training.costs import Term
from eecompile.training.losses import answer_loss, exit_losses, mean_cost, wanted_shift
from eecompile.training.network import GATES, Measured, Network, Seen, measure
from eecompile.training.options import Recipe
from eecompile.training.samples import Samples
from eecompile.training.schedule import Controller, Moment, Schedule

__all__ = ["Diverged", "Task", "Trainer"]

#: Checks in a stage, and samples of `calibrate` that each looks at.
_CHECKS, _CHECKED = 8, 1000
#: Accuracy has collapsed where no more is left of it than this share of what the ungated network
#: has beyond the commonest class; so many checks in a row end a run.
_LEFT, _PATIENCE = 0.25, 3
#: Gradients are scaled to this norm at most.
_NORM = 2.0
_BETAS = (0.9, 0.99)


class Diverged(Exception):
    """A run that leads nowhere; the text says what was seen."""

    def __init__(self, reason: str, good: dict[str, Any]) -> None:
        super().__init__(reason)
        self.good = good


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how.

    Attributes:
        network: with the parameters to begin with.
        classes: of its answers.
        teacher: the frozen ungated network, and the name of its answer.
        terms: what the gated network costs.
        fit: what is trained on.
        calibrate: what accuracy and cost are watched on.
        recipe: how.
        augment: what is done to training images.
        schedule: the targets.
        checkpoint: where the state is kept.
        key: what the run consists of.
        every_s: between two checkpoints.
    """

    network: Network
    classes: int
    teacher: tuple[fx.GraphModule, str]
    terms: tuple[Term, ...]
    fit: Samples
    calibrate: Samples
    recipe: Recipe
    augment: tuple[str, ...]
    schedule: Schedule
    checkpoint: Path
    key: dict[str, str]
    every_s: float = 60.0


@dataclass
class Trainer:
    """A run from a state, the first or a checkpoint's, to the end of each target.

    All that is random follows from the seed and the step's number, so that a run that is continued
    takes the steps it would have taken.

    Attributes:
        task: what to do.
        state: how far it has come.
        tell: told the step, its target, cost and loss, after each.
        told: told what a check found.
    """

    task: Task
    state: State
    tell: Callable[[int, str], None] = lambda step, what: None
    told: Callable[[str], None] = lambda what: None
    images_per_s: float = 0.0
    _saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        network, recipe = self.task.network, self.task.recipe
        if self.state.parameters:
            network.load(self.state.parameters)
        self.trained = network.trained()
        self.device = next(iter(self.trained.values())).device
        self.half = self.device.type == "cuda" or _has_fast_bfloat16()
        groups = []
        for rate, of_gates in ((recipe.gate_rate, True), (recipe.backbone_rate, False)):
            chosen = [p for name, p in self.trained.items() if _is_gate(name) == of_gates]
            if chosen and rate:
                groups.append({"params": chosen, "lr": rate, "base": rate})
        self.optimiser = torch.optim.Adam(groups, betas=_BETAS)
        if self.state.optimiser:
            self.optimiser.load_state_dict(self.state.optimiser)
        self.controller = Controller(self.state.lasting)
        self.watched = self.task.calibrate.first(_CHECKED)
        self.least = self._least_accuracy()

    def run(self, finished: Callable[[int], dict[str, Any]]) -> None:
        """All steps that are left; `finished` is called at the end of each target's.

        Raises:
            Diverged: a loss is not finite, or accuracy has collapsed.
            CompileErrors: a checkpoint cannot be written.
        """
        schedule, done, start = self.task.schedule, 0, time.monotonic()
        while self.state.step < schedule.total:
            moment = schedule.at(self.state.step)
            self._step(moment)
            self.state.step += 1
            done += 1
            self.images_per_s = done * self.task.recipe.batch / (time.monotonic() - start)
            if moment.last:
                self.state.reports.append(finished(moment.stage))
            elif self._is_check():
                self._check(moment)
            if moment.last or time.monotonic() - self._saved >= self.task.every_s:
                self.save()

    def save(self) -> None:
        """Writes the checkpoint."""
        self.state.parameters = self.task.network.values()
        self.state.optimiser = self.optimiser.state_dict()
        self.state.lasting = self.controller.lasting
        write_checkpoint(self.task.checkpoint, self.task.key, self.state)
        self._saved = time.monotonic()

    def _step(self, moment: Moment) -> None:
        task, recipe = self.task, self.task.recipe
        inputs, labels = task.fit.batch(self.state.step, recipe.batch, recipe.seed, task.augment)
        if "mixtures" in task.augment:
            chance = np.random.default_rng((recipe.seed, self.state.step, 2))
            inputs, labels = mixed(inputs, labels, task.classes, chance)
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * moment.rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            wanted = self._teacher(inputs)
            seen = task.network.train()(inputs)
            task.network.eval()
        cost = mean_cost(task.terms, seen.masks, len(labels))
        needed = wanted_shift(task.terms, seen.scores, moment.wanted)
        weight, shift = self.controller.step(needed)
        loss = self._loss(seen, labels, wanted)
        if not math.isfinite(found := float(loss.detach())):
            raise Diverged(f"the loss is {found} at step {self.state.step}", self.state.good)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + weight * cost)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), _NORM)
        if not math.isfinite(float(norm)):
            raise Diverged(f"a gradient is not finite at step {self.state.step}", self.state.good)
        self.optimiser.step()
        task.network.lower_scores(shift)
        target = task.schedule.targets[moment.stage]
        self.tell(
            self.state.step + 1,
            f"for {target * 100:g} %: cost {float(cost.detach()) * 100:.1f} %, loss {found:.3f}",
        )

    def _teacher(self, inputs: Tensor) -> Tensor | None:
        if not self.task.recipe.distill:
            return None
        module, answer = self.task.teacher
        with torch.no_grad():
            return module(inputs)[answer].float()  # type: ignore[no-any-return]

    def _loss(self, seen: Seen, labels: Tensor, wanted: Tensor | None) -> Tensor:
        recipe = self.task.recipe
        loss = answer_loss(seen.logits, labels, wanted, recipe.distill)
        if seen.exits:
            exits = exit_losses(seen.exits, labels, seen.logits, wanted, recipe.distill)
            loss = loss + recipe.exit_weight * exits
        return loss

    def ungated_accuracy(self, samples: Samples) -> float:
        """Share of right answers of the network without gates, as it was given."""
        module, answer = self.task.teacher
        right = 0
        with torch.inference_mode():
            for inputs, labels in samples.blocks():
                answers = module(inputs.to(self.device))[answer].argmax(1).cpu()
                right += int((answers == labels).sum())
        return right / len(samples)

    # -- what goes wrong ---------------------------------------------------------------------------

    def _least_accuracy(self) -> float:
        """Below it, accuracy has collapsed."""
        chance = commonest_share(self.watched.labels)
        return chance + _LEFT * max(0.0, self.ungated_accuracy(self.watched) - chance)

    def _is_check(self) -> bool:
        every = max(1, self.task.schedule.steps // _CHECKS)
        return self.state.step % self.task.schedule.steps % every == 0

    def _check(self, moment: Moment) -> None:
        found = measure(self.task.network, self.watched, self.task.terms)
        total = self.task.schedule.total
        self.told(
            f"step {self.state.step} of {total}, aiming at {moment.wanted * 100:.1f} %: "
            f"{in_words(found)} on {found.count} samples of `calibrate`, "
            f"{self.images_per_s:.0f} samples/s"
        )
        if found.accuracy >= self.least:
            self.state.poor_checks = 0
            self.state.good = {"parameters": self.task.network.values(), **found.to_json()}
            return
        self.state.poor_checks += 1
        if self.state.poor_checks >= _PATIENCE:
            raise Diverged(
                f"accuracy on `calibrate` has collapsed to {found.accuracy * 100:.1f} % "
                f"at step {self.state.step}",
                self.state.good,
            )


def in_words(found: Measured) -> str:
    """Accuracy and cost.

    >>> in_words(Measured(0.9312, 0.7504, {}, 5000))
    'accuracy 93.12 %, cost 75.0 %'
    """
    return f"accuracy {found.accuracy * 100:.2f} %, cost {found.cost * 100:.1f} %"


def _is_gate(name: str) -> bool:
    """Whether a parameter of a `Network` is a gate's, or one of a helping head: equally new."""
    return name.startswith((f"module.{GATES}", "heads."))


def _has_fast_bfloat16() -> bool:
    """Whether convolutions on this CPU gain from it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
