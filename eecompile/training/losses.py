"""What a training step makes small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eecompile.training.costs import Term

__all__ = ["answer_loss", "exit_losses", "mean_cost", "sample_costs", "wanted_shift"]

#: Answers are compared at this temperature. Source: Hinton et al., arXiv 1503.02531; measured.
_TEMPERATURE = 2.0
#: Of the interval that a shift is looked for in.
_HALVINGS = 12


def answer_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, distill: float) -> Tensor:
    """Cross entropy with the labels and, weighing `distill`, with the teacher's answers.

    Labels are classes, (n,), or shares of each class, (n, classes).
    The teacher's part is the divergence at a temperature of 2, times its square.
    """
    own = functional.cross_entropy(logits, labels)
    if teacher is None or not distill:
        return own
    return (1 - distill) * own + distill * _divergence(logits, _softened(teacher))


def exit_losses(
    exits: Sequence[Tensor], labels: Tensor, final: Tensor, teacher: Tensor | None, distill: float
) -> Tensor:
    """The mean over the exits of their losses, deeper exits weighing more.

    Exits learn from the labels and, weighing `distill`, from the mean of what the final exit and
    the frozen network answer; the final exit is not pulled to theirs. Weights rise in a line.
    """
    wanted = _softened(final.detach())
    if teacher is not None:
        wanted = (wanted + _softened(teacher)) / 2
    total, weights = labels.new_zeros((), dtype=torch.float32), 0.0
    for depth, logits in enumerate(exits, 1):
        own = functional.cross_entropy(logits, labels)
        loss = (1 - distill) * own + distill * _divergence(logits, wanted)
        total, weights = total + depth * loss, weights + depth
    return total / weights


def _softened(logits: Tensor) -> Tensor:
    return functional.softmax(logits / _TEMPERATURE, 1)


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    given = functional.log_softmax(logits / _TEMPERATURE, 1)
    return functional.kl_div(given, wanted, reduction="batchmean") * _TEMPERATURE**2


def sample_costs(terms: Sequence[Term], masks: dict[str, Tensor], count: int) -> Tensor:
    """What each of `count` samples costs, (n,), as a fraction of the ungated network.

    Args:
        terms: what the gated network consists of.
        masks: gate's output -> 0/1 of shape (n, groups).
        count: samples.
    """
    kept = {name: mask.float().mean(1) for name, mask in masks.items()}
    device = next(iter(masks.values())).device
    total = torch.zeros(count, device=device)
    for term in terms:
        part = torch.full((count,), term.cost, device=device)
        for name in term.gates:
            part = part * kept[name]
        total = total + part
    return total


def mean_cost(terms: Sequence[Term], masks: dict[str, Tensor], count: int) -> Tensor:
    """The mean of `sample_costs`: a number that gradients flow through to the gates."""
    return sample_costs(terms, masks, count).mean()


def wanted_shift(terms: Sequence[Term], scores: dict[str, Tensor], target: float) -> float:
    """By how much scores would have to be lowered for a batch to cost `target`, by halving.

    Args:
        terms: what the gated network consists of.
        scores: gate's output -> what is compared with 0, (n, groups).
        target: mean cost, a fraction.
    """
    count = len(next(iter(scores.values())))

    def cost(shift: float) -> float:
        masks = {name: score > shift for name, score in scores.items()}
        return float(mean_cost(terms, masks, count))

    reach = max(float(score.abs().max()) for score in scores.values()) + 1.0
    low, high = (0.0, reach) if cost(0.0) > target else (-reach, 0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    return (low + high) / 2
