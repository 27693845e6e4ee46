"""Networks of PyTorch whose blocks tests know, beside those of `benchmarks.networks`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.networks import CifarResNet, DenseNet, MobileNetV2, VisionTransformer

__all__ = [
    "convnext",
    "deeper_resnet",
    "densenet",
    "masked_encoder",
    "mobilenet",
    "post_norm",
    "preactivated",
    "resnet",
    "transformer",
]


class PostNorm(nn.Module):
    """Two encoder layers of the original transformer on 8 tokens of width 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


class Attention(nn.Module):
    """One head, written out; tokens that are all zeros are not looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.dense = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4.0 + mask
        y: Tensor = self.norm(x + self.dense(scores.softmax(-1) @ self.value(x)))
        return y


class Layer(nn.Module):
    """As in BERT: attention, then two linear layers, each sum normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        y: Tensor = self.norm(self.output(torch.relu(self.intermediate(x))) + x)
        return y


class MaskedEncoder(nn.Module):
    """A BERT-like encoder: a mask made of the input goes past all blocks into each attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.layer = nn.ModuleList(Layer(16) for _ in range(2))
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.abs().amax(-1) < 0.5).float().unsqueeze(1) * -1e4
        y = self.embed(x)
        for layer in self.layer:
            y = layer(y, mask)
        scores: Tensor = self.classifier(y[:, 0])
        return scores


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer norm over channels, two linear layers, a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(nn.functional.gelu(self.up(y)))
        sum_: Tensor = x + y.permute(0, 3, 1, 2)
        return sum_


class Preactivated(nn.Module):
    """Normalisation and activation come first: the sum is followed by the next block's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(torch.relu(self.norm(x)))
        return y


def post_norm() -> nn.Module:
    """Normalised behind each sum."""
    return PostNorm()


def masked_encoder() -> nn.Module:
    """BERT-like."""
    return MaskedEncoder()


def _pictures(*blocks: nn.Module) -> nn.Module:
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, *ends)


def convnext() -> nn.Module:
    """Two ConvNeXt blocks."""
    return _pictures(ConvNextBlock(8), ConvNextBlock(8))


def preactivated() -> nn.Module:
    """Two blocks."""
    return _pictures(Preactivated(8), Preactivated(8))


# Those of benchmarks that are less deep: exporting takes as long as a network has operators.


def resnet() -> nn.Module:
    """Three stages of two blocks."""
    return CifarResNet(2)


def deeper_resnet() -> nn.Module:
    """Three stages of three blocks."""
    return CifarResNet(3)


def densenet() -> nn.Module:
    """Two dense blocks of three layers."""
    return DenseNet(12, (3, 3), 10, nn.Conv2d(3, 24, 3, padding=1, bias=False))


def transformer() -> nn.Module:
    """Two layers, normalised before each half."""
    return VisionTransformer(depth=2)


class _MobileNet(MobileNetV2):
    BLOCKS = MobileNetV2.BLOCKS[:3]


def mobilenet() -> nn.Module:
    """The first six of MobileNetV2's blocks."""
    return _MobileNet(width=0.25, classes=10, last=256)
