"""The benchmark's networks are the published ones: parameters and multiply-accumulates."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from benchmarks.suite import BARS, SUITE, lively  # noqa: E402

#: Name -> parameters, multiply-accumulates of convolutions and dense layers.
#: Sources: of the ResNets for CIFAR, He et al. 2015, table 6 (0.27, 0.85, 1.7, 19.4 M); the others'
#: papers say 1.8 G (ResNet-18), 3.4 M and 300 M (MobileNetV2), 2.5 M and 56 M (MobileNetV3-small),
#: 5.3 M and 0.39 G (EfficientNet-B0), 2.8 G (DenseNet-121). The parameters to the last digit are
#: those of torchvision's and the CIFAR checkpoints' networks.
PUBLISHED = {
    "resnet20": (269_722, 40.55e6),
    "resnet56": (853_018, 125.5e6),
    "resnet110": (1_727_962, 252.9e6),
    "resnet1202": (19_421_274, 2829e6),
    "resnet18": (11_689_512, 1814e6),
    "mobilenet_v2": (3_504_872, 300.8e6),
    "mobilenet_v3_small": (2_542_856, 56.5e6),
    "efficientnet_b0": (5_288_548, 385.8e6),
    "densenet121": (7_978_856, 2834e6),
}


def _macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and dense layers; the model is on no device."""
    found = []

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        found.append(out.numel() * weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(shape, device="meta"))
    return sum(found)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_as_large_as_published(name: str) -> None:
    with torch.device("meta"):
        model = SUITE[name].build().eval()
    parameters, macs = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert _macs(model, SUITE[name].shape) == pytest.approx(macs, rel=1e-3)


def test_the_text_encoder_is_six_layers_of_bert() -> None:
    width, hidden, tokens = 384, 1536, 128
    with torch.device("meta"):
        model = SUITE["bert_small"].build().eval()
    weights = 4 * width**2 + 2 * width * hidden
    # A layer has 4 + 2 dense layers with biases and two norms with weight and bias.
    layer = weights + 4 * width + hidden + width + 4 * width
    last = (width + 1) * width + (width + 1) * 2
    assert sum(p.numel() for p in model.parameters()) == 6 * layer + 2 * width + last
    assert _macs(model, SUITE["bert_small"].shape) == 6 * tokens * weights + width * (width + 2)


def test_every_network_with_a_bar_is_there() -> None:
    assert BARS.keys() <= SUITE.keys()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "bert_small"])
def test_answers_depend_on_the_input(name: str) -> None:
    model = lively(name)
    with torch.no_grad():
        one, other = (model(torch.randn(SUITE[name].shape)) for _ in range(2))
    assert (one - other).abs().max() > 0.05 * one.abs().max()
