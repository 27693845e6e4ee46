"""Trains a small DenseNet on CIFAR-10: a network whose layers' new features are concatenated.

    python -m benchmarks.train_densenet FOLDER [--epochs 12] [--threads 2]       # torch
                                        [--fit cifar10_train.npz]

``networks.densenet_small`` has three blocks of four layers and 24 million multiply-accumulates. It
sees the first 20,000 training images, or those of ``--fit``, flipped and shifted; FOLDER then has
``densenet.pth``, and the accuracy on all test images is printed. Twelve epochs of 20,000 images
take some ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.machine import describe_machine, shared_data
from benchmarks.networks import densenet_small

__all__ = ["train"]

BATCH, RATE, MOMENTUM, DECAY = 128, 0.2, 0.9, 5e-4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images float32 (n, 3, 32, 32), channels last in memory, and labels."""
    with np.load(path) as data:
        images, labels = data["images"].astype(np.float32) / 255, data["labels"].astype(np.int64)
    images = ((images - _MEAN) / _STD).astype(np.float32).transpose(0, 3, 1, 2)
    found = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return found, torch.from_numpy(labels)


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images flipped, each moved by up to 4 pixels."""
    count = len(images)
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (4, 4, 4, 4))
    moves = torch.randint(0, 9, (count, 2), generator=generator)
    rows = (moves[:, :1] + torch.arange(32))[:, None, :, None]
    columns = (moves[:, 1:] + torch.arange(32))[:, None, None, :]
    samples = torch.arange(count)[:, None, None, None]
    return padded[samples, torch.arange(3)[None, :, None, None], rows, columns]


def train(folder: Path, data: Path, fit: Path, epochs: int = 12, seed: int = 0) -> float:
    """Trains on `fit`, writes ``densenet.pth``; accuracy on the test images, as a fraction."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = read(fit)
    net = densenet_small()
    optimiser = torch.optim.SGD(
        net.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.2)
    for epoch in range(epochs):
        net.train()
        order, losses = torch.randperm(len(images), generator=generator), []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            given = shifted(images[rows], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(net(given).float(), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}", flush=True)
    net.eval()
    torch.save(net.state_dict(), folder / "densenet.pth")
    images, labels = read(data / "cifar10_test.npz")
    with torch.inference_mode():
        parts = (images[start : start + 500] for start in range(0, len(images), 500))
        answers = torch.cat([net(part).argmax(1) for part in parts])
    return float((answers == labels).float().mean())


def main() -> None:
    """Train and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fit", type=Path, help="training images instead of the 20,000")
    options = parser.parse_args()
    print(describe_machine())
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = shared_data()
    fit = options.fit or data / "cifar10_train_20k.npz"
    accuracy = train(options.folder, data, fit, options.epochs)
    print(f"accuracy on the test images: {accuracy:.2%}")


if __name__ == "__main__":
    main()
