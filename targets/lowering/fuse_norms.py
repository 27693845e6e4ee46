"""Layer norms that an exporter wrote out are one operator again.

before::

    m = ReduceMean(x; axes=(2,), keepdims=1)
    d = Sub(x, m)
    q = Pow(d, 2.0)                 # or Mul(d, d)
    v = ReduceMean(q; axes=(2,), keepdims=1)
    e = Add(v, 1e-05)
    s = Sqrt(e)
    n = Div(d, s)
    t = Mul(n, weight)
    y = Add(t, bias)

after: ``y = LayerNormalization(x, weight, bias; axis=2, epsilon=1e-05)``

A chain whose middle is read elsewhere, or whose weight is computed or not as long as the row,
stays. O(#operators).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from eecompile.ir import Graph, Op
from eecompile.targets.lowering.rewriting import Chains, joined_chains

__all__ = ["fuse_norms"]


def fuse_norms(graph: Graph) -> Graph:
    """The graph with every chain that is a layer norm as one operator."""
    return joined_chains(graph, _Norms(graph).norm)


class _Norms(Chains):
    def norm(self, op: Op) -> Op | None:
        """The layer norm whose last operator `op` is."""
        if op.kind != "Add":
            return None
        for scaled, bias in (op.inputs, op.inputs[::-1]):
            product = self.inside(scaled, "Mul")
            if product is None or not self._is_row(bias):
                continue
            for normal, weight in (product.inputs, product.inputs[::-1]):
                centred = self._normalised(normal)
                if centred is None or not self._is_row(weight):
                    continue
                x, axis, epsilon = centred
                length = self.graph.types[x].shape[-1]
                sizes = {self.graph.constants[name].size for name in (weight, bias)}
                if sizes != {length} or self.graph.types[op.outputs[0]] != self.graph.types[x]:
                    continue
                attributes = {"axis": axis, "epsilon": epsilon, "stash_type": 1}
                inputs = (x, weight, bias)
                return replace(op, kind="LayerNormalization", inputs=inputs, attributes=attributes)
        return None

    def _is_row(self, name: str) -> bool:
        array = self.graph.constants.get(name)
        return array is not None and array.ndim == 1 and array.dtype == np.float32

    def _mean(self, name: str) -> str | None:
        """What a value is the mean of over the last axis."""
        op = self.inside(name, "ReduceMean")
        if op is None:
            return None
        rank = len(self.graph.types[op.inputs[0]].shape)
        attributes: Any = op.attributes
        last = tuple(attributes["axes"]) == (rank - 1,) and bool(attributes["keepdims"])
        return op.inputs[0] if last else None

    def _normalised(self, name: str) -> tuple[str, int, float] | None:
        """(x, axis, epsilon) if a value is (x - mean) / sqrt(variance + epsilon)."""
        quotient = self.inside(name, "Div")
        if quotient is None:
            return None
        distance, deviation = quotient.inputs
        root = self.inside(deviation, "Sqrt")
        total = self.inside(root.inputs[0], "Add") if root else None
        if total is None:
            return None
        for variance, small in (total.inputs, total.inputs[::-1]):
            epsilon, squared = self.number(small), self._mean(variance)
            if epsilon is None or squared is None:
                continue
            readers = self._squares(squared, distance)
            centred = self.inside(distance, "Sub", readers) if readers else None
            if centred is None or self._mean(centred.inputs[1]) != centred.inputs[0]:
                return None
            x = centred.inputs[0]
            return x, len(self.graph.types[x].shape) - 1, epsilon
        return None

    def _squares(self, name: str, distance: str) -> int:
        """How many uses of `distance` there are if `name` is its square; 0 if it is not."""
        power = self.inside(name, "Pow")
        if power is not None and power.inputs[0] == distance:
            return 2 if self.number(power.inputs[1]) == 2.0 else 0
        product = self.inside(name, "Mul")
        both = product is not None and set(product.inputs) == {distance}
        return 2 if both else 0
