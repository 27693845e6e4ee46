"""Convolution, transposed convolution and pooling in numpy (see `reference`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["average_pool", "conv", "conv_transpose", "max_pool", "padded", "per_channel"]

#: Any, because numpy's stubs give most results here a wider type than they have.
Array = Any
Attributes = Mapping[str, Any]


def padded(x: Array, pads: Sequence[int], value: float) -> Array:
    """`x` padded (cropped where negative) over its trailing dimensions."""
    rank = len(pads) // 2
    begins, ends = (0,) * (x.ndim - rank) + tuple(pads[:rank]), pads[rank:]
    ends = (0,) * (x.ndim - rank) + tuple(ends)
    kept = tuple(
        slice(max(0, -b), dim - max(0, -e)) for dim, b, e in zip(x.shape, begins, ends, strict=True)
    )
    amounts = [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)]
    return np.pad(x[kept], amounts, constant_values=np.array(value).astype(x.dtype))


def _windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """A view (N, C, out..., kernel...) of the windows of `x` (N, C, in...)."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    steps = (*strides, *dilations)
    return view[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def _correlate(
    x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int
) -> Array:
    """Grouped cross-correlation of an already padded `x`, w: (C_out, C_in / group, kernel...)."""
    windows = _windows(x, w.shape[2:], strides, dilations)
    batch, channels, extents = x.shape[0], x.shape[1], windows.shape[2 : x.ndim]
    columns = np.moveaxis(windows, range(2, x.ndim), range(-len(extents), 0))
    columns = columns.reshape(batch, group, channels // group * math.prod(w.shape[2:]), -1)
    rows = w.reshape(1, group, w.shape[0] // group, -1)
    return np.matmul(rows, columns).reshape(batch, w.shape[0], *extents)


def _with_bias(y: Array, b: Array | None) -> Array:
    return y if b is None else y + per_channel(b, y.ndim)


def per_channel(values: Array, rank: int) -> Array:
    """`values` (C,) shaped to broadcast against (N, C, ...)."""
    return values.reshape(-1, *(1,) * (rank - 2))


def conv(k: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    """The grouped correlation of `x` with `w`."""
    source = padded(x, k["pads"], 0)
    return _with_bias(_correlate(source, w, k["strides"], k["dilations"], k["group"]), b)


def conv_transpose(k: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    """A convolution with the flipped kernel over `x` spread by the strides."""
    spatial = x.shape[2:]
    rank = len(spatial)
    spread = np.zeros(
        x.shape[:2] + tuple((n - 1) * s + 1 for n, s in zip(spatial, k["strides"], strict=True)),
        x.dtype,
    )
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in k["strides"]))] = x
    reach = [(n - 1) * d for n, d in zip(w.shape[2:], k["dilations"], strict=True)]
    begins = [r - p for r, p in zip(reach, k["pads"][:rank], strict=True)]
    ends = [r - p + o for r, p, o in zip(reach, k["pads"][rank:], k["output_padding"], strict=True)]
    group = k["group"]
    flipped = np.flip(w, axis=tuple(range(2, w.ndim)))
    flipped = flipped.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    flipped = flipped.reshape(w.shape[1] * group, w.shape[0] // group, *w.shape[2:])
    source = padded(spread, begins + ends, 0)
    return _with_bias(_correlate(source, flipped, (1,) * rank, k["dilations"], group), b)


def max_pool(k: Attributes, x: Array) -> Array:
    """The maximum of each window; padding never wins."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    source = padded(x, k["pads"], lowest)
    windows = _windows(source, k["kernel_shape"], k["strides"], k["dilations"])
    return windows.max(axis=tuple(range(x.ndim, windows.ndim)))


def average_pool(k: Attributes, x: Array) -> Array:
    """The mean of each window over the positions that count."""
    rank = x.ndim - 2
    pads, extra = k["pads"], (0,) * rank + tuple(k.get("extra") or (0,) * rank)
    dilations = k.get("dilations") or (1,) * rank
    counted = padded(np.ones((1, 1, *x.shape[2:])), pads, float(k["count_include_pad"]))

    def sums(source: Array) -> Array:
        windows = _windows(padded(source, extra, 0), k["kernel_shape"], k["strides"], dilations)
        return windows.sum(axis=tuple(range(x.ndim, windows.ndim)), dtype=np.float64)

    # A window of nothing but padding gives 0.
    return (sums(padded(x, pads, 0)) / np.maximum(sums(counted), 1)).astype(x.dtype)
