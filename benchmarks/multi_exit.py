"""A multi-exit network as Predictive Exit trains them: backbone and exits together.

    python -m benchmarks.multi_exit FOLDER [--side 72] [--epochs 3]

ResNet-56 with its published CIFAR-10 weights goes on learning on 20,000 training images, with an
exit after every block and the sum of all losses (stage B of arXiv 2206.04685). Pictures are
enlarged to `side` pixels inside the network: more work for the same answers, so that a board takes
as long as it does for a network of 224 x 224 pixels. FOLDER then has ``multi_exit.onnx``, the
backbone alone; its heads are fitted again when it is built. Takes minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import shared_data
from benchmarks.networks import CifarResNet, export_onnx, load_weights, resnet56

__all__ = ["SIDE", "Enlarged", "trained"]

SIDE = 72
_WEIGHTS = "nets/resnet56_cifar10.th"
_BATCH = 64
_RATE = 0.02
#: Of ImageNet, as the published weights were trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Enlarged(nn.Module):
    """A network behind bilinear enlargement of its pictures."""

    def __init__(self, network: CifarResNet, side: int) -> None:
        """Pictures become `side` x `side` pixels."""
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, 32, 32] -> logits f32[N, 10]."""
        size = (self.side, self.side)
        logits: Tensor = self.network(nn.functional.interpolate(x, size, mode="bilinear"))
        return logits


class _Exits(nn.Module):
    """A linear exit after every block, for training: what the backbone learns to serve."""

    def __init__(self, network: CifarResNet) -> None:
        super().__init__()
        self.blocks = [b for n in (1, 2, 3) for b in getattr(network, f"layer{n}")]
        self.seen: list[Tensor] = []
        widths = [block.conv2.out_channels for block in self.blocks]
        self.heads = nn.ModuleList(nn.Linear(16 * width, 10) for width in widths)
        self.pool = nn.AdaptiveAvgPool2d(4)
        for block in self.blocks:
            block.register_forward_hook(lambda _, __, out: self.seen.append(out))

    def forward(self) -> list[Tensor]:
        """Logits of each exit for the pictures the network has just seen."""
        found = [
            head(self.pool(seen).flatten(1))
            for head, seen in zip(self.heads, self.seen, strict=True)
        ]
        self.seen.clear()
        return found


def trained(folder: Path, data: Path, side: int = SIDE, epochs: int = 3) -> Path:
    """The backbone's ONNX file, made once for a folder."""
    path = folder / "multi_exit.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = resnet56()
    load_weights(network, data / _WEIGHTS)
    model = Enlarged(network, side)
    exits = _Exits(network)
    with np.load(data / "cifar10_train_20k.npz") as archive:
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    _train(model, exits, images, labels, epochs)
    model.eval()
    export_onnx(model, (1, 3, 32, 32), path)
    return path


def _train(
    model: nn.Module, exits: _Exits, images: np.ndarray, labels: np.ndarray, epochs: int
) -> None:
    """Mean of all exits' losses and the network's own; SGD, rate along a cosine."""
    parameters = [*model.parameters(), *exits.parameters()]
    optimiser = torch.optim.SGD(parameters, _RATE, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5 * _RATE, steps, pct_start=0.15)
    generator = np.random.default_rng(0)
    for epoch in range(epochs):
        model.train()
        order, right, start = generator.permutation(len(images)), [], time.perf_counter()
        for at in range(0, len(order) - _BATCH + 1, _BATCH):
            rows = order[at : at + _BATCH]
            wanted = torch.from_numpy(labels[rows])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                final = model(_batch(images[rows], generator))
                logits = [*exits(), final]
            losses = [nn.functional.cross_entropy(one.float(), wanted) for one in logits]
            loss = torch.stack(losses).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            right.append([(one.argmax(1) == wanted).float().mean().item() for one in logits])
        told = 100 * np.array(right[-100:]).mean(axis=0)
        shown = ", ".join(f"{value:.1f}" for value in told[[2, 8, 14, 20, 26, 27]])
        print(
            f"epoch {epoch + 1}: {time.perf_counter() - start:.0f} s, training accuracy after "
            f"blocks 3, 9, 15, 21, 27 and in the end: {shown} %",
            flush=True,
        )


def _batch(images: np.ndarray, generator: np.random.Generator) -> Tensor:
    """Normalised float32 [n, 3, 32, 32], shifted by up to 4 pixels and mirrored at random."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    out = np.empty_like(images)
    for k, (y, x, flip) in enumerate(generator.integers(0, (9, 9, 2), (len(images), 3))):
        crop = padded[k, y : y + 32, x : x + 32]
        out[k] = crop[:, ::-1] if flip else crop
    mean, std = np.array([_MEAN, _STD], np.float32)
    batch = torch.from_numpy(((out / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    return batch.contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels that pictures get")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    print(trained(options.folder, shared_data(), options.side, options.epochs))


if __name__ == "__main__":
    main()
