"""The networks of the kernel benchmark: random weights, and answers that depend on the input.

    python -m benchmarks.suite FOLDER [NETWORK ...]

writes them as ONNX files, FOLDER/NETWORK.onnx.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import encoder, imagenet, networks

__all__ = ["BARS", "SUITE", "Network", "export", "lively"]


@dataclass(frozen=True)
class Network:
    """What builds a network, and the shape of its input, batch 1."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


_PICTURE = (1, 3, 224, 224)

#: Name on the command line -> network; those of `networks` and the large ones.
SUITE: dict[str, Network] = {
    **{name: Network(net, networks.INPUT_SHAPES[name]) for name, net in networks.NETWORKS.items()},
    "resnet110": Network(networks.resnet110, (1, 3, 32, 32)),
    "resnet1202": Network(networks.resnet1202, (1, 3, 32, 32)),
    "resnet18": Network(imagenet.ResNet18, _PICTURE),
    "mobilenet_v3_small": Network(imagenet.MobileNetV3Small, _PICTURE),
    "efficientnet_b0": Network(imagenet.EfficientNetB0, _PICTURE),
    "densenet121": Network(imagenet.densenet121, _PICTURE),
    "bert_small": Network(encoder.TextEncoder, (1, 128, 384)),
}

#: Name -> the largest share of ONNX Runtime's time that full depth in float32 is to take.
BARS: dict[str, float] = {
    "resnet56": 0.8,
    "resnet18": 0.8,
    "mobilenet_v2": 0.8,
    "mobilenet_v3_small": 0.9,
    "efficientnet_b0": 0.9,
    "densenet121": 0.9,
    "bert_small": 1.0,
}


def lively(name: str) -> nn.Module:
    """A network with random weights whose answers depend on its input.

    With the batch statistics it is born with, activations die out and only a bias is left.
    """
    torch.manual_seed(0)
    network = SUITE[name]
    model = network.build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, *network.shape[1:]))
    return model.eval()


def export(name: str, path: Path | str) -> nn.Module:
    """Writes a lively network as ONNX and returns it."""
    model = lively(name)
    networks.export_onnx(model, SUITE[name].shape, path, exporter="torchscript")
    return model


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="default: all with a bar")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.networks or BARS:
        export(name, options.folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
