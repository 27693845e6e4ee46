"""A split of a data set, at hand in any order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eecompile.datasets import Dataset
from eecompile.training.augment import augmented

__all__ = ["Samples"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """Samples as the network reads them, (n, ...), and labels int64 (n,).

    They lie in a nameless file that is mapped, so that a data set may be larger than memory.
    """

    inputs: Array
    labels: Array
    digest: str

    @classmethod
    def of(cls, data: Dataset, most: int | None = None) -> Samples:
        """All samples of a split, or its first `most`; a callable is run once.

        Raises:
            CompileErrors: as `Dataset.batches`.
        """
        content, labels = data.content(), []
        file = tempfile.TemporaryFile()  # noqa: SIM115  (the mapping keeps it)
        shape: tuple[int, ...] = ()
        for images, given in data.batches(256, content):
            shape = images.shape[1:]
            file.write(np.ascontiguousarray(images).data)
            labels.append(given)
            if most is not None and sum(map(len, labels)) >= most:
                break
        file.flush()
        found = np.concatenate(labels)[:most]
        mapped = np.memmap(file, data.input.dtype, "r", shape=(len(found), *shape))
        return cls(mapped, found, content.hexdigest())

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Samples:
        """The first of them."""
        return Samples(self.inputs[:count], self.labels[:count], self.digest)

    def batch(
        self, step: int, size: int, seed: int, augment: tuple[str, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """The samples of a training step: equal for equal arguments, whatever came before.

        Each sample comes once in an epoch; those left over at its end wait for the next.
        """
        size = min(size, len(self))
        epoch, at = divmod(step, len(self) // size)
        order = np.random.default_rng((seed, epoch, 0)).permutation(len(self))
        rows = order[at * size : (at + 1) * size]
        inputs = torch.from_numpy(np.ascontiguousarray(self.inputs[rows]))
        if augment:
            inputs = augmented(inputs, augment, np.random.default_rng((seed, step, 1)))
        return _laid_out(inputs), torch.from_numpy(self.labels[rows])

    def blocks(self, size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them, in order."""
        for at in range(0, len(self), size):
            inputs = torch.from_numpy(np.array(self.inputs[at : at + size]))
            yield _laid_out(inputs), torch.from_numpy(self.labels[at : at + size])


def _laid_out(inputs: Tensor) -> Tensor:
    """Images with their channels last, which convolutions on CPUs are faster on."""
    if inputs.ndim != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)
