"""Quantised networks: single steps are forgiven, wrong operators are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.equivalence import Equivalence, compare_with_source
from eecompile.passes.base import PassManager, Program
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.reference import run_graph
from eecompile.roundings import Follower
from eecompile.spec import Model, Spec
from eecompile.text import parse_graph
from tests.helpers import TextHost

_TEXT = """
graph quantised(x: float32[1, 4]) -> (y: float32[1, 4]) {
    const scale: float32[1] = [0.1]
    const zero: uint8[1] = [128]
    const weight: float32[1] = [WEIGHT]
    q: uint8[1, 4] = QuantizeLinear(x, scale, zero; axis=0) as first
    r: float32[1, 4] = DequantizeLinear(q, scale, zero; axis=0)
    m: float32[1, 4] = Mul(r, weight)
    p: uint8[1, 4] = QuantizeLinear(m, scale, zero; axis=0) as second
    s: float32[1, 4] = DequantizeLinear(p, scale, zero; axis=0)
    y: float32[1, 4] = Mul(s, weight)
}
"""
GRAPH = parse_graph(_TEXT.replace("WEIGHT", "3.0"))
INPUT = np.array([[0.11, -0.52, 0.97, 0.3]], np.float32)


class OtherEngine(TextHost):
    """A host whose engine computes with another weight than its graph says."""

    weight = "3.0"

    def copy(self) -> OtherEngine:
        other = OtherEngine(self._graph)
        other._outputs, other.weight = dict(self._outputs), self.weight
        return other

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        graph = parse_graph(_TEXT.replace("WEIGHT", self.weight)).pruned(self._graph.outputs)
        found = run_graph(graph, inputs)
        return {name: found[value] for name, value in self._outputs.items()}


def _engine(weight: str) -> OtherEngine:
    host = OtherEngine(GRAPH)
    host.weight = weight
    return host


def _compared(host: TextHost, compiled: np.ndarray) -> Equivalence:
    model = Model("quantised", "onnx", "")
    program = PassManager(backbone_pipeline()).run(Program(host, model)).graph
    assert program.segments is not None
    values = {"y": compiled[None]}
    return compare_with_source(host, program.segments, {"x": INPUT}, values, Spec(models=(model,)))


def test_each_rounding_is_compared_with_the_engines_before_it() -> None:
    follower = Follower(_engine("3.04"))
    follower.follow({"x": INPUT})
    # -0.5 * 3 / 0.1 = -15 and -15.2 round alike, 1.0 * 3 / 0.1 = 30 and 30.4 too.
    assert (follower.found.values, follower.found.apart, follower.found.wrong) == (8, 0, {})


def test_one_step_is_counted_and_followed() -> None:
    follower = Follower(_engine("3.06"))
    follower.follow({"x": INPUT})
    assert (follower.found.apart, follower.found.wrong) == (1, {})  # 30.6 and 30


def test_several_steps_are_refused_by_node() -> None:
    with pytest.raises(CompileErrors) as refused:
        _compared(_engine("3.5"), run_graph(GRAPH, {"x": INPUT})["y"])
    (found,) = refused.value.diagnostics
    assert found.id == "not-equivalent"
    assert "Node `second`" in found.message and "by up to 5 steps" in found.message


def test_a_deviation_behind_the_last_rounding_is_refused() -> None:
    with pytest.raises(CompileErrors) as refused:
        _compared(_engine("3.04"), run_graph(GRAPH, {"x": INPUT})["y"])
    assert "Output `y`" in refused.value.diagnostics[0].message


def test_the_compiled_network_is_held_to_the_definition() -> None:
    host = TextHost(GRAPH)
    defined = host.run({"x": INPUT})["y"]
    found = _compared(host, defined)
    assert (found.max_abs_error, found.max_source_error, found.source) == (0.0, 0.0, {})
    assert found.roundings is not None and found.roundings.values == 8
    with pytest.raises(CompileErrors):
        _compared(host, defined + np.float32(0.01))
