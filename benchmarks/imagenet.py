"""Networks for 224x224 pictures and 1000 classes, written out from the papers.

ResNet-18, DenseNet-121, MobileNetV3-small and EfficientNet-B0; MobileNetV2 is in `networks`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import (
    Activation,
    Classified,
    DenseNet,
    InvertedResidual,
    conv_bn,
    residual_stage,
    scaled,
)

__all__ = ["EfficientNetB0", "MobileNetV3Small", "ResNet18", "SqueezeExcite", "densenet121"]


def _stem() -> nn.Sequential:
    """7x7 convolution and 3x3 maximum, each halving the picture: 64 channels of 56x56."""
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


class ResNet18(nn.Module):
    """The 18-layer network for 224x224 pictures: 11.7 M parameters, 1.8 G multiply-accumulates.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2015, table 1.
    """

    def __init__(self, classes: int = 1000) -> None:
        """Four stages of two blocks, 64 to 512 channels, behind a 7x7 stem."""
        super().__init__()
        self.stem = _stem()
        self.layer1 = residual_stage(64, 64, 2, 1)
        self.layer2 = residual_stage(64, 128, 2, 2, projected=True)
        self.layer3 = residual_stage(128, 256, 2, 2, projected=True)
        self.layer4 = residual_stage(256, 512, 2, 2, projected=True)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, 224, 224] -> logits f32[N, classes]."""
        x = self.layer2(self.layer1(self.stem(x)))
        x = self.layer4(self.layer3(x))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def densenet121() -> DenseNet:
    """DenseNet-121: 8.0 M parameters, 2.8 G multiply-accumulates.

    Source: Huang et al., "Densely Connected Convolutional Networks", 2017, table 1.
    """
    return DenseNet(32, (6, 12, 24, 16), 1000, _stem())


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the means of all channels (Hu et al. 2018)."""

    def __init__(
        self, channels: int, squeezed: int, activation: Activation, gate: Activation
    ) -> None:
        """`squeezed` channels between the two 1x1 convolutions."""
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, C, H, W] -> f32[N, C, H, W]."""
        means = F.adaptive_avg_pool2d(x, 1)
        gates: Tensor = self.gate(self.expand(self.activation(self.reduce(means))))
        return x * gates


class MobileNetV3Small(Classified):
    """MobileNetV3-small at 224x224: 2.5 M parameters, 56 M multiply-accumulates.

    Source: Howard et al., "Searching for MobileNetV3", 2019, table 2.
    """

    #: kernel, expanded channels, channels, squeeze-and-excite, hard swish (else ReLU), stride
    BLOCKS = (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        """The network of table 2."""
        super().__init__()
        channels = 16
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, activation=nn.Hardswish)]
        for kernel, hidden, out, squeezed, swish, stride in self.BLOCKS:
            squeeze = None
            if squeezed:
                squeeze = SqueezeExcite(hidden, scaled(hidden / 4), nn.ReLU, nn.Hardsigmoid)
            activation: Activation = nn.Hardswish if swish else nn.ReLU
            block = InvertedResidual(
                channels,
                hidden,
                out,
                stride,
                kernel=kernel,
                activation=activation,
                squeeze=squeeze,
            )
            layers.append(block)
            channels = out
        layers.append(conv_bn(channels, 576, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes)
        )


class EfficientNetB0(Classified):
    """EfficientNet-B0 at 224x224: 5.3 M parameters, 0.39 G multiply-accumulates.

    Stochastic depth, which does nothing at inference, is left out.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    2019, table 1; the gates squeeze a quarter of a block's input channels (their code).
    """

    #: expansion, kernel, channels, repeats, stride
    BLOCKS = (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        """The baseline network, unscaled."""
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, activation=nn.SiLU)]
        for expand, kernel, out, repeats, stride in self.BLOCKS:
            for index in range(repeats):
                hidden = channels * expand
                block = InvertedResidual(
                    channels,
                    hidden,
                    out,
                    stride if index == 0 else 1,
                    kernel=kernel,
                    activation=nn.SiLU,
                    squeeze=SqueezeExcite(hidden, channels // 4, nn.SiLU, nn.Sigmoid),
                )
                layers.append(block)
                channels = out
        layers.append(conv_bn(channels, 1280, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
