"""Networks of PyTorch for gates that are fitted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["chain", "planted"]


def chain() -> nn.Module:
    """Three convolutions in a row: the second reads gated channels and is gated itself."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


class Block(nn.Module):
    """y = relu(x + F(x)), the convolution of four groups of channels read by a pointwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return y


class Planted(nn.Module):
    """Three blocks. Of the second, channels 8 to 11 are constant; the third adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 4)
        _, second, third = (block for block in self.blocks if isinstance(block, Block))
        with torch.no_grad():
            self.head.weight *= 20
            second.conv1.weight[8:12] = 0
            second.conv1.bias[8:12] = 0.7  # type: ignore[index]
            third.conv2.weight.zero_()
            third.conv2.bias.zero_()  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))
        return logits


def planted() -> nn.Module:
    """A network of which some parts may go."""
    return Planted()
