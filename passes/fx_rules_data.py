"""Rules of the FX host for operators that move, join, cut, pad or look up data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eecompile.passes.fx_builder import Builder, Number, Rules, Untranslatable, Value

__all__ = ["DATA_RULES"]

DATA_RULES = Rules()
on = DATA_RULES.on

# --- nothing at all -------------------------------------------------------------------------------


@on(
    "alias.default",
    "clone.default",
    "contiguous.default",
    "detach.default",
    "lift_fresh_copy.default",
)
def identity(b: Builder, x: Value, *_: Any) -> Value:
    """X itself."""
    return x


@on(
    "alpha_dropout.default",
    "dropout.default",
    "feature_alpha_dropout.default",
    "feature_dropout.default",
)
def dropout(b: Builder, x: Value, p: float, training: bool) -> Value:
    """X itself: inference drops nothing."""
    if training and p:
        raise Untranslatable("dropout during inference")
    return x


@on(
    "_to_copy.default",
    "to.device",
    "to.dtype",
    "to.dtype_layout",
    "to.other",
    "type_as.default",
)
def to(b: Builder, x: Value, *_: Any) -> Value:
    """X with another element type."""
    return b.cast(x, b.out.dtype)


# --- shapes ---------------------------------------------------------------------------------------


@on(
    "_unsafe_view.default",
    "flatten.using_ints",
    "reshape.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "unflatten.int",
    "unsqueeze.default",
    "view.default",
    "view_as.default",
    "reshape_as.default",
)
def reshape(b: Builder, x: Value, *_: Any) -> Value:
    """X in the shape torch computed."""
    return b.reshape(x, b.out.shape)


@on("expand.default", "expand_as.default", "broadcast_to.default")
def expand(b: Builder, x: Value, *_: Any) -> Value:
    """X broadcast to the shape torch computed."""
    return b.expand(x, b.out.shape)


@on("permute.default", "movedim.intlist")
def permute(b: Builder, x: Value, dims: Sequence[int], *_: Any) -> Value:
    """X with its dimensions in another order."""
    if _:
        sources, targets = ([d % x.ndim for d in ds] for ds in (dims, _[0]))
        rest = iter(d for d in range(x.ndim) if d not in sources)
        placed = dict(zip(targets, sources, strict=True))
        dims = [placed[d] if d in placed else next(rest) for d in range(x.ndim)]
    return b.transpose(x, [d % x.ndim for d in dims])


@on("transpose.int")
def transpose(b: Builder, x: Value, first: int, second: int) -> Value:
    """X with two dimensions exchanged."""
    perm = list(range(x.ndim))
    if perm:
        first, second = first % x.ndim, second % x.ndim
        perm[first], perm[second] = second, first
    return b.transpose(x, perm)


@on("t.default", "numpy_T.default", "mT.default")
def t(b: Builder, x: Value) -> Value:
    """X with its last two dimensions exchanged."""
    if x.ndim > 2:
        raise Untranslatable(f"transposition of {x.ndim} dimensions")
    return b.transpose(x, range(x.ndim)[::-1])


@on("pixel_shuffle.default")
def pixel_shuffle(b: Builder, x: Value, factor: int) -> Value:
    """Channels to pixels."""
    return b.op("DepthToSpace", x, blocksize=factor, mode="CRD")


@on("pixel_unshuffle.default")
def pixel_unshuffle(b: Builder, x: Value, factor: int) -> Value:
    """Pixels to channels, torch's order."""
    n, c, h, w = x.shape
    x = b.reshape(x, (n, c, h // factor, factor, w // factor, factor))
    return b.reshape(b.transpose(x, (0, 1, 3, 5, 2, 4)), b.out.shape)


@on("channel_shuffle.default")
def channel_shuffle(b: Builder, x: Value, groups: int) -> Value:
    """Channels of the groups, one after the other."""
    n, c, *rest = x.shape
    y = b.reshape(x, (n, groups, c // groups, *rest))
    return b.reshape(b.transpose(y, (0, 2, 1, *range(3, y.ndim))), x.shape)


# --- joining --------------------------------------------------------------------------------------


@on("cat.default", "concat.default", "concatenate.default")
def cat(b: Builder, tensors: Sequence[Value], dim: int) -> Value:
    """Tensors side by side; torch passes over empty vectors."""
    parts = [b.cast(t, b.out.dtype) for t in tensors if t.shape != (0,)]
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=dim % len(b.out.shape))


@on("stack.default")
def stack(b: Builder, tensors: Sequence[Value], dim: int) -> Value:
    """Tensors along a new dimension."""
    axis = dim % len(b.out.shape)
    shape = tuple(1 if i == axis else d for i, d in enumerate(b.out.shape))
    return cat(b, [b.reshape(t, shape) for t in tensors], axis)


@on("repeat.default")
def repeat(b: Builder, x: Value, repeats: Sequence[int]) -> Value:
    """X several times along each dimension."""
    x = b.reshape(x, (*[1] * (len(repeats) - x.ndim), *x.shape))
    return x if set(repeats) <= {1} else b.op("Tile", x, repeats=tuple(repeats))


@on("tile.default")
def tile(b: Builder, x: Value, repeats: Sequence[int]) -> Value:
    """The same, repeats counted from the last dimension."""
    return repeat(b, x, (*[1] * (x.ndim - len(repeats)), *repeats))


@on("repeat_interleave.self_int")
def repeat_interleave(b: Builder, x: Value, count: int, dim: int | None, _: Any) -> Value:
    """Each element several times in a row."""
    if dim is None:
        x, dim = b.reshape(x, (x.type.size,)), 0
    axis = dim % x.ndim
    indices = np.repeat(np.arange(x.shape[axis]), count)
    return b.op("Gather", x, b.constant(indices, "int64"), axis=axis)


# --- cutting --------------------------------------------------------------------------------------


@on("slice.Tensor")
def slice_(
    b: Builder, x: Value, dim: int, start: int | None, end: int | None, step: int = 1
) -> Value:
    """x[start:end:step]."""
    axis = dim % x.ndim
    first, last, step = slice(start, end, step).indices(x.shape[axis])
    return b.slice(x, axis, first, max(first, last), step)


@on("narrow.default")
def narrow(b: Builder, x: Value, dim: int, start: int, length: int) -> Value:
    """x[start : start + length]."""
    axis = dim % x.ndim
    start %= max(1, x.shape[axis])
    return b.slice(x, axis, start, start + length)


@on("select.int")
def select(b: Builder, x: Value, dim: int, index: int) -> Value:
    """x[index], one dimension fewer."""
    axis = dim % x.ndim
    index %= x.shape[axis]
    return b.reshape(b.slice(x, axis, index, index + 1), b.out.shape)


@on("split.Tensor#", "unsafe_split.Tensor#")
def split(b: Builder, index: int, x: Value, size: int, dim: int = 0) -> Value:
    """Piece `index` of pieces of a size, the last perhaps smaller."""
    axis = dim % x.ndim
    return b.slice(x, axis, index * size, min((index + 1) * size, x.shape[axis]))


@on("split.sizes#", "split_with_sizes.default#")
def split_with_sizes(b: Builder, index: int, x: Value, sizes: Sequence[int], dim: int) -> Value:
    """Piece `index` of pieces of given sizes."""
    start = sum(sizes[:index])
    return b.slice(x, dim % x.ndim, start, start + sizes[index])


@on("chunk.default#")
def chunk(b: Builder, index: int, x: Value, chunks: int, dim: int) -> Value:
    """Piece `index` of a number of pieces."""
    return split(b, index, x, max(1, -(-x.shape[dim % x.ndim] // chunks)), dim)


@on("tensor_split.sections#")
def tensor_split(b: Builder, index: int, x: Value, sections: int, dim: int) -> Value:
    """Piece `index` of a number of pieces, the first ones longer."""
    axis = dim % x.ndim
    size, longer = divmod(x.shape[axis], sections)
    start = index * size + min(index, longer)
    return b.slice(x, axis, start, start + size + (index < longer))


@on("unbind.int#")
def unbind(b: Builder, index: int, x: Value, dim: int) -> Value:
    """x[index], one dimension fewer."""
    return select(b, x, dim, index)


@on("flip.default")
def flip(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """X backwards."""
    for dim in dims:
        axis = dim % x.ndim
        x = b.slice(x, axis, x.shape[axis] - 1, -1, -1)
    return x


@on("roll.default")
def roll(b: Builder, x: Value, shifts: Sequence[int], dims: Sequence[int]) -> Value:
    """X moved round."""
    if not dims:
        raise Untranslatable("rolling over all dimensions at once")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % x.ndim
        size = x.shape[axis]
        cut = -shift % size
        if cut:
            x = b.op("Concat", b.slice(x, axis, cut, size), b.slice(x, axis, 0, cut), axis=axis)
    return x


# --- writing a part: what a write to a view becomes -----------------------------------------------


@on("copy.default")
def copy(b: Builder, x: Value, source: Value, _: bool) -> Value:
    """The source in the shape and element type of x."""
    return b.expand(b.cast(source, b.out.dtype), b.out.shape)


@on("fill.Tensor")
def fill(b: Builder, x: Value, value: Value) -> Value:
    """A number in the shape and element type of x."""
    return copy(b, x, value, False)


@on("slice_scatter.default")
def slice_scatter(
    b: Builder, x: Value, part: Value, dim: int, start: int | None, end: int | None, step: int
) -> Value:
    """X with x[start:end] replaced."""
    axis = dim % x.ndim
    first, last, step = slice(start, end, step).indices(x.shape[axis])
    if step != 1:
        raise Untranslatable("a write with steps")
    last = max(first, last)
    pieces = [b.slice(x, axis, 0, first), part, b.slice(x, axis, last, x.shape[axis])]
    pieces = [piece for piece in pieces if piece.shape[axis]]
    return pieces[0] if len(pieces) == 1 else b.op("Concat", *pieces, axis=axis)


@on("select_scatter.default")
def select_scatter(b: Builder, x: Value, part: Value, dim: int, index: int) -> Value:
    """X with x[index] replaced."""
    axis = dim % x.ndim
    index %= x.shape[axis]
    part = b.reshape(part, [1 if i == axis else d for i, d in enumerate(x.shape)])
    return slice_scatter(b, x, part, axis, index, index + 1, 1)


# --- looking up -----------------------------------------------------------------------------------


@on("index_select.default")
def index_select(b: Builder, x: Value, dim: int, index: Value) -> Value:
    """x[index] along a dimension."""
    return b.op("Gather", x, index, axis=dim % x.ndim)


@on("gather.default")
def gather(b: Builder, x: Value, dim: int, index: Value, _: bool) -> Value:
    """An element along the dimension for each place of `index`."""
    rest = [i for i in range(x.ndim) if i != dim % x.ndim]
    if any(index.shape[i] != x.shape[i] for i in rest):
        # torch reads a part of x then; GatherElements wants the other extents equal.
        for i in rest:
            x = b.slice(x, i, 0, index.shape[i])
    return b.op("GatherElements", x, index, axis=dim % x.ndim)


@on("index.Tensor")
def index_tensor(b: Builder, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[..., index, ...] with one tensor of whole numbers."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise Untranslatable("several index tensors")
    axis, index = given[0]
    if index.dtype == "bool":
        raise Untranslatable("a mask as index: the result's shape depends on the data")
    return b.op("Gather", x, b.cast(index, "int64"), axis=axis)


# --- padding --------------------------------------------------------------------------------------


def _pad(b: Builder, x: Value, pad: Sequence[int], mode: str, value: Number = 0) -> Value:
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):  # torch counts from the last dimension
        begins[x.ndim - 1 - i], ends[x.ndim - 1 - i] = pad[2 * i], pad[2 * i + 1]
    if not any(begins + ends):
        return x
    return b.op("Pad", x, pads=(*begins, *ends), mode=mode, value=float(value))


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@on("pad.default")
def pad(b: Builder, x: Value, pads: Sequence[int], mode: str, value: Number | None) -> Value:
    """X with a border."""
    return _pad(b, x, pads, _MODES[mode], value or 0)


@on("constant_pad_nd.default")
def constant_pad(b: Builder, x: Value, pads: Sequence[int], value: Number) -> Value:
    """X with a border of a number."""
    return _pad(b, x, pads, "constant", value)


def _border(mode: str) -> Callable[..., Value]:
    def rule(b: Builder, x: Value, pads: Sequence[int]) -> Value:
        return _pad(b, x, pads, mode)

    return rule


on("reflection_pad1d.default", "reflection_pad2d.default")(_border("reflect"))
on("replication_pad1d.default", "replication_pad2d.default")(_border("edge"))
