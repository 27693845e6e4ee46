"""GELUs that an exporter wrote out are one operator again.

before::

    d = Div(x, 1.4142135)           # or Mul(x, 0.70710678)
    e = Erf(d)
    a = Add(e, 1.0)
    m = Mul(x, a)
    y = Mul(m, 0.5)                 # the three factors in any order

after: ``y = Gelu(x; approximate="none")``

A chain whose middle is read elsewhere stays. O(#operators).

Source: D. Hendrycks, K. Gimpel, Gaussian Error Linear Units, 2016, section 2.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import isclose, sqrt

from eecompile.ir import Graph, Op
from eecompile.targets.lowering.rewriting import Chains, joined_chains

__all__ = ["fuse_gelu"]


def fuse_gelu(graph: Graph) -> Graph:
    """The graph with every chain that is a GELU as one operator."""
    return joined_chains(graph, _Gelus(graph).gelu)


class _Gelus(Chains):
    def gelu(self, op: Op) -> Op | None:
        """The GELU whose last operator `op` is."""
        if op.kind != "Mul" or op.inputs[0] == op.inputs[1]:
            return None
        for split in (0, 1):
            inner = self.inside(op.inputs[split], "Mul")
            if inner is None:
                continue
            for x, factor, half in permutations((op.inputs[1 - split], *inner.inputs)):
                if self._is_number(half, 0.5) and self._is_error_function(factor, x):
                    if self.graph.types[x] != self.graph.types[op.outputs[0]]:
                        return None
                    return replace(op, kind="Gelu", inputs=(x,), attributes={"approximate": "none"})
        return None

    def _is_error_function(self, name: str, x: str) -> bool:
        """Whether a value is 1 + erf(x / sqrt(2))."""
        added = self.inside(name, "Add")
        if added is None:
            return False
        for value, one in (added.inputs, added.inputs[::-1]):
            erf = self.inside(value, "Erf")
            if erf is not None and self._is_number(one, 1.0):
                return self._is_scaled(erf.inputs[0], x)
        return False

    def _is_scaled(self, name: str, x: str) -> bool:
        """Whether a value is x / sqrt(2)."""
        divided = self.inside(name, "Div")
        if divided is not None:
            return divided.inputs[0] == x and self._is_number(divided.inputs[1], sqrt(2))
        product = self.inside(name, "Mul")
        return product is not None and any(
            value == x and self._is_number(scale, sqrt(0.5))
            for value, scale in (product.inputs, product.inputs[::-1])
        )

    def _is_number(self, name: str, value: float) -> bool:
        number = self.number(name)
        return number is not None and isclose(number, value, rel_tol=1e-6)
