"""Gates: what decides, for each input, which blocks and channels of a network to leave out."""

from __future__ import annotations

from eecompile.gates.file import GateFile, read_gates, write_gates
from eecompile.gates.graphs import (
    completion_graph,
    gate_graph,
    initial_parameters,
    parameter_shapes,
)
from eecompile.gates.kinds import KINDS, GateKind
from eecompile.gates.places import ChannelPlace, Found, LayerBlock, Reader
from eecompile.gates.plan import Gate, GatePlan

__all__ = [
    "KINDS",
    "ChannelPlace",
    "Found",
    "Gate",
    "GateFile",
    "GateKind",
    "GatePlan",
    "LayerBlock",
    "Reader",
    "completion_graph",
    "gate_graph",
    "initial_parameters",
    "parameter_shapes",
    "read_gates",
    "write_gates",
]
