"""Panels: the output channels that one register tile computes, and how weights lie in memory.

A panel is a few vectors. All panels have as many vectors but the last, which takes what is left;
its last vector has half the lanes where that is enough. Its channels past the end are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = ["Panel", "blocked", "by_channel", "pack_panels", "panels_of", "vectors_of"]


@dataclass(frozen=True)
class Panel:
    """Vectors of output channels.

    Attributes:
        first: the first output channel.
        wide: vectors of all lanes.
        narrow: lanes of the one shorter vector behind them, 0 where there is none.
        lanes: elements of a whole vector.
        channels: output channels there really are, at most `width`.
    """

    first: int
    wide: int
    narrow: int
    lanes: int
    channels: int

    @property
    def width(self) -> int:
        """Channels of its vectors."""
        return self.wide * self.lanes + self.narrow

    @property
    def vectors(self) -> int:
        """Accumulators it needs for each position."""
        return self.wide + (self.narrow > 0)


def vectors_of(channels: int, lanes: int) -> tuple[int, int]:
    """Whole vectors, and lanes of a shorter one behind them, that hold some channels.

    >>> vectors_of(24, 16), vectors_of(26, 16), vectors_of(64, 16), vectors_of(3, 4)
    ((1, 8), (2, 0), (4, 0), (1, 0))
    """
    wide, left = divmod(channels, lanes)
    if not left:
        return wide, 0
    half = lanes // 2
    return (wide, half) if left <= half and lanes >= 8 else (wide + 1, 0)


def panels_of(channels: int, vectors: int, lanes: int) -> tuple[Panel, ...]:
    """The panels of some output channels, `vectors` each but for the last.

    >>> [(p.first, p.wide, p.narrow) for p in panels_of(40, 2, 16)]
    [(0, 2, 0), (32, 0, 8)]
    """
    wide, narrow = vectors_of(channels, lanes)
    panels = []
    for at in range(0, wide + (narrow > 0), vectors):
        whole = min(vectors, wide - at)
        rest = narrow if whole < vectors else 0
        first = at * lanes
        width = whole * lanes + rest
        panels.append(Panel(first, whole, rest, lanes, min(width, channels - first)))
    return tuple(panels)


def pack_panels(panels: tuple[Panel, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (O, taps..., I) -> one row: for each panel [taps...][I][wide x lanes], [...][narrow].

    Whole vectors then lie on vector boundaries, one behind the other as they are used.
    """

    def pack(w: np.ndarray) -> np.ndarray:
        depth = prod(w.shape[1:])
        rows = w.reshape(w.shape[0], depth)
        parts = []
        for panel in panels:
            full = np.zeros((panel.width, depth), w.dtype)
            full[: panel.channels] = rows[panel.first : panel.first + panel.channels]
            whole = panel.wide * panel.lanes
            parts += [full[:whole].T.reshape(-1), full[whole:].T.reshape(-1)]
        return np.ascontiguousarray(np.concatenate(parts))

    return pack


def blocked(w: np.ndarray, lanes: int) -> np.ndarray:
    """(O, ...) -> [ceil(O / lanes)][...][lanes], zeros where there is no output."""
    blocks = -(-w.shape[0] // lanes)
    full = np.zeros((blocks * lanes, *w.shape[1:]), w.dtype)
    full[: w.shape[0]] = w
    return np.ascontiguousarray(np.moveaxis(full.reshape(blocks, lanes, *w.shape[1:]), 1, -1))


def by_channel(w: np.ndarray) -> np.ndarray:
    """Weights of channels that are alone, (C, 1, taps...) -> [taps...][C]."""
    return np.ascontiguousarray(np.moveaxis(w[:, 0], 0, -1))
