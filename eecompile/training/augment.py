"""Training images, moved and mirrored a little."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented", "fitting", "mixed"]

#: By which share of their size images are moved at most, each way: 4 of 32 pixels.
_SHIFT = 8


def fitting(shape: tuple[int, ...], dtype: str) -> tuple[str, ...]:
    """What fits samples of that shape: grey images, such as digits, are not mirrored.

    >>> fitting((3, 32, 32), "float32"), fitting((1, 28, 28), "float32"), fitting((64,), "int64")
    (('flips', 'crops'), ('crops',), ())
    """
    if len(shape) != 3 or dtype != "float32" or min(shape[1:]) < _SHIFT:
        return ()
    return ("flips", "crops") if shape[0] == 3 else ("crops",)


def mixed(
    inputs: Tensor, labels: Tensor, classes: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Each sample laid over another of the batch, and the shares of the classes, (n, classes).

    How much of each is left is drawn evenly, for each pair anew. A network that knows its training
    images by heart has nothing to learn from them; of their mixtures its teacher knows more than
    the labels tell. Source: Zhang et al., arXiv 1710.09412; Beyer et al., arXiv 2106.05237.
    """
    count = len(labels)
    others = torch.from_numpy(generator.permutation(count))
    share = torch.from_numpy(generator.random(count, dtype=np.float32))
    shares = functional.one_hot(labels, classes).float()
    shares = share.view(-1, 1) * shares + (1 - share).view(-1, 1) * shares[others]
    weight = share.view(-1, *(1,) * (inputs.ndim - 1))
    return weight * inputs + (1 - weight) * inputs[others], shares


def augmented(images: Tensor, kinds: tuple[str, ...], generator: np.random.Generator) -> Tensor:
    """Images (n, C, H, W), each mirrored by chance and moved by up to an eighth of its size.

    What moves in is 0, which is the mean where data are normalised.
    """
    count, _, height, width = images.shape
    if "flips" in kinds:
        mirrored = torch.from_numpy(generator.random(count) < 0.5)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if "crops" in kinds:
        down, right = height // _SHIFT, width // _SHIFT
        padded = functional.pad(images, (right, right, down, down))
        tops = torch.from_numpy(generator.integers(0, 2 * down + 1, count))
        lefts = torch.from_numpy(generator.integers(0, 2 * right + 1, count))
        rows = tops.view(-1, 1, 1, 1) + torch.arange(height).view(1, 1, -1, 1)
        columns = lefts.view(-1, 1, 1, 1) + torch.arange(width).view(1, 1, 1, -1)
        samples = torch.arange(count).view(-1, 1, 1, 1)
        channels = torch.arange(images.shape[1]).view(1, -1, 1, 1)
        images = padded[samples, channels, rows, columns]
    return images
