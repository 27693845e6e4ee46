"""A torch.export graph module as a neutral graph.

`fx_evaluate` runs the module on zeros: that gives every value's type and the value of everything
that does not depend on the inputs' numbers (weights, masks, positions, sizes), which become
constants. What is left is translated operator by operator by the rules of `fx_rules_*.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from eecompile.ir import Graph, TensorType
from eecompile.passes.fx_builder import Builder, Untranslatable, Value, array_of
from eecompile.passes.fx_evaluate import Evaluation
from eecompile.passes.fx_rules_data import DATA_RULES
from eecompile.passes.fx_rules_layers import LAYER_RULES
from eecompile.passes.fx_rules_math import MATH_RULES
from eecompile.passes.fx_rules_nn import NN_RULES
from eecompile.passes.fx_rules_pooling import POOLING_RULES
from eecompile.passes.host import HostError, Problem

__all__ = ["RULES", "Translation", "renamed", "translate"]

#: ATen overload (or ``overload#result`` for one result of several) -> its rule.
RULES = {**NN_RULES, **POOLING_RULES, **LAYER_RULES, **MATH_RULES, **DATA_RULES}


@dataclass(frozen=True)
class Translation:
    """A graph module, translated.

    Attributes:
        graph: the neutral view.
        aliases: node name -> value, for nodes that compute nothing (dropout, contiguous ...).
        outputs: output name -> value.
    """

    graph: Graph
    aliases: Mapping[str, str]
    outputs: Mapping[str, str]


def translate(
    module: fx.GraphModule,
    inputs: Mapping[str, TensorType],
    name: str,
    known: Evaluation | None = None,
) -> Translation:
    """The neutral view of `module`, whose output is a dictionary of tensors.

    Args:
        module: what to translate.
        inputs: name -> type, in the order of the placeholders.
        name: of the graph.
        known: the module's, from an earlier translation: only what changed since is run.

    Raises:
        HostError: torch cannot run the module, or operators cannot be translated, one problem for
            each node.
    """
    known = known or Evaluation(module, inputs)
    known.update()
    work = _Translator(module, inputs, known)
    for node in module.graph.nodes:
        work.visit(node)
    if work.problems:
        raise HostError(*work.problems)
    graph = Graph(
        name,
        tuple(inputs),
        tuple(work.outputs.values()),
        tuple(work.builder.ops),
        work.builder.used_constants(work.outputs.values()),
        work.builder.types,
    )
    return Translation(graph, work.aliases, work.outputs)


@dataclass
class _Translator:
    module: fx.GraphModule
    inputs: Mapping[str, TensorType]
    known: Evaluation
    builder: Builder = field(default_factory=Builder)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unread = iter(self.inputs.items())
        self.node_names = {node.name for node in self.module.graph.nodes}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            name, type_ = next(self.unread)
            self.values[node] = self.builder.input(name, type_)
        elif any(source not in self.values for source in node.all_input_nodes):
            self._skip(node)
        elif node.op == "output":
            shown: Any = node.args[0]
            for name, source in shown.items():
                self.outputs[name] = self.builder.register(self.values[source])
        elif node in self.known.constants:
            self.values[node] = self._constant(node, self.known.constants[node])
        elif isinstance(self.known.types.get(node), TensorType):
            self._translate(node)
        elif any(user.target is not operator.getitem for user in node.users):
            self._refuse(node, "its result is no tensor of a supported element type")
        else:
            self.values[node] = None  # several results; its getitems are translated

    def _skip(self, node: fx.Node) -> None:
        """Passes over what reads a refused node, so that one fault is told once."""
        type_ = self.known.types.get(node)
        if isinstance(type_, TensorType):
            self.values[node] = self.builder.input(node.name, type_)

    def _constant(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # A parameter is called by its path, as in an exported ONNX file.
        target = str(node.target)
        own = node.op == "get_attr" and (target == node.name or target not in self.node_names)
        array = array_of(value)
        return Value(target if own else node.name, TensorType.of(array), array)

    def _translate(self, node: fx.Node) -> None:
        source, rule_name = node, str(node.target)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            source = node.args[0]
            rule_name = f"{source.target}#"
        expected: Any = self.known.types[node]
        scope = node.meta.get("scope") or source.meta.get("scope", "")
        where = source.meta.get("source", "")
        self.builder.begin(node.name, scope, where, expected)
        try:
            if node.op != "call_function" or rule_name not in RULES:
                raise Untranslatable("")
            arguments = [self._argument(a) for a in _bound(source)]
            picked = [node.args[1]] if source is not node else []
            result = RULES[rule_name](self.builder, *picked, *arguments)
            if result.type != expected:
                raise Untranslatable(f"translated as {result.type} where torch gives {expected}")
        except Untranslatable as error:
            self.builder.abandon()
            self._refuse(source, str(error))
            result = self.builder.input(node.name, expected)
        else:
            result = self.builder.finish(result)
            if result.name != node.name:
                self.aliases[node.name] = result.name
        self.values[node] = result

    def _argument(self, argument: Any) -> Any:
        return fx.map_arg(argument, self.values.__getitem__)

    def _refuse(self, node: fx.Node, reason: str) -> None:
        if any(problem.node == node.name for problem in self.problems):
            return
        scope, where = node.meta.get("scope", ""), node.meta.get("source", "")
        place = f" in module `{scope}`" if scope else ""
        self.problems.append(
            Problem(
                "unsupported-operator",
                f"Operator `{node.target}`{place} cannot be compiled"
                + (f": {reason}" if reason else ""),
                node.name,
                str(node.target),
                f"it is written at {where}" if where else "",
            )
        )


def _bound(node: fx.Node) -> list[Any]:
    """The node's arguments in its schema's order, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return [*node.args, *node.kwargs.values()]
    bound = []
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args) and not argument.kwarg_only:
            bound.append(node.args[index])
        else:
            bound.append(node.kwargs.get(argument.name, argument.default_value))
    return bound


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with values renamed; operators are renamed with their outputs."""

    def of(name: str) -> str:
        return names.get(name, name)

    ops = tuple(
        replace(
            op,
            name=of(op.name),
            inputs=tuple(map(of, op.inputs)),
            outputs=tuple(map(of, op.outputs)),
        )
        for op in graph.ops
    )
    return Graph(
        graph.name,
        tuple(map(of, graph.inputs)),
        tuple(map(of, graph.outputs)),
        ops,
        {of(k): v for k, v in graph.constants.items()},
        {of(k): v for k, v in graph.types.items()},
    )
