"""Resizing in numpy (see `reference`): one axis after the other, at positions in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["resize"]

#: Any, because numpy's stubs give most results here a wider type than they have.
Array = Any
Attributes = Mapping[str, Any]


def resize(k: Attributes, x: Array) -> Array:
    """`x` interpolated at the places that the attributes name."""
    scales = k["scales"]
    result, whole = x.astype(np.float64), k.get("sizes")
    for axis, scale in enumerate(scales):
        extent = x.shape[axis]
        size = whole[axis] if whole else int(np.float32(extent) * np.float32(scale))
        if size == extent and scale == 1:
            continue
        positions = _resize_positions(k, extent, size, scale)
        result = _interpolated(k, result, axis, positions)
    return result.astype(x.dtype)


def _resize_positions(k: Attributes, extent: int, size: int, scale: float) -> Array:
    """Where in the input each of `size` results lies, float64[size]."""
    i = np.arange(size, dtype=np.float64)
    match k["coordinate_transformation_mode"]:
        case "asymmetric":
            return i / scale
        case "align_corners":
            return i * (extent - 1) / (size - 1) if size > 1 else i * 0
        case "pytorch_half_pixel" if size == 1:
            return i * 0
        case "half_pixel_symmetric":
            return extent / 2 * (1 - size / (scale * extent)) + (i + 0.5) / scale - 0.5
        case _:
            return (i + 0.5) / scale - 0.5


def _interpolated(k: Attributes, x: Array, axis: int, positions: Array) -> Array:
    """`x` at fractional `positions` along `axis`, the nearest element standing for outside."""
    taps: list[tuple[Array, Array | float]]
    if k["mode"] == "nearest":
        taps = [(_nearest(positions, k["nearest_mode"]), 1.0)]
    else:
        low = np.floor(positions)
        t = positions - low
        if k["mode"] == "linear":
            taps = [(low, 1 - t), (low + 1, t)]
        else:
            taps = [
                (low + offset, _cubic(np.abs(t - offset), k["cubic_coeff_a"]))
                for offset in range(-1, 3)
            ]
    shape = (-1, *(1,) * (x.ndim - 1 - axis))
    total: Any = 0
    for index, weight in taps:
        picked = np.take(x, np.clip(index, 0, x.shape[axis] - 1).astype(np.int64), axis=axis)
        total = total + picked * np.reshape(weight, shape if np.ndim(weight) else ())
    return np.asarray(total)


def _nearest(positions: Array, mode: str) -> Array:
    # Scales are often quotients rounded to float32: ties and whole numbers must survive that.
    snapped = np.round(positions, 4)
    match mode:
        case "floor":
            return np.floor(snapped)
        case "ceil":
            return np.ceil(snapped)
        case "round_prefer_ceil":
            return np.floor(snapped + 0.5)
        case _:
            return np.ceil(snapped - 0.5)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel. Source: R. Keys, Cubic convolution interpolation, 1981, eq. 4, free `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, far)
