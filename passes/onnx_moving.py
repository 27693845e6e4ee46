"""What each ONNX operator becomes: constants, shapes, and moving data about."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx

from eecompile.passes.onnx_operators import named_axes
from eecompile.passes.onnx_translate import Handler, Node, Refused, neutral_dtype, to_array
from eecompile.shapes import broadcast

__all__ = ["MOVING", "slice_of"]

#: Elements that a computed constant (Range, ConstantOfShape ...) may have.
_LARGEST_CONSTANT = 1 << 26


# -- constants ---------------------------------------------------------------------------------


def _constant(node: Node) -> str:
    for name, dtype in (("value_float", "float32"), ("value_int", "int64")):
        if (value := node.attribute(name)) is not None:
            return node.put(np.array(value, dtype))
        if (value := node.attribute(name + "s")) is not None:
            return node.put(np.array(value, dtype))
    tensor = node.attribute("value")
    if tensor is None:
        raise Refused("it holds neither numbers nor a tensor")
    return node.put(to_array(tensor))


def _shape(node: Node) -> str:
    return node.put(np.array(node.shape()[_bounds(node)], np.int64))


def _bounds(node: Node) -> slice:
    return slice(node.attribute("start", 0), node.attribute("end"))


def _size(node: Node) -> str:
    return node.put(np.array(node.type(0).size, np.int64))


def _constant_of_shape(node: Node) -> str:
    shape = node.ints(0, "shape")
    _limited(prod(shape))
    tensor = node.attribute("value")
    value = np.zeros(1, np.float32) if tensor is None else to_array(tensor)
    return node.put(np.broadcast_to(value.reshape(()), shape).copy())


def _limited(elements: int) -> None:
    if not 0 <= elements <= _LARGEST_CONSTANT:
        raise Refused(f"it makes a constant of {elements} elements")


def _range(node: Node) -> str:
    start, limit, step = (node.constant(i, "range").reshape(()).item() for i in range(3))
    if step == 0:
        raise Refused("its step is 0")
    _limited(max(0, int(np.ceil((limit - start) / step))))
    return node.put(np.arange(start, limit, step, dtype=node.type(0).dtype))


def _eye_like(node: Node) -> str:
    dtype = node.attribute("dtype")
    rows, columns = node.shape()
    _limited(rows * columns)
    name = node.type(0).dtype if dtype is None else neutral_dtype(dtype)
    return node.put(np.eye(rows, columns, node.attribute("k", 0), name))


def _non_zero(node: Node) -> str:
    return node.put(np.array(np.nonzero(node.constant(0, "input")), np.int64))


def _gather_nd(node: Node) -> str:
    if node.attribute("batch_dims", 0):
        raise Refused("`batch_dims`")
    data, indices = node.constant(0, "data"), node.constant(1, "indices")
    return node.put(data[tuple(np.moveaxis(indices, -1, 0))])


def _scatter_nd(node: Node) -> str:
    if node.attribute("reduction", "none") != "none":
        raise Refused("`reduction`")
    data, indices = node.constant(0, "data").copy(), node.constant(1, "indices")
    data[tuple(np.moveaxis(indices, -1, 0))] = node.constant(2, "updates")
    return node.put(data)


# -- moving data -------------------------------------------------------------------------------


def _identity(node: Node) -> str:
    return node.inputs[0]


def _dropout(node: Node) -> str:
    training = node.known(2) if node.has(2) else np.array(False)
    if training is None or training.any() or node.uses_output(1):
        raise Refused("only inference without the mask is")
    return node.inputs[0]


def _reshape(node: Node) -> str:
    wanted = list(node.ints(1, "shape"))
    shape = node.shape()
    if not node.attribute("allowzero", 0):
        wanted = [shape[i] if dim == 0 else dim for i, dim in enumerate(wanted)]
    if -1 in wanted:
        rest = prod(dim for dim in wanted if dim != -1)
        wanted[wanted.index(-1)] = prod(shape) // rest if rest else 0
    return node.reshape(node.inputs[0], wanted)


def _flatten(node: Node) -> str:
    shape, rank = node.shape(), len(node.shape())
    axis = node.attribute("axis", 1)
    axis += rank if axis < 0 else 0
    return node.reshape(node.inputs[0], (prod(shape[:axis]), prod(shape[axis:])))


def _squeeze(node: Node) -> str:
    shape = node.shape()
    axes = named_axes(node, 13)
    if axes is None:
        axes = tuple(i for i, dim in enumerate(shape) if dim == 1)
    if any(shape[axis] != 1 for axis in axes):
        raise Refused(f"axes {axes} of shape {shape} are not all 1 long")
    return node.reshape(node.inputs[0], (d for i, d in enumerate(shape) if i not in axes))


def _unsqueeze(node: Node) -> str:
    axes = node.ints(1, "axes") if node.version >= 13 else node.attribute("axes", ())
    rank = len(node.shape()) + len(axes)
    rest = iter(node.shape())
    places = {axis % rank for axis in axes}
    return node.reshape(node.inputs[0], [1 if i in places else next(rest) for i in range(rank)])


def _transpose(node: Node) -> str:
    rank = len(node.shape())
    return node.transpose(node.inputs[0], node.attribute("perm", tuple(reversed(range(rank)))))


def _concat(node: Node) -> str:
    axis = node.axis(1)
    # A tensor with nothing in it adds nothing; exporters leave such ones behind.
    parts = [name for name in node.inputs if node.type_of(name).shape[axis]] or node.inputs[:1]
    return parts[0] if len(parts) == 1 else node.add("Concat", *parts, axis=axis)


def _slice(node: Node) -> str:
    rank = len(node.shape())
    if node.version < 10:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        axes = node.attribute("axes", tuple(range(len(starts))))
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
        axes = node.ints(3, "axes") if node.has(3) else tuple(range(len(starts)))
        steps = node.ints(4, "steps") if node.has(4) else (1,) * len(starts)
    cuts = zip((axis % rank for axis in axes), starts, ends, steps, strict=True)
    return slice_of(node, node.inputs[0], list(cuts))


def slice_of(node: Node, x: str, cuts: Sequence[tuple[int, int, int, int]]) -> str:
    """`x` cut by (axis, start, end, step) as ONNX reads them; itself where all of it is kept."""
    shape = node.type_of(x).shape
    clamped = []
    for axis, start, end, step in sorted(cuts):
        dim = shape[axis]
        start += dim if start < 0 else 0
        end += dim if end < 0 else 0
        if step > 0:
            start = min(max(start, 0), dim)
            end = max(start, min(end, dim))
        else:
            start = min(max(start, -1), dim - 1)
            end = min(start, max(end, -1))
        if (start, end, step) != (0, dim, 1):
            clamped.append((axis, start, end, step))
    if not clamped:
        return x
    axes, starts, ends, steps = zip(*clamped, strict=True)
    return node.add("Slice", x, starts=starts, ends=ends, axes=axes, steps=steps)


def _split(node: Node) -> list[str]:
    axis, x = node.axis(0), node.inputs[0]
    dim, parts = node.shape()[axis], len(node.outputs)
    if node.version >= 13:
        sizes = list(node.ints(1, "split")) if node.has(1) else []
    else:
        sizes = list(node.attribute("split", ()))
    if not sizes:
        each = -(-dim // parts)
        sizes = [min(each, dim - i * each) for i in range(parts)]
    if sum(sizes) != dim or len(sizes) != parts:
        raise Refused(f"it splits {dim} elements into {tuple(sizes)}")
    ends = np.cumsum(sizes).tolist()
    return [
        slice_of(node, x, [(axis, end - size, end, 1)])
        for size, end in zip(sizes, ends, strict=True)
    ]


def _expand(node: Node) -> str:
    shape = broadcast(node.shape(), node.ints(1, "shape"))
    if shape == node.shape():
        return node.inputs[0]
    return node.add("Expand", node.inputs[0], shape=shape)


def _tile(node: Node) -> str:
    repeats = node.ints(1, "repeats")
    if all(n == 1 for n in repeats):
        return node.inputs[0]
    return node.add("Tile", node.inputs[0], repeats=repeats)


def _gather(node: Node) -> str:
    axis = node.axis(0)
    cut = _as_slice(node, axis)
    return node.add("Gather", *node.inputs, axis=axis) if cut is None else cut


def _as_slice(node: Node, axis: int) -> str | None:
    """A gather of constant, evenly spaced indices as the slice it is."""
    indices = node.known(1)
    if indices is None or indices.ndim > 1 or indices.size == 0:
        return None
    dim = node.shape()[axis]
    flat = indices.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + dim, flat)
    steps = np.unique(np.diff(flat)) if flat.size > 1 else np.array([1])
    if steps.size > 1 or steps[0] == 0 or flat.min() < 0 or flat.max() >= dim:
        return None
    start, step = int(flat[0]), int(steps[0])
    end = start + step * (flat.size - 1) + (1 if step > 0 else -1)
    # An end of -1 means "up to the first element" to us, "the last element" to ONNX.
    cut = (axis, start, end if end >= 0 else end - dim, step)
    shape = node.shape()
    kept = slice_of(node, node.inputs[0], [cut])
    return node.reshape(kept, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))


def _gather_elements(node: Node) -> str:
    return node.add("GatherElements", *node.inputs, axis=node.axis(0))


def _one_hot(node: Node) -> str:
    (depth,) = node.ints(1, "depth")
    off, on = node.constant(2, "values").tolist()
    rank = len(node.shape()) + 1
    indices = node.inputs[0]
    if node.type(0).dtype not in ("int64", "int32"):
        indices = node.cast(indices, "int64")
    return node.add(
        "OneHot",
        indices,
        axis=node.axis(-1, rank),
        depth=depth,
        off_value=off,
        on_value=on,
        to=node.type(2).dtype,
    )


def _pad(node: Node) -> str:
    rank = len(node.shape())
    if node.version < 11:
        pads, value = node.attribute("pads"), node.attribute("value", 0.0)
    else:
        pads = node.ints(1, "pads")
        value = node.constant(2, "value").reshape(-1)[0].item() if node.has(2) else 0.0
    if node.version >= 18 and node.has(3):
        axes = [axis % rank for axis in node.ints(3, "axes")]
        full = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            full[axis], full[rank + axis] = pads[i], pads[len(axes) + i]
        pads = full
    if not any(pads):
        return node.inputs[0]
    mode = node.attribute("mode", "constant")
    return node.add("Pad", node.inputs[0], pads=tuple(pads), mode=mode, value=value)


def _depth_to_space(node: Node) -> str:
    if node.kind == "SpaceToDepth":
        if node.attribute("mode", "DCR") != "DCR":
            raise Refused("`mode` of `CRD`")
        return node.add("SpaceToDepth", node.inputs[0], blocksize=node.attribute("blocksize"))
    mode = node.attribute("mode", "DCR")
    return node.add(
        "DepthToSpace", node.inputs[0], blocksize=node.attribute("blocksize"), mode=mode
    )


def _if(node: Node) -> Sequence[str]:
    condition = bool(node.constant(0, "condition").reshape(()))
    body: onnx.GraphProto = node.attribute("then_branch" if condition else "else_branch")
    return node.inline(body)


MOVING: dict[str, Handler] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "If": _if,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
