"""How a stored sample becomes the network's input: axes, pixel range, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.ir import TensorType
from eecompile.spec import DataSet

__all__ = ["BadValue", "SampleForm"]

Array = np.ndarray[Any, Any]


class BadValue(Exception):
    """A value that cannot be used, in sample `sample` of a block."""

    def __init__(self, message: str, sample: int) -> None:
        super().__init__(message)
        self.sample = sample


@dataclass(frozen=True)
class SampleForm:
    """How a stored sample becomes the network's input.

    Attributes:
        input: the input's type.
        shape: one sample's, without the leading 1.
        data: layout, pixels and normalisation as written.
        limits: least and greatest number where the input picks rows of a table, None elsewhere.
    """

    input: TensorType
    shape: tuple[int, ...]
    data: DataSet
    limits: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, input_type: TensorType, data: DataSet, limits: tuple[int, int] | None = None
    ) -> SampleForm:
        """The form of one network input."""
        shape = input_type.shape
        return cls(input_type, shape[1:] if shape[:1] == (1,) else shape, data, limits)

    def axes(self, stored: tuple[int, ...]) -> tuple[int, ...] | None:
        """Permutation from a stored sample to the input, () for an added channel, None if neither.

        Two axes are never mixed up: an explicit layout decides where both would fit.
        """
        layout, rank = self.data.layout, len(stored)
        same = tuple(range(rank))
        if layout == "HW" or (layout is None and rank == 2 and stored != self.shape):
            return () if rank == 2 and self.shape in ((1, *stored), (*stored, 1)) else None
        if layout is None and stored == self.shape:
            return same
        # Channels stand last in a stored HWC image, and first in the input.
        last_to_first = rank == 3 and (stored[2], stored[0], stored[1]) == self.shape
        if last_to_first and layout in (None, "HWC"):
            return (2, 0, 1)
        return same if stored == self.shape else None

    def problem(self, stored: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """Why samples of this shape and type cannot be the input; empty where they can."""
        if self.axes(stored) is None:
            how = f" with layout {self.data.layout}" if self.data.layout else ""
            return f"Expected samples for the input {self.input}, found {dtype}{list(stored)}{how}"
        if dtype.kind not in "fiu" or (dtype.kind == "f" and self.input.dtype != "float32"):
            return f"Expected samples of a type for {self.input.dtype}, found {dtype}"
        return ""

    def advice(self, stored: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """What to do about the problem of samples of this shape and type; empty where unknown.

        >>> tokens = SampleForm.of(TensorType("int64", (1, 64)), DataSet("news"))
        >>> tokens.advice((64,), np.dtype(np.float32))
        "store whole numbers: `x.astype('int64')`"
        >>> tokens.advice((32,), np.dtype(np.int64))
        'make every sample as long as the input: 64'
        """
        if self.axes(stored) is not None:
            if dtype.kind == "f" and self.input.dtype != "float32":
                return f"store whole numbers: `x.astype({self.input.dtype!r})`"
            return ""
        if len(self.shape) == 1 and len(stored) == 1:
            return f"make every sample as long as the input: {self.shape[0]}"
        if len(self.shape) != 3 or self.data.layout:
            return ""
        return "say how images are stored with `layout HWC`, `CHW` or `HW`"

    def __call__(self, images: Array) -> Array:
        """The samples as the network reads them, (n, ...)."""
        axes = self.axes(images.shape[1:])
        assert axes is not None, "shapes are checked before"
        values = self._values(images)
        if axes == ():
            values = values.reshape(len(values), *self.shape)
        elif axes != tuple(range(len(axes))):
            values = values.transpose(0, *(axis + 1 for axis in axes))
        if self.data.normalize is not None and values.dtype == np.float32:
            mean, std = (
                self._per_channel(part)
                for part in (self.data.normalize.mean, self.data.normalize.std)
            )
            values = (values - mean) / std
        return np.ascontiguousarray(values, self.input.dtype)

    def _values(self, images: Array) -> Array:
        """Numbers before normalisation: integers mapped to `pixels`, floats as they are."""
        if images.dtype.kind == "f":
            bad = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
            if bad.any():
                raise BadValue("A value that is not finite", int(bad.argmax()))
            return images.astype(np.float32)
        if self.input.dtype != "float32":
            info = np.iinfo(self.input.dtype)
            least, most = self.limits or (info.min, info.max)
            self._within(images, max(int(info.min), least), min(int(info.max), most))
            return images
        self._within(images, 0, 255)
        low, high = self.data.pixels
        if (low, high) == (0.0, 255.0):
            return images.astype(np.float32)
        return images.astype(np.float32) / np.float32(255 / (high - low)) + np.float32(low)

    @staticmethod
    def _within(images: Array, low: int, high: int) -> None:
        info = np.iinfo(images.dtype)
        if info.min >= low and info.max <= high:
            return
        flat = images.reshape(len(images), -1)
        bad = ((flat < low) | (flat > high)).any(axis=1)
        if bad.any():
            raise BadValue(f"A value outside {low} to {high}", int(bad.argmax()))

    def _per_channel(self, values: tuple[float, ...]) -> Array:
        shape = [1] * (len(self.shape) + 1)
        if len(values) > 1:
            first = len(self.shape) > 0 and self.shape[0] == len(values)
            shape[1 if first else -1] = len(values)
        return np.asarray(values, np.float32).reshape(shape)
