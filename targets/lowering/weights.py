"""The weights of all functions of one library: aligned arrays in one blob, each stored once."""

from __future__ import annotations

import hashlib

import numpy as np

from eecompile.targets.lowering.plan import ALIGNMENT, aligned

__all__ = ["WeightPool"]


class WeightPool:
    """Collects arrays; equal bytes share their place."""

    def __init__(self) -> None:
        """Starts empty."""
        self._offsets: dict[bytes, int] = {}
        self._arrays: list[tuple[int, np.ndarray]] = []
        self.nbytes = 0

    def add(self, array: np.ndarray) -> int:
        """The offset of the array's bytes, a multiple of the alignment."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(flat.data).digest()
        if digest not in self._offsets:
            self._offsets[digest] = self.nbytes
            self._arrays.append((self.nbytes, flat))
            self.nbytes += aligned(flat.size) or ALIGNMENT
        return self._offsets[digest]

    def blob(self) -> np.ndarray:
        """All arrays at their offsets, zeros in between."""
        blob = np.zeros(self.nbytes, np.uint8)
        for offset, flat in self._arrays:
            blob[offset : offset + flat.size] = flat
        return blob
