"""How a sliding window reads its input: strides, dilation, padding, zeros in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from eecompile.targets.lowering.spec import Step

__all__ = ["Window", "window_of", "windowed_input"]

Expr = Any
Reader = Callable[[Expr, Sequence[Expr], Sequence[Expr], Expr], Expr]


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


def windowed_input(
    x: te.Tensor,
    window: Window,
    places: Sequence[int],
    channels: int | None = None,
    repeat: int = 1,
    fill: float = 0.0,
) -> tuple[Reader, te.Tensor | None]:
    """A function that reads the input at (batch, place, tap, channel), and the copy it reads.

    There is a copy where the window leaves the input: it holds the padding, and enough of it for
    all of `places`, which may reach beyond the output. Without one, places beyond the output
    read the input's last row.

    Args:
        x: channels last.
        window: how places and taps become positions.
        places: extent of the places that are read, at least the output's.
        channels: channels of the copy, filled up with zeros; default: the input's.
        repeat: how often the copy repeats each channel in a row.
        fill: value of the padding.
    """
    batch, *extent, own = (int(size) for size in x.shape)
    channels = own * repeat if channels is None else channels
    strides, dilations = window.strides, window.dilations
    if window.is_unpadded and channels == own and repeat == 1 and set(window.spread) == {1}:

        def direct(b: Expr, place: Sequence[Expr], tap: Sequence[Expr], c: Expr) -> Expr:
            at = []
            for i, (p, t) in enumerate(zip(place, tap, strict=True)):
                position = p * strides[i] + t * dilations[i]
                reach = (places[i] - 1) * strides[i] + (window.kernel[i] - 1) * dilations[i]
                at.append(position if reach < extent[i] else tirx.min(position, extent[i] - 1))
            return x(b, *at, c)

        return direct, None

    size = [
        (p - 1) * s + (k - 1) * d + 1
        for p, s, k, d in zip(places, strides, window.kernel, dilations, strict=True)
    ]

    def element(b: Expr, *index: Expr) -> Expr:
        *place, c = index
        inside, at = [], []
        for i, p in enumerate(place):
            position = p - window.begins[i]
            gap, last = window.spread[i], (extent[i] - 1) * window.spread[i]
            inside += [position >= 0, position <= last]
            if gap > 1:
                inside.append(tirx.floormod(position, gap) == 0)
                position = tirx.floordiv(position, gap)
            at.append(position)
        if channels > own * repeat:
            inside.append(c < own * repeat)
        source = x(b, *at, tirx.floordiv(c, repeat) if repeat > 1 else c)
        return tirx.if_then_else(tirx.all(*inside), source, tirx.const(fill, str(x.dtype)))

    copy = te.compute((batch, *size, channels), element, name="prepared")

    def read(b: Expr, place: Sequence[Expr], tap: Sequence[Expr], c: Expr) -> Expr:
        at = [p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True)]
        return copy(b, *at, c)

    return read, copy
