"""Inserting gates into the source network: as a network that trains, or as one that is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from eecompile.gates.graphs import completion_graph, gate_graph
from eecompile.gates.plan import Gate, GatePlan
from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.base import Pass, PassResult, Program, Skip
from eecompile.passes.host import HostGraph
from eecompile.segments import SHIFT
from eecompile.verify import Stage

__all__ = ["InsertGates", "insert_gates"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class InsertGates(Pass):
    """Inserts gates, and masks that make zeros of what they leave out.

    1. Of a block with a layer gate, the branch is masked: ``x + 0 * F(x)`` is x, new features of a
       dense layer are zeros. Of a convolution with a channel gate, groups of channels are.
    2. The masks, 0 or 1, are the network's outputs ``<gate>.keep``, float32 (n, 1), and
       ``<gate>.channels``, (n, groups).
    3. State passes from each recurrent gate to the next one.
    4. Where something stands in for channels that are left out, it is added to the result of the
       convolution that reads them, before that is masked itself.
    5. A gate that has outputs of these names already is skipped.

    before::

        f: float32[1, 4, 8, 8] = Conv(x, w)
        y: float32[1, 4, 8, 8] = Add(f, x)

    after::

        f: float32[1, 4, 8, 8] = Conv(x, w)
        keep: float32[1, 1] = ... @ gates.block
        kept: float32[1, 4, 8, 8] = Keep(f, keep) @ gates.block
        y: float32[1, 4, 8, 8] = Add(kept, x)

    In a PyTorch network masks pass gradients straight through to the scores' sigmoid, and the
    gates' parameters are trainable, under the names they have everywhere: ``gates.<gate>``, and
    ``gates.shared`` once for all gates that share them. Everything is computed still; what saves
    work is the compiled form (`SplitAtGates`).

    Attributes:
        plan: of the program's host as it is.
        parameters: of all gates, by name.
        shift: subtracted from all scores.
    """

    requires: ClassVar[Stage] = Stage.EXPORTED
    ensures: ClassVar[Stage] = Stage.EXPORTED

    plan: GatePlan = field(default_factory=GatePlan)
    parameters: Mapping[str, Array] = field(default_factory=dict)
    shift: float = 0.0

    def run(self, program: Program) -> PassResult:
        """The program, its host edited.

        Raises:
            HostError: as `insert_gates`.
        """
        skips = insert_gates(program.host, self.plan, self.parameters, self.shift)
        return PassResult(program, len(skips) < len(self.plan.gates), skips)


def insert_gates(
    host: HostGraph, plan: GatePlan, parameters: Mapping[str, Array], shift: float = 0.0
) -> tuple[Skip, ...]:
    """Edits the host; see `InsertGates`.

    Raises:
        HostError: a name is taken, or the host cannot express a gate, which is then not inserted;
            those before it are.
    """
    known = set(host.outputs())
    new = [gate for gate in plan.gates if known.isdisjoint(gate.outputs)]
    if new:
        merged = _Merged(host.graph().types, parameters, shift)
        for gate in new:
            merged.add(gate)
        graph = merged.graph()
        weights = {name: name for name in parameters if name in graph.constants}
        found = host.splice(graph, merged.inputs, "gate_masks", weights)
        values = dict(zip(graph.outputs, found, strict=True))
        host.rewire(
            {value: values[kept] for value, kept in merged.kept.items()},
            {name: values[merged.masks[name]] for gate in new for name in gate.outputs},
        )
    old = (gate.name for gate in plan.gates if gate not in new)
    return tuple(Skip("inserted already", name) for name in old)


@dataclass
class _Merged:
    """One graph of many gates, so that a host is edited once.

    Attributes:
        types: of the host's values.
        inputs: of the graph -> the host's values.
        kept: value of the host -> what is left of it.
        masked: value of the host -> the scores that mask it, in order.
        masks: output of the network -> the mask it shows.
    """

    types: Mapping[str, TensorType]
    parameters: Mapping[str, Array]
    shift: float
    inputs: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    masked: dict[str, list[str]] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    _ops: list[Op] = field(default_factory=list)
    _constants: dict[str, Array] = field(default_factory=dict)
    _types: dict[str, TensorType] = field(default_factory=dict)

    def add(self, gate: Gate) -> None:
        """Adds a gate and its masks; earlier gates come first."""
        graph = gate_graph(gate, self.parameters, shifted=self.shift != 0)
        read = {"x": self._read(gate.feature)}
        if gate.before:
            read |= {f"before.{name}": f"{gate.before}/{name}" for name in ("h", "c")}
        if self.shift:
            read[SHIFT[0]] = self._constant(SHIFT[0], np.full((1, 1), self.shift, np.float32))
        self._append(graph, gate.name, read)
        for scores, value in _decisions(gate).items():
            own, width = f"{gate.name}/{scores}", gate.outputs[f"{gate.name}.{scores}"]
            ones = self._constant(f"ones{width}", np.ones((1, width), np.float32))
            self.masks[f"{gate.name}.{scores}"] = self._keep(ones, own, f"{own}/mask")
            self.masked.setdefault(value, []).append(own)
            self.kept[value] = self._keep(self._read(value), own, f"{own}/kept")
        self._complete(gate)

    def _complete(self, gate: Gate) -> None:
        """Adds what stands in for channels left out; masks of the sum are made anew."""
        graph = completion_graph(gate, self.parameters)
        if graph is None or gate.place is None or gate.place.reader is None:
            return
        prefix, value = f"{gate.name}/left_out", gate.place.reader.value
        self._append(graph, prefix, {"scores": f"{gate.name}/channels"})
        known = self.kept.pop(value, None)
        whole, total = self._read(value), f"{prefix}/sum"
        self._ops.append(Op(total, "Add", (whole, f"{prefix}/more"), (total,)))
        self._types[total] = self._types[whole]
        self.kept[value] = total
        for scores in self.masked.get(value, ()) if known else ():
            self.kept[value] = self._keep(self.kept[value], scores, f"{prefix}/{scores}/kept")

    def _append(self, graph: Graph, prefix: str, names: Mapping[str, str]) -> None:
        """Takes over a graph's operators; its values but the parameters are called by `prefix`."""
        inner = {out: f"{prefix}/{out}" for op in graph.ops for out in op.outputs}
        own = {name: f"{prefix}/{name}" for name in graph.constants.keys() - self.parameters.keys()}
        graph = graph.renamed({**names, **inner, **own})
        self._ops += [replace(op, name=f"{prefix}/{op.name}") for op in graph.ops]
        self._constants |= graph.constants
        self._types |= graph.types

    def graph(self) -> Graph:
        """All of it; its outputs are what `kept` and `masks` name."""
        outputs = (*self.kept.values(), *self.masks.values())
        ops, inputs = tuple(self._ops), tuple(self.inputs)
        return Graph("gates", inputs, outputs, ops, self._constants, self._types).pruned()

    def _read(self, value: str) -> str:
        """What stands for a value of the host: what is left of it, where it is masked."""
        if value in self.kept:
            return self.kept[value]
        name = f"host/{value}"
        self.inputs[name] = value
        self._types[name] = self.types[value]
        return name

    def _keep(self, value: str, scores: str, result: str) -> str:
        self._ops.append(Op(result, "Keep", (value, scores), (result,)))
        self._types[result] = self._types[value]
        return result

    def _constant(self, name: str, array: Array) -> str:
        self._constants[name] = array
        self._types[name] = TensorType.of(array)
        return name


def _decisions(gate: Gate) -> dict[str, str]:
    """The gate's scores -> the value they mask. Both may be one, a block's last convolution."""
    found = {"channels": gate.place.value} if gate.place else {}
    return found | ({"keep": gate.block.branch} if gate.block else {})
