"""Loops written out by hand, around tensor expressions.

Where vectors, tails and phases decide over the time, a kernel's loops are made here one by one
instead of being scheduled. What is computed inside them still is the operators' own definition:
`element` writes a tensor expression out at one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.ir import PrimType

from eecompile.targets.lowering.notes import MOST
from eecompile.targets.lowering.spec import (
    Argument,
    KernelSpec,
    Output,
    Passed,
    Scheduled,
    Scratch,
)

__all__ = [
    "Kernel",
    "Reader",
    "Registers",
    "element",
    "in_vectors",
    "loop",
    "named",
    "parallel",
    "place_in",
    "reader",
    "sequence",
]

Expr = Any
Stmt = Any
#: The element at an index.
Reader = Callable[..., Expr]

_KINDS = {
    "serial": tirx.ForKind.SERIAL,
    "vector": tirx.ForKind.VECTORIZED,
    "unrolled": tirx.ForKind.UNROLLED,
}


def _int(value: int) -> Expr:
    return tirx.const(value, "int32")


# --- Loops ----------------------------------------------------------------------------------------


def loop(
    extent: int | Expr, body: Callable[[Expr], Stmt], kind: str = "serial", most: int | None = None
) -> Stmt:
    """``for i in range(extent): body(i)``; a loop of one iteration is its body.

    Args:
        extent: iterations.
        body: what is done.
        kind: "serial", "vector" or "unrolled".
        most: iterations that count as its work where the extent depends on data.
    """
    if isinstance(extent, int):
        if extent == 1:
            return body(_int(0))
        extent = _int(extent)
    variable = tirx.Var("i", PrimType("int32"))
    notes = None if most is None else {MOST: _int(most)}
    made = body(variable)
    return tirx.For(variable, _int(0), extent, _KINDS[kind], made, annotations=notes)


def parallel(
    extents: Sequence[int], body: Callable[[list[Expr]], Stmt], first: Expr | None = None
) -> Stmt:
    """A phase: one loop that threads share, over all places of a box, the last dimension fastest.

    It is a loop where there is one place only, too: what is named and allocated in it is its own.

    Args:
        extents: of the box.
        body: what is done at a place.
        first: the first extent where it depends on data and is `extents[0]` at most.
    """

    def at(flat: Expr) -> Stmt:
        place: list[Expr] = []
        for axis, extent in reversed(list(enumerate(extents))):
            if axis == 0 and first is not None:
                place.append(flat)
                break
            place.append(tirx.floormod(flat, extent) if extent > 1 else _int(0))
            flat = tirx.floordiv(flat, extent) if extent > 1 else flat
        return body(place[::-1])

    count = prod(extents)
    variable = tirx.Var("i", PrimType("int32"))
    made = at(variable if count > 1 else _int(0))
    shared: Expr = _int(count)
    if first is not None:
        shared = first * prod(extents[1:])
    notes = {MOST: _int(count)} if first is not None else None
    return tirx.For(variable, _int(0), shared, tirx.ForKind.PARALLEL, made, annotations=notes)


def place_in(box: Sequence[int], flat: Expr) -> list[Expr]:
    """The index of an element of a box by its number, the last dimension fastest."""
    place: list[Expr] = []
    for axis, extent in enumerate(box):
        below = prod(box[axis + 1 :])
        part = tirx.floordiv(flat, below) if below > 1 else flat
        place.append(tirx.floormod(part, extent) if axis else part)
    return place


def sequence(statements: Iterable[Stmt]) -> Stmt:
    """Statements one after another."""
    flat = [statement for statement in statements if statement is not None]
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def in_vectors(
    extent: int, lanes: int, body: Callable[[Expr], Stmt], *, first: int = 0, unroll: int = 4
) -> Stmt:
    """``body(c)`` for every c in [first, first + extent): vectors, shorter ones for what is left.

    Before -> after, with 16 lanes::

        for c in 0 .. 37  ->  for v in 0 .. 2: vector(16 v, lanes 16); vector(32, lanes 4); c = 36
    """
    parts, width, end = [], lanes, first + extent
    while first < end:
        count = (end - first) // width
        if count:
            parts.append(_vectors(first, count, width, body, unroll))
        first += count * width
        width //= 2
    return sequence(parts)


def _vectors(first: int, count: int, width: int, body: Callable[[Expr], Stmt], unroll: int) -> Stmt:
    def vector(start: Expr) -> Stmt:
        return loop(width, lambda lane: body(start + lane), "vector")

    if count <= unroll:
        return sequence([vector(_int(first + i * width)) for i in range(count)])
    return loop(count, lambda i: vector(i * width + first))


def named(value: Expr) -> tuple[Expr, Stmt]:
    """A name for a value, and the statement that computes it once."""
    variable = tirx.Var("value", value.ty)
    return variable, tirx.Bind(variable, value)


class Registers:
    """A small array of `count` vectors: in registers while every index into it is constant."""

    def __init__(self, count: int, lanes: int, dtype: str = "float32") -> None:
        """`count` vectors of `lanes` elements; `made` is the statement that makes them."""
        self.buffer = tirx.decl_buffer((count * lanes,), dtype, "registers", scope="local")
        self.made = tirx.AllocBuffer(self.buffer)
        self.lanes = lanes

    def __getitem__(self, index: Expr) -> Expr:
        """An element, counted through all vectors."""
        return tirx.BufferLoad(self.buffer, [index])

    def store(self, index: Expr, value: Expr) -> Stmt:
        """Sets an element."""
        return tirx.BufferStore(self.buffer, value, [index])


# --- Kernels --------------------------------------------------------------------------------------


class Kernel:
    """A kernel's parameters while its loops are written: operands, packed ones, scratch, result."""

    def __init__(self, spec: KernelSpec, unread: Iterable[int] = ()) -> None:
        """Parameters for the operands, but those `unread` and those whose value is in the code."""
        self.spec = spec
        self.tensors = spec.tensors()
        self.known: dict[Any, Reader] = {}
        self._parameters: list[tuple[Any, Argument]] = []
        skipped = set(unread) - {i for step in spec.after for i in step.inputs}
        for index, operand in enumerate(spec.operands):
            if operand.number is None and index not in skipped:
                buffer = self.add(operand.type.shape, operand.type.dtype, Passed(index))
                self.known[self.tensors[index].op] = reader(buffer)
        self._result = tirx.decl_buffer(spec.result.shape, spec.result.dtype, "result")
        self._anchor = te.placeholder(spec.anchor.type.shape, spec.anchor.type.dtype, name="anchor")
        self._ending = spec.epilogue(self.tensors, self._anchor)

    def add(self, shape: Sequence[int], dtype: str, argument: Argument) -> Any:
        """A further parameter."""
        buffer = tirx.decl_buffer(tuple(shape), dtype, f"p{len(self._parameters)}")
        self._parameters.append((buffer, argument))
        return buffer

    def scratch(self, shape: Sequence[int], dtype: str = "float32") -> Any:
        """Memory that one phase hands to the next."""
        return self.add(shape, dtype, Scratch(prod(shape) * np.dtype(dtype).itemsize))

    def operand(self, index: int) -> Reader:
        """What reads an operand."""
        return lambda *at: element(self.tensors[index], at, self.known)

    def bias(self, operands: Iterable[int]) -> Reader:
        """What reads an output channel's bias: of the operand that is there, or zeros."""
        found = next((index for index in operands if index >= 0), None)
        if found is None:
            return lambda c: tirx.const(0, self.spec.anchor.type.dtype)
        read, single = self.operand(found), self.spec.operands[found].type.size == 1
        return lambda c: read(_int(0) if single else c)

    def writing(self, spec: KernelSpec) -> Callable[[Sequence[Expr]], Stmt]:
        """What stores the result of another kernel of the same operands, its anchor not read."""
        ending = spec.epilogue(self.tensors, self._anchor)

        def write(index: Sequence[Expr]) -> Stmt:
            return tirx.BufferStore(self._result, element(ending, index, self.known), list(index))

        return write

    def write(self, index: Sequence[Expr], anchor: Reader) -> Stmt:
        """Stores the kernel's result at `index`; `anchor` reads what the first operator makes."""
        value = element(self._ending, index, {**self.known, self._anchor.op: anchor})
        return tirx.BufferStore(self._result, value, list(index))

    def finished(self, *phases: Stmt) -> Scheduled:
        """The kernel that runs `phases` one after the other."""
        parameters = [*self._parameters, (self._result, Output())]
        attributes = tvm.ir.make_node("ir.DictAttrs")
        function = tirx.PrimFunc([p for p, _ in parameters], sequence(phases), None, attributes)
        return Scheduled(function, tuple(argument for _, argument in parameters))


