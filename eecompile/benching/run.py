"""`eecompile bench`: see what can be measured, measure it, model the rest, say which is which."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from eecompile.artifact import Artifact, read_artifact
from eecompile.artifact_writing import check_destination
from eecompile.benching.blocks import Settings
from eecompile.benching.clocks import Wanted, read_wanted, wanted_by_file
from eecompile.benching.comparing import compared
from eecompile.benching.device import Device
from eecompile.benching.exits import PolicyShares, policy_shares
from eecompile.benching.keeping import keep_costs
from eecompile.benching.measuring import Measurement, measured
from eecompile.benching.modelling import with_model
from eecompile.benching.planning import (
    Plan,
    board_for,
    is_board,
    local_device,
    plan_clocks,
    remote_device,
)
from eecompile.benching.report import Report, told_blocks
from eecompile.benching.tables import measured_table
from eecompile.board import Board, DvfsState
from eecompile.console import Steps
from eecompile.cost_table import CostTable
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.runtime.governor import ClockWarning, Governor, NoGovernor
from eecompile.runtime.sysfs import LocalFiles, SysFiles
from eecompile.runtime.sysfs_governor import open_governor
from eecompile.signatures import Trusted

__all__ = ["BenchOptions", "bench_artifact"]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What `bench` is asked for.

    Attributes:
        artifact: folder.
        frequencies: "all", "current" or a list; None: what the `.ee` file says, or current.
        board: whose clocks, voltages and powers are meant; None: what is measured.
        rpc: address of a board to measure; None: this machine.
        policy: whose shares are told; None: the default one.
        data: inputs; None: the artifact's test vectors.
        threads: None: as many as the artifact's.
        update: whether the artifact keeps the costs.
        settings: how long to measure.
        trusted: public keys, one of which must have signed the artifact; None: anybody may have.
    """

    artifact: Path
    frequencies: str | None = None
    board: str | None = None
    rpc: str | None = None
    policy: str | None = None
    data: str | None = None
    threads: int | None = None
    update: bool = False
    settings: Settings = field(default_factory=Settings)
    trusted: Trusted | None = None


def bench_artifact(options: BenchOptions, steps: Steps, files: SysFiles | None = None) -> Report:
    """Measure an artifact at every clock asked for that can be reached, and model the others.

    Args:
        options: what is asked for.
        steps: told of progress.
        files: of this machine's kernel.

    Raises:
        CompileErrors: the artifact, the board, the clocks or the policy are not what they must be.
        ToolError: the board at the other end of a wire does not answer.
    """
    if options.update:
        check_destination(options.artifact)
    wanted = None if options.frequencies is None else read_wanted(options.frequencies)
    notes: list[str] = []
    with ExitStack() as stack:
        with steps.step("see what can be measured"), _clock_warnings(notes):
            elsewhere = options.rpc is not None or options.board not in (None, "host")
            artifact = _read(options.artifact, elsewhere, options.trusted)
            policy = policy_shares(artifact, options.policy)
            device, board = _device(artifact, options, stack, files or LocalFiles())
            if options.update and device is None:
                message = f"`--update` keeps measurements, and `{board.name}` is not measured"
                help_ = "run it on that board, or reach it with `--rpc`"
                raise CompileErrors([Diagnostic("bad-argument", message, help=help_)])
            # Unless the file or the user names clocks, none is set.
            usual: Wanted = "all" if device is None else "current"
            wanted = wanted or wanted_by_file(artifact) or usual
            governor: Governor = NoGovernor()
            if device is not None and wanted != "current":
                governor = stack.enter_context(open_governor(board.clusters, device.files))
            plan = plan_clocks(board, governor, wanted, measures=device is not None)
            if device is None:
                notes += _elsewhere(artifact, board)
            if wanted != "current":
                notes += getattr(governor, "notes", [])
        taken = Measurement()
        if device is not None:
            count = len(plan.measured) or 1
            name = f"measure {count} clock{'s' * (count > 1)}"
            with steps.step(name) as progress, _clock_warnings(notes):
                taken = measured(device, governor, plan, options.settings, progress)
    notes += [*taken.notes, *told_blocks(taken.found)]
    if options.update and artifact.signature is not None:
        notes.append("its signature is of the costs it had: sign it again, with `eecompile sign`")
    with steps.step("model what was not measured"):
        report = _report(artifact, device, plan, taken, policy, notes, options.threads)
    if options.update:
        with steps.step(f"write {artifact.path}"):
            keep_costs(artifact, report.whole)
    return report


