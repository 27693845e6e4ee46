"""What a build begins with: everything that can be said and refused before any data are run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eecompile.artifact_writing import check_destination
from eecompile.atomic import check_file, write_errors
from eecompile.board import Board, DvfsState
from eecompile.boards.file import read_board
from eecompile.build_options import BuildOptions
from eecompile.clocks.planning import allowed_states
from eecompile.compiled import CompiledGraph
from eecompile.cost_table import CostTable
from eecompile.datasets import Dataset
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics
from eecompile.dsl.check_gates import require_gates
from eecompile.exit_candidates import Placing, with_candidates
from eecompile.exit_placing import Aim
from eecompile.exit_table import exit_rows
from eecompile.gate_report import gating_json
from eecompile.gates import initial_parameters
from eecompile.gating import Gating, known_gates, open_gates
from eecompile.halt_rule import HaltRule
from eecompile.hardware import Machine, usable_cores
from eecompile.head_fitting import ExitPlan, plan_exits
from eecompile.loading import check_file as check_source
from eecompile.loading import source_errors, with_classes
from eecompile.passes.annotate_costs import AnnotateCosts
from eecompile.passes.base import Instrument, Pass, PassManager, Program
from eecompile.passes.host import HostError, HostGraph
from eecompile.passes.instruments import DumpText
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.recording import open_splits
from eecompile.segments import SegmentGraph
from eecompile.server_folder import check_server_folder, server_folder
from eecompile.spec import Budget, Model, Policy, Spec, Target
from eecompile.tuning_file import Tuning, read_tuning, tuning_path

__all__ = ["Prepared", "choose_board", "cut", "cut_file", "plan", "plan_heads", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A build whose file, network, target, destinations and data headers are in order.

    Attributes:
        spec: the file's meaning, overrides and number of classes included.
        host: the network in its own host.
        board: what to compile for, and what running there costs.
        states: the board's clocks that may be used.
        splits: the data by split; none for a network without exits or data.
        warnings: what is allowed and hardly meant.
        tuning: schedules of kernels that were measured.
        placing: which of the spec's exits are candidates that the compiler chooses from; None where
            all of them are written.
        gating: the network's gates; the host has the weights that were trained with them.
    """

    spec: Spec
    host: HostGraph
    board: Board
    states: tuple[DvfsState, ...]
    splits: dict[str, Dataset]
    tuning: Tuning
    warnings: tuple[Diagnostic, ...] = ()
    placing: Placing | None = None
    gating: Gating = field(default_factory=Gating)

    @property
    def machine(self) -> Machine:
        """What to compile for."""
        return self.board.machine


def prepare(path: Path, options: BuildOptions) -> Prepared:
    """All checks that need neither passes nor a run of the network.

    Raises:
        CompileErrors: something cannot be read, does not fit, or could not be written in the end.
        ToolError: the environment lacks what the network needs to be read.
    """
    check_destination(options.output_for(path))
    if options.emit is not None:
        check_file(options.emit)
    spec, host, warnings, placing = _checked_network(path, options.overrides)
    require_gates(spec)
    gating = open_gates(spec, host)
    if any(policy.offload for policy in spec.policies):
        check_server_folder(server_folder(options.output_for(path)))
    board, states = choose_board(spec, options.target)
    _check_budgets(spec, board)
    warnings += _few_cores(spec, board, options.target)
    if options.tune is not None:
        _check_measurable(board.machine, path)
    tuning = read_tuning(tuning_path(path))
    splits = open_splits(spec, host.graph())
    return Prepared(spec, host, board, states, splits, tuning, warnings, placing, gating)


def _check_measurable(machine: Machine, path: Path) -> None:
    """Refuses to measure another machine's kernels, and where the result cannot be written."""
    if not machine.is_native:
        raise CompileErrors(
            [
                Diagnostic(
                    "bad-argument",
                    f"`--tune` measures on the device, and this machine is no `{machine.name}`",
                    help=f"build with --tune there; {tuning_path(path).name} then serves here too",
                )
            ]
        )
    check_file(tuning_path(path))


def _checked_network(
    path: Path, overrides: Sequence[str]
) -> tuple[Spec, HostGraph, tuple[Diagnostic, ...], Placing | None]:
    """The file's meaning with all candidates for exits, its network, warnings, what to choose.

    Raises:
        CompileErrors: anything in the file is wrong.
    """
    spec, host, found = check_source(path, overrides)
    found.raise_errors()
    assert host is not None, "a host that cannot be opened is an error"
    expanded, placing = with_candidates(spec, host, Diagnostics())
    return with_classes(expanded, host), host, found.in_order(), placing


