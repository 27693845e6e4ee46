"""A build's gates: planned in the network, with their parameters, ready to be cut at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.dsl.check_gates import untrained_gates
from eecompile.gates import (
    Gate,
    GatePlan,
    completion_graph,
    gate_graph,
    parameter_shapes,
    read_gates,
)
from eecompile.loading import planned_gates, source_errors
from eecompile.passes.host import HostError, HostGraph
from eecompile.passes.split_at_gates import PlacedGate
from eecompile.spec import Spec

__all__ = ["Gating", "known_gates", "open_gates"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Gating:
    """The gates of a build.

    Attributes:
        plan: where they stand.
        parameters: by name; those of gates that the build fits itself are added in its course.
        trained: how they were trained, as their file tells.
        tuned: whether weights of the network were trained with them.
    """

    plan: GatePlan = field(default_factory=GatePlan)
    parameters: Mapping[str, Array] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = False

    @property
    def unfitted(self) -> tuple[Gate, ...]:
        """The gates that have no parameters yet."""
        missing = parameter_shapes(self.plan).keys() - self.parameters.keys()
        return tuple(
            gate
            for gate in self.plan.gates
            if any(name.startswith(f"gates.{gate.name}.") for name in missing)
        )

    def with_parameters(self, parameters: Mapping[str, Array]) -> Gating:
        """The same with more of them."""
        return replace(self, parameters={**self.parameters, **parameters})

    @property
    def placed(self) -> tuple[PlacedGate, ...]:
        """What segments are cut at; every gate has its parameters."""
        return tuple(_placed(gate, self.parameters) for gate in self.plan.gates)


def _placed(gate: Gate, parameters: Mapping[str, Array]) -> PlacedGate:
    block, place = gate.block, gate.place
    completion = completion_graph(gate, parameters)
    return PlacedGate(
        gate.name,
        gate.feature,
        gate_graph(gate, parameters),
        entry=block.entry if block else "",
        result=block.result if block else "",
        zeros=bool(block and not block.otherwise),
        masked=place.value if place else "",
        completed=place.reader.value if completion and place and place.reader else "",
        completion=completion,
    )


def open_gates(spec: Spec, host: HostGraph) -> Gating:
    """The gates of a checked file; weights that were trained with them are put into the host.

    Raises:
        CompileErrors: their file cannot be read, or is of other gates or of another network.
    """
    plan, model = planned_gates(spec, host), spec.model
    if model.gates is None or not plan.gates:
        return Gating(plan)
    path, place = spec.resolve(model.gates), model.at("gates")
    found = read_gates(path, plan, place)
    if found.weights:
        set_weights = getattr(host, "set_weights", None)
        if set_weights is None:
            message = "The network's weights were trained with its gates, and are those of PyTorch"
            help_ = "name the torch source they were trained on"
            raise CompileErrors([Diagnostic("wrong-gates", message, place, help=help_)])
        try:
            set_weights(found.weights)
        except HostError as error:
            raise source_errors(error, model) from error
        # Values keep their names, but the plan may tell what was folded from the weights.
        plan = planned_gates(spec, host)
    return Gating(plan, found.parameters, found.trained, bool(found.weights))


def known_gates(spec: Spec, host: HostGraph) -> Gating:
    """As `open_gates`; where gates are not trained yet, only where they stand.

    Raises:
        CompileErrors: as `open_gates`.
    """
    if untrained_gates(spec, spec.model, "error"):
        return Gating(planned_gates(spec, host))
    return open_gates(spec, host)
