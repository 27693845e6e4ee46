"""Heads that are fitted by gradient descent. The one place here that needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.diagnostics import ToolError
from eecompile.heads.base import Array, Progress
from eecompile.heads.logistic import stratified_split

if TYPE_CHECKING:
    from eecompile.heads.bag_of_features import BagOfFeaturesHead
    from eecompile.heads.convolution import ConvHead

__all__ = ["fit_bag_of_features", "fit_conv"]

_BATCH = 128
#: Passes over the data, or more where they are too few for this many steps.
_EPOCHS = 20
_STEPS = 300
#: Predictive Exit trains its heads with this rate (arXiv 2206.04685, released code).
_RATE = 1e-3
#: Share of the epochs without a better held-out loss after which training stops.
_PATIENCE = 0.2


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ToolError(
            "Heads `conv` and `bag_of_features` are fitted with torch, which is not installed",
            "pip install 'eecompile[torch]', or use `linear` or `class_means`",
        ) from error
    return torch


def fit_conv(
    head: ConvHead,
    recorded: Array,
    labels: Array,
    classes: int,
    *,
    seed: int,
    progress: Progress = None,
) -> dict[str, Array]:
    """Parameters of a convolutional head, fitted on maps float32 (n, C, H, W)."""
    torch = _torch()
    nn = torch.nn

    def build() -> Any:
        layers: list[Any] = []
        channels = recorded.shape[1]
        for _ in range(head.layers):
            pad = (head.kernel - 1) // 2
            layers += [
                nn.Conv2d(channels, head.channels, head.kernel, padding=pad, bias=False),
                nn.BatchNorm2d(head.channels),
                nn.ReLU(),
            ]
            channels = head.channels
        layers += [_Pool(head.pool), nn.Flatten(), nn.LazyLinear(classes)]
        return nn.Sequential(*layers)

    class _Pool(nn.Module):  # type: ignore[misc,name-defined]
        """Windows as `pooling.pool` takes them."""

        def __init__(self, cells: int) -> None:
            super().__init__()
            self.cells = cells

        def forward(self, x: Any) -> Any:
            sides = x.shape[2:]
            step = [side // self.cells for side in sides]
            kernel = [side - (self.cells - 1) * s for side, s in zip(sides, step, strict=True)]
            return nn.functional.avg_pool2d(x, kernel, step)

    net = _trained(torch, build, recorded, labels, seed, progress)
    found: dict[str, Array] = {}
    for layer in range(head.layers):
        conv, norm = net[3 * layer], net[3 * layer + 1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        found[f"weight{layer}"] = _array(conv.weight * scale[:, None, None, None])
        found[f"bias{layer}"] = _array(norm.bias - norm.running_mean * scale)
    return {**found, "weight": _array(net[-1].weight.T), "bias": _array(net[-1].bias)}


def fit_bag_of_features(
    head: BagOfFeaturesHead,
    recorded: Array,
    labels: Array,
    classes: int,
    *,
    seed: int,
    progress: Progress = None,
) -> dict[str, Array]:
    """Parameters of a bag-of-features head, fitted on maps float32 (n, C, H, W)."""
    torch = _torch()
    nn = torch.nn
    window = head.window_of(recorded.shape)
    windows = (recorded.shape[2] // window) * (recorded.shape[3] // window)
    bins = windows * head.codewords

    class Bag(nn.Module):  # type: ignore[misc,name-defined]
        """The head as published, one learned number for each of a, c, n1 and n2."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(recorded.shape[1], head.codewords, 1)
            self.a = nn.Parameter(torch.ones(()))
            self.c = nn.Parameter(torch.zeros(()))
            self.n1 = nn.Parameter(torch.tensor(float(head.codewords)))
            self.n2 = nn.Parameter(torch.tensor(float(window)))
            self.first = nn.Linear(bins, head.codewords) if windows == 4 else nn.Identity()
            self.second = nn.Linear(head.codewords if windows == 4 else bins, classes)

        def forward(self, x: Any) -> Any:
            u = (torch.tanh(self.a * self.conv(x) + self.c) + 1) / 2
            v = self.n1 * u / (u.sum(dim=1, keepdim=True) + 5e-16)
            h = self.n2 * nn.functional.avg_pool2d(v, window)
            return self.second(self.first(h.flatten(1)))

    bag = _trained(torch, Bag, recorded, labels, seed, progress)
    weight, bias = bag.second.weight, bag.second.bias
    if windows == 4:
        weight, bias = weight @ bag.first.weight, bias + weight @ bag.first.bias
    return {
        "codebook": _array(bag.a * bag.conv.weight),
        "offset": _array(bag.a * bag.conv.bias + bag.c),
        "weight": _array((bag.n1 * bag.n2 * weight).T),
        "bias": _array(bias),
    }


def _array(tensor: Any) -> Array:
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