def _few_cores(spec: Spec, board: Board, target: str | None) -> tuple[Diagnostic, ...]:
    """Warns of cores that no cluster of the board has; `check` does for this machine."""
    entry = _target_of(spec, target)
    clusters = [c for c in board.clusters if entry and entry.cluster in (None, c.name)]
    there = max((len(c.cpus) for c in clusters), default=0)
    if board.name == "host" or entry is None or not 0 < there < (entry.cores or 1):
        return ()
    return (
        Diagnostic(
            "more-cores",
            f"No cluster of `{board.name}` has {entry.cores} cores: one answers",
            entry.at("cores"),
            f"modelled as {there} where there are {there}, as fewer elsewhere",
            help=f"write `cores {there}` or fewer",
            severity="warning",
        ),
    )


def _target_of(spec: Spec, target: str | None) -> Target | None:
    """What the file says of the target that is built for."""
    written = {entry.name: entry for entry in spec.targets}
    return written.get(target or next(iter(written), "host"))


def _check_budgets(spec: Spec, board: Board) -> None:
    """Refuses limits of what is neither measured here nor modelled from the board's file."""
    known = {"accuracy_drop", "macs"}
    if board.machine.is_native or board.clusters:
        known.add("latency")
    if any(c.core_power_w(state) is not None for c in board.clusters for state in c.states):
        known.add("energy")
    problems = Diagnostics()
    limits = [(policy, part) for policy in spec.policies for part in ("budget", "halt")]
    for policy, part in limits:
        limit: Budget | None = getattr(policy, part)
        if limit is None or limit.quantity in known:
            continue
        lacking = "clocks" if limit.quantity == "latency" else "power of its cores"
        others = "macs" if part == "halt" else "macs or of accuracy drop"
        problems.error(
            "unknown-costs",
            f"What {limit.quantity} an answer takes on `{board.name}` is not known",
            policy.at(part),
            f"neither measured here, nor does its board file tell the {lacking}",
            help=f"use a budget of {others}, or another board"
            " (`eecompile targets` lists what is known of each)",
        )
    problems.raise_errors()


def choose_board(spec: Spec, target: str | None) -> tuple[Board, tuple[DvfsState, ...]]:
    """What to build for: the command line's, else the file's, else this machine; and its clocks.

    The cores of its machine are those that work on an answer: as many as the file says, else one,
    and of this machine no more than there are.

    Raises:
        CompileErrors: there is no such target, its board's file is wrong, or it has no such cluster
            or clock.
    """
    entry = _target_of(spec, target)
    name = entry.name if entry else target or "host"
    wanted = (entry.board if entry else None) or name
    # Paths of the file start at its folder, those of the command line where it is given.
    folder, place = (Path(spec.folder), entry.at("board")) if entry else (Path(), None)
    board = read_board(wanted, folder, place)
    cores = (entry.cores if entry else None) or 1
    cores = min(cores, usable_cores()) if wanted == "host" else cores
    board = replace(board, machine=replace(board.machine, cores=cores))
    return board, allowed_states(board, entry)


def cut(
    host: HostGraph,
    model: Model,
    pipeline: tuple[Pass, ...],
    instruments: Sequence[Instrument] = (),
    dump: Path | None = None,
) -> SegmentGraph:
    """What a pipeline that ends with cutting gives; the host is edited.

    Args:
        host: the network.
        model: what the file says of it.
        pipeline: of `eecompile.passes.pipelines`.
        instruments: told of each pass.
        dump: folder for the IR after each pass.

    Raises:
        CompileErrors: a point or a head does not fit the network, or `dump` cannot be written.
    """
    dumps = [] if dump is None else [DumpText(dump)]
    try:
        with nullcontext() if dump is None else write_errors(dump):
            result = PassManager(pipeline, [*instruments, *dumps]).run(Program(host, model))
    except HostError as error:
        raise source_errors(error, model) from error
    assert result.graph.segments is not None, "the pipelines end with cutting"
    return result.graph.segments


def annotate(
    host: HostGraph,
    model: Model,
    segments: SegmentGraph,
    compiled: CompiledGraph,
    table: CostTable,
    instruments: Sequence[Instrument] = (),
    dump: Path | None = None,
) -> None:
    """Checks that every piece of a compiled network has its costs, and dumps it with them.

    Raises:
        CompileErrors: `dump` cannot be written.
        InvariantError: the table is not that of the network: a bug.
    """
    dumps = [] if dump is None else [DumpText(dump)]
    program = Program(host, model, segments=segments)
    with nullcontext() if dump is None else write_errors(dump):
        PassManager((AnnotateCosts(compiled, table),), [*instruments, *dumps]).run(program)


