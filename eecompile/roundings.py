"""How quantised networks are compared: rounding by rounding, then end to end.

Two correct engines round a number between two quanta either way, and the next layers make of one
step what they like: on some networks ONNX Runtime differs from itself, with and without its
optimiser, by a fifth of the largest score. So the neutral network follows the source engine
through the graph: each rounding is done with what the engine had before it, may differ from the
engine's by one step, and hands on the engine's result. A wrong operator is found where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eecompile.ir import Graph, Op
from eecompile.passes.host import HostError, HostGraph
from eecompile.reference import run_graph

__all__ = ["Follower", "Roundings", "deviation", "quantised", "scale"]


@dataclass
class Roundings:
    """What came of following an engine.

    Attributes:
        values: quantised numbers compared.
        apart: those that were rounded the other way.
        wrong: nodes that were more than one step off, with the number of steps.
        errors: by output: largest deviation, the engine's roundings followed.
    """

    values: int = 0
    apart: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def quantised(graph: Graph) -> bool:
    """Whether the network rounds numbers to quanta."""
    return any(op.kind == "QuantizeLinear" for op in graph.ops)


class Follower:
    """A network's neutral definition beside the engine of its host."""

    def __init__(self, host: HostGraph) -> None:
        """Prepare a copy of the host that shows what it rounded."""
        self.graph, self.found = host.graph(), Roundings()
        self._outputs = host.outputs()
        self._probe, self._shown = host.copy(), set[str]()
        for value in [op.outputs[0] for op in self.graph.ops if op.kind == "QuantizeLinear"]:
            try:
                self._probe.add_output(value, value)
            except HostError:
                continue  # Only the neutral view has it: nothing to follow.
            self._shown.add(value)

    def follow(self, sample: Mapping[str, np.ndarray]) -> None:
        """Compare one sample, given by the host's own input names; adds to `found`."""
        theirs = self._probe.run(sample)

        def watch(op: Op, results: list[np.ndarray]) -> list[np.ndarray]:
            (name,) = op.outputs
            if name not in self._shown:
                return results
            expected = np.asarray(theirs[name]).reshape(results[0].shape)
            steps = np.abs(results[0].astype(np.int64) - expected.astype(np.int64))
            self.found.values += steps.size
            self.found.apart += int(np.count_nonzero(steps))
            if (worst := int(steps.max(initial=0))) > 1:
                node = op.source or op.name
                self.found.wrong[node] = max(worst, self.found.wrong.get(node, 0))
            return [expected]

        ours = run_graph(self.graph, sample, watch)
        for name, value in self._outputs.items():
            expected = np.asarray(theirs[name]).reshape(ours[value].shape)
            error = deviation(ours[value], expected) / scale(expected)
            self.found.errors[name] = max(error, self.found.errors.get(name, 0.0))


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference. Equal infinities do not differ; a NaN differs from everything.

    >>> float(deviation(np.array([1.0, np.inf]), np.array([1.5, np.inf])))
    0.5
    """
    one, other = found.astype(np.float64), expected.astype(np.float64)
    apart = np.abs(np.subtract(one, other, out=np.zeros_like(one), where=one != other))
    return float(apart.max(initial=0.0))


def scale(expected: np.ndarray) -> float:
    """Largest finite magnitude, or 1 where that is less: what deviations are measured in."""
    finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    return max(1.0, float(finite.max(initial=0.0)))
