"""Where gates begin: what does least harm for what it saves is the first to be left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eecompile.training.costs import Term
from eecompile.training.losses import mean_cost
from eecompile.training.network import Network

__all__ = ["spread_scores"]

#: Least and greatest score at the start: all are kept, and none has another's score.
_LEAST, _MOST = 0.5, 3.5
_NEVER = -1e4


def spread_scores(network: Network, inputs: Tensor, terms: Sequence[Term]) -> None:
    """Gives scores with a bias of their own first values in order of what they decide about.

    Each block, and each group of channels, is left out alone, and the answers are compared with
    those where nothing is: scores that start alike would cross 0 together, everything left out at
    once. They are spread evenly by the divergence of the answers over the cost that is saved.
    """
    biases = [bias.data for name, bias in network.trained().items() if network.is_score_bias(name)]
    units: list[tuple[float, int, Tensor]] = []
    with torch.no_grad():
        seen = network(inputs)
        whole = functional.log_softmax(seen.logits, 1)
        cost = float(mean_cost(terms, seen.masks, len(inputs)))
        for bias in biases:
            for index in range(len(bias)):
                before = float(bias[index])
                bias[index] = _NEVER
                seen = network(inputs)
                bias[index] = before
                without = functional.log_softmax(seen.logits, 1)
                harm = functional.kl_div(without, whole, log_target=True, reduction="batchmean")
                saved = cost - float(mean_cost(terms, seen.masks, len(inputs)))
                units.append((float(harm) / max(saved, 1e-9), index, bias))
        for rank, (_, index, bias) in enumerate(sorted(units, key=lambda unit: unit[0])):
            bias[index] = _LEAST + (_MOST - _LEAST) * rank / max(len(units) - 1, 1)
