"""A network of characters, as PyTorch and as ONNX: pools over places, answers alike."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import eecompile as ee
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import BuildOptions, build

torch = pytest.importorskip("torch", reason="needs torch for the PyTorch route")

SIGNS, LENGTH = 12, 32
NETWORK = f"""
from benchmarks.characters import CharacterNet

def tiny():
    blocks = ((12, 2), (16, 1), (16, 2))
    return CharacterNet({SIGNS}, blocks=blocks, width=8, stem=8, classes=2)
"""
TEXT = """
eecompile 1
model tiny {{
    source {source}
    input  ids: int64[1, 32]
    output {output}: classes(2)
    exit first  after "layers.0" head linear(pool: 1)
    exit second after "layers.1" head linear(pool: 1)
}}
data texts {{ fit "fit.npz" calibrate "fit.npz" test "test.npz" }}
policy quick {{ exit when confidence(max_softmax)   budget accuracy drop <= 60 % }}
"""
SOURCES = {
    "onnx": ('onnx "tiny.onnx"', "logits"),
    "torch": ('torch "tiny.py:tiny" weights "tiny.pth"', "output"),
}


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of class 1 have sign 5 in a third of their places, the others hardly ever."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    ids = rng.integers(1, SIGNS, (count, LENGTH))
    return np.where(rng.random(ids.shape) < labels[:, None] / 3, 5, ids), labels


def test_both_routes_build_what_torch_computes(tmp_path: Path) -> None:
    from benchmarks.characters import CharacterNet

    torch.manual_seed(0)
    blocks = ((12, 2), (16, 1), (16, 2))
    network = CharacterNet(SIGNS, blocks=blocks, width=8, stem=8, classes=2)
    for seed, name in enumerate(("fit", "test")):
        ids, labels = samples(400, seed)
        np.savez(tmp_path / f"{name}.npz", images=ids, labels=labels)
    with torch.no_grad():  # statistics of the batch norms
        network.train()(torch.from_numpy(ids))
        network.eval()
        expected = network(torch.from_numpy(ids)).numpy()
    (tmp_path / "tiny.py").write_text(NETWORK)
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    torch.onnx.export(
        network, (torch.from_numpy(ids[:1]),), tmp_path / "tiny.onnx",
        input_names=["ids"], output_names=["logits"], dynamo=False,
    )  # fmt: skip
    answers = {}
    for route, (source, output) in SOURCES.items():
        file = tmp_path / f"{route}.ee"
        file.write_text(TEXT.format(source=source, output=output))
        time.sleep(0.1)  # what changes while a build begins is not remembered as read
        options = BuildOptions(output=tmp_path / route)
        build(file, options, Steps(10, quiet=True), Cache(tmp_path / "cache"))
        net = ee.load(tmp_path / route)
        places = net.manifest.network.exits
        assert [exit_.macs for exit_ in places] == [12 * 2, 16 * 2], "one mean a channel"
        np.testing.assert_allclose(net.full_depth_batch(ids).logits, expected, atol=1e-5)
        answers[route] = net.run_batch(ids)
    onnx, torch_ = answers.values()
    np.testing.assert_array_equal(onnx.exits, torch_.exits)
    np.testing.assert_allclose(onnx.logits, torch_.logits, atol=1e-5)
    left = onnx.exits < len(places)
    assert left.any()
    assert (onnx.labels[left] == labels[left]).mean() > 0.8, "heads learned the telling sign"
