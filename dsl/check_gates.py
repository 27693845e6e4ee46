"""Gates of a model: their options, what they share, and whether they are trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics, did_you_mean_help
from eecompile.dsl.check_graph import PointView
from eecompile.dsl.check_options import check_call, missing_data
from eecompile.dsl.options import GATES, UNTRAINED_GATES
from eecompile.gates.plan import GatePlan
from eecompile.ir import Graph
from eecompile.spec import Model, Skip, Spec, matching

__all__ = [
    "check_exits_beside",
    "check_gates",
    "require_gates",
    "skipped_values",
    "trained_skips",
    "untrained_gates",
    "with_known_gates",
]

#: Options of the one recurrent network that all recurrent gates of a model share.
_SHARED = ("hidden", "embedding")


def check_gates(model: Model, spec: Spec, found: Diagnostics) -> None:
    """Kinds and options of the gates, what they share, and the data and the file they need."""
    before = len(found)
    for skip in model.skips:
        check_call("unknown-gate", f"gate for {skip.what}", skip.gate, GATES[skip.what], found)
    _check_shared(model, found)
    if model.gates is not None and not model.skips:
        found.error(
            "missing-setting",
            f"Model `{model.name}` names its gates and skips nothing",
            model.at("gates"),
            'needs `skip layers "..." gate ...` or `skip channels "..." gate ...`',
        )
    _check_fit(model, spec, found)
    if len(found) == before:
        found.add(*untrained_gates(spec, model, "warning"))


def _check_shared(model: Model, found: Diagnostics) -> None:
    """The recurrent gates of a model are one network, so they cannot differ in its sizes."""
    first: dict[str, Skip] = {}
    for skip in model.skips:
        for name in _SHARED if skip.gate.kind == "recurrent" else ():
            if name not in skip.gate.options:
                continue
            other = first.setdefault(name, skip)
            value, known = skip.gate.option(name), other.gate.option(name)
            if value == known:
                continue
            where = other.gate.at(name)
            found.error(
                "bad-option",
                f"Option `{name}` of `recurrent` differs from that of another gate",
                skip.gate.at(name),
                f"{value} here",
                secondary=((where, f"{known} here"),) if where else (),
                help="all recurrent gates of a model share one network: give it once",
            )


def _check_fit(model: Model, spec: Spec, found: Diagnostics) -> None:
    """Gates that need no training are fitted, on samples the network was not trained on."""
    fitted = [skip for skip in model.skips if skip.gate.kind in UNTRAINED_GATES]
    several = len({data.name for data in spec.data}) > 1
    if not fitted or (model.data is None and several):
        return  # which data are meant has been asked for already
    data = spec.data_for(model)
    if data is None or data.calibrate is None:
        missing_data("calibrate", f"Gate `{fitted[0].gate.kind}`", fitted[0].gate.span, data, found)


def with_known_gates(model: Model) -> Model:
    """The model with those statements only whose gates can be made, so that they can be planned."""
    known = []
    for skip in model.skips:
        wrong = Diagnostics()
        check_call("unknown-gate", "gate", skip.gate, GATES[skip.what], wrong)
        known += [] if wrong else [skip]
    return replace(model, skips=tuple(known))


def skipped_values(plan: GatePlan, graph: Graph) -> dict[str, str]:
    """Value that is not there, or not whole, for every sample -> the block or convolution.

    The block's result is none of them: it is what it read, or zeros. Nor is what a convolution
    gives behind its normalisation and activation, where its channels are left out.
    """
    outputs = {op.name: op.outputs for op in graph.ops}
    found = {
        value: gate.block.name
        for gate in plan.gates
        if gate.block
        for op in gate.block.ops
        for value in outputs[op]
        if value != gate.block.result
    }
    position = {op.name: index for index, op in enumerate(graph.ops)}
    for place in (gate.place for gate in plan.gates if gate.place):
        behind = {outputs[place.op][0]}
        for op in graph.ops[position[place.op] :]:
            if place.value in behind:
                break
            behind.update(op.outputs if not behind.isdisjoint(op.inputs) else ())
        for value in behind - {place.value}:
            found.setdefault(value, place.name)
    return found


def check_exits_beside(
    model: Model,
    plan: GatePlan,
    graph: Graph,
    points: Mapping[str, PointView],
    found: Diagnostics,
) -> None:
    """No exit stands within what a gate may leave out, or is reached past an earlier gate's state.

    Within it the exit's head would have nothing to read; and a recurrent gate on the way to an
    exit reads the state of the recurrent gate before it, which may stand on another way.
    """
    skipped = skipped_values(plan, graph)
    for exit in model.exits:
        values = {points[name].value for name in matching(exit.point, points)}
        if len(values) != 1:
            continue
        (value,) = values
        block = skipped.get(value)
        if block is not None:
            found.error(
                "cannot-combine",
                f"Exit `{exit.name}` stands within `{block}`, which a gate may leave out",
                exit.at("point"),
                "is not computed for every sample",
                help=f"place it after `{block}`, or let no gate leave that out",
            )
            continue
        for gate, before in _passed_by(plan, graph.pruned((value,))):
            found.error(
                "cannot-combine",
                f"Exit `{exit.name}` is reached past `{gate}`, but not past `{before}`",
                exit.at("point"),
                f"the recurrent gate of `{gate}` needs the state of `{before}`'s",
                help=f"place it where both have run, or use another gate for `{gate}`",
            )


def _passed_by(plan: GatePlan, above: Graph) -> list[tuple[str, str]]:
    """Recurrent gates that decide about values of it, with the gate before that does not."""
    made = {out for op in above.ops for out in op.outputs}
    ends = {
        gate.name: gate.block.result if gate.block else gate.place.value if gate.place else ""
        for gate in plan.gates
    }
    return [
        (gate.name, gate.before)
        for gate in plan.gates
        if gate.before and ends[gate.name] in made and ends[gate.before] not in made
    ]


def trained_skips(model: Model) -> tuple[Skip, ...]:
    """The statements whose gates `eecompile train` has to train."""
    return tuple(
        skip
        for skip in model.skips
        if skip.gate.kind in GATES[skip.what] and skip.gate.kind not in UNTRAINED_GATES
    )


def untrained_gates(
    spec: Spec, model: Model, severity: Literal["error", "warning"]
) -> tuple[Diagnostic, ...]:
    """What is told of gates that need training where their file is not named, or not there.

    A warning where a file is checked, as it is before `eecompile train` reads it; an error where
    the network is built.
    """
    gates, file = trained_skips(model), model.gates
    if not gates or (file is not None and spec.resolve(file).is_file()):
        return ()
    if file is not None:
        message, place, label = f"Gates `{file}` do not exist", model.at("gates"), "no such file"
    else:
        message, place = f"Gate `{gates[0].gate}` has to be trained", gates[0].gate.span
        label = "no file of trained gates is named"
    help = _similar(spec, file) or _how_to_train(spec, model)
    return (Diagnostic("untrained-gates", message, place, label, help=help, severity=severity),)


def _similar(spec: Spec, file: str | None) -> str:
    """Files there that could be meant."""
    if file is None:
        return ""
    path = spec.resolve(file)
    try:
        return did_you_mean_help(path.name, os.listdir(path.parent))
    except (OSError, ValueError):
        return ""


def _how_to_train(spec: Spec, model: Model) -> str:
    if model.source != "torch":
        return (
            "only networks of torch can be trained; `skip layers ... gate fitted` needs no training"
        )
    name = model.gates or f"{model.name}.gates.npz"
    described = spec.span.source.path if spec.span else "FILE.ee"
    command = f"`eecompile train {described} -o {spec.resolve(name)}` trains them"
    return command if model.gates else f'{command}; then add `gates "{name}"` to the model'


def require_gates(spec: Spec) -> None:
    """What a build calls: gates that need training are trained.

    Raises:
        CompileErrors: they are not, or their file is not there.
    """
    wrong = [error for model in spec.models for error in untrained_gates(spec, model, "error")]
    if wrong:
        raise CompileErrors(wrong)
