"""What the translation rules of the FX host write neutral operators with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from eecompile.ir import Attribute, Op, TensorType
from eecompile.reference import evaluate
from eecompile.shapes import TypeMismatch, infer_types

__all__ = [
    "Array",
    "Builder",
    "Number",
    "Rules",
    "Untranslatable",
    "Value",
    "array_of",
    "batched",
    "dtype_name",
    "per_dimension",
    "type_of",
]

Array = np.ndarray[Any, Any]
Number = int | float | bool

#: Element types that a neutral graph does not have, and what stands for them.
_STAND_IN = {
    "float64": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "int16": "int32",
    "uint16": "int32",
}
_NEUTRAL = {"float32", "int64", "int32", "bool", "uint8", "int8"}


class Untranslatable(Exception):
    """The operator, as it is used here, has no neutral equivalent; the message says why."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph; `array` where its content is known at compile time."""

    name: str
    type: TensorType
    array: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Static shape."""
        return self.type.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.type.shape)

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.type.dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The neutral element type a torch type is computed in.

    Raises:
        Untranslatable: it has none.

    >>> dtype_name(torch.float64)
    'float32'
    """
    name = str(dtype).removeprefix("torch.")
    name = _STAND_IN.get(name, name)
    if name not in _NEUTRAL:
        raise Untranslatable(f"element type {name}")
    return name


def type_of(tensor: torch.Tensor) -> TensorType | None:
    """The neutral type of a tensor, None where its element type has none."""
    try:
        return TensorType(dtype_name(tensor.dtype), tuple(tensor.shape))
    except Untranslatable:
        return None


