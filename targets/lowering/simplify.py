"""Step 1: fewer operators that compute the same.

1. Operators of constants become constants.
2. Operators that do nothing disappear; a graph's output always keeps its name.
3. Two reshapes, or two transposes, in a row become one. A transpose that only moves dimensions of
   size 1 is a reshape. A reshape behind a product with a constant matrix, and behind what follows
   that row by row, moves ahead of the product, if it keeps the rows.
4. A transposed convolution becomes a convolution over its spread input (attribute ``spread``).
5. Zero padding moves into the convolution that alone reads it.
6. Batch normalisation, and products and sums with one constant per channel, move into the weights
   of the convolution or matrix product that alone feeds them; elsewhere batch normalisation is one
   product and one sum. Whole-number weights (quantised ones) are left alone: their sums are exact.
7. Factors that scale an operand of a matrix product as a whole scale its result instead, where
   they are part of the product's own kernel: ``(a * s) @ b -> (a @ b) * s``.

Shapes and dtypes of the outputs do not change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from eecompile.ir import Graph, Op
from eecompile.reference import evaluate
from eecompile.targets.lowering.rewriting import GraphEditor, moves_nothing
from eecompile.targets.lowering.simplify_products import ProductRules

__all__ = ["simplify"]

#: Constants that folding may create at most: beyond it the operator stays (Tile, Expand ...).
_FOLD_LIMIT = 1 << 26
#: Rounds at most. Every rule makes the graph smaller, so that few chains need more than three.
_ROUNDS = 8


def simplify(graph: Graph) -> Graph:
    """The graph after all rules, applied until none fires. O(#operators) a round."""
    graph = graph.pruned()
    for _ in range(_ROUNDS):
        simpler = _round(graph)
        if _shape_of(simpler) == _shape_of(graph):
            return simpler
        graph = simpler
    return graph


def _shape_of(graph: Graph) -> list[tuple[Any, ...]]:
    return [(op.kind, op.inputs, op.outputs, tuple(op.attributes.items())) for op in graph.ops]


def _round(graph: Graph) -> Graph:
    edit = GraphEditor(graph)
    uses = Counter(name for op in graph.ops for name in op.inputs if name)
    uses.update(graph.outputs)
    step = _Step(graph, edit, uses)
    for op in graph.ops:
        step.visit(replace(op, inputs=tuple(edit.now(name) for name in op.inputs)))
    return edit.finished(graph.outputs)


class _Step(ProductRules):
    """All rules."""

    def visit(self, op: Op) -> None:
        if self._folded(op) or self._dropped(op):
            return
        op = self._as_reshape(op)
        rules = (
            self._joined,
            self._ahead_of_product,
            self._untransposed,
            self._padding,
            self._into_weights,
            self._scaled_behind,
        )
        if any(rule(op) for rule in rules):
            return
        if op.kind == "BatchNormalization" and self._as_affine(op):
            return
        self._keep(op)

    def _folded(self, op: Op) -> bool:
        arrays = [self._array(name) for name in op.inputs]
        if any(a is None and name for a, name in zip(arrays, op.inputs, strict=True)):
            return False
        if self.outputs.intersection(op.outputs):
            return False  # An output must be written by something.
        if sum(self.edit.source.types[name].size for name in op.outputs) > _FOLD_LIMIT:
            return False
        for name, array in zip(op.outputs, evaluate(op, arrays), strict=True):
            self.edit.constants[name] = array
            self.edit.types[name] = self.edit.source.types[name]
        return True

    def _dropped(self, op: Op) -> bool:
        output = op.outputs[0]
        if output in self.outputs or not op.inputs or not self._is_identity(op):
            return False
        self.edit.renamed[output] = op.inputs[0]
        self.uses[op.inputs[0]] += self.uses[output] - 1
        return True

    def _is_identity(self, op: Op) -> bool:
        before, after = self.edit.types[op.inputs[0]], self.edit.source.types[op.outputs[0]]
        if before != after:
            return False
        a: Any = op.attributes
        match op.kind:
            case "Reshape" | "Cast" | "Expand" | "Tile":
                return True
            case "Slice":
                return all(step > 0 for step in a["steps"])
            case "Resize":
                # A scale of 1.05 may leave the shape and still move what is in it.
                return all(s == 1 or n == 1 for s, n in zip(a["scales"], after.shape, strict=True))
            case "Transpose":
                return bool(a["perm"] == tuple(range(len(a["perm"]))))
            case "Concat":
                return len(op.inputs) == 1
            case "Pad":
                return not any(a["pads"])
            case "Add" | "Sub":
                other = self._array(op.inputs[1])
                return other is not None and not other.any()
            case "Mul" | "Div":
                other = self._array(op.inputs[1])
                return other is not None and bool((other == 1).all())
            case "Relu":
                producer = self.made.get(op.inputs[0])
                return producer is not None and producer.kind == "Relu"
        return False

    def _joined(self, op: Op) -> bool:
        """Reshape of a reshape, transpose of a transpose, whatever else reads the first."""
        if op.kind not in ("Reshape", "Transpose"):
            return False
        first = self.made.get(op.inputs[0])
        if first is None or first.kind != op.kind:
            return False
        attributes: dict[str, Any] = dict(op.attributes)
        if op.kind == "Transpose":
            inner: Any = first.attributes["perm"]
            attributes["perm"] = tuple(inner[axis] for axis in attributes["perm"])
        self.uses[first.inputs[0]] += 1
        self.uses[op.inputs[0]] -= 1
        self._keep(replace(op, inputs=first.inputs, attributes=attributes))
        return True

    def _as_reshape(self, op: Op) -> Op:
        if op.kind != "Transpose":
            return op
        shape = self.edit.types[op.inputs[0]].shape
        perm: Any = op.attributes["perm"]
        if not moves_nothing(shape, perm):
            return op
        moved = tuple(shape[axis] for axis in perm)
        return replace(op, kind="Reshape", attributes={"shape": moved})
