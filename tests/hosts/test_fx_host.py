# ruff: noqa: E402 - everything below the first import needs torch
# mypy: disable-error-code="attr-defined,misc,name-defined,operator,union-attr"
"""The PyTorch host: networks read, extended, trained, run and saved."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch host needs torch")

from benchmarks.networks import INPUT_SHAPES, NETWORKS, load_weights
from eecompile.ir import TensorType
from eecompile.passes.fx_export import export
from eecompile.passes.fx_host import FxHost, load_torch
from eecompile.passes.host import HostError
from eecompile.reference import run_graph
from eecompile.shapes import check_types
from eecompile.text import parse_graph
from tests.helpers import ROOT, data_folder

DATA = data_folder()
NETWORK_FILE = ROOT / "benchmarks" / "networks.py"
needs_data = pytest.mark.skipif(
    not (DATA / "nets").is_dir(), reason="no shared data: set EECOMPILE_DATA"
)


@cache
def _loaded(name: str, weights: Path | None = None) -> FxHost:
    torch.manual_seed(0)
    inputs = {"image": TensorType("float32", INPUT_SHAPES[name])}
    return load_torch(f"{NETWORK_FILE}:{name}", weights, inputs, ("logits",))


def _host(name: str = "resnet20", weights: Path | None = None) -> FxHost:
    return _loaded(name, weights).copy()


def _image(name: str = "resnet20", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=INPUT_SHAPES[name]).astype(np.float32)


def _pixels(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with np.load(DATA / "cifar10_test.npz") as data:
        images, labels = data["images"][:count], data["labels"][:count]
    scaled = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(0, 3, 1, 2).astype(np.float32), labels


HEAD = parse_graph(
    """
    graph head(feature: float32[1, 16, 32, 32]) -> (logits: float32[1, 10]) {
        const weight: float32[16, 10] = random(0)
        const bias: float32[1, 10] = random(1)
        pooled: float32[1, 16] = ReduceMean(feature; axes=(2, 3), keepdims=0)
        product: float32[1, 10] = MatMul(pooled, weight)
        logits: float32[1, 10] = Add(product, bias)
    }
    """
)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["densenet_small", "mobilenet_v2_small", "vit_small", "mlp"])
def test_neutral_view_computes_the_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    with torch.no_grad():  # statistics that keep the signal alive to the last layer
        for _ in range(30):
            model(torch.randn(8, *INPUT_SHAPES[name][1:]))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    host = _host(name, tmp_path / "weights.pth")
    graph, image = host.graph(), _image(name)
    assert check_types(graph) == []
    assert graph.outputs == tuple(host.outputs().values())
    expected = host.run({"image": image})["logits"]
    (found,) = run_graph(graph, {"image": image}).values()
    other = host.run({"image": _image(name, seed=1)})["logits"]
    assert np.abs(expected - other).max() > 0.02  # not the bias alone
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@needs_data
def test_trained_network_keeps_its_logits_on_real_images() -> None:
    weights = DATA / "nets" / "resnet20_cifar10.th"
    host, graph = _host("resnet20", weights), _host("resnet20", weights).graph()
    images, labels = _pixels(20)
    with torch.no_grad():
        original = load_weights(NETWORKS["resnet20"](), weights)(torch.from_numpy(images)).numpy()
    assert np.mean(original.argmax(1) == labels) >= 0.85
    for image, expected in zip(images[:, None], original[:, None], strict=True):
        np.testing.assert_allclose(host.run({"image": image})["logits"], expected, atol=2e-5)
        (found,) = run_graph(graph, {"image": image}).values()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_data
def test_batches_give_what_single_samples_give() -> None:
    host = _host("resnet20", DATA / "nets" / "resnet20_cifar10.th")
    images, _ = _pixels(3)
    assert host.batched
    together = host.run({"image": images})["logits"]
    alone = [host.run({"image": image[None]})["logits"] for image in images]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-5)


def test_points_are_module_paths_and_node_names() -> None:
    points = _host().points()
    block = points["layer1.2"]
    assert block.module and block.leads_to_output
    assert block.type == TensorType("float32", (1, 16, 32, 32))
    assert block.value in block.aliases and block.value in points
    assert points["layer1"].value == block.value
    assert points["layer1.2.conv1"].value != points["layer1.2.bn1"].value
    assert points["linear"].value == _host().outputs()["logits"]


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("resnet20", "torchscript"), ("vit_small", "torchscript"), ("mlp", "dynamo")],
)
def test_both_hosts_have_the_same_points(name: str, exporter: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from benchmarks.networks import export_onnx
    from eecompile.passes.onnx_host import load_onnx

    torch.manual_seed(0)
    model = NETWORKS[name]()
    torch.manual_seed(0)
    export_onnx(model, INPUT_SHAPES[name], tmp_path / "net.onnx", exporter=exporter)
    onnx_points = load_onnx(tmp_path / "net.onnx").points()
    fx_points = {k: p for k, p in _host(name).points().items() if p.module}
    # Exporters fold batch normalisation into the convolution; one of the two points is gone then.
    folded = {k for k in fx_points if k.rpartition(".")[2] in ("conv1", "conv2", "bn1", "bn2")}
    modules = {k for k, p in onnx_points.items() if p.module}
    assert fx_points.keys() - folded == modules - folded
    for path in fx_points.keys() & modules:
        assert fx_points[path].type == onnx_points[path].type
        assert fx_points[path].leads_to_output == onnx_points[path].leads_to_output


def test_operators_know_module_and_source_line() -> None:
    ops = {op.name: op for op in _host().graph().ops}
    assert ops["conv2d_1"].scope == "layer1.0.conv1"
    assert "networks.py:" in ops["relu_1"].source and "F.relu" in ops["relu_1"].source


# --- editing --------------------------------------------------------------------------------------


def _with_head(host: FxHost, prefix: str = "exits.early") -> FxHost:
    (value,) = host.splice(HEAD, host.points()["layer1"].value, prefix)
    host.add_output("early", value)
    return host


def test_spliced_head_leaves_the_main_output_bit_equal() -> None:
    image = _image()
    expected = _host().run({"image": image})["logits"]
    host = _with_head(_host())
    found = host.run({"image": image})
    assert [*found] == ["logits", "early"]
    np.testing.assert_array_equal(found["logits"], expected)


def test_spliced_head_equals_hand_truncation() -> None:
    image, original = _image(), NETWORKS["resnet20"]()
    host = _with_head(_host())
    original.load_state_dict(
        {k: v for k, v in host.module.state_dict().items() if "exits" not in k}
    )
    with torch.no_grad():
        x = original.eval().bn1(original.conv1(torch.from_numpy(image))).relu()
        pooled = original.layer1(x).mean((2, 3)).numpy()
    expected = pooled @ HEAD.constants["weight"] + HEAD.constants["bias"]
    np.testing.assert_allclose(host.run({"image": image})["early"], expected, atol=1e-5)


def test_view_of_a_spliced_head_is_the_head() -> None:
    graph = _with_head(_host()).graph()
    head = [op for op in graph.ops if op.scope == "exits.early"]
    assert [op.kind for op in head] == [op.kind for op in HEAD.ops]
    assert [dict(op.attributes) for op in head] == [dict(op.attributes) for op in HEAD.ops]
    assert {"exits.early.weight", "exits.early.bias"} <= graph.constants.keys()


def test_head_trains_and_the_view_follows() -> None:
    host = _with_head(_host())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 32, 32, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long()
    parameters = {n: p for n, p in host.module.named_parameters() if n.startswith("exits.")}
    assert parameters.keys() == {"exits.early.weight", "exits.early.bias"}
    before, shown = host.fingerprint(), host.graph().constants["exits.early.bias"].copy()
    optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(host.module(images)["early"], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert host.fingerprint() != before
    trained = host.graph().constants["exits.early.bias"]
    np.testing.assert_array_equal(trained, parameters["exits.early.bias"].detach().numpy())
    assert not np.array_equal(trained, shown)


def test_train_and_eval_switch_normalisation() -> None:
    host, images = _host(), torch.randn(8, 3, 32, 32)
    mean = host.module.bn1.running_mean.clone()
    still = host.module(images)["logits"]
    assert torch.equal(mean, host.module.bn1.running_mean)
    moving = host.module.train()(images)["logits"]
    assert not torch.equal(mean, host.module.bn1.running_mean)
    assert not torch.allclose(still, moving)
    assert host.run({"image": _image()})["logits"].shape == (1, 10)
    assert host.module.training


def test_copies_share_nothing() -> None:
    host = _host()
    other, before = host.copy(), host.fingerprint()
    assert other.fingerprint() == before
    _with_head(other)
    with torch.no_grad():
        other.module.linear.bias.add_(1)
    assert host.fingerprint() == before != other.fingerprint()
    assert [*host.outputs()] == ["logits"] and [*other.outputs()] == ["logits", "early"]


def test_saved_network_gives_the_same_numbers(tmp_path: Path) -> None:
    host, image = _with_head(_host()), _image()
    host.save(tmp_path / "net.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    found = loaded(torch.from_numpy(image))
    for name, expected in host.run({"image": image}).items():
        np.testing.assert_array_equal(found[name].detach().numpy(), expected)
    assert loaded(torch.from_numpy(np.repeat(image, 3, 0)))["early"].shape == (3, 10)


def test_state_dict_goes_into_a_fresh_copy() -> None:
    host, twin = _with_head(_host()), _with_head(_host())
    with torch.no_grad():
        host.module.get_parameter("exits.early.weight").mul_(2)
    twin.module.load_state_dict(host.module.state_dict())
    assert twin.fingerprint() == host.fingerprint()


def test_replaced_value_is_read_instead_but_not_by_its_own_ancestors() -> None:
    host, image = _host("mlp"), _image("mlp")
    double = parse_graph(
        """
        graph double(x: float32[1, 64]) -> (y: float32[1, 64]) {
            y: float32[1, 64] = Add(x, x)
        }
        """
    )
    old = host.points()["2"].value
    (new,) = host.splice(double, old, "doubled")
    host.replace_uses(old, new)
    assert check_types(host.graph()) == []
    layers = [layer.double() for layer in NETWORKS["mlp"]()]
    for index in (1, 3, 5):
        state = {
            k: v.double() for k, v in host.module.get_submodule(str(index)).state_dict().items()
        }
        layers[index].load_state_dict(state)
    with torch.no_grad():
        x = layers[2](layers[1](layers[0](torch.from_numpy(image).double()))) * 2
        expected = layers[5](layers[4](layers[3](x))).numpy()
    np.testing.assert_allclose(host.run({"image": image})["logits"], expected, rtol=1e-4)
    (found,) = run_graph(host.graph(), {"image": image}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_later_value_may_replace_an_earlier_one() -> None:
    host, image = _host("vit_small"), _image("vit_small")
    points = host.points()
    old, new = points["layers.1"].value, points["layers.0"].value
    host.replace_uses(new, old)  # skips nothing: layers.1 itself still reads layers.0
    np.testing.assert_array_equal(
        host.run({"image": image})["logits"], _host("vit_small").run({"image": image})["logits"]
    )
    host.replace_uses(old, new)
    assert host.remove_unused()
    assert not any(key.startswith("layers.1.") for key in host.module.state_dict())


def _views(host: FxHost) -> tuple[Any, ...]:
    graph = host.graph()
    constants = {name: array.tobytes() for name, array in graph.constants.items()}
    return graph, constants, host.outputs(), host.points()


def test_view_after_edits_is_that_of_a_network_read_anew() -> None:
    host = _host()
    assert _views(host) == _views(host.copy())
    host = _with_head(host)
    assert _views(host) == _views(host.copy())
    host.add_output("feature", host.points()["layer2"].value)
    assert _views(host) == _views(host.copy())
    with torch.no_grad():
        host.module.bn1.running_mean.add_(1)
        host.module.linear.bias.mul_(2)
    assert _views(host) == _views(host.copy())
    host.replace_uses(host.points()["layer1.1"].value, host.points()["layer1.0"].value)
    assert _views(host) == _views(host.copy())
    assert host.remove_unused()
    assert _views(host) == _views(host.copy())
    host.module.linear.bias = torch.nn.Parameter(torch.zeros(10))
    assert _views(host) == _views(host.copy())


def test_an_edit_runs_only_what_was_inserted(monkeypatch: pytest.MonkeyPatch) -> None:
    host = _host()
    host.graph()
    run: list[str] = []
    call = torch.fx.Interpreter.call_function

    def noted(self: Any, target: Any, *rest: Any) -> Any:
        run.append(str(target))
        return call(self, target, *rest)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", noted)
    _with_head(host).graph()
    assert run == ["aten.mean.dim", "aten.matmul.default", "aten.add.Tensor"]
    with torch.no_grad():
        host.module.linear.bias.add_(1)
    host.graph()
    assert run[3:] == ["aten.linear.default"]


def test_head_behind_a_broadcast_value_is_read() -> None:
    class Widened(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.relu().unsqueeze(2).expand(-1, -1, 4).sin()

    loaded = export(Widened(), {"x": TensorType("float32", (1, 3))}, ("y",), "widened")
    host = FxHost(loaded)
    wide = next(op.name for op in host.graph().ops if op.kind == "Expand")
    head = parse_graph(
        """
        graph head(x: float32[1, 3, 4]) -> (y: float32[1, 12]) {
            y: float32[1, 12] = Reshape(x; shape=(1, 12))
        }
        """
    )
    (value,) = host.splice(head, wide, "exits.early")
    host.add_output("early", value)
    assert _views(host) == _views(host.copy())
    found = host.run({"x": np.ones((1, 3), "float32")})["early"]
    np.testing.assert_array_equal(found, np.ones((1, 12), "float32"))


def test_unused_head_is_removed_with_its_weights() -> None:
    host = _host()
    assert not host.remove_unused()
    before = host.fingerprint()
    host.splice(HEAD, host.points()["layer1"].value, "exits.early")
    assert "exits.early.weight" in host.module.state_dict()
    assert host.remove_unused()
    assert "exits.early.weight" not in host.module.state_dict()
    assert host.fingerprint() == before
    assert not host.remove_unused()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.splice(HEAD, "nowhere", "exits.early"), "No value `nowhere`"),
        (lambda h: h.splice(HEAD, h.outputs()["logits"], "exits.early"), "takes float32[1, 16"),
        (lambda h: h.splice(HEAD, h.points()["layer1"].value, "layer2"), "`layer2` already"),
        (lambda h: h.splice(HEAD, h.points()["layer1"].value, "a b"), "no module path"),
        (lambda h: h.add_output("logits", "image"), "output `logits` already"),
        (lambda h: h.add_output("x", "nowhere"), "No value `nowhere`"),
        (lambda h: h.replace_uses("image", h.outputs()["logits"]), "`image` is float32"),
        (lambda h: h.run({}), "Inputs are image"),
        (lambda h: h.run({"image": _image("mlp")}), "`image` is float32[1, 3, 32, 32]"),
    ],
)
def test_wrong_edit_is_refused_and_changes_nothing(edit: Any, message: str) -> None:
    host = _host()
    before = host.fingerprint()
    with pytest.raises(HostError) as caught:
        edit(host)
    assert message in str(caught.value)
    assert host.fingerprint() == before


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = f"""
        import torch
        from eecompile.ir import TensorType
        from eecompile.passes.fx_host import load_torch
        torch.manual_seed(0)
        inputs = {{"image": TensorType("float32", {INPUT_SHAPES["mlp"]})}}
        print(load_torch({f"{NETWORK_FILE}:mlp"!r}, None, inputs, ("logits",)).fingerprint())
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    inputs = {"image": TensorType("float32", INPUT_SHAPES["mlp"])}
    own = load_torch(f"{NETWORK_FILE}:mlp", None, inputs, ("logits",))
    assert found.stdout.strip() == own.fingerprint()
