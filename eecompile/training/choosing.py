"""Where trained gates' scores are cut, so that a target is met on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from eecompile.training.costs import Term
from eecompile.training.losses import wanted_shift
from eecompile.training.network import Measured, Network, measure
from eecompile.training.samples import Samples

__all__ = ["chosen_shift", "shifted"]

#: What a cost may be above its target, and from where on it is so far below that it is not used.
_ABOVE, _BELOW = 0.002, 0.005
_TRIALS = 5


def chosen_shift(
    network: Network, samples: Samples, terms: Sequence[Term], target: float
) -> tuple[float, Measured]:
    """The shift of all scores that meets the target, and what the network then does.

    None where the cost is near the target as it is. Else by how much the scores say they have to be
    lowered, tried and told again by the scores there are then, as what is left out changes those of
    later gates. Of what was tried, the most accurate that costs no more than the target; where
    nothing does, the cheapest.
    """
    tried: dict[float, Measured] = {}
    shift = 0.0
    for _ in range(_TRIALS):
        with shifted(network, shift):
            found = tried[shift] = measure(network, samples, terms)
        if target - _BELOW <= found.cost <= target + _ABOVE:
            break
        shift += wanted_shift(terms, found.scores, target)
    within = {s: found for s, found in tried.items() if found.cost <= target + _ABOVE}
    if within:
        best = max(within, key=lambda s: (within[s].accuracy, -abs(s)))
    else:
        best = min(tried, key=lambda s: tried[s].cost)
    return best, tried[best]


@contextmanager
def shifted(network: Network, shift: float) -> Iterator[None]:
    """Scores are lower by `shift` within the block."""
    biases = network.score_biases()
    before = [bias.detach().clone() for bias in biases]
    network.lower_scores(shift)
    try:
        yield
    finally:
        with torch.no_grad():
            for bias, value in zip(biases, before, strict=True):
                bias.copy_(value)
