"""Heads that are fitted by gradient descent. The one place here that needs torch."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from eecompile.diagnostics import ToolError
from eecompile.heads.base import Array, Head, Progress
from eecompile.heads.logistic import stratified_split

__all__ = ["GradientHead", "array_of"]

_BATCH = 128
#: Passes over the data, or more where they are too few for this many steps.
_EPOCHS = 20
_STEPS = 300
#: Predictive Exit trains its heads with this rate (arXiv 2206.04685, released code).
_RATE = 1e-3
#: Share of the epochs without a better held-out loss after which training stops.
_PATIENCE = 0.2


class GradientHead(Head):
    """A head on whole maps that is fitted by gradient descent. It runs without torch."""

    @abstractmethod
    def module(self, torch: Any, shape: tuple[int, ...], classes: int) -> Any:
        """A new `torch.nn.Module` from maps (n, C, H, W) of that shape to logits (n, classes)."""

    @abstractmethod
    def folded(self, net: Any) -> dict[str, Array]:
        """The head's parameters, from its fitted module."""

    def check_environment(self) -> None:
        """Refuses where there is no torch, without importing it."""
        if importlib.util.find_spec("torch") is None:
            raise _missing_torch()

    def fit(
        self,
        recorded: Array,
        labels: Array,
        classes: int,
        *,
        seed: int,
        progress: Progress = None,
    ) -> dict[str, Array]:
        """What `folded` says, fitted on maps float32 (n, C, H, W).

        Raises:
            ToolError: torch is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise _missing_torch() from error

        def build() -> Any:
            return self.module(torch, recorded.shape, classes)

        return self.folded(_trained(torch, build, recorded, labels, seed, progress))


def _missing_torch() -> ToolError:
    return ToolError(
        "Heads `conv` and `bag_of_features` are fitted with torch, which is not installed",
        "pip install 'eecompile[torch]', or use `linear` or `class_means`",
    )


def array_of(tensor: Any) -> Array:
    """A module's tensor as float32."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)


def _trained(
    torch: Any,
    build: Callable[[], Any],
    recorded: Array,
    labels: Array,
    seed: int,
    progress: Progress,
) -> Any:
    """The module with the weights of its best epoch, by the loss on a tenth held out of the data.

    Adam, a rate that falls to zero along a cosine. Torch's global generator is left as it was.
    """
    kept, held_out = stratified_split(labels, 0.1, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        net(_batch(torch, recorded, kept[:2]))  # Lazy layers learn their shapes.
        optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
        steps = -(-len(kept) // _BATCH)
        epochs = max(_EPOCHS, -(-_STEPS // steps))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * epochs)
        best, best_state, waited = float("inf"), net.state_dict(), 0
        generator = np.random.default_rng(seed)
        for epoch in range(epochs):
            net.train()
            order = generator.permutation(kept)
            for at in range(0, len(order), _BATCH):
                rows = np.sort(order[at : at + _BATCH])
                if len(rows) < 2:
                    continue  # Batch normalisation needs two.
                loss = torch.nn.functional.cross_entropy(
                    net(_batch(torch, recorded, rows)), torch.from_numpy(labels[rows])
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            loss = _loss(torch, net, recorded, labels, held_out if len(held_out) else kept)
            if progress is not None:
                progress(f"epoch {epoch + 1}: held-out loss {loss:.4f}")
            waited += 1
            if loss < best:
                best, waited = loss, 0
                best_state = {name: value.clone() for name, value in net.state_dict().items()}
            if waited >= _PATIENCE * epochs:
                break
    net.load_state_dict(best_state)
    return net.eval()


def _batch(torch: Any, recorded: Array, rows: Array) -> Any:
    return torch.from_numpy(np.ascontiguousarray(recorded[rows], np.float32))


def _loss(torch: Any, net: Any, recorded: Array, labels: Array, rows: Array) -> float:
    net.eval()
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(rows), 512):
            block = rows[at : at + 512]
            logits, wanted = net(_batch(torch, recorded, block)), torch.from_numpy(labels[block])
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
            total += loss.item()
    return total / len(rows)