def _read(path: Path, elsewhere: bool, trusted: Trusted | None) -> Artifact:
    """The artifact, which has to run here unless another machine is meant."""
    try:
        return read_artifact(path, must_run=not elsewhere, trusted=trusted)
    except CompileErrors as errors:
        if any(found.id != "wrong-machine" for found in errors.diagnostics):
            raise
        name = read_artifact(path, must_run=False).manifest.target.name
        if name == "host":
            raise
        help_ = f"give `--board {name}` to have its costs modelled, or `--rpc` to measure it there"
        raise CompileErrors([replace(found, help=help_) for found in errors.diagnostics]) from None


def _device(
    artifact: Artifact, options: BenchOptions, stack: ExitStack, files: SysFiles
) -> tuple[Device | None, Board]:
    """What is measured, and whose clocks are meant; no device where that board is not here."""
    if options.rpc is not None:
        if options.data is not None:
            message = "A board over a wire runs the artifact's test vectors, `--data` is not sent"
            raise CompileErrors([Diagnostic("bad-argument", message, help="leave it out")])
        device = remote_device(artifact, options.rpc, options.threads, stack)
        return device, board_for(options.board, artifact, device.files)
    board = board_for(options.board, artifact, files)
    if board.name != "host" and not is_board(board, files):
        return None, board
    local = local_device(artifact, options.data, options.threads, files)
    return stack.enter_context(local), board


def _report(
    artifact: Artifact,
    device: Device | None,
    plan: Plan,
    taken: Measurement,
    policy: PolicyShares | None,
    notes: list[str],
    threads: int | None,
) -> Report:
    """Measured rows, modelled ones beside them, and what the artifact had before."""
    target, network = artifact.manifest.target, artifact.manifest.network
    threads = (threads or target.cores) if device is None else device.threads
    found: CostTable | None = None
    if device is not None:
        found = measured_table(
            target.name,
            plan.board,
            device.name,
            threads,
            network,
            taken.found,
            taken.governor,
            taken.energy_covers,
        )
    whole, error = with_model(network, plan.board, threads, target.name, found)
    whole = replace(whole, notes=tuple(dict.fromkeys((*notes, *whole.notes))))
    reached = [at.state for at in taken.found if at.blocks]

    def only(wanted: Sequence[DvfsState]) -> CostTable:
        places = [i for i, state in enumerate(whole.states) if state in (*wanted, *reached)]
        return whole.restricted(places)

    return Report(
        artifact,
        only(plan.shown),
        only(plan.kept),
        taken.found,
        policy,
        taken.conditions,
        error,
        None if found is None else compared(found, artifact.costs),
    )


def _elsewhere(artifact: Artifact, board: Board) -> list[str]:
    """What is to be said where the board is not at hand."""
    found = [f"this machine is no `{board.name}`: every cost is modelled"]
    target = artifact.manifest.target
    if board.machine.arch != target.architecture:
        found.append(
            f"the artifact was built for {target.architecture}: kernels built for `{board.name}` "
            "are scheduled otherwise"
        )
    return found


@contextmanager
def _clock_warnings(notes: list[str]) -> Iterator[None]:
    """Warnings about clocks become notes; other warnings stay what they are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, ClockWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif str(warning.message) not in notes:
            notes.append(str(warning.message))