def plan_heads(prepared: Prepared, backbone: SegmentGraph) -> tuple[ExitPlan, ...]:
    """What is computed at each exit, and that it can be fitted where there are data to fit it.

    Raises:
        CompileErrors: a head cannot read the tensor at its exit, or a user's head is unreadable.
        ToolError: a head needs torch, which is not installed.
    """
    try:
        plans = plan_exits(prepared.spec, backbone)
    except HostError as error:
        raise source_errors(error, prepared.spec.model) from error
    for exit_ in plans if "fit" in prepared.splits else ():
        for planned in exit_.heads:
            if planned.head is not None:
                planned.head.check_environment()
    return plans


def cut_file(path: Path, overrides: Sequence[str] = ()) -> tuple[Spec, SegmentGraph, Gating]:
    """A file and its backbone, cut at its exits, candidates and gates, with no heads inserted.

    Gates that are not trained or fitted yet stand there with the parameters that training begins
    with; those of the gating returned are missing.

    Raises:
        CompileErrors: the file or the network are wrong.
    """
    spec, host, _, _ = _checked_network(path, overrides)
    gating = known_gates(spec, host)
    shown = gating
    if gating.unfitted:
        shown = Gating(gating.plan, initial_parameters(gating.plan, 0))
    return spec, cut(host, spec.model, backbone_pipeline(shown.placed)), gating


def plan(path: Path, options: BuildOptions) -> dict[str, Any]:
    """What `build` would do, after all its checks that need no data to be run: a JSON value.

    Raises:
        CompileErrors: as `build`, for the file, the network, the labels and what would be written.
        ToolError: as `build`, for what fitting the heads needs.
    """
    prepared = prepare(path, options)
    spec, model = prepared.spec, prepared.spec.model
    backbone = cut(prepared.host, model, backbone_pipeline())
    plan_heads(prepared, backbone)
    steps = _steps_for_gates(prepared)
    steps += [f"fit {exit_.head} at `{exit_.name}`" for exit_ in model.exits]
    if prepared.placing is not None:
        placing = prepared.placing
        steps.append(f"choose {placing.count} of {len(placing.names)} exits by {Aim.of(spec)}")
    for split, data in prepared.splits.items():
        steps.append(f"run the {split} data {data.source.path} through it once")
    if options.tune is not None:
        steps.append(f"measure kernels for {options.tune:g} s, for {tuning_path(path)}")
    steps += [_step_for(policy) for policy in spec.policies]
    gates = gating_json(prepared.gating)
    return {
        "artifact": str(options.output_for(path)),
        "target": prepared.machine.name,
        "triple": prepared.machine.triple,
        "exits": exit_rows(backbone, {e.name: str(e.head) for e in model.exits}),
        "placing": prepared.placing and prepared.placing.to_json(),
        "gates": gates,
        "steps": steps,
    }


def _steps_for_gates(prepared: Prepared) -> list[str]:
    """Where the gates' parameters come from."""
    gates, unfitted = prepared.gating.plan.gates, prepared.gating.unfitted
    read, found = len(gates) - len(unfitted), []
    if read:
        what = "gate" if read == 1 else "gates"
        tuned = ", and weights trained with them," if prepared.gating.tuned else ""
        found.append(f"read {read} {what}{tuned} from {prepared.spec.model.gates}")
    if unfitted:
        what = "gate" if len(unfitted) == 1 else "gates"
        found.append(f"fit {len(unfitted)} {what} on the calibration data")
    return found


def _step_for(policy: Policy) -> str:
    """What is done for a policy.

    >>> _step_for(Policy("trained")), _step_for(Policy("hard", halt=Budget("macs", 0.5)))
    ('take the gates as they are for policy `trained`', 'halt policy `hard` at macs <= 50 %')
    >>> _step_for(Policy("gated", budget=Budget("macs", 0.75)))
    "fit the gates' shift of policy `gated` to mean macs <= 75 %"
    """
    if policy.rule is not None or policy.split is not None:
        return f"fit policy `{policy.name}` to {policy.budget or 'its default'}"
    if policy.halt is not None:
        limit = HaltRule(**{policy.halt.quantity: policy.halt.limit})
        return f"halt policy `{policy.name}` at {limit}"
    if policy.budget is None:
        return f"take the gates as they are for policy `{policy.name}`"
    return f"fit the gates' shift of policy `{policy.name}` to {policy.budget}"
