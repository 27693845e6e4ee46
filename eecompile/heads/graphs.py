"""Writing small neutral graphs, with every value's type inferred as it is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eecompile.ir import Attribute, Graph, Op, TensorType
from eecompile.shapes import infer_types

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Collects operators of a graph with one input, or more.

    >>> builder = GraphBuilder("double", "feature", TensorType("float32", (1, 4)))
    >>> two = builder.constant("two", np.float32([2.0]))
    >>> graph = builder.build(builder.op("Mul", "feature", two, output="doubled"))
    >>> graph.outputs, str(graph.types["doubled"])
    (('doubled',), 'float32[1, 4]')
    """

    def __init__(self, name: str, feature: str, type_: TensorType) -> None:
        self.name, self.feature = name, feature
        self._types = {feature: type_}
        self._constants: dict[str, np.ndarray[Any, Any]] = {}
        self._ops: list[Op] = []
        self._more: list[str] = []

    def shape(self, value: str) -> tuple[int, ...]:
        """Static shape of a value."""
        return self._types[value].shape

    def input(self, name: str, type_: TensorType) -> str:
        """Add a further input; returns its name."""
        self._more.append(name)
        self._types[name] = type_
        return name

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Add a weight; returns its name."""
        self._constants[name] = np.ascontiguousarray(array)
        self._types[name] = TensorType.of(array)
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Attribute) -> str:
        """Add an operator; returns the name of its result.

        Raises:
            TypeMismatch: the operator does not accept these inputs.
        """
        output = output or f"{kind.lower()}_{len(self._ops)}"
        op = Op(output, kind, inputs, (output,), attributes)
        (self._types[output],) = infer_types(op, [self._types[name] for name in inputs])
        self._ops.append(op)
        return output

    def conv(self, x: str, weight: str, bias: str, *, pads: tuple[int, ...] = (0, 0, 0, 0)) -> str:
        """Add a 2-D convolution of stride 1; returns the name of its result."""
        one = (1, 1)
        return self.op("Conv", x, weight, bias, pads=pads, strides=one, dilations=one, group=1)

    def classifier(self, row: str, parameters: Mapping[str, np.ndarray[Any, Any]]) -> Graph:
        """The graph that ends with ``logits = row @ weight + bias``."""
        product = self.op("MatMul", row, self.constant("weight", parameters["weight"]))
        bias = self.constant("bias", parameters["bias"])
        return self.build(self.op("Add", product, bias, output="logits"))

    def build(self, *outputs: str) -> Graph:
        """The graph whose outputs are these values."""
        return Graph(
            self.name,
            (self.feature, *self._more),
            outputs,
            tuple(self._ops),
            self._constants,
            self._types,
        )
