"""A network that reads a text passage by passage: segments read the input again, on both routes."""

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

WORDS, PASSAGES, CLASSES = 30, (3, 4, 5), 2
NETWORK = f"""
from benchmarks.encoder import NewsReader

def tiny():
    return NewsReader({WORDS}, {PASSAGES}, width=16, heads=2, hidden=32, classes={CLASSES})
"""
TEXT = """
eecompile 1
model tiny {{
    source {source}
    input  ids: int64[1, 12]
    output {output}: classes(2)
    exit first  after "layers.0" head linear
    exit second after "layers.1" head linear
}}
data texts {{ fit "fit.npz" calibrate "calibrate.npz" test "test.npz" }}
policy quick {{ exit when confidence(max_softmax) >= 0.65 }}
"""
SOURCES = {
    "onnx": ('onnx "tiny.onnx"', "logits"),
    "torch": ('torch "tiny.py:tiny" weights "tiny.pth"', "output"),
}


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 has word 7 in the first three places or in the next four, by turns; class 0 none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    ids = rng.integers(8, WORDS, (count, sum(PASSAGES)))
    place = np.where(np.arange(count) % 2, 1, 4)
    ids[np.arange(count), place] = np.where(labels, 7, ids[np.arange(count), place])
    return ids, labels


def test_later_segments_read_further_words(tmp_path: Path) -> None:
    from benchmarks.encoder import NewsReader

    torch.manual_seed(0)
    network = NewsReader(WORDS, PASSAGES, width=16, heads=2, hidden=32, classes=CLASSES).eval()
    with torch.no_grad():
        network.words.weight.mul_(10)  # words weigh more than places
    for seed, name in enumerate(("fit", "calibrate", "test")):
        ids, labels = samples(600, seed)
        np.savez(tmp_path / f"{name}.npz", images=ids, labels=labels)
    (tmp_path / "tiny.py").write_text(NETWORK)
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    torch.onnx.export(
        network, (torch.from_numpy(ids[:1]),), tmp_path / "tiny.onnx",
        input_names=["ids"], output_names=["logits"], dynamo=False,
    )  # fmt: skip
    with torch.no_grad():
        expected = network(torch.from_numpy(ids)).numpy()
    answers = {}
    for route, (source, output) in SOURCES.items():
        file = tmp_path / f"{route}.ee"
        file.write_text(TEXT.format(source=source, output=output))
        time.sleep(0.1)  # what changes while a build begins is not remembered as read
        options = BuildOptions(output=tmp_path / route)
        build(file, options, Steps(10, quiet=True), Cache(tmp_path / "cache"))
        net = ee.load(tmp_path / route)
        macs = [part.macs for part in net.manifest.network.segments]
        assert macs == sorted(macs), "longer passages cost more: nothing of them is done before"
        np.testing.assert_allclose(net.full_depth_batch(ids).logits, expected, atol=1e-5)
        answers[route] = net.run_batch(ids)
    onnx, torch_ = answers.values()
    np.testing.assert_array_equal(onnx.exits, torch_.exits)
    np.testing.assert_allclose(onnx.logits, torch_.logits, atol=1e-5)
    early = onnx.exits == 0
    assert 100 < early.sum() < 500
    changed = ids.copy()
    changed[:, PASSAGES[0] :] = ids[::-1, PASSAGES[0] :]
    again = net.run_batch(changed)
    np.testing.assert_array_equal(again.exits == 0, early)
    np.testing.assert_array_equal(again.logits[early], torch_.logits[early])
    assert np.abs(net.full_depth_batch(changed).logits - expected).max(1).min() > 1e-3
