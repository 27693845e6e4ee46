"""ONNX nodes to neutral operators, one node at a time, with types and constants known throughout.

Every value has a static type before the next node is looked at, and whatever has constant inputs
is computed at once (`reference.evaluate`). Shape arithmetic therefore vanishes, and a branch whose
condition is known is inlined. What one ONNX operator becomes stands in `onnx_operators`,
`onnx_layers`, `onnx_quantised` and `onnx_recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.passes.host import HostError, Problem, handed_on
from eecompile.passes.onnx_edit import bodies, reads
from eecompile.passes.onnx_scopes import Scopes
from eecompile.reference import evaluate
from eecompile.shapes import infer_types

__all__ = [
    "Handler",
    "Integers",
    "Node",
    "Refused",
    "Translation",
    "element_name",
    "neutral_dtype",
    "to_array",
    "translate",
]

#: Elements a tensor may have that is computed at translation time.
_LARGEST_FOLDED = 1 << 26
#: Operators whose result is empty only where their windows are larger than what they slide over.
_WINDOWS = frozenset(("AveragePool", "Conv", "MaxPool"))

_DTYPES = {
    **{name: name for name in ("float32", "int64", "int32", "bool", "uint8", "int8")},
    **{"uint16": "uint16", "int16": "int16", "uint32": "int64", "uint64": "int64"},
    **{name: "float32" for name in ("float64", "float16", "bfloat16")},
}


class Refused(Exception):
    """A handler cannot translate its node; the message says why."""


def element_name(element_type: int) -> str:
    """Numpy's name for an ONNX element type, ONNX's own where numpy has none."""
    known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number.get(element_type)
    name = known.name.lower() if known else f"type {element_type}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def neutral_dtype(element_type: int) -> str:
    """The neutral dtype for an ONNX element type.

    Raises:
        Refused: strings, complex numbers, and floats or integers under 8 bits.
    """
    name = element_name(element_type)
    if name not in _DTYPES:
        raise Refused(f"element type `{name}` is not supported")
    return _DTYPES[name]


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """The tensor's value in its neutral dtype.

    Raises:
        Refused: its element type has none.
    """
    dtype = neutral_dtype(tensor.data_type)
    return numpy_helper.to_array(tensor).astype(dtype, copy=False)


@dataclass(frozen=True)
class Integers:
    """What a dequantised value, or a product of two, was before it was scaled.

    Products of these, summed in float32, are exact up to 24 bits in whatever order they are
    summed; so they are multiplied first and scaled after, as integer kernels do. Scaled first,
    sums that differ in the last bit would be rounded to different quantised numbers.

    Attributes:
        value: whole numbers, zero point subtracted, as float32.
        scale: one element, or one for each position along `axis`.
        axis: of `value`.
        summed: these are sums of products: whole, but too large to be multiplied exactly again.
    """

    value: str
    scale: np.ndarray
    axis: int
    summed: bool = False


class Node:
    """An ONNX node as its handler sees it, and the only way a handler adds operators."""

    def __init__(self, translator: _Translator, proto: onnx.NodeProto, inputs: tuple[str, ...]):
        self._translator = translator
        self.kind = proto.op_type
        self.outputs = tuple(proto.output)
        self.inputs = inputs  #: neutral value names, "" where absent
        self.version = translator.opsets.get(proto.domain, 1)
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self._prefix = next(filter(None, proto.output), proto.name)
        self._count = 0

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value: text decoded, sequences as tuples."""
        value = self._attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if isinstance(value, list):
            return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
        return value

    def has(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def uses_output(self, index: int) -> bool:
        """Whether the output has a name, and so may be read."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def type(self, index: int) -> TensorType:
        """The type of an input."""
        return self.type_of(self.inputs[index])

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input."""
        return self.type(index).shape

    def type_of(self, value: str) -> TensorType:
        """The type of any value."""
        return self._translator.types[value]

    def known(self, index: int) -> np.ndarray | None:
        """The input's value where it is constant, else None."""
        return self._translator.constants.get(self.inputs[index]) if self.has(index) else None

    def constant(self, index: int, what: str) -> np.ndarray:
        """The input's value.

        Raises:
            Refused: it depends on the network's input.
        """
        value = self.known(index)
        if value is None:
            raise Refused(f"its {what} must not depend on the network's input")
        return value

    def ints(self, index: int, what: str) -> tuple[int, ...]:
        """The values of an integer input that must be constant."""
        return tuple(int(v) for v in self.constant(index, what).reshape(-1))

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        rank = len(self.shape()) if rank is None else rank
        axis: int = self.attribute("axis", default)
        if not -rank <= axis < max(rank, 1):
            raise Refused(f"axis {axis} is out of range for rank {rank}")
        return axis % rank if rank else 0

    def add(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a neutral operator; returns its result (a constant where all inputs are)."""
        self._count += 1
        name = f"{self._prefix}.{self._count}"
        return self._translator.add(Op(name, kind, inputs, (name,), attributes))

    def put(self, array: np.ndarray) -> str:
        """A new constant."""
        self._count += 1
        return self._translator.put(f"{self._prefix}.{self._count}", np.asarray(array))

    def like(self, value: str, number: float) -> str:
        """A scalar constant of the element type of `value`."""
        return self.put(np.array(number, self.type_of(value).dtype))

    def reshape(self, value: str, shape: Iterable[int]) -> str:
        """`value` in another shape; itself where it has that shape."""
        wanted = tuple(int(dim) for dim in shape)
        if self.type_of(value).shape == wanted:
            return value
        return self.add("Reshape", value, shape=wanted)

    def transpose(self, value: str, perm: Sequence[int]) -> str:
        """`value` with permuted dimensions; itself where they stay in place."""
        if tuple(perm) == tuple(range(len(perm))):
            return value
        return self.add("Transpose", value, perm=tuple(perm))

    def cast(self, value: str, dtype: str) -> str:
        """`value` in another element type; itself where it has that type."""
        return value if self.type_of(value).dtype == dtype else self.add("Cast", value, to=dtype)

    def integers(self, value: str) -> Integers | None:
        """The whole numbers that `value` is a multiple of, where it was dequantised."""
        return self._translator.integers.get(value)

    def set_integers(self, value: str, integers: Integers) -> str:
        """Remember that `value` is ``integers.value * integers.scale``; returns `value`."""
        self._translator.integers[value] = integers
        return value

    def inline(self, body: onnx.GraphProto) -> tuple[str, ...]:
        """Translate a subgraph in place of the node; returns its outputs' values."""
        return self._translator.inline(body)


Handler = Callable[[Node], "str | Sequence[str]"]


@dataclass(frozen=True)
class Translation:
    """What an ONNX model became.

    Attributes:
        graph: the neutral graph, dead operators of the host included.
        values: ONNX name of every value of the main graph -> neutral value.
        nodes: name of every node of the main graph with one result -> that neutral value.
        modules: module path -> the neutral value the module hands on.
    """

    graph: Graph
    values: Mapping[str, str]
    nodes: Mapping[str, str]
    modules: Mapping[str, str]


def translate(
    model: onnx.ModelProto, handlers: Mapping[tuple[str, str], Handler], name: str
) -> Translation:
    """The neutral graph of a checked model whose inputs have static shapes and named nodes.

    Raises:
        HostError: one problem for each node that cannot be translated; nodes that only depend on
            such a node are looked at as far as their operator goes.
    """
    graph = model.graph
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    walk = _Translator(handlers, opsets, set(_value_names(graph)), Scopes(graph))
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for value in inputs:
        walk.enter(value)
    nodes = walk.graph(graph)
    if walk.problems:
        raise HostError(*walk.problems)
    values = dict(walk.values)
    outputs = tuple(values[output.name] for output in graph.output)
    full = Graph(
        name,
        tuple(value.name for value in inputs),
        outputs,
        tuple(walk.ops),
        walk.constants,
        walk.types,
    )
    # What the host itself computes in vain stays, to be seen as such; what only the translation
    # made needless (a scaled copy that nothing reads) goes.
    live = _live_names(graph)
    idle = {value for name, value in values.items() if name not in live}
    kept = full.pruned({*outputs, *idle} - set(walk.constants) | set(outputs))
    modules = handed_on(
        ((walk.scopes.of(node), reads(node), _varying(node, walk)) for node in graph.node),
        (output.name for output in graph.output),
    )
    modules = {p: values[name] for p, name in modules.items() if p not in walk.scopes.fused}
    return Translation(replace(kept, outputs=outputs), values, nodes, modules)


def _varying(node: onnx.NodeProto, walk: _Translator) -> list[str]:
    """The node's results that depend on the network's input."""
    return [name for name in node.output if name and walk.values[name] not in walk.constants]


def _value_names(graph: onnx.GraphProto) -> Iterable[str]:
    """Every name the model gives to a value, subgraphs included."""
    for entry in (*graph.input, *graph.initializer):
        yield entry.name
    for node in graph.node:
        yield from node.output
        for body in bodies(node):
            yield from _value_names(body)


def _live_names(graph: onnx.GraphProto) -> set[str]:
    """The values that some output of the model depends on."""
    live = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if not live.isdisjoint(node.output):
            live.update(reads(node))
            live.update(node.output)
    return live


class _Cascade(Exception):
    """A node inside could not be translated and has been reported."""


@dataclass
class _Translator:
    handlers: Mapping[tuple[str, str], Handler]
    opsets: Mapping[str, int]
    reserved: set[str]  # names the model uses
    scopes: Scopes
    values: dict[str, str] = field(default_factory=dict)  # ONNX name -> neutral value
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    poisoned: set[str] = field(default_factory=set)  # values that a refused node should have given
    node_names: set[str] = field(default_factory=set)
    born: dict[str, int] = field(default_factory=dict)  # neutral value -> the clock at its making
    clock: int = 0
    integers: dict[str, Integers] = field(default_factory=dict)

    # -- what handlers use ---------------------------------------------------------------------

    def put(self, name: str, array: np.ndarray, own: bool = False) -> str:
        name = self._unused(name, own)
        self.constants[name] = array
        self._type(name, TensorType.of(array))
        return name

    def add(self, op: Op) -> str:
        types = [self.types[name] if name else None for name in op.inputs]
        (result,) = infer_types(op, types)
        if all(name in self.constants for name in op.inputs if name):
            if result.size > _LARGEST_FOLDED:
                raise Refused(f"it computes a constant of {result.size} elements")
            arrays = [self.constants[name] if name else None for name in op.inputs]
            return self.put(op.outputs[0], np.asarray(evaluate(op, arrays)[0]))
        if result.size == 0:
            return self._empty(op, result)
        name = self._unused(op.outputs[0])
        self._type(name, result)
        self.ops.append(replace(op, outputs=(name,)))
        return name

    def _empty(self, op: Op, result: TensorType) -> str:
        """A value without elements is known; but who slides windows wants to see something."""
        if op.kind in _WINDOWS:
            raise Refused(f"no window fits into {self.types[op.inputs[0]]}")
        return self.put(op.outputs[0], np.zeros(result.shape, result.dtype))

    def inline(self, body: onnx.GraphProto) -> tuple[str, ...]:
        outer, self.values = self.values, dict(self.values)
        try:
            self.graph(body)
            names = [output.name for output in body.output]
            if not self.poisoned.isdisjoint(names):
                raise _Cascade
            return tuple(self.values[name] for name in names)
        finally:
            self.values = outer

    # -- the walk ------------------------------------------------------------------------------

    def enter(self, value: onnx.ValueInfoProto) -> None:
        """Makes a graph input known."""
        tensor = value.type.tensor_type
        try:
            dtype = neutral_dtype(tensor.elem_type)
        except Refused as why:
            self._refuse_value("Input", value.name, str(why))
            return
        self._type(value.name, TensorType(dtype, tuple(d.dim_value for d in tensor.shape.dim)))
        self.values[value.name] = value.name

    def graph(self, graph: onnx.GraphProto) -> dict[str, str]:
        """Translates a graph's nodes; returns node name -> value."""
        for tensor in graph.initializer:
            try:
                self.values[tensor.name] = self.put(tensor.name, to_array(tensor), own=True)
            except (
                Refused,
                ValueError,
            ) as why:  # ValueError: not as many numbers as its shape says
                self._refuse_value("Weight", tensor.name, str(why))
        return {node.name: value for node in graph.node if (value := self._node(node))}

    def _node(self, proto: onnx.NodeProto) -> str | None:
        operator = f"{proto.domain}::{proto.op_type}" if proto.domain else proto.op_type
        handler = self.handlers.get((proto.domain, proto.op_type))
        if handler is None:
            self._refuse(proto.name, operator)
        if handler is None or not self.poisoned.isdisjoint(proto.input):
            self.poisoned.update(filter(None, proto.output))
            return None
        inputs = tuple(self.values[name] if name else "" for name in proto.input)
        first_op = len(self.ops)
        self.clock = clock = self.clock + 1
        try:
            found = handler(Node(self, proto, inputs))
        except (_Cascade, Refused, ValueError, IndexError, OverflowError, ZeroDivisionError) as why:
            # TypeMismatch is a ValueError; the others come from attributes that make no sense.
            if not isinstance(why, _Cascade):
                self._refuse(proto.name, operator, str(why))
            self.poisoned.update(filter(None, proto.output))
            del self.ops[first_op:]
            return None
        results = (found,) if isinstance(found, str) else tuple(found)
        self._bind(proto, results, first_op, clock)
        used = [name for name in proto.output if name]
        return self.values[used[0]] if len(used) == 1 else None

    def _bind(
        self, proto: onnx.NodeProto, results: tuple[str, ...], first_op: int, clock: int
    ) -> None:
        """Gives the node's results and operators the names the host knows them by."""
        renamed: dict[str, str] = {}
        for result, output in zip(results, proto.output, strict=False):
            if output and self.born[result] >= clock and result not in renamed:
                renamed[result] = self._unused(output, own=True)
                self._type(renamed[result], self.types.pop(result))
                if result in self.constants:
                    self.constants[renamed[result]] = self.constants.pop(result)
                if result in self.integers:
                    self.integers[renamed[result]] = self.integers.pop(result)
            if output:
                self.values[output] = renamed.get(result, result)
        mine = [_renamed(op, renamed) for op in self.ops[first_op:]]
        if proto.op_type != "If":  # what was inlined has names and scopes of its own
            scope = self.scopes.of(proto)
            last = len(mine) - 1
            for i, op in enumerate(mine):
                name = self._unused_node(proto.name if i == last else f"{proto.name}.{i + 1}")
                mine[i] = replace(op, name=name, scope=scope, source=proto.name)
        self.ops[first_op:] = mine

    def _type(self, name: str, type_: TensorType) -> None:
        self.types[name] = type_
        self.born[name] = self.clock

    def _unused(self, name: str, own: bool = False) -> str:
        """`name`, numbered where it is taken; `own`: it is the model's name for this very value."""
        candidate, n = name, 0
        while candidate in self.types or (candidate in self.reserved and not (own and n == 0)):
            n += 1
            candidate = f"{name}_{n}"
        return candidate

    def _unused_node(self, name: str) -> str:
        candidate, n = name, 0
        while candidate in self.node_names:
            n += 1
            candidate = f"{name}_{n}"
        self.node_names.add(candidate)
        return candidate

    def _refuse(self, node: str, operator: str, why: str = "") -> None:
        message = f"Operator `{operator}` of node `{node}` is not supported"
        message += f": {why}" if why else ""
        self.problems.append(Problem("unsupported-operator", message, node, operator))

    def _refuse_value(self, what: str, name: str, why: str) -> None:
        problem = Problem("unsupported-operator", f"{what} `{name}` cannot be used: {why}")
        self.problems.append(problem)
        self.poisoned.add(name)


def _renamed(op: Op, names: Mapping[str, str]) -> Op:
    return replace(
        op,
        inputs=tuple(names.get(name, name) for name in op.inputs),
        outputs=tuple(names.get(name, name) for name in op.outputs),
    )
