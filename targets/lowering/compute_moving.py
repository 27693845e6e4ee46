"""Tensor expressions of the operators that move elements, of any type, and of interpolation."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import lcm, prod
from typing import Any

from tvm import te, tirx

from eecompile.ir import Op, TensorType
from eecompile.targets.lowering.compute_windows import padded
from eecompile.targets.lowering.errors import UnsupportedOperator
from eecompile.targets.lowering.tensors import (
    Expr,
    Index,
    broadcast_at,
    compute,
    constant,
    number,
    shape_of,
)

__all__ = ["MOVING"]

Definition = Callable[[Op, list[te.Tensor], TensorType], te.Tensor]


def _concat(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    axis: Any = op.attributes["axis"]
    ends = [0]
    for x in inputs:
        ends.append(ends[-1] + shape_of(x)[axis])

    def body(index: Index) -> Expr:
        def of(x: te.Tensor, start: int) -> Expr:
            at = list(index)
            at[axis] = index[axis] - start
            return x(*at)

        value = of(inputs[-1], ends[-2])
        for x, start, end in reversed(list(zip(inputs[:-1], ends, ends[1:], strict=False))):
            value = tirx.if_then_else(index[axis] < end, of(x, start), value)
        return value

    return compute(result.shape, body, "concat")


def _depth_to_space(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    size: Any = op.attributes["blocksize"]
    channels = result.shape[1]

    def body(index: Index) -> Expr:
        n, c, h, w = index
        block = tirx.floormod(h, size) * size + tirx.floormod(w, size)
        depth = block * channels + c if op.attributes["mode"] == "DCR" else c * size**2 + block
        return x(n, depth, tirx.floordiv(h, size), tirx.floordiv(w, size))

    return compute(result.shape, body, "depth_to_space")


def _space_to_depth(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    size: Any = op.attributes["blocksize"]
    channels = shape_of(x)[1]

    def body(index: Index) -> Expr:
        n, depth, h, w = index
        block, c = tirx.floordiv(depth, channels), tirx.floormod(depth, channels)
        row, column = tirx.floordiv(block, size), tirx.floormod(block, size)
        return x(n, c, h * size + row, w * size + column)

    return compute(result.shape, body, "space_to_depth")


def _expand(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    return compute(result.shape, lambda i: broadcast_at(x, i), "expand")


def _nearest_valid(value: Expr, extent: int, dtype: str) -> Expr:
    """A run-time index as one that is certainly inside; negative ones count from the end."""
    wide = dtype if dtype in ("int32", "int64") else "int32"
    index = value.astype(wide)
    # Bounded before it becomes a 32-bit index: far ones would wrap round into the array.
    zero, length = tirx.const(0, wide), tirx.const(extent, wide)
    wrapped = tirx.Select(index < zero, index + length, index)
    return te.max(te.min(wrapped, length - 1), zero).astype("int32")


def _need_index(op: Op, indices: te.Tensor) -> None:
    if str(indices.dtype) not in ("int32", "int64", "uint8", "int8"):
        raise UnsupportedOperator(op, f"indices of type {indices.dtype}")


def _gather(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    data, indices = inputs
    _need_index(op, indices)
    axis: Any = op.attributes["axis"]
    rank, extent = len(indices.shape), shape_of(data)[axis]

    def body(index: Index) -> Expr:
        place = _nearest_valid(indices(*index[axis : axis + rank]), extent, str(indices.dtype))
        return data(*index[:axis], place, *index[axis + rank :])

    return compute(result.shape, body, "gather")


def _gather_elements(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    data, indices = inputs
    _need_index(op, indices)
    axis: Any = op.attributes["axis"]
    extent = shape_of(data)[axis]

    def body(index: Index) -> Expr:
        place = _nearest_valid(indices(*index), extent, str(indices.dtype))
        return data(*index[:axis], place, *index[axis + 1 :])

    return compute(result.shape, body, "gather_elements")


def _one_hot(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (indices,) = inputs
    attributes: Any = op.attributes
    axis, depth = attributes["axis"], attributes["depth"]
    dtype = str(indices.dtype)

    def value(name: str) -> Expr:
        number = attributes[name]
        if result.dtype == "bool":
            return tirx.const(bool(number), "bool")
        return constant(number, result.dtype)

    def body(index: Index) -> Expr:
        found = indices(*index[:axis], *index[axis + 1 :])
        zero = tirx.const(0, dtype)
        wrapped = tirx.Select(found < zero, found + tirx.const(depth, dtype), found)
        hot = tirx.EQ(wrapped, index[axis].astype(dtype))
        return tirx.Select(hot, value("on_value"), value("off_value"))

    return compute(result.shape, body, "one_hot")


def _pad(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    attributes: Any = op.attributes
    rank, shape = len(x.shape), shape_of(x)
    begins, ends = attributes["pads"][:rank], attributes["pads"][rank:]
    mode = attributes["mode"]
    if mode == "constant":
        return padded(x, begins, ends, attributes["value"], "pad")
    if mode not in ("edge", "reflect", "wrap"):
        raise UnsupportedOperator(op, f'mode "{mode}"')

    def source(i: Expr, begin: int, end: int, extent: int) -> Expr:
        # What is cropped goes first, so that what is added mirrors only what is left.
        first = max(0, -begin)
        left = extent - first - max(0, -end)
        moved = i - max(0, begin)
        if begin <= 0 and end <= 0:
            return moved + first
        if mode == "edge":
            return te.max(te.min(moved, left - 1), 0) + first
        if mode == "wrap":
            return tirx.floormod(moved, left) + first
        if left == 1:
            return first
        folded = tirx.floormod(moved, 2 * (left - 1))
        return te.min(folded, 2 * (left - 1) - folded) + first

    def body(index: Index) -> Expr:
        return x(*(source(*each) for each in zip(index, begins, ends, shape, strict=True)))

    return compute(result.shape, body, "pad")


def _reshape(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    shape = shape_of(x)

    def body(index: Index) -> Expr:
        flat: Expr = 0
        for i, extent in zip(index, result.shape, strict=True):
            flat = flat * extent + i
        at: list[Expr] = []
        for d, extent in enumerate(shape):
            place = flat // prod(shape[d + 1 :])
            at.append(place if d == 0 else place % extent)
        return x(*at)

    return compute(result.shape, body, "reshape")


def _slice(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    attributes: Any = op.attributes
    walks = {
        axis: (start, step)
        for axis, start, step in zip(
            attributes["axes"], attributes["starts"], attributes["steps"], strict=True
        )
    }

    def body(index: Index) -> Expr:
        at = [walks.get(d, (0, 1)) for d in range(len(index))]
        return x(*(start + i * step for i, (start, step) in zip(index, at, strict=True)))

    return compute(result.shape, body, "slice")


def _tile(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    shape = shape_of(x)
    return compute(
        result.shape,
        lambda index: x(*(tirx.floormod(i, n) for i, n in zip(index, shape, strict=True))),
        "tile",
    )


def _transpose(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    (x,) = inputs
    perm: Any = op.attributes["perm"]
    return compute(
        result.shape,
        lambda index: x(*(index[perm.index(d)] for d in range(len(perm)))),
        "transpose",
    )


# --- Resize ---------------------------------------------------------------------------------------


def _resize(op: Op, inputs: list[te.Tensor], result: TensorType) -> te.Tensor:
    """One axis after the other: interpolation over several is the product of those over one."""
    (x,) = inputs
    attributes: Any = op.attributes
    if attributes["mode"] not in ("nearest", "linear", "cubic"):
        raise UnsupportedOperator(op, f'mode "{attributes["mode"]}"')
    if attributes["mode"] != "nearest" and str(x.dtype) != "float32":
        raise UnsupportedOperator(op, f"interpolation of {x.dtype}")
    for axis, scale in enumerate(attributes["scales"]):
        shape = shape_of(x)
        size = result.shape[axis]
        if size == shape[axis] and scale == 1:
            continue
        slope, offset = _positions(op, shape[axis], size, float(scale))
        x = _resized(op, x, axis, size, slope, offset)
    return x


def _positions(op: Op, extent: int, size: int, scale: float) -> tuple[Fraction, Fraction]:
    """Element i of the result lies at slope * i + offset of the input, in exact fractions.

    Scales are often quotients rounded to float32: the fraction that was meant is found again, so
    that whole numbers and ties come out as such.
    """
    inverse = Fraction(1 / scale).limit_denominator(4096)
    half = Fraction(1, 2)
    match op.attributes["coordinate_transformation_mode"]:
        case "asymmetric":
            return inverse, Fraction(0)
        case "align_corners":
            return Fraction(extent - 1, size - 1) if size > 1 else Fraction(0), Fraction(0)
        case "pytorch_half_pixel" if size == 1:
            return Fraction(0), Fraction(0)
        case "half_pixel_symmetric":
            shift = Fraction(extent, 2) - Fraction(size, 2) * inverse
            return inverse, shift + half * inverse - half
        case "half_pixel" | "pytorch_half_pixel":
            return inverse, half * inverse - half
        case other:
            raise UnsupportedOperator(op, f'coordinate_transformation_mode "{other}"')


def _resized(
    op: Op, x: te.Tensor, axis: int, size: int, slope: Fraction, offset: Fraction
) -> te.Tensor:
    shape = list(shape_of(x))
    extent, shape[axis] = shape[axis], size
    mode: Any = op.attributes["mode"]

    def at(index: Index, place: Expr) -> Expr:
        inside = te.max(te.min(place, extent - 1), 0)
        return x(*index[:axis], inside, *index[axis + 1 :])

    if mode == "nearest":
        slope, offset, up = _nearest(op, slope, offset)
        numerator, denominator = _over_common(slope, offset, up)
        return compute(
            shape,
            lambda i: at(i, tirx.floordiv(numerator(i[axis]), denominator)),
            "resize",
        )
    numerator, denominator = _over_common(slope, offset, False)

    def interpolated(i: Index) -> Expr:
        low = tirx.floordiv(numerator(i[axis]), denominator)
        rest = tirx.floormod(numerator(i[axis]), denominator)
        t = rest.astype("float32") * constant(1 / denominator, "float32")
        total: Expr = 0
        for tap, weight in _weights(mode, t, number(op, "cubic_coeff_a")):
            term = at(i, low + tap) * weight
            total = term if isinstance(total, int) else total + term
        return total

    return compute(shape, interpolated, "resize")


def _nearest(op: Op, slope: Fraction, offset: Fraction) -> tuple[Fraction, Fraction, bool]:
    """The line whose floor, or ceiling where the flag says so, is the nearest element."""
    half = Fraction(1, 2)
    match op.attributes["nearest_mode"]:
        case "floor":
            return slope, offset, False
        case "ceil":
            return slope, offset, True
        case "round_prefer_floor":
            return slope, offset - half, True
        case "round_prefer_ceil":
            return slope, offset + half, False
        case other:
            raise UnsupportedOperator(op, f'nearest_mode "{other}"')


def _over_common(slope: Fraction, offset: Fraction, up: bool) -> tuple[Callable[[Expr], Expr], int]:
    """A line as integers, numerator(i) / denominator; `up` makes its floor the ceiling."""
    denominator = lcm(slope.denominator, offset.denominator)
    factor = int(slope * denominator)
    addend = int(offset * denominator) + (denominator - 1 if up else 0)
    return lambda i: i * factor + addend, denominator


def _weights(mode: str, t: Expr, a: float) -> list[tuple[int, Expr]]:
    """Taps around a position `t` above an element, with their weights.

    Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981, eq. 4, with
    its -1/2 replaced by `a`.
    """
    if mode == "linear":
        return [(0, 1.0 - t), (1, t)]

    def near(d: Expr) -> Expr:
        return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0

    def far(d: Expr) -> Expr:
        return ((d - 5.0) * d + 8.0) * d * a - 4.0 * a

    return [(-1, far(1.0 + t)), (0, near(t)), (1, near(1.0 - t)), (2, far(2.0 - t))]


#: kind -> function(op, inputs, result type) that gives the result's tensor expression.
MOVING: dict[str, Definition] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
    "Transpose": _transpose,
}