def array_of(tensor: torch.Tensor) -> Array:
    """A copy of the tensor as an array of its neutral element type."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: Array = tensor.numpy()
    wanted = _STAND_IN.get(array.dtype.name, array.dtype.name)
    return np.array(array, dtype=wanted, order="C", copy=True)


class Rules(dict[str, Callable[..., Value]]):
    """ATen overload -> rule(builder, *arguments in the schema's order).

    The rule of an operator with several results stands under ``overload#``; the number of the
    wanted result comes before the arguments.
    """

    def on(self, *overloads: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
        """Registers a rule for overloads, named without ``aten.``."""

        def register(rule: Callable[..., Value]) -> Callable[..., Value]:
            self.update((f"aten.{overload}", rule) for overload in overloads)
            return rule

        return register


@dataclass
class Builder:
    """Collects operators, node by node.

    A rule calls the methods below and returns the value that is the node's result. The last
    operator of a node takes the node's name; operators with constant inputs are folded.
    """

    ops: list[Op] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    out: TensorType = field(default_factory=lambda: TensorType("float32", ()))
    _constants: dict[str, Array] = field(default_factory=dict)
    _folded: dict[Any, Value] = field(default_factory=dict)
    _node: tuple[str, str, str] = ("", "", "")
    _first: int = 0
    _count: int = 0

    # --- one node -----------------------------------------------------------------------------

    def begin(self, name: str, scope: str, source: str, out: TensorType) -> None:
        """Start translating a node whose result has type `out`."""
        self._node, self._first, self._count, self.out = (
            (name, scope, source),
            len(self.ops),
            0,
            out,
        )

    def abandon(self) -> None:
        """Forget what the current node emitted."""
        for op in self.ops[self._first :]:
            self.types.pop(op.outputs[0])
        del self.ops[self._first :]

    def finish(self, result: Value) -> Value:
        """The result, named after the node if the node's last operator computes it."""
        name = self._node[0]
        if len(self.ops) == self._first or self.ops[-1].outputs != (result.name,):
            return result
        self.ops[-1] = replace(self.ops[-1], name=name, outputs=(name,))
        self.types[name] = self.types.pop(result.name)
        return replace(result, name=name)

    def used_constants(self, outputs: Iterable[str]) -> dict[str, Array]:
        """The constants that an operator reads or that are outputs."""
        used = {name for op in self.ops for name in op.inputs} | set(outputs)
        for name in self._constants.keys() - used:
            self.types.pop(name, None)
        return {name: array for name, array in self._constants.items() if name in used}

    # --- values -------------------------------------------------------------------------------

    def input(self, name: str, type_: TensorType) -> Value:
        """A value that comes from outside."""
        self.types[name] = type_
        return Value(name, type_)

    def constant(self, array: Any, dtype: str = "float32") -> Value:
        """A new constant."""
        content = np.asarray(array, dtype=dtype)
        key = (content.dtype.name, content.shape, content.tobytes())
        if key not in self._folded:
            self._folded[key] = Value(self._fresh(), TensorType.of(content), content)
        return self._folded[key]

    def register(self, value: Value) -> str:
        """The name to read `value` by, its content stored if it is constant."""
        if value.array is not None and value.name not in self._constants:
            self._constants[value.name] = value.array
            self.types[value.name] = value.type
        return value.name

    def value(self, x: Value | Number, dtype: str) -> Value:
        """`x` as a tensor of the element type."""
        return self.cast(x, dtype) if isinstance(x, Value) else self.constant(x, dtype)

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._node[0]}.{self._count}"

    # --- operators ----------------------------------------------------------------------------

    def op(self, kind: str, *inputs: Value | None, **attributes: Attribute) -> Value:
        """The result of a neutral operator.

        Raises:
            Untranslatable: the operator does not take inputs of these types.
        """
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        _, scope, source = self._node
        names = tuple(value.name if value else "" for value in inputs)
        fresh = self._fresh()
        op = Op(fresh, kind, names, (fresh,), attributes, scope, source)
        try:
            (type_,) = infer_types(op, [value.type if value else None for value in inputs])
        except TypeMismatch as error:
            raise Untranslatable(str(error)) from error
        if all(value is None or value.array is not None for value in inputs):
            return self._fold(op, type_, inputs)
        for value in inputs:
            if value is not None:
                self.register(value)
        self.ops.append(op)
        self.types[fresh] = type_
        return Value(fresh, type_)

    def _fold(self, op: Op, type_: TensorType, inputs: Sequence[Value | None]) -> Value:
        key = (op.kind, op.inputs, tuple(sorted(op.attributes.items())))
        if key not in self._folded:
            (array,) = evaluate(op, [value.array if value else None for value in inputs])
            self._folded[key] = Value(op.name, type_, array)
        return self._folded[key]

    def cast(self, x: Value, dtype: str) -> Value:
        """`x` with the element type."""
        return x if x.dtype == dtype else self.op("Cast", x, to=dtype)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """`x` with the shape, itself where it has that already."""
        wanted = tuple(int(dim) for dim in shape)
        return x if x.shape == wanted else self.op("Reshape", x, shape=wanted)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """`x` with its dimensions in another order."""
        if list(perm) == list(range(x.ndim)):
            return x
        return self.op("Transpose", x, perm=tuple(int(axis) for axis in perm))

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """`x` broadcast to the shape."""
        return x if x.shape == tuple(shape) else self.op("Expand", x, shape=tuple(shape))

    def slice(self, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        """`x[start:end:step]` along an axis; bounds in the neutral form."""
        if (start, end, step) == (0, x.shape[axis], 1):
            return x
        return self.op("Slice", x, starts=(start,), ends=(end,), axes=(axis,), steps=(step,))

    def reduce(self, kind: str, x: Value, axes: Iterable[int], keepdims: bool) -> Value:
        """`kind` over the axes, themselves normalised and sorted."""
        chosen = tuple(sorted(int(axis) for axis in axes))
        if not chosen:
            return x
        return self.op(kind, x, axes=chosen, keepdims=int(keepdims))

    def binary(self, kind: str, a: Value | Number, b: Value | Number, dtype: str) -> Value:
        """An element-wise operator of two tensors or numbers, computed in `dtype`."""
        return self.op(kind, self.value(a, dtype), self.value(b, dtype))


def per_dimension(x: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number a dimension, given one for all or a list (possibly of one).

    >>> per_dimension(3, 2), per_dimension([1, 2], 2)
    ((3, 3), (1, 2))
    """
    values = (x,) if isinstance(x, int) else tuple(x)
    return values * rank if len(values) == 1 else values


def batched(b: Builder, x: Value, rank: int) -> Value:
    """`x` with a leading dimension of 1, where torch was given a sample without one."""
    return x if x.ndim == rank + 2 else b.reshape(x, (1, *x.shape))
