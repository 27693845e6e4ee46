"""Neutral operators as ATen calls in a torch.fx graph: how heads get into a PyTorch network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.fx_emit_rules import EMITTED, Inexpressible
from eecompile.passes.fx_state import add_state, has_attribute, remove_module, remove_state
from eecompile.passes.host import HostError, Problem

__all__ = ["EMITTED", "Emitter"]


@dataclass
class Emitter:
    """Writes one neutral graph into a graph module, behind a node.

    Attributes:
        module: the graph module.
        source: the neutral graph.
        prefix: module path for weights and scopes.
        flexible: whether the leading dimension, 1 in the neutral graph, is any batch here.
        nodes: value of the neutral graph -> node.
        weights: constant -> module path, where only those are trainable; None: all are, under
            `prefix`.
    """

    module: fx.GraphModule
    source: Graph
    prefix: str
    flexible: bool
    nodes: dict[str, fx.Node]
    weights: Mapping[str, str] | None = None

    def emit(self, after: fx.Node) -> tuple[fx.Node, ...]:
        """Emits every operator behind `after`; the nodes of the graph's outputs.

        Raises:
            HostError: an operator has no rule, or not with its attributes; one problem for each.
                The module is as it was.
        """
        self._before = set(self.module.graph.nodes)
        self._added: list[str] = []
        problems = []
        self._statistics = {
            name
            for op in self.source.ops
            if op.kind == "BatchNormalization"
            for name in op.inputs[3:]
        }
        self._last = after
        for name in self.source.constants:
            self._constant(name)
        for op in self.source.ops:
            try:
                if op.kind not in EMITTED:
                    raise Inexpressible("")
                node = EMITTED[op.kind](self, op)
            except Inexpressible as error:
                problems.append(_problem(op, str(error)))
                node = after
            self.nodes[op.outputs[0]] = node
        if problems:
            self.undo()
            raise HostError(*problems)
        return tuple(self.nodes[name] for name in self.source.outputs)

    def undo(self) -> None:
        """Takes back everything `emit` added."""
        for node in reversed([n for n in self.module.graph.nodes if n not in self._before]):
            self.module.graph.erase_node(node)
        for path in self._added:
            remove_state(self.module, path)
        remove_module(self.module, self.prefix)

    # --- what rules use ---------------------------------------------------------------------------

    def call(self, overload: str, *arguments: Any, **keywords: Any) -> fx.Node:
        """A new call of an ATen overload, named without ``aten.``."""
        name, kind = overload.split(".")
        function = getattr(getattr(torch.ops.aten, name), kind)
        label = f"{self.prefix}.{name}"
        return self._insert("call_function", function, label, arguments, keywords)

    def args(self, op: Op) -> list[fx.Node | None]:
        """The nodes of the operator's inputs, None where one is absent."""
        return [self.nodes[name] if name else None for name in op.inputs]

    def type(self, name: str) -> TensorType:
        """The type of a value of the neutral graph."""
        return self.source.types[name]

    def batch_shape(self, op: Op) -> tuple[int, ...]:
        """The operator's `shape`, -1 for the leading dimension where that is the batch."""
        shape: Any = op.attributes["shape"]
        old = self.type(op.inputs[0]).shape
        keep = self.flexible and old[:1] == (1,) and shape[:1] == (1,)
        return (-1, *shape[1:]) if keep else shape

    def _insert(
        self, kind: str, target: Any, name: str, arguments: Any = (), keywords: Any = None
    ) -> fx.Node:
        graph = self.module.graph
        anchor = self._last.next if self._last.op == "placeholder" else None
        while anchor is not None and anchor.op == "placeholder":
            anchor = anchor.next
        with graph.inserting_before(anchor) if anchor else graph.inserting_after(self._last):
            node = graph.create_node(kind, target, tuple(arguments), keywords or {}, name=name)
        node.meta["scope"] = self.prefix
        self._last = node
        return node

    def _constant(self, name: str) -> None:
        array, given = self.source.constants[name], (self.weights or {}).get(name)
        if given is not None:
            if not has_attribute(self.module, given):
                add_state(self.module, given, array, True)
                self._added.append(given)
            self.nodes[name] = self._insert("get_attr", given, given)
            return
        clean = "".join(c if c.isalnum() else "_" for c in name)
        path, number = f"{self.prefix}.{clean}", 1
        while has_attribute(self.module, path):
            number += 1
            path = f"{self.prefix}.{clean}_{number}"
        # A lone number is a setting (an epsilon, a temperature), running statistics are measured.
        trainable = array.dtype.kind == "f" and array.ndim > 0 and name not in self._statistics
        trainable = trainable and self.weights is None
        add_state(self.module, path, array, trainable)
        self.nodes[name] = self._insert("get_attr", path, path)


def _problem(op: Op, reason: str) -> Problem:
    message = f"Operator `{op.kind}` of a head cannot be written in PyTorch"
    return Problem("bad-head", message + (f": {reason}" if reason else ""), op.name, op.kind)
