"""Heads fitted by gradient descent: the folded graph is the published formula."""

import sys

import numpy as np
import pytest

from eecompile.diagnostics import ToolError
from eecompile.heads import BagOfFeaturesHead, ConvHead
from eecompile.ir import TensorType
from eecompile.reference import run_graph

FEATURE = TensorType("float32", (1, 3, 4, 4))


def test_bag_of_features_is_the_published_formula() -> None:
    generator = np.random.default_rng(0)
    k, classes, window = 5, 3, 2

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    conv, conv_bias = normal(k, 3), normal(k)
    a, c, n1, n2 = 1.3, -0.2, 5.5, 1.7
    w1, b1, w2, b2 = normal(k, 4 * k), normal(k), normal(classes, k), normal(classes)
    x = normal(1, 3, 4, 4)
    z = np.einsum("kc,chw->khw", conv, x[0]) + conv_bias[:, None, None]
    u = (np.tanh(a * z + c) + 1) / 2
    v = n1 * u / (u.sum(0) + 5e-16)
    h = n2 * v.reshape(k, 2, window, 2, window).mean((2, 4)).reshape(-1)
    expected = w2 @ (w1 @ h + b1) + b2
    folded = {
        "codebook": (a * conv)[:, :, None, None].astype(np.float32),
        "offset": (a * conv_bias + c).astype(np.float32),
        "weight": (n1 * n2 * (w2 @ w1)).T.astype(np.float32),
        "bias": (b2 + w2 @ b1).astype(np.float32),
    }
    graph = BagOfFeaturesHead(codewords=k, window=window).graph(FEATURE, folded)
    found = run_graph(graph, {"feature": x})["logits"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_training_leaves_torchs_generator_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3, 4, 4)).astype(np.float32)
    before = torch.random.get_rng_state()
    ConvHead(channels=2, layers=1).fit(x, np.arange(40) % 2, 2, seed=9)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("head", [ConvHead(), BagOfFeaturesHead()], ids=lambda head: head.kind)
def test_without_torch_the_extra_is_named(
    head: ConvHead | BagOfFeaturesHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    x = np.zeros((4, 3, 4, 4), np.float32)
    with pytest.raises(ToolError, match=r"eecompile\[torch\]"):
        head.fit(x, np.array([0, 1, 0, 1]), 2, seed=0)


def test_heads_import_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys, eecompile.heads, eecompile.policy_fitting, eecompile.record;"
        "import eecompile.datasets;"
        "print([m for m in ('torch', 'scipy', 'sklearn', 'onnx', 'tvm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
