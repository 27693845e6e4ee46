"""Step 5: one plain C function for each graph, that calls its kernels for sample after sample.

int32_t symbol(int64_t n, const void *weights, void *workspace,
const void *in0, ..., void *out0, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

__all__ = ["Address", "Call", "entry_function"]

_POINTER = PointerType(PrimType("void"))


@dataclass(frozen=True)
class Address:
    """A place: `base` is "weights", "workspace", "in0", "out0", ...; `stride` bytes a sample."""

    base: str
    offset: int = 0
    stride: int = 0


@dataclass(frozen=True)
class Call:
    """A kernel and the places it is called with."""

    symbol: str
    arguments: tuple[Address, ...]


def entry_function(symbol: str, calls: Sequence[Call], inputs: int, outputs: int) -> tirx.PrimFunc:
    """The function that runs `calls` for each of its n samples and returns 0."""
    n = tirx.Var("n", PrimType("int64"))
    names = ["weights", "workspace"]
    names += [f"in{i}" for i in range(inputs)] + [f"out{i}" for i in range(outputs)]
    pointers = {name: tirx.Var(name, _POINTER) for name in names}
    sample = tirx.Var("sample", PrimType("int64"))

    def place(address: Address) -> Any:
        pointer = pointers[address.base]
        offset = tirx.const(address.offset, "int64")
        if address.stride:
            offset = sample * tirx.const(address.stride, "int64") + offset
        elif not address.offset:
            return pointer
        return tirx.call_intrin(_POINTER, "tirx.handle_add_byte_offset", pointer, offset)

    body = [
        tirx.Evaluate(tirx.call_extern("int32", call.symbol, *map(place, call.arguments)))
        for call in calls
    ] or [tirx.Evaluate(tirx.const(0, "int32"))]
    run = tirx.SeqStmt(body) if len(body) > 1 else body[0]
    loop = tirx.For(sample, tirx.const(0, "int64"), n, tirx.ForKind.SERIAL, run)
    function = tirx.PrimFunc(
        [n, *pointers.values()],
        tirx.SeqStmt([loop, tirx.stmt.Return(tirx.const(0, "int32"))]),
        PrimType("int32"),
        tvm.ir.make_node("ir.DictAttrs"),
    )
    return function.with_attr("global_symbol", symbol)
