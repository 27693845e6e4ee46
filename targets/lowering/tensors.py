"""Small helpers over TVM's tensor expressions, shared by the operators' definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from eecompile.ir import Op
from eecompile.targets.lowering.errors import UnsupportedOperator

__all__ = [
    "Expr",
    "Index",
    "broadcast_at",
    "broadcast_index",
    "compute",
    "constant",
    "limits",
    "need_float",
    "number",
    "reduced",
    "shape_of",
]

Expr = Any  # tvm.ir.PrimExpr and te.Tensor have no useful static types.

#: One expression for each dimension, the place of an element.
Index = Sequence[Expr]


def compute(shape: Sequence[int], body: Callable[[Index], Expr], name: str) -> te.Tensor:
    """The tensor whose element at index `i` (a tuple, empty for a scalar) is `body(i)`."""
    return te.compute(tuple(shape), lambda *i: body(i), name=name)


def number(op: Op, name: str) -> float:
    """The attribute `name`, a number."""
    value: Any = op.attributes[name]
    return float(value)


def shape_of(x: te.Tensor) -> tuple[int, ...]:
    """The static shape as Python integers."""
    return tuple(int(extent) for extent in x.shape)


def constant(value: float, dtype: str) -> Expr:
    """A constant of exactly this type; infinities become `dtype`'s extreme values of integers."""
    if dtype != "float32" and value in (float("inf"), float("-inf")):
        low, high = limits(dtype)
        value = high if value > 0 else low
    return tirx.const(float(value) if dtype == "float32" else int(value), dtype)


def limits(dtype: str) -> tuple[float, float]:
    """Smallest and largest value, of float32 the infinities.

    >>> limits("int8")
    (-128, 127)
    """
    if dtype == "float32":
        return float("-inf"), float("inf")
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def broadcast_at(x: te.Tensor, index: Index) -> Expr:
    """The element of `x` that numpy's broadcasting puts at `index` of the result."""
    return x(*broadcast_index(shape_of(x), index))


def broadcast_index(shape: Sequence[int], index: Index) -> list[Expr]:
    """The index into a tensor of `shape` that numpy's broadcasting puts at `index` of the result.

    >>> broadcast_index((1, 8), [5, 6, 7])
    [0, 7]
    """
    own = index[len(index) - len(shape) :]
    return [0 if extent == 1 else i for extent, i in zip(shape, own, strict=True)]


def need_float(op: Op, inputs: Sequence[te.Tensor | None]) -> None:
    """Refuses an operator on anything but float32.

    Raises:
        UnsupportedOperator: an input has another element type.
    """
    for x in inputs:
        if x is not None and str(x.dtype) != "float32":
            raise UnsupportedOperator(op, f"not defined on {x.dtype}")


def reduced(
    shape: Sequence[int],
    axes: Sequence[int],
    keepdims: bool,
    element: Callable[[Index], Expr],
    reducer: Callable[..., Expr],
    name: str,
) -> te.Tensor:
    """`reducer` over `axes` of the tensor of `shape` whose elements are `element(index)`."""
    kept = [1 if d in axes else n for d, n in enumerate(shape) if keepdims or d not in axes]
    steps = {axis: te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in axes}

    def body(index: Index) -> Expr:
        outer = iter(index)
        full: list[Expr] = []
        for dimension in range(len(shape)):
            if dimension not in steps:
                full.append(next(outer))
                continue
            full.append(steps[dimension].var)
            if keepdims:
                next(outer)
        value = element(full)
        return reducer(value, axis=list(steps.values())) if steps else value

    return compute(kept, body, name)
