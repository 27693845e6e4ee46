"""Networks exported by PyTorch's two exporters: module paths as in the module, same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from eecompile.passes.onnx_host import load_onnx
from eecompile.reference import run_graph

pytest.importorskip("onnxscript")
if TYPE_CHECKING:
    import torch

    from benchmarks import networks
else:
    torch = pytest.importorskip("torch")
    networks = pytest.importorskip("benchmarks.networks")

Export = Callable[[str, str], tuple["torch.nn.Module", Path]]

EXPORTERS = ("dynamo", "torchscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Network and exporter -> the module and its file, exported once."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[tuple[str, str], tuple[torch.nn.Module, Path]] = {}

    def export(name: str, exporter: str) -> tuple[torch.nn.Module, Path]:
        if (name, exporter) not in made:
            torch.manual_seed(0)
            network, path = getattr(networks, name)().eval(), folder / f"{name}_{exporter}.onnx"
            networks.export_onnx(network, (1, 3, 32, 32), path, exporter=exporter)
            made[name, exporter] = network, path
        return made[name, exporter]

    return export


def handed_on(network: torch.nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    """What each module gives, by its path; of a module called twice, the last."""
    found: dict[str, np.ndarray] = {}

    def remember(path: str, result: object) -> None:
        if isinstance(result, torch.Tensor):
            found[path] = result.numpy().copy()  # some activations work in place

    for path, module in network.named_modules():
        module.register_forward_hook(lambda m, a, result, path=path: remember(path, result))
    with torch.no_grad():
        network(x)
    return found


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("resnet20", "dynamo"),
        ("resnet20", "torchscript"),
        ("densenet_small", "dynamo"),
        ("mobilenet_v2_small", "torchscript"),
        ("vit_small", "dynamo"),
        ("vit_small", "torchscript"),
    ],
)
def test_points_named_by_module_are_what_the_module_gives(
    exported: Export, name: str, exporter: str
) -> None:
    network, path = exported(name, exporter)
    host = load_onnx(path)
    points = {name: point for name, point in host.points().items() if point.module}
    x = torch.rand(1, 3, 32, 32)
    truth = handed_on(network, x)
    # A convolution that batch normalisation was folded into is no point: it gives something else.
    compared = {path: point.value for path, point in points.items() if path in truth}
    found = run_graph(host.graph().pruned(compared.values()), {"image": x.numpy()})
    assert len(compared) >= 8
    for module, value in compared.items():
        np.testing.assert_allclose(found[value], truth[module], atol=2e-5, err_msg=module)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_residual_block_is_a_point(exported: Export, exporter: str) -> None:
    points = load_onnx(exported("resnet20", exporter)[1]).points()
    for stage in (1, 2, 3):
        for block in range(3):
            assert points[f"layer{stage}.{block}"].module
        assert points[f"layer{stage}"].value == points[f"layer{stage}.2"].value


def test_module_that_is_called_again_is_one_point(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.conv_1 = torch.nn.Conv2d(3, 3, 1)
            self.relu = torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.relu(self.conv_1(self.relu(self.conv(x))))
            return result

    network, x = Twice().eval(), torch.rand(1, 3, 32, 32)
    networks.export_onnx(network, x.shape, tmp_path / "t.onnx", exporter="torchscript")
    host = load_onnx(tmp_path / "t.onnx")
    points = {name: point.value for name, point in host.points().items() if point.module}
    assert points.keys() == {"conv", "conv_1", "relu"}
    found = run_graph(host.graph().pruned(points.values()), {"image": x.numpy()})
    for name, truth in handed_on(network, x).items():
        if name:
            np.testing.assert_allclose(found[points[name]], truth, atol=1e-5)


def test_exporters_give_the_same_points_and_types(exported: Export) -> None:
    dynamo, script = (load_onnx(exported("resnet20", e)[1]).points() for e in EXPORTERS)
    blocks = {n: p.type for n, p in dynamo.items() if p.module and n.startswith("layer")}
    common = blocks.keys() & script.keys()
    assert len(common) >= 12
    assert all(script[name].type == blocks[name] for name in common)
