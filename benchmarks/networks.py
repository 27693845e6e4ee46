"""The networks that tests and benchmarks compile, written out so that nothing is downloaded.

The CIFAR ResNets (He et al. 2015, section 4.2, option-A shortcuts) carry the module names that the
published CIFAR-10 checkpoints use; the others are small members of the families that users bring.

    python -m benchmarks.networks export resnet56 --weights W.th --onnx OUT.onnx
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "INPUT_SHAPES",
    "NETWORKS",
    "Activation",
    "BasicBlock",
    "CifarResNet",
    "Classified",
    "DenseNet",
    "InvertedResidual",
    "MobileNetV2",
    "VisionTransformer",
    "conv_bn",
    "densenet_small",
    "export_onnx",
    "load_weights",
    "mlp",
    "mobilenet_v2_small",
    "residual_stage",
    "resnet20",
    "resnet56",
    "resnet110",
    "resnet1202",
    "scaled",
    "vit_small",
]


class PaddedShortcut(nn.Module):
    """Option A: every other pixel, the missing channels filled with zeros; no parameters."""

    def __init__(self, added: int) -> None:
        """Pads `added` channels, half of them on each side."""
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, C, H, W] -> f32[N, C + added, H/2, W/2]."""
        half = self.added // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.added - half))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, *, projected: bool = False
    ) -> None:
        """A block that halves the picture where `stride` is 2.

        Where shapes change, the shortcut pads (option A), or is a 1x1 convolution (option B,
        `projected`).
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module
        if stride == 1 and channels_in == channels:
            self.shortcut = nn.Sequential()
        elif projected:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))
        else:
            self.shortcut = PaddedShortcut(channels - channels_in)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, C_in, H, W] -> f32[N, C, H/stride, W/stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def residual_stage(
    channels_in: int, channels: int, blocks: int, stride: int, *, projected: bool = False
) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, projected=projected)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """ResNet of depth 6 * blocks + 2 for 32x32 pictures (section 4.2, option-A shortcuts).

    Module names are those of the published CIFAR-10 checkpoints.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        """Three stages of `blocks` blocks with 16, 32 and 64 channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = residual_stage(16, 16, blocks, 1)
        self.layer2 = residual_stage(16, 32, blocks, 2)
        self.layer3 = residual_stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, 32, 32] -> logits f32[N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.shape[3])
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def resnet20() -> CifarResNet:
    """The 20-layer CIFAR ResNet: 0.27 M parameters, 40.6 M multiply-accumulates."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """The 56-layer CIFAR ResNet: 0.85 M parameters, 125.5 M multiply-accumulates."""
    return CifarResNet(9)


def resnet110() -> CifarResNet:
    """The 110-layer CIFAR ResNet: 1.73 M parameters, 253 M multiply-accumulates."""
    return CifarResNet(18)


def resnet1202() -> CifarResNet:
    """The 1,202-layer CIFAR ResNet: 19.4 M parameters, 2.8 G multiply-accumulates."""
    return CifarResNet(200)


class DenseLayer(nn.Module):
    """Bottleneck layer whose output is joined to its input."""

    def __init__(self, channels_in: int, growth: int) -> None:
        """Adds `growth` channels."""
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, C, H, W] -> f32[N, C + growth, H, W]."""
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Dense blocks with halving transitions between them."""

    def __init__(self, growth: int, blocks: tuple[int, ...], classes: int, stem: nn.Module) -> None:
        """One dense block per entry of `blocks`, of that many layers.

        `stem` makes 2 * growth channels of a picture.
        """
        super().__init__()
        channels = 2 * growth
        self.stem = stem
        stages: list[nn.Module] = []
        for index, layers in enumerate(blocks):
            dense = [DenseLayer(channels + i * growth, growth) for i in range(layers)]
            stages.append(nn.Sequential(*dense))
            channels += layers * growth
            if index + 1 < len(blocks):
                stages.append(self._transition(channels, channels // 2))
                channels //= 2
        self.features = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    @staticmethod
    def _transition(channels_in: int, channels: int) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels, 1, bias=False)
        return nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU(), conv, nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, H, W] -> logits f32[N, classes]."""
        x = F.relu(self.norm(self.features(self.stem(x))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def densenet_small() -> DenseNet:
    """Three dense blocks of four layers, growth 12, for 32x32 pictures, ten classes."""
    return DenseNet(12, (4, 4, 4), 10, nn.Conv2d(3, 24, 3, padding=1, bias=False))


Activation = Callable[[], nn.Module]


def _relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def conv_bn(
    channels_in: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: Activation = _relu6,
) -> nn.Sequential:
    """A "same" convolution, batch normalisation and an activation."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), activation())


def scaled(channels: float) -> int:
    """The multiple of 8 nearest to a channel count, at least 8 and not below 90 % of it.

    >>> scaled(18), scaled(4), scaled(12)
    (24, 8, 16)
    """
    found = max(8, int(channels + 4) // 8 * 8)
    return found if found >= 0.9 * channels else found + 8


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project (Sandler et al. 2018)."""

    def __init__(
        self,
        channels_in: int,
        hidden: int,
        channels: int,
        stride: int,
        *,
        kernel: int = 3,
        activation: Activation = _relu6,
        squeeze: nn.Module | None = None,
    ) -> None:
        """Adds its input where the shapes allow it; `squeeze` comes before the projection."""
        super().__init__()
        self.residual = stride == 1 and channels_in == channels
        layers: list[nn.Module] = []
        if hidden != channels_in:
            layers.append(conv_bn(channels_in, hidden, 1, activation=activation))
        layers.append(conv_bn(hidden, hidden, kernel, stride, hidden, activation))
        if squeeze is not None:
            layers.append(squeeze)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, C_in, H, W] -> f32[N, C, H/stride, W/stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class Classified(nn.Module):
    """Features, their means over the picture, a classifier."""

    features: nn.Sequential
    classifier: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, H, W] -> logits f32[N, classes]."""
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class MobileNetV2(Classified):
    """MobileNetV2 with the published sequence of blocks, scaled in width.

    At full width and 224x224: 3.5 M parameters, 300 M multiply-accumulates.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
    """

    #: expansion, channels, repeats, stride
    BLOCKS: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, width: float = 1.0, classes: int = 1000, last: int = 1280) -> None:
        """Channel counts are those of the table times `width`, in multiples of 8."""
        super().__init__()
        channels = scaled(32 * width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2)]
        for expand, table_channels, repeats, stride in self.BLOCKS:
            for index in range(repeats):
                out = scaled(table_channels * width)
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, channels * expand, out, step))
                channels = out
        layers.append(conv_bn(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))


def mobilenet_v2_small() -> MobileNetV2:
    """A quarter of the width, ten classes."""
    return MobileNetV2(width=0.25, classes=10, last=256)


class VisionTransformer(nn.Module):
    """Small vision transformer (Dosovitskiy et al. 2021), norms before the layers."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 4) -> None:
        """`depth` pre-norm encoder layers over 32x32 pictures cut into patches."""
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (32 // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, 3, 32, 32] -> logits f32[N, 10]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def vit_small() -> VisionTransformer:
    """Four layers of width 64 with four attention heads."""
    return VisionTransformer()


def mlp() -> nn.Sequential:
    """Three fully connected layers over 28x28 pictures."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


#: Name on the command line -> what builds the network.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "densenet_small": densenet_small,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_small": mobilenet_v2_small,
    "vit_small": vit_small,
    "mlp": mlp,
}

#: Name -> shape of one input, batch 1.
INPUT_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(NETWORKS, (1, 3, 32, 32)),
    "mobilenet_v2": (1, 3, 224, 224),
    "mlp": (1, 1, 28, 28),
}


def load_weights(model: nn.Module, path: Path | str) -> nn.Module:
    """The model in evaluation mode with the weights of a checkpoint, "module." prefixes dropped."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return model.eval()


def export_onnx(
    model: nn.Module,
    shape: tuple[int, ...],
    path: Path | str,
    *,
    exporter: str = "auto",
    opset: int | None = None,
) -> None:
    """Writes `model` as an ONNX file with input `image` and output `logits`, batch fixed.

    Args:
        model: the network; put into evaluation mode.
        shape: shape of its input.
        path: where to write.
        exporter: "dynamo", "torchscript", or "auto" (dynamo where onnxscript is installed).
        opset: operator set; default 18 for dynamo, 17 for torchscript.
    """
    if exporter == "auto":
        exporter = "dynamo" if importlib.util.find_spec("onnxscript") else "torchscript"
    dynamo = exporter == "dynamo"
    torch.onnx.export(
        model.eval(),
        (torch.zeros(shape),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        opset_version=opset or (18 if dynamo else 17),
        dynamo=dynamo,
        # Weights stay inside the file: one file to hand over.
        external_data=not dynamo,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    export = verbs.add_parser("export", help="write a network as ONNX")
    export.add_argument("network", choices=sorted(NETWORKS))
    export.add_argument("--weights", type=Path, help="checkpoint; random weights (seed 0) if none")
    export.add_argument("--onnx", type=Path, required=True)
    export.add_argument("--exporter", choices=("auto", "dynamo", "torchscript"), default="auto")
    export.add_argument("--opset", type=int)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = NETWORKS[options.network]()
    if options.weights:
        load_weights(model, options.weights)
    export_onnx(
        model,
        INPUT_SHAPES[options.network],
        options.onnx,
        exporter=options.exporter,
        opset=options.opset,
    )


if __name__ == "__main__":
    main()
