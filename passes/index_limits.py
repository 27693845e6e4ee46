"""Numbers an input may hold where it picks rows of a table: the ids of a text's words."""

from __future__ import annotations

from typing import Any

from eecompile.ir import Graph

__all__ = ["index_limits"]

#: What hands numbers on as they are, from its first input.
_MOVING = frozenset("Cast Expand Gather Reshape Slice Tile Transpose".split())
_WHOLE = ("int64", "int32", "int16", "int8", "uint16", "uint8")


def index_limits(graph: Graph, name: str) -> tuple[int, int] | None:
    """Least and greatest index that every table picked from by an input has; None without tables.

    A negative index counts from a table's end, as in ONNX. Compiled code takes the nearest row
    for what is outside and never reads beyond a table; but what was meant cannot have been that.

    >>> from eecompile.ir import Graph, Op, TensorType
    >>> types = {"ids": TensorType("int64", (1, 4)), "words": TensorType("float32", (50, 8)),
    ...     "x": TensorType("float32", (1, 4, 8))}
    >>> look_up = Op("look_up", "Gather", ("words", "ids"), ("x",), {"axis": 0})
    >>> index_limits(Graph("g", ("ids", "words"), ("x",), (look_up,), types=types), "ids")
    (-50, 49)
    """
    same, least = {name}, None
    for op in graph.ops:
        if op.kind in _MOVING and op.inputs[0] in same:
            same.update(out for out in op.outputs if graph.types[out].dtype in _WHOLE)
        elif op.kind == "Gather" and op.inputs[1] in same:
            axis: Any = op.attributes["axis"]
            extent = graph.types[op.inputs[0]].shape[axis]
            least = extent if least is None else min(least, extent)
    return None if least is None else (-least, least - 1)
