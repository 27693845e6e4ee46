"""The neutral graph every host is read into and every later stage works on.

A `Graph` is a small, frozen, typed operator graph. Its operators are those of `operators.py`:
ONNX's names and semantics, with every parameter that must be known at compile time (axes, pads,
shapes, perms ...) held as an attribute and every tensor held as an input. The torch.export/FX
host and the ONNX host both give one, so that cutting, costing and lowering are written once.

Shapes are static and include the source network's own leading dimension (1 sample a call): a
compiled function processes ``n`` samples by running the graph once per sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["Attribute", "Graph", "Op", "TensorType"]

#: What an operator's attribute may hold. Sequences are tuples, so that operators compare by value.
Attribute = int | float | str | bool | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (numpy's name) and static shape of a value.

    >>> str(TensorType("float32", (1, 3, 32, 32)))
    'float32[1, 3, 32, 32]'
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.size * np.dtype(self.dtype).itemsize

    @classmethod
    def of(cls, array: np.ndarray) -> TensorType:
        """The type of a numpy array."""
        return cls(array.dtype.name, tuple(array.shape))


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True, slots=True)
class Op:
    """One operator. `kind` is a key of `operators.OPERATORS`.

    An absent optional input is the empty string. `scope` is the module path the operator comes
    from (``layer1.8.conv1``), empty where the host recorded none; `source` is where the host says
    it was written (a file and line, or an ONNX node's name), for messages only.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    scope: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", _frozen(self.attributes))


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in topological order, each value produced once.

    Attributes:
        name: identifier, used for symbols and messages.
        inputs, outputs: value names, in the caller's order.
        ops: topologically ordered operators.
        constants: value name -> array, for weights and folded tensors.
        types: value name -> type, for every input, constant and operator output.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)
    types: Mapping[str, TensorType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", _frozen(self.constants))
        object.__setattr__(self, "types", _frozen(self.types))

    def producer(self) -> dict[str, Op]:
        """Value name -> the operator that computes it. O(#ops)."""
        return {out: op for op in self.ops for out in op.outputs}

    def users(self) -> dict[str, list[Op]]:
        """Value name -> the operators that read it, in order. O(#ops)."""
        users: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(filter(None, op.inputs)):
                users.setdefault(name, []).append(op)
        return users

    def renamed(self, names: Mapping[str, str], name: str | None = None) -> Graph:
        """The same graph with values called otherwise, and itself called `name` where given."""

        def new(value: str) -> str:
            return names.get(value, value)

        ops = tuple(
            replace(op, inputs=tuple(map(new, op.inputs)), outputs=tuple(map(new, op.outputs)))
            for op in self.ops
        )
        return Graph(
            name or self.name,
            tuple(map(new, self.inputs)),
            tuple(map(new, self.outputs)),
            ops,
            {new(value): array for value, array in self.constants.items()},
            {new(value): type_ for value, type_ in self.types.items()},
        )

    def pruned(self, outputs: Iterable[str] | None = None) -> Graph:
        """The same graph with only what `outputs` (default: its own) need. Inputs are kept."""
        wanted = tuple(self.outputs if outputs is None else outputs)
        live, kept = set(wanted), []
        for op in reversed(self.ops):
            if live.isdisjoint(op.outputs):
                continue
            kept.append(op)
            live.update(filter(None, op.inputs))
        kept.reverse()
        constants = {k: v for k, v in self.constants.items() if k in live}
        named = live | set(self.inputs) | {out for op in kept for out in op.outputs}
        types = {k: v for k, v in self.types.items() if k in named}
        return replace(self, outputs=wanted, ops=tuple(kept), constants=constants, types=types)
