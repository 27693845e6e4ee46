"""A small network of token blocks for both routes, its data, and builds that place its exits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import build

pytest.importorskip("torch", reason="needs torch for the PyTorch route")

#: Tokens, width and classes of the network.
TOKENS, WIDTH, CLASSES = 4, 8, 3
NETWORK = f"""
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear({WIDTH}, 16), nn.Linear(16, {WIDTH})

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(6)))
        self.classify = nn.Linear({WIDTH}, {CLASSES})

    def forward(self, tokens):
        return self.classify(self.blocks(tokens).mean(1))


def tokens_net():
    torch.manual_seed(1)
    return Net().eval()
"""
FILE = """eecompile 1
model net {{
    source {source}
    input tokens: float32[1, 4, 8]
    output logits: classes(3)
    exits auto(count: {count})
}}
data d {{ fit "fit.npz" calibrate "calibrate.npz" test "test.npz" }}
policy p {{ exit when confidence(max_softmax) budget {budget} }}
"""
SOURCES = {"onnx": 'onnx "net.onnx"', "torch": 'torch "tokens_net.py:tokens_net"'}

#: Builds the network of a route with a count and a budget; gives the artifact and the summary.
Build = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The network's files and data: labels are the network's own answers, some of them changed."""
    import torch

    from benchmarks.networks import export_onnx

    made = tmp_path_factory.mktemp("placing")
    (made / "tokens_net.py").write_text(NETWORK)
    sys.path.insert(0, str(made))
    import tokens_net  # type: ignore[import-not-found]

    net = tokens_net.tokens_net()
    export_onnx(net, (1, TOKENS, WIDTH), made / "net.onnx", exporter="torchscript")
    generator = np.random.default_rng(0)
    for split, count in (("fit", 600), ("calibrate", 400), ("test", 200)):
        images = generator.standard_normal((count, TOKENS, WIDTH)).astype(np.float32)
        with torch.inference_mode():
            labels = net(torch.from_numpy(images)).numpy().argmax(1).astype(np.int64)
        changed = generator.random(count) < 0.05
        labels[changed] = generator.integers(0, CLASSES, int(changed.sum()))
        np.savez(made / f"{split}.npz", images=images, labels=labels)
    yield made
    sys.path.remove(str(made))
    del sys.modules["tokens_net"]


@pytest.fixture(scope="session")
def built(folder: Path) -> Build:
    """Builds, each once; all of them share a cache."""
    done: dict[tuple[str, ...], tuple[Path, Any]] = {}

    def make(
        route: str = "onnx", count: str = "1..3", budget: str = "mean macs <= 60 %"
    ) -> tuple[Path, Any]:
        key = (route, count, budget)
        if key not in done:
            file = folder / f"{route}{len(done)}.ee"
            file.write_text(FILE.format(source=SOURCES[route], count=count, budget=budget))
            options = BuildOptions(output=file.with_suffix(".artifact"), threads=1)
            report = build(file, options, Steps(10, quiet=True), Cache(folder / "cache"))
            done[key] = (report.artifact, report.summary)
        return done[key]

    return make
