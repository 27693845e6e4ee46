"""Where a value's elements lie in the memory of another value: strided views, and their algebra.

A view names a dense buffer (its root) and says at which of its elements element (i, j, ...) lies:
``offset + i * strides[0] + j * strides[1] + ...``. Slices, transposes, parts of concatenations and
most reshapes are views, so that nothing needs to be moved for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

__all__ = ["View", "dense_strides", "reshaped_strides"]


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements from one index to the next of each axis, rows last.

    >>> dense_strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def reshaped_strides(
    shape: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> tuple[int, ...] | None:
    """Strides of the same elements in another shape; None where no strides can say it.

    Axes of length 1 get the stride they would have if the rest were dense.

    >>> reshaped_strides((1, 8, 8, 16), (4096, 512, 64, 1), (64, 16))
    (64, 1)
    >>> reshaped_strides((4, 4), (16, 2), (16,)) is None
    True
    """
    if prod(shape) != prod(new):
        return None
    if prod(new) == 0:
        return dense_strides(new)
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result = [0] * len(new)
    last = len(new) - 1
    while last >= 0 and new[last] == 1:
        result[last] = 1
        last -= 1
    while old:
        # The innermost axes, of both shapes, that hold the same number of elements.
        extent, innermost = old.pop()
        outermost = innermost * extent
        first, count = last, 1
        while count != extent:
            if count < extent and first >= 0:
                count *= new[first]
                first -= 1
                continue
            if not old:
                return None
            more, step = old.pop()
            if step != outermost:
                return None
            extent, outermost = extent * more, outermost * more
        while first >= 0 and new[first] == 1:
            first -= 1
        step = innermost
        for axis in range(last, first, -1):
            result[axis] = step
            step *= new[axis]
        last = first
    step = 1
    for axis in range(len(new) - 1, -1, -1):
        if axis <= last:
            result[axis] = step
        step = result[axis] * new[axis]
    return tuple(result)


@dataclass(frozen=True)
class View:
    """Elements of `root` by offset and strides, both in elements."""

    root: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, root: str, shape: Sequence[int]) -> View:
        """The whole of a dense buffer."""
        return cls(root, 0, tuple(shape), dense_strides(shape))

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in their order without gaps."""
        pairs = zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        return all(n == 1 or own == dense for n, own, dense in pairs)

    @property
    def is_unit(self) -> bool:
        """Whether neighbours along the last axis are neighbours in memory.

        >>> View.of("x", (4, 8)).is_unit, View.of("x", (4, 8)).transposed((1, 0)).is_unit
        (True, False)
        """
        return not self.shape or self.shape[-1] == 1 or self.strides[-1] == 1

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The same elements in another shape, where strides can say it."""
        strides = reshaped_strides(self.shape, self.strides, shape)
        return None if strides is None else View(self.root, self.offset, tuple(shape), strides)

    def transposed(self, perm: Sequence[int]) -> View:
        """Axis i is what axis ``perm[i]`` was."""
        return View(
            self.root,
            self.offset,
            tuple(self.shape[axis] for axis in perm),
            tuple(self.strides[axis] for axis in perm),
        )

    def part(
        self, starts: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None
    ) -> View:
        """`shape` elements from `starts`, every `steps`-th.

        >>> View.of("x", (4, 8)).part((0, 2), (4, 3))
        View(root='x', offset=2, shape=(4, 3), strides=(8, 1))
        """
        steps = (1,) * len(self.shape) if steps is None else steps
        offset = self.offset + sum(a * s for a, s in zip(starts, self.strides, strict=True))
        strides = tuple(s * step for s, step in zip(self.strides, steps, strict=True))
        return View(self.root, offset, tuple(shape), strides)
