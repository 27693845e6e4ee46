"""Trains the network that `eecompile demo` ships and writes its files into `eecompile/demo/`.

    python -m benchmarks.train_demo            # a minute on two idle cores; torch, scikit-learn

The data are the UCI handwritten digits (1,797 images of 8 x 8 pixels, 43 writers) that scikit-learn
distributes. They are split once, stratified by class: 997 images to train network and heads on,
300 to calibrate thresholds, 500 to report.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 7
EPOCHS = 60
FOLDER = Path(__file__).parent.parent / "eecompile" / "demo"


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network for 8 x 8 images: 12.4 million multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = nn.Sequential(*(Block(32, 32, 1) for _ in range(4)))
        self.layer2 = nn.Sequential(Block(32, 48, 1), *(Block(48, 48, 1) for _ in range(2)))
        self.linear = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, 8, 8) to (n, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 (n, 8, 8), 0 to 240, and labels, split into fit, calibrate and test."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=500, stratify=labels, random_state=SEED
    )
    fit, calibrate, fit_labels, calibrate_labels = train_test_split(
        rest, rest_labels, test_size=300, stratify=rest_labels, random_state=SEED
    )
    return {
        "fit": (fit, fit_labels),
        "calibrate": (calibrate, calibrate_labels),
        "test": (test, test_labels),
    }


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch moved by up to one pixel in each direction, zeros coming in."""
    dy, dx = (int(v) for v in torch.randint(0, 3, (2,), generator=generator))
    return F.pad(x, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


def train(images: np.ndarray, labels: np.ndarray) -> DigitsNet:
    """The network after `EPOCHS` passes of SGD over `images`."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = DigitsNet()
    x = torch.from_numpy(images).float()[:, None] / 255
    y = torch.from_numpy(labels)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        model.train()
        for part in torch.split(torch.randperm(len(x), generator=generator), 64):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(shifted(x[part], generator)), y[part])
            torch.autograd.backward(loss)
            optimiser.step()
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def main() -> None:
    """Train, report, export."""
    parts = digits()
    model = train(*parts["fit"])
    for name, (images, labels) in parts.items():
        with torch.no_grad():
            answer = model(torch.from_numpy(images).float()[:, None] / 255).argmax(1).numpy()
        print(f"{name}: {len(labels)} images, {100 * (answer == labels).mean():.2f} %")
        np.savez_compressed(FOLDER / f"{name}.npz", images=images, labels=labels.astype(np.uint8))
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        FOLDER / "digits.onnx",
        input_names=["image"],
        output_names=["logits"],
        opset_version=18,
        external_data=False,
    )
    print(*(f"{p.name}: {p.stat().st_size:,} bytes" for p in sorted(FOLDER.iterdir())), sep="\n")


if __name__ == "__main__":
    main()
