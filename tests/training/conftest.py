"""A small residual network, trained here on real digits, and the files that describe it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import shared_data

torch = pytest.importorskip("torch")

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, stride=4)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(4)))
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        return self.linear(x.mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Net()
"""

FILE = """eecompile 1

model tiny {
    source torch "net.py:network" weights "net.pth"
    input x: float32[1, 1, 28, 28]
SKIPS
    exit early after "blocks.1" head linear
}

data digits {
    fit "digits.npz"[..3000]
    calibrate "digits.npz"[3000..3500]
    test "digits.npz"[3500..4000]
}
"""

LAYERS = '    skip layers "blocks.[0-3]" gate feedforward(hidden: 8)'
RECURRENT = '    skip layers "blocks.[0-3]" gate recurrent'
BOTH = f'{LAYERS}\n    skip channels "blocks.*.conv1" gate squeeze(groups: 4, hidden: 8)'

Written = Callable[..., Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the network, its weights and digits."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "net.py").write_text(NETWORK)
    with np.load(shared_data() / "mnist_test.npz") as stored:
        images, labels = stored["images"][:4000], stored["labels"][:4000]
    np.savez(folder / "digits.npz", images=images, labels=labels)
    names: dict[str, object] = {}
    exec(NETWORK, names)
    net = names["network"]()  # type: ignore[operator]
    inputs = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    wanted = torch.from_numpy(labels.astype(np.int64))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        rows = torch.randint(0, 3000, (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(net(inputs[rows]), wanted[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.save(net.state_dict(), folder / "net.pth")
    return folder


@pytest.fixture
def written(trained: Path, tmp_path: Path) -> Written:
    """Writes a `.ee` file beside links to the network and its data; gives its path."""

    def write(skips: str = LAYERS, change: tuple[str, str] = ("", "")) -> Path:
        for file in trained.iterdir():
            if not (tmp_path / file.name).exists():
                (tmp_path / file.name).symlink_to(file)
        path = tmp_path / "tiny.ee"
        text = FILE.replace("SKIPS", skips)
        assert change[0] in text
        path.write_text(text.replace(*change) if change[0] else text)
        return path

    return write
