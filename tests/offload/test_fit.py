"""A stored rule must be one for the network it stands beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eecompile.compiled import CompiledGraph, Function
from eecompile.cost import Work
from eecompile.ir import Graph
from eecompile.offload_rule import OffloadRule
from eecompile.runtime.offload import check_fit
from eecompile.segments import Exit
from tests.offload.networks import rule, segments


def _compiled() -> CompiledGraph:
    """The demo network as a compiled one, whose code nobody runs; every exit has a head."""
    cut = segments()

    def function(graph: Graph) -> Function:
        values = [
            tuple((n, graph.types[n]) for n in names) for names in (graph.inputs, graph.outputs)
        ]
        return Function(graph.name, values[0], values[1], 0, 0, 1, Work())

    exits = tuple(_with_head(exit_, cut.segments[exit_.segment].graph) for exit_ in cut.exits)
    made = replace(cut, exits=exits)
    return CompiledGraph.of(made, [function(graph) for graph in made.graphs()])


def _with_head(exit_: Exit, segment: Graph) -> Exit:
    feature = exit_.feature
    types = {feature: segment.types[feature]}
    return replace(exit_, head=Graph(f"{exit_.name}.head", (feature,), (), (), {}, types))


def _changed(**changes: Any) -> OffloadRule:
    made = rule("http://edge:8000")
    return replace(made, tails={1: replace(made.tails[1], **changes)})


def test_a_networks_own_rule_fits() -> None:
    check_fit(rule("http://edge:8000"), _compiled())


def test_any_other_is_refused() -> None:
    made, network = rule("http://edge:8000"), _compiled()
    early, middle = made.tails[0], made.tails[1]
    (sent,) = middle.inputs
    for wrong, why in (
        (replace(made, tails={3: middle}), "from exit 3 of 3"),
        (replace(made, tails={0: middle}), "exit 0, which is not `middle`"),
        (_changed(inputs=early.inputs), "what is not there at `middle`: `early`"),
        (_changed(inputs=(replace(sent, shape=(1, 2)),)), "what is not there at `middle`"),
        (_changed(output=replace(middle.output, shape=(1, 3))), r"another shape: \[1, 3\]"),
    ):
        with pytest.raises(ValueError, match=why):
            check_fit(wrong, network)
