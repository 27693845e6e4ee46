"""A convolutional text classifier that reads characters; nothing but torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BLOCKS", "CHARACTERS", "SIGNS", "CharacterNet", "news_characters"]

#: What is read, with ids from 1; 0 is no character, and all others share the id behind the last.
SIGNS = " abcdefghijklmnopqrstuvwxyz0123456789.,-;:'\"!?$%()/&#"
#: Characters read of a text.
CHARACTERS = 192
#: Channels and stride of each block.
BLOCKS = ((64, 2), (64, 1), (96, 2), (96, 1), (128, 2), (128, 1))


class CharacterBlock(nn.Module):
    """Two convolutions over 3 places each, added to what came in."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        """`out` channels at every `stride`-th place."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, (1, 3), (1, stride), (0, 1), bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, (1, 3), padding=(0, 1), bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, (1, stride), bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """f32[N, channels, 1, L] -> f32[N, out, 1, ceil(L / stride)]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class CharacterNet(nn.Module):
    """Residual convolutions over characters, and a classifier on the mean over places.

    Nothing of it knows a word: blocks put signs together to parts of words, words, and what stands
    side by side, so that later ones know more (Conneau et al., "Very Deep Convolutional Networks
    for Text Classification", 2017; theirs has up to 29 layers, and batch norm as here). A line of
    places is a map one high: 1-D maps (N, C, L) would look like sequences of tokens (N, T, W).
    """

    def __init__(
        self,
        signs: int,
        *,
        blocks: Sequence[tuple[int, int]] = BLOCKS,
        width: int = 16,
        stem: int = 48,
        classes: int = 4,
    ) -> None:
        """Ids below `signs`, as vectors `width` wide; `blocks` are (channels, stride) each."""
        super().__init__()
        self.signs = nn.Embedding(signs, width)
        self.stem = nn.Conv2d(width, stem, (1, 5), (1, 2), (0, 2), bias=False)
        self.norm = nn.BatchNorm2d(stem)
        made, channels = [], stem
        for out, stride in blocks:
            made.append(CharacterBlock(channels, out, stride))
            channels = out
        self.layers = nn.ModuleList(made)
        self.widths = [out for out, _ in blocks]
        self.classifier = nn.Linear(channels, classes)

    def pooled(self, ids: Tensor) -> list[Tensor]:
        """i64[N, L] -> the mean over places behind each block, f32[N, channels]."""
        x = self.signs(ids).transpose(1, 2).unsqueeze(2)
        x = F.relu(self.norm(self.stem(x)))
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x.mean((2, 3)))
        return found

    def forward(self, ids: Tensor) -> Tensor:
        """i64[N, L] -> logits f32[N, classes]."""
        logits: Tensor = self.classifier(self.pooled(ids)[-1])
        return logits


def news_characters() -> CharacterNet:
    """What `benchmarks/train_text.py` trains on AG News."""
    return CharacterNet(len(SIGNS) + 2)