def reader(buffer: Any) -> Reader:
    """What reads a buffer."""
    return lambda *index: tirx.BufferLoad(buffer, list(index))


def element(tensor: te.Tensor, index: Sequence[Expr], known: Mapping[Any, Reader]) -> Expr:
    """What stands at `index` of a tensor expression.

    Args:
        tensor: element-wise over tensors of `known`; stages in between are written out.
        index: one expression for each dimension.
        known: operation of a tensor -> what reads it.
    """
    read = known.get(tensor.op)
    if read is not None:
        return read(*index)
    places = {axis.var: place for axis, place in zip(tensor.op.axis, index, strict=True)}

    def call(node: Any, mutate: Any) -> Any:
        if getattr(node.op, "name", "") != "te.tensor_load":
            return mutate.default_mutate(node)
        source, *at = node.args
        return element(source, [mutate.mutate(i) for i in at], known)

    def let(node: Any, mutate: Any) -> Any:
        # NOTE: a name may stand for one value only, and an expression may be written out twice.
        fresh = tirx.Var(node.var.name, node.var.ty)
        value = mutate.mutate(node.value)
        places[node.var] = fresh
        return tirx.Let(fresh, value, mutate.mutate(node.body))

    def variable(node: Any, mutate: Any) -> Any:
        return places.get(node, node)

    return tvm_ffi.structural_mutate(
        tensor.op.body[0], [(tvm.ir.Call, call), (tirx.Let, let), (tirx.Var, variable)]
    )
