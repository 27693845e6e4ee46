"""From a `.ee` file to its network: reading, opening, checking one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eecompile.boards.file import read_board
from eecompile.clocks.planning import allowed_states
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics, Span, missing_package
from eecompile.dsl.check import GraphFacts, can_open, check, unsupported
from eecompile.dsl.check_gates import check_exits_beside, with_known_gates
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse_file
from eecompile.exit_candidates import with_candidates
from eecompile.gates.plan import GatePlan
from eecompile.hardware import board_names, is_board_path, usable_cores
from eecompile.passes.base import Program
from eecompile.passes.host import HostError, HostGraph, Problem
from eecompile.passes.plan_gates import plan_gates
from eecompile.spec import Model, Output, Spec

__all__ = [
    "check_file",
    "load_spec",
    "open_host",
    "planned_gates",
    "source_errors",
    "with_classes",
]


def load_spec(path: Path, overrides: Sequence[str] = ()) -> tuple[Spec, Diagnostics]:
    """What a file means with its overrides, and what is wrong with it so far.

    Raises:
        CompileErrors: the file cannot be read or parsed, or an override names nothing in it.
    """
    spec, found = parse_file(path)
    return (apply_overrides(spec, list(overrides)) if overrides else spec), found


def check_file(
    path: Path, overrides: Sequence[str] = ()
) -> tuple[Spec, HostGraph | None, Diagnostics]:
    """A file checked as far as possible: names, files and units, then against the network.

    The host is None where the network could not be opened; why is among the diagnostics.

    Raises:
        CompileErrors: as `load_spec`.
    """
    spec, found = load_spec(path, overrides)
    names = board_names()
    host = None
    if can_open(spec, [*found, *check(spec, None, names, names)]):
        try:
            host = open_host(spec)
        except CompileErrors as errors:
            found.add(*errors.diagnostics)
    facts = None if host is None else GraphFacts.of(host.graph(), host.outputs(), host.points())
    found.add(*check(spec, facts, names, names, usable_cores()), *unsupported(spec))
    found.add(*_of_boards(spec))
    if host is not None and len(spec.models) == 1 and spec.model.skips:
        plan = plan_gates(with_known_gates(spec.model), host, found)
        check_exits_beside(spec.model, plan, host.graph(), host.points(), found)
    if host is not None and not any(d.severity == "error" for d in found):
        with_candidates(spec, host, found)
    return spec, host, found


def planned_gates(spec: Spec, host: HostGraph) -> GatePlan:
    """The gates of a file that was checked; none where it has none."""
    return plan_gates(spec.model, host, Diagnostics()) if spec.model.skips else GatePlan()


def _of_boards(spec: Spec) -> list[Diagnostic]:
    """What is wrong with clusters and clocks of the targets, and in board files of the user's."""
    found: list[Diagnostic] = []
    for target in spec.targets:
        name = target.board or target.name
        is_own = is_board_path(name)
        if not (spec.resolve(name).is_file() if is_own else name in board_names()):
            continue  # That is told already.
        try:
            allowed_states(read_board(name, Path(spec.folder), target.at("board")), target)
        except CompileErrors as errors:
            found += errors.diagnostics
    return found


def open_host(spec: Spec) -> HostGraph:
    """The file's network in its own host.

    Raises:
        CompileErrors: it cannot be read or translated; each reason, at the place that names it.
        ToolError: torch is needed and not installed.
    """
    try:
        host = _opened(spec)
        if not host.outputs() or not host.graph().inputs:
            lacking = "outputs" if host.graph().inputs else "inputs"
            raise HostError(Problem("unreadable-model", f"The network has no {lacking}"))
        passed_on = [name for name in host.graph().outputs if name in host.graph().inputs]
        if passed_on:
            named = f"The network's input `{passed_on[0]}` is an output as well"
            help_ = "leave that output out, or put an Identity node before it"
            raise HostError(Problem("unreadable-model", named, help=help_))
        return host
    except HostError as error:
        raise source_errors(error, spec.model) from error
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        raise missing from error


def _opened(spec: Spec) -> HostGraph:
    model = spec.model
    inputs = {written.name: written.type for written in model.inputs}
    if model.source == "onnx":
        from eecompile.passes.onnx_host import load_onnx

        return load_onnx(spec.resolve(model.path), inputs)
    from eecompile.passes.fx_host import load_torch

    entry = f"{spec.resolve(model.path)}:{model.entry}"
    weights = spec.resolve(model.weights) if model.weights else None
    return load_torch(entry, weights, inputs)


def with_classes(spec: Spec, host: HostGraph) -> Spec:
    """The spec with its number of classes, which exits need and a file may leave out.

    Raises:
        CompileErrors: there are exits, and the network's answer is no vector of scores.
    """
    model = spec.model
    if not model.exits and not model.skips:
        return spec
    name, value = next(iter(Program(host, model).network_outputs().items()))
    type_ = host.graph().types[value]
    output = model.output or Output(name)
    if type_.dtype != "float32" or len(type_.shape) != 2 or type_.shape[0] != 1:
        if not model.exits:
            return spec
        message = f"Expected float32[1, classes] as the output that exits answer for, found {type_}"
        place = output.at("name") or model.exits[0].span
        raise CompileErrors([Diagnostic("wrong-classes", message, place, f"`{name}` is meant")])
    known = replace(output, classes=output.classes or type_.shape[1])
    return replace(spec, models=(replace(model, output=known), *spec.models[1:]))


_OF_INPUTS = ("wrong-shape", "wrong-dtype", "unknown-input")


def _place(problem: Problem, model: Model) -> Span | None:
    """What of the file a host's problem is about."""
    if problem.kind == "unreadable-weights":
        return model.at("weights")
    if problem.kind in _OF_INPUTS and model.inputs:
        named = [given for given in model.inputs if f"`{given.name}`" in problem.message]
        return (named or model.inputs)[0].span
    return model.at("path")


def source_errors(error: HostError, model: Model) -> CompileErrors:
    """A host's problems as diagnostics that point at the line which names the network."""
    found = []
    for problem in error.problems:
        place = _place(problem, model)
        notes: tuple[str, ...] = ()
        if problem.node:
            operator = f", operator `{problem.operator}`" if problem.operator else ""
            notes = (f"node `{problem.node}`{operator}",)
        found.append(
            Diagnostic(problem.kind, problem.message, place, notes=notes, help=problem.help)
        )
    return CompileErrors(found)
