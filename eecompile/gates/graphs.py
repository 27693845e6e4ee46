"""Gates' parameters and the graphs they are computed by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eecompile.cost import graph_macs
from eecompile.gates.kinds import LEFT_OUT
from eecompile.gates.plan import Gate, GatePlan
from eecompile.heads.graphs import GraphBuilder
from eecompile.ir import Graph, TensorType
from eecompile.segments import SHIFT

__all__ = [
    "SHARED",
    "completion_graph",
    "gate_graph",
    "gate_macs",
    "initial_parameters",
    "parameter_names",
    "parameter_shapes",
]

Array = np.ndarray[Any, Any]

#: What names of the parameters that gates share begin with.
SHARED = "gates.shared"


def parameter_names(gate: Gate) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A parameter of the gate's kind -> its name among all, and its shape."""
    shared = {name: (f"{SHARED}.{name}", shape) for name, shape in gate.kind.shared(gate).items()}
    own = gate.kind.own(gate)
    return shared | {name: (f"gates.{gate.name}.{name}", shape) for name, shape in own.items()}


def parameter_shapes(plan: GatePlan) -> dict[str, tuple[int, ...]]:
    """Name of every parameter that the plan's gates have -> its shape, in the gates' order."""
    return dict(entry for gate in plan.gates for entry in parameter_names(gate).values())


def initial_parameters(plan: GatePlan, seed: int) -> dict[str, Array]:
    """Parameters, float32 by name, with which every gate keeps everything whatever it reads.

    A parameter depends on the seed and its own name and shape, not on what other gates there are.
    """
    found: dict[str, Array] = {}
    for gate in plan.gates:
        for name, (full, shape) in parameter_names(gate).items():
            if full not in found:
                own = int.from_bytes(hashlib.sha256(full.encode()).digest()[:8], "big")
                generator = np.random.default_rng([seed, own])
                found[full] = gate.kind.initial(name, shape, generator)
    return found


def gate_graph(gate: Gate, parameters: Mapping[str, Array], *, shifted: bool = True) -> Graph:
    """What the gate computes.

    Inputs: ``x``, its feature; ``before.h`` and ``before.c``, float32 (1, hidden), where there is
    a gate before it whose state it reads; `segments.SHIFT`, which is subtracted from its scores.
    Outputs, as far as it has them: ``keep``, float32 (1, 1), ``channels``, (1, groups), and where a
    later gate reads its state ``h`` and ``c``. Constants have the parameters' names.

    Args:
        gate: of a plan.
        parameters: of all gates, by name.
        shifted: without it there is no shift.
    """
    builder = GraphBuilder("gate", "x", gate.type)
    names = parameter_names(gate)
    if gate.before:
        state = TensorType("float32", (1, gate.kind.options["hidden"]))
        for name in ("before.h", "before.c"):
            builder.input(name, state)
    if shifted:
        builder.input(*SHIFT)

    def held(name: str) -> str:
        full = names[name][0]
        return builder.constant(full, parameters[full])

    scores = gate.kind.build(builder, gate, held)
    found = {}
    for name, value in (("keep", scores.keep), ("channels", scores.channels)):
        if value:
            found[builder.op("Sub", value, SHIFT[0]) if shifted else value] = name
    if gate.hands_on:
        found |= {scores.hidden: "h", scores.cell: "c"}
    return builder.build(*found).renamed(found)


def completion_graph(gate: Gate, parameters: Mapping[str, Array]) -> Graph | None:
    """What is added to the result of the convolution that reads the gate's channels, if anything.

    Input: ``scores``, float32 (1, groups). Output: ``more``, (1, C_out, 1...): the sum over the
    groups that are left out of their rows of the gate's `LEFT_OUT`. The constant has the
    parameter's name, others are called after what they are.
    """
    reader = gate.place.reader if gate.place else None
    full = parameter_names(gate).get(LEFT_OUT, ("",))[0]
    if reader is None or not full or not parameters[full].any():
        return None
    builder = GraphBuilder("completion", "scores", TensorType("float32", (1, gate.groups)))
    zero = builder.constant("zero", np.zeros(1, np.float32))
    one = builder.constant("one", np.ones(1, np.float32))
    kept = builder.op("Cast", builder.op("Greater", "scores", zero), to="float32")
    # NOTE: not `scores <= 0`, which is false where a score is no number; `Keep` leaves those out.
    row = builder.op(
        "MatMul", builder.op("Sub", one, kept), builder.constant(full, parameters[full])
    )
    rank = len(reader.type.shape)
    shape = (1, reader.type.shape[1], *(1,) * (rank - 2))
    return builder.build(builder.op("Reshape", row, shape=shape, output="more"))


def gate_macs(gate: Gate) -> int:
    """Multiply-accumulates of the gate for one sample."""
    shapes = parameter_names(gate).values()
    zeros = {full: np.zeros(shape, np.float32) for full, shape in shapes}
    return graph_macs(gate_graph(gate, zeros))
