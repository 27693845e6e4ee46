"""How a sliding window reads its input: strides, dilation, padding, zeros in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.emit import Kernel, Reader, in_vectors, parallel, reader
from eecompile.targets.lowering.spec import Step

__all__ = ["Columns", "Window", "columns", "filled", "window_of"]

Expr = Any
Stmt = Any


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial dimensions of a channels-last tensor.

    `spread` is the distance that the input's elements are moved apart, with zeros in between.
    """

    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    spread: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads the input at its own place and nowhere else."""
        ones = (1,) * len(self.kernel)
        return self.kernel == self.strides == self.spread == ones and self.is_unpadded

    @property
    def as_planar(self) -> Window:
        """The same window over two dimensions at least, a first one of length 1 added."""
        if len(self.kernel) > 1:
            return self
        fields = {
            name: ((0 if name in ("begins", "ends") else 1), *values)
            for name, values in vars(self).items()
        }
        return Window(**fields)

    @property
    def is_spread(self) -> bool:
        """Whether there are zeros between the input's elements."""
        return any(step > 1 for step in self.spread)

    def filled(self, places: Sequence[int]) -> Window:
        """The window over a copy of the input that has the padding, enough for `places`."""
        extent = tuple(
            (p - 1) * s + (k - 1) * d + 1
            for p, s, k, d in zip(places, self.strides, self.kernel, self.dilations, strict=True)
        )
        none, ones = (0,) * len(extent), (1,) * len(extent)
        return replace(self, extent=extent, begins=none, ends=none, spread=ones)

    @property
    def is_unpadded(self) -> bool:
        """Whether the window never leaves the input."""
        return not any(self.begins) and not any(self.ends)


def window_of(step: Step, x: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pool whose channels-last input has shape `x`."""
    n = len(kernel)
    pads = step.attribute("pads")
    ones = (1,) * n
    extra = step.attribute("extra") or (0,) * n
    return Window(
        tuple(x[1:-1]),
        tuple(kernel),
        tuple(step.attribute("strides")),
        tuple(step.attribute("dilations") or ones),
        tuple(pads[:n]),
        tuple(end + more for end, more in zip(pads[n:], extra, strict=True)),
        tuple(step.attribute("spread") or ones),
    )


@dataclass(frozen=True)
class Columns:
    """`count` neighbouring tiles of `width` output columns that use the same taps.

    The first tile starts at column `first`. `taps` has (tap, low, high) for each tap that is
    inside the input for the tile's columns low to high - 1.
    """

    first: int
    width: int
    count: int
    taps: tuple[tuple[int, int, int], ...]


def columns(window: Window, places: int, width: int) -> list[Columns]:
    """The output's columns in tiles of at most `width`; those of a border have fewer taps.

    >>> window = Window((8, 8), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1))
    >>> for tiles in columns(window, 8, 2):
    ...     print(tiles.first, tiles.count, tiles.taps)
    0 1 ((0, 1, 2), (1, 0, 2), (2, 0, 2))
    2 2 ((0, 0, 2), (1, 0, 2), (2, 0, 2))
    6 1 ((0, 0, 2), (1, 0, 2), (2, 0, 1))
    """
    found: list[Columns] = []
    for first in range(0, places, width):
        wide = min(width, places - first)
        taps = tuple(_inside(window, first, wide))
        last = found[-1] if found else None
        if last is not None and last.width == wide and last.taps == taps:
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(Columns(first, wide, 1, taps))
    return found


def _inside(window: Window, first: int, width: int) -> Iterator[tuple[int, int, int]]:
    stride, begin, extent = window.strides[-1], window.begins[-1], window.extent[-1]
    for tap in range(window.kernel[-1]):
        shift = tap * window.dilations[-1] - begin
        valid = [i for i in range(width) if 0 <= (first + i) * stride + shift < extent]
        if valid:
            yield tap, valid[0], valid[-1] + 1


def filled(
    kernel: Kernel,
    window: Window,
    result: Sequence[int],
    read: Reader,
    fill: Expr,
    machine: Machine,
) -> tuple[Window, Reader, Stmt]:
    """A copy of an input that has its padding, and zeros where it is spread, in scratch memory.

    The copy is as large as its readers want it. ::

        copy[b, y, x, c] = input[b, (y - pad) / spread, ...] where there is such an element
                         = fill elsewhere

    Args:
        kernel: whose first phase the copying will be.
        window: over the input.
        result: batch and places that the window is wanted at, channels of the copy.
        read: (batch, positions, channel) -> element of the input.
        fill: value of the padding.
        machine: lanes.

    Returns:
        The window over the copy, what reads the copy, and the phase that writes it.
    """
    batch, *wanted, channels = result
    over = window.filled(wanted)
    copy = kernel.scratch((batch, *over.extent, channels), str(fill.ty))

    def element(at: Sequence[Expr], c: Expr) -> Stmt:
        b, *place = at
        inside, positions = [], []
        for axis, p in enumerate(place):
            position = p - window.begins[axis]
            gap, last = window.spread[axis], (window.extent[axis] - 1) * window.spread[axis]
            inside += [position >= 0, position <= last]
            if gap > 1:
                inside.append(tirx.EQ(tirx.floormod(position, gap), 0))
                position = tirx.floordiv(position, gap)
            positions.append(position)
        value = tirx.if_then_else(tirx.all(*inside), read(b, positions, c), fill)
        return tirx.BufferStore(copy, value, [*at, c])

    def place(at: list[Expr]) -> Stmt:
        return in_vectors(channels, machine.lanes, lambda c: element(at, c))

    return over, reader(copy), parallel((batch, *over.extent), place)
